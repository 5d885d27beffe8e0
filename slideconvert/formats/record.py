"""config.json: the part stock loaders read (quantization_config) and our own record (slidesparse_config).

The record stands at the root of config.json, where transformers keeps it when it saves a model again; inside
quantization_config it would be dropped. It says per linear what was done, where the weights came from, and the
sha256 of every file, so a checkpoint explains and checks itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..checkpoint.reader import Checkpoint
from ..core.patterns import Pattern, parse_pattern
from ..core.schemes import Scheme, read_scheme
from ..core.ternary import FLOATS, LATENT, PACKED, PACKED_INVERSE
from ..errors import InputError
from ..runtime.slidesparse_record import AUTO_MAP, FORMAT_VERSION, RECORD
from .stored import Declared, StoredLinear, describe, format_of, layout_of


@dataclass(frozen=True)
class LinearRecord:
    """What was done to one linear. method is "" when nothing was pruned; on_codes: pruned after quantization; moved:
    by how many conversions, one after another, survivors were moved and not only rounded (calibration, training);
    permuted: rows or columns stand in another order than in the source."""

    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern
    method: str = ""
    on_codes: bool = False
    moved: int = 0
    permuted: bool = False

    def to_json(self, layout: str) -> dict[str, Any]:
        slid = layout_of(layout, self.scheme, self.pattern) == "slide"
        return {
            "shape": list(self.shape),
            "scheme": self.scheme.name,
            **self.scheme.describe(),
            "pattern": str(self.pattern),
            **self.pattern.record_fields(self.shape, slid=slid),
            **({"method": self.method} if self.method else {}),
            **({"pruned_on": "codes"} if self.on_codes else {}),
            **({"moved": self.moved} if self.moved else {}),
            **({"permuted": True} if self.permuted else {}),
            **({"ternary": True} if self.scheme.ternary else {}),
        }


@dataclass(frozen=True)
class Record:
    """The whole slidesparse_config. linears: by module name, without those that were kept.

    source: id and revision of the BF16 model everything comes from. recipe: the words of the recipe.
    files: sha256 by file name. kernels: sha256 of the bundled code by path. Both are empty where transformers has
    saved the model again.
    """

    layout: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    linears: dict[str, LinearRecord]
    files: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "tool": f"slideconvert {__version__}",
            "layout": self.layout,
            "source": self.source,
            "recipe": self.recipe,
            "layers": {name: linear.to_json(self.layout) for name, linear in self.linears.items()},
            "files": self.files,
            "kernels": self.kernels,
        }


def read_record(config: dict[str, Any], where: str) -> Record | None:
    """The record of a config.json, None if there is none. InputError if it is newer than we are, or broken."""
    raw = config.get(RECORD)
    if raw is None:
        return None
    try:
        version = int(raw["format_version"])
        if version > FORMAT_VERSION:
            raise InputError(
                f"{where}: format version {version}, this slideconvert {__version__} reads up to {FORMAT_VERSION}",
                hint="upgrade slideconvert",
            )
        linears = {name: _read_linear(entry) for name, entry in raw["layers"].items()}
        return Record(
            raw["layout"], raw["source"], raw["recipe"], linears, raw.get("files", {}), raw.get("kernels", {})
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: unreadable {RECORD} ({error!r})", hint="convert the model again") from error


def describe_linear(checkpoint: Checkpoint, record: Record | None, name: str) -> StoredLinear:
    """How a linear is stored, with the pattern and shape that the checkpoint's record declares, if it has one."""
    entry = record.linears.get(name) if record else None
    if entry:
        declared = Declared(entry.shape, entry.scheme, entry.pattern)
        return describe(checkpoint, name, declared, ternary=FLOATS if entry.scheme.ternary else None)
    return describe(checkpoint, name, None, ternary=None if record else bitnet_coding(checkpoint.config))


def bitnet_coding(config: dict[str, Any]) -> str | None:
    """How BitNet's own checkpoints code their weights; None for other models, and where others have quantized them."""
    if config.get("model_type") != "bitnet":
        return None
    quantization = config.get("quantization_config")
    if quantization is None:
        return LATENT
    if quantization.get("quant_method") != "bitnet":
        return None
    # The defaults are transformers' own.
    if quantization.get("linear_class", "bitlinear") != "autobitlinear":
        return PACKED_INVERSE
    return LATENT if quantization.get("quantization_mode", "offline") == "online" else PACKED


def _read_linear(entry: dict[str, Any]) -> LinearRecord:
    rows, columns = entry["shape"]
    return LinearRecord(
        shape=(int(rows), int(columns)),
        scheme=read_scheme(entry["scheme"], entry),
        pattern=parse_pattern(entry["pattern"]),
        method=entry.get("method", ""),
        on_codes=entry.get("pruned_on") == "codes",
        moved=int(entry.get("moved", 0)),
        permuted=bool(entry.get("permuted", False)),
    )


def check_quantization(config: dict[str, Any], where: str) -> None:
    """Raise InputError unless the checkpoint is unquantized, as BitNet's own are, or symmetric W8A8 compressed-tensors
    as we write it."""
    bits = config.get("weight_bits")
    if isinstance(bits, int) and bits < 8:  # BitNets before the architecture had a name: llama by their word
        raise InputError(
            f"{where}: weight_bits {bits}: these weights are rounded whenever the model runs, which its model_type "
            f"'{config.get('model_type')}' does not tell",
            hint="of models trained with few bits only model_type bitnet can be taken",
        )
    quantization = config.get("quantization_config")
    if quantization is None or RECORD in config:  # what of ours is broken, the record tells better
        return
    method = quantization.get("quant_method")
    if method == "bitnet" and config.get("model_type") == "bitnet":
        left_out = [name for name in quantization.get("modules_to_not_convert") or [] if name != "lm_head"]
        if left_out or quantization.get("use_rms_norm"):
            odd = f"leaves out {', '.join(left_out)}" if left_out else "has a norm before every linear (use_rms_norm)"
            raise InputError(
                f"{where}: quantized by 'bitnet', but it {odd}",
                hint="only models whose decoder linears are all ternary, as BitNet b1.58 2B4T, can be taken",
            )
        return
    if method != "compressed-tensors":
        raise InputError(
            f"{where}: quantized by '{method}', only compressed-tensors W8A8 can be taken",
            hint="start from the BF16 model",
        )
    for name, group in (quantization.get("config_groups") or {}).items():
        weights, activations = group.get("weights") or {}, group.get("input_activations") or {}
        wanted = {"num_bits": 8, "symmetric": True}
        found = [
            f"{part} {key} {args.get(key)}"
            for part, args, own in (
                ("weights", weights, {"strategy": "channel"}),
                ("activations", activations, {"strategy": "token", "dynamic": True}),
            )
            for key, value in {**wanted, **own}.items()
            if args.get(key) != value
        ]
        if found:
            raise InputError(
                f"{where}: quantization group {name} has {', '.join(found)}; symmetric 8-bit weights per channel and "
                "dynamic activations per token can be taken",
                hint="start from the BF16 model",
            )


def quantization_config(linears: dict[str, LinearRecord], untouched: list[str], layout: str) -> dict[str, Any] | None:
    """The compressed-tensors quantization_config, None if no linear is quantized.

    untouched: linears that stay unquantized. One scheme for all linears gives the minimal form, targets
    ["Linear"]; several schemes name their linears one by one.
    """
    kinds: dict[tuple[Scheme, str], list[str]] = {}
    for name, linear in linears.items():
        if linear.scheme.quantized:
            storage = format_of(layout, linear.scheme, linear.pattern)
            kinds.setdefault((linear.scheme.unconstrained, storage), []).append(name)
    if not kinds:
        return None
    groups, ignore = {}, ["lm_head", *untouched]
    ignore += [name for name, linear in linears.items() if not linear.scheme.quantized]
    ordered = sorted(kinds.items(), key=lambda kind: (kind[0][0].name, kind[0][0].group, kind[0][1]))
    for number, ((scheme, storage), members) in enumerate(ordered):
        targets = ["Linear"] if len(kinds) == 1 else members
        groups[f"group_{number}"] = scheme.config_group(targets, storage)
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    }


def output_config(source: dict[str, Any], record: Record, untouched: list[str]) -> dict[str, Any]:
    """The config.json of the output: the source's, with its quantization, record and code replaced."""
    config = {key: value for key, value in source.items() if key not in ("quantization_config", "auto_map", RECORD)}
    quantization = quantization_config(record.linears, untouched, record.layout)
    if quantization:
        config["quantization_config"] = quantization
    if record.kernels:
        config["auto_map"] = AUTO_MAP
    return {**config, RECORD: record.to_json()}
