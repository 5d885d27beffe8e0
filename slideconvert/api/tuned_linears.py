"""Which linears to tune: those of a checkpoint or of a model, as the program computes them that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..core.choices import HOSTS
from ..core.patterns import parse_pattern
from ..errors import InputError, pick
from ..formats.record import describe_linear, read_record
from ..kernels.slide_spec import CODES, SlideSpec
from ..models.families import decoder_linears
from .options import TuneOptions

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linears that vLLM computes as one."""
BY_COLUMNS = ("o_proj", "down_proj")
"""Linears of which a tensor-parallel rank holds some columns; of all others it holds some rows."""
PATTERNS, SCHEMES = "2:4,2:6,2:8,2:10", "int8,fp8"
MODELS = {
    # hidden size, rows of q_proj, rows of k_proj and of v_proj, intermediate size
    "Llama-3.2-1B": (2048, 2048, 512, 8192),
    "Llama-3.2-3B": (3072, 3072, 1024, 8192),
    "Llama-2-7B": (4096, 4096, 4096, 11008),
    "Llama-2-13B": (5120, 5120, 5120, 13824),
    "Qwen2.5-7B": (3584, 3584, 512, 18944),
    "Qwen2.5-14B": (5120, 5120, 1024, 13824),
    "BitNet-2B": (2560, 2560, 640, 6912),
}
Linears = dict[SlideSpec, list[str]]
"""The linears to tune, each with the names under which a layer has it."""


def linears_of(ckpt: Path | None, options: TuneOptions) -> Linears:
    """The linears of a checkpoint, or those that the options name, as the host computes them. InputError if they
    contradict each other or name none."""
    fused = pick(options.host or HOSTS[0], HOSTS, "host") == "vllm"
    if options.ranks is not None and not fused:
        raise InputError("--ranks has no effect: only vLLM divides linears", hint="omit it, or give --host vllm")
    if ckpt is None:
        return _of_options(options, fused=fused)
    for one in options.given():
        if one.name in ("model", "shape", "pattern", "scheme"):
            raise InputError(f"{one.flag} has no effect: the checkpoint says which linears it has", hint="omit it")
    return of_checkpoint(Checkpoint.open(ckpt), options.ranks or 1, fused=fused)


def _of_options(options: TuneOptions, *, fused: bool) -> Linears:
    if (options.model is None) == (options.shape is None):
        raise InputError("which linears to tune?", hint="name a checkpoint CKPT, a --model or a --shape NxK")
    if options.model is not None:
        shapes = of_model(options.model, options.ranks or 1, fused=fused)
    else:
        assert options.shape is not None
        shapes = {_shape(word): [word] for word in options.shape.split(",")}
    found: Linears = {}
    for scheme in (options.scheme or SCHEMES).split(","):
        codes = CODES[pick(scheme.strip(), tuple(CODES), "scheme")]
        for pattern in (options.pattern or PATTERNS).split(","):
            length: Any = getattr(parse_pattern(pattern.strip()), "length", 0)
            if length == 0:
                raise InputError(f"--pattern {pattern}: only 2:L patterns are tuned", hint="omit it")
            for (rows, columns), names in shapes.items():
                found[SlideSpec(rows, columns, length, codes)] = names
    return found


def _shape(word: str) -> tuple[int, int]:
    rows, _, columns = word.strip().lower().partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise InputError(f"--shape {word} is no shape", hint="write rows and columns: --shape 4608x3584")
    return int(rows), int(columns)


def of_model(model: str, ranks: int, *, fused: bool) -> dict[tuple[int, int], list[str]]:
    """Shapes N, K of the linears of a layer of a known model, each with its names. InputError if it is unknown."""
    hidden, q, kv, inner = MODELS[pick(model, tuple(MODELS), "model")]
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": hidden, "gate_proj": inner, "up_proj": inner}
    shapes = {kind: (count, q if kind == "o_proj" else hidden) for kind, count in rows.items()}
    shapes["down_proj"] = (hidden, inner)
    found: dict[tuple[int, int], list[str]] = {}
    for name, shape in (_fuse(shapes, ranks) if fused else shapes).items():
        found.setdefault(shape, []).append(name)
    return found


def _fuse(shapes: dict[str, tuple[int, int]], ranks: int) -> dict[str, tuple[int, int]]:
    """What one tensor-parallel rank computes at once, of the linears of a layer."""
    found, rest = {}, dict(shapes)
    for name, kinds in FUSED.items():
        parts = [rest.pop(kind) for kind in kinds if kind in rest]
        if parts:
            found[name] = (sum(rows for rows, _ in parts), parts[0][1])
    found |= rest
    return {
        name: (rows, columns // ranks) if name in BY_COLUMNS else (rows // ranks, columns)
        for name, (rows, columns) in found.items()
    }


def layer_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """N and K of the linears of the first layer of any checkpoint, of ours or not, fused as vLLM does."""
    shapes = {}
    for linear in decoder_linears(checkpoint.config):
        if linear.layer:
            continue
        weight = f"{linear.name}.weight"
        if weight in checkpoint.tensors:
            rows, columns = checkpoint.spec(weight).shape
        else:
            record = read_record(checkpoint.config, str(checkpoint.path))
            spec: Any = describe_linear(checkpoint, record, linear.name).linear_spec
            rows, columns = spec.rows, spec.columns
        shapes[linear.kind] = (rows, columns)
    return _fuse(shapes, 1)


def of_checkpoint(checkpoint: Checkpoint, ranks: int, *, fused: bool) -> Linears:
    """Its quantized linears with a 2:L pattern: of others there is nothing to choose. InputError if it has none."""
    record = read_record(checkpoint.config, str(checkpoint.path))
    layers: dict[str, dict[str, SlideSpec]] = {}
    for linear in decoder_linears(checkpoint.config):
        spec = describe_linear(checkpoint, record, linear.name).linear_spec
        if isinstance(spec, SlideSpec):
            layers.setdefault(linear.name.rpartition(".")[0].rpartition(".")[0], {})[linear.kind] = spec
    found: Linears = {}
    for specs in layers.values():
        shapes = {kind: (spec.rows, spec.columns) for kind, spec in specs.items()}
        of = {kind: kind for kind in specs}
        of |= {name: kind for name, kinds in FUSED.items() for kind in kinds if kind in specs}
        for name, (rows, columns) in (_fuse(shapes, ranks) if fused else shapes).items():
            names = found.setdefault(specs[of[name]].resized(rows, columns), [])
            if name not in names:
                names.append(name)
    if not found:
        raise InputError(f"{checkpoint.path}: no quantized linear with a 2:L pattern", hint="there is nothing to tune")
    return found
