"""The benchmark of servers: which checkpoints, under which loads."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..bench.case import DENSE
from ..bench.machine import machine_of
from ..bench.page import write_page
from ..bench.png import png_package
from ..bench.results import SERVE, open_results
from ..bench.serving.checkpoints import GROUPED, QUANTIZE, Checkpoints, Convert, Served, random_served
from ..bench.serving.presets import PRESETS
from ..bench.serving.serve import ENGINE, Load, Starts, serve
from ..bench.summary import write_summary
from ..bench.tables import tables
from ..checkpoint.reader import Checkpoint
from ..core.choices import SHAPED
from ..core.patterns import parse_pattern
from ..errors import InputError, pick
from ..models.shapes import SHAPES
from ..progress import Progress, silent
from .bench import Benched, numbers, words
from .convert import convert, quantize
from .options import ConvertOptions, QuantizeOptions, ServeBenchOptions
from .settings import choose_device

PRECISIONS = ("int8", "fp8", "bf16", *GROUPED)
DEFAULT_PRECISIONS, DEFAULT_PATTERNS = ("bf16", "int8", "fp8"), ("2:4", "2:6", "2:8", "1x16:50%")
BATCHES, PREFILL = (1, 4, 16, 64), ("8x1024", "32x1024")
QUICK_PRECISION, QUICK_PATTERN, QUICK_BATCHES, QUICK_PREFILL = "int8", "2:4", (1, 16), ("4x512",)
QUICK_TOGETHER = 2
"""Engines that start side by side with --quick: a start takes longer than all measurements."""
OWN = "as stored"
"""The precision of the user's checkpoints: they are compared with the first of them, whatever they hold."""
ONLY_RANDOM = ("model", "layers", "scheme", "pattern")


def bench_serve(
    ckpts: Sequence[Path] = (), options: ServeBenchOptions | None = None, progress: Progress = silent,
    engine: Path = ENGINE,
) -> Benched:  # fmt: skip
    """Serve checkpoints in vLLM, the first as the baseline; or random ones with the shapes of a model, against stock
    vLLM. engine: the script that measures one. InputError for unknown words, and where vLLM is missing."""
    options = with_preset(options or ServeBenchOptions(), own=bool(ckpts))
    if options.png:
        png_package()  # what is missing is found before the work
    device, out = choose_device(options.device), options.out or Path("bench-serve")
    served, load = list(_served(ckpts, options)), load_of(options)
    if engine == ENGINE and importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed here", hint="pip install vllm, in the environment of slideconvert")
    model = pick(options.model or SHAPED[0], SHAPED, "model")
    layers = options.layers or SHAPES[model]["num_hidden_layers"]
    for one in served:
        _check_positions(one, load)
    results = open_results(out, SERVE, {**machine_of(torch.device(device)), "layers": layers, **_settings(load)})
    results.save()
    checkpoints = Checkpoints(options.work or out / "work", model, layers, device, _converting(device))
    together = options.together or (QUICK_TOGETHER if options.quick else Starts.together)
    starts = Starts(together, options.limit or Starts.limit, engine)
    seconds = math.inf if options.budget is None else options.budget
    outcome = serve(served, checkpoints, load, starts, results, progress, seconds)
    found = tables(results.rows.values())
    write_page(results, found, png=options.png)
    write_summary(results, found)
    return Benched(results, found, outcome)


def _converting(device: str) -> Convert:
    """Conversions on a device, not read back: speed does not depend on the weights."""

    def run(job: str, source: Path, out: Path, words: Mapping[str, object]) -> None:
        chosen: Any = {**words, "device": device, "verify": False}
        if job == QUANTIZE:
            quantize(source, out, QuantizeOptions(**chosen))
        else:
            convert(source, out, ConvertOptions(**chosen))

    return run


def with_preset(options: ServeBenchOptions, *, own: bool) -> ServeBenchOptions:
    """The options, and those that the preset says where they say nothing. own: the checkpoints are the user's, which
    have settings of their own. InputError for an unknown preset."""
    if options.preset is None:
        return options
    preset = PRESETS[pick(options.preset, PRESETS, "preset")]
    preset = preset.quick() if options.quick else preset
    chosen: dict[str, Any] = {"prompt": preset.prompt, "lengths": ",".join(map(str, preset.lengths))}
    if not own:
        settings = {"scheme": preset.precisions, "pattern": preset.patterns}
        chosen |= {"model": preset.model, **{name: ",".join(some) for name, some in settings.items()}}
    return replace(options, **{name: value for name, value in chosen.items() if getattr(options, name) is None})


def load_of(options: ServeBenchOptions) -> Load:
    """What is asked of each checkpoint. InputError for unknown words."""
    quick = options.quick
    lengths = numbers(options.lengths, "lengths")
    prefill = words(options.prefill) or (() if lengths else QUICK_PREFILL if quick else PREFILL)
    if wrong := [shape for shape in prefill if not re.fullmatch("[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", shape)]:
        raise InputError(f"--prefill {wrong[0]} is no number of prompts and their tokens", hint="--prefill 8x1024")
    batches = numbers(options.batch, "batch") or (() if lengths else QUICK_BATCHES if quick else BATCHES)
    rates = tuple(map(float, numbers(options.rate, "rate")))
    mixed = numbers(options.mixed, "mixed")
    prompt, output = options.prompt or Load.prompt, options.output or Load.output
    return Load(batches, prefill, mixed, rates, lengths, prompt, output, graphs=numbers(options.graphs, "graphs"))


def _check_positions(served: Served, load: Load) -> None:
    """InputError if a sequence would be longer than the model takes."""
    config = SHAPES[served.model] if served.path is None else Checkpoint.open(served.path).config
    most = config.get("max_position_embeddings")
    if isinstance(most, int) and load.longest > most:
        raise InputError(
            f"{served.checkpoint} takes {most:,} tokens, this load has {load.longest:,} in a sequence",
            hint="shorter --prefill, --prompt and --output; --mixed and --rate have up to 1,152",
        )


def _settings(load: Load) -> dict[str, Any]:
    """What tells results of other loads apart, beside their cases."""
    graphs = {"graphs": list(load.graphs)} if load.graphs else {}
    return {"prompt": load.prompt, "output": load.output, "repeats": load.repeats, **graphs}


def _served(ckpts: Sequence[Path], options: ServeBenchOptions) -> Iterator[Served]:
    memories = [_share(word) for word in words(options.memory) or ("0",)]
    if ckpts:
        for one in options.given():
            if one.name in ONLY_RANDOM:
                raise InputError(f"{one.flag} has no effect: the checkpoints are given", hint="omit it")
        yield from _own(ckpts, memories, unfused=options.unfused)
        return
    quick = options.quick
    precisions = words(options.scheme) or ((QUICK_PRECISION,) if quick else DEFAULT_PRECISIONS)
    patterns = words(options.pattern) or ((QUICK_PATTERN,) if quick else DEFAULT_PATTERNS)
    known = [pick(name, PRECISIONS, "scheme") for name in precisions]
    model = pick(options.model or SHAPED[0], SHAPED, "model")
    yield from random_served(
        model, known, [str(parse_pattern(word)) for word in patterns], memories, unfused=options.unfused
    )


def _own(ckpts: Sequence[Path], memories: Sequence[float], *, unfused: bool) -> Iterator[Served]:
    """The user's checkpoints: those of ours with every setting, others by stock vLLM; the first with the first."""
    names = [path.resolve().name for path in ckpts]
    if len(set(names)) < len(names):
        raise InputError(f"two of {', '.join(names)} have one name", hint="rename a folder: results go by names")
    for number, (path, name) in enumerate(zip(ckpts, names, strict=True)):
        ours = "slidesparse_config" in Checkpoint.open(path).config
        settings: list[tuple[float | None, bool]] = [(None, True)]
        if ours:
            settings = [(memory, fuse) for memory in memories for fuse in ((True, False) if unfused else (True,))]
        for memory, fuse in settings[: None if number else 1]:
            yield Served(names[0], name, OWN, name if number else DENSE, path=path.resolve(), memory=memory, fuse=fuse)


def _share(word: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", word):
        raise InputError(f"--memory {word} is no share", hint="--memory 0,1")
    return float(word)
