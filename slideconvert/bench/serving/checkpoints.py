"""The checkpoints that are served: random ones with the shapes of a model, converted; or those of the user."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ... import __version__
from ...core.patterns import GroupPattern, parse_pattern
from ..case import DENSE
from . import random_model
from .rows import ServeCase

GROUPED = ("w4a16", "w8a16")
"""Precisions of weights alone, which patterns of groups prune."""
CONVERT, QUANTIZE = "convert", "quantize"
Convert = Callable[[str, Path, Path, Mapping[str, object]], None]
"""Runs the job of this name from a source to a folder, with these options."""
LEAST_CACHE = 2**28
"""Bytes of the cache of keys and values, at least."""


@dataclass(frozen=True)
class Served:
    """A checkpoint as it is served.

    model: the name of its shapes, or of the user's first checkpoint. checkpoint: the name of its folder. job: what
    converts the random source to it, and words its options; "" for the source itself. path: of the user's own. memory:
    what a second prepared weight may take (the setting of that name); None for stock vLLM, without our plugin. fuse:
    norms and gates with the quantization behind them, as by default.
    """

    model: str
    checkpoint: str
    precision: str
    pattern: str
    job: str = ""
    words: tuple[tuple[str, object], ...] = ()
    path: Path | None = None
    memory: float | None = None
    fuse: bool = True
    halved: bool = False

    @property
    def setting(self) -> str:
        words = [f"memory {self.memory:g}"] if self.memory else []
        return ", ".join(words + ([] if self.fuse else ["unfused"]))

    @property
    def slug(self) -> str:
        """Names its files."""
        return re.sub("[^A-Za-z0-9.]+", "-", f"{self.checkpoint} {self.setting}").strip("-")

    @property
    def version(self) -> str:
        return __version__

    @property
    def environment(self) -> dict[str, str]:
        if self.memory is None:
            return {"VLLM_PLUGINS": "none"}
        return {"SLIDESPARSE_MEMORY": str(self.memory), "SLIDESPARSE_FUSE": str(self.fuse).lower()}

    def case(self, what: str, size: float, shape: str) -> ServeCase:
        """This checkpoint under a load."""
        return ServeCase(self.model, self.checkpoint, self.precision, self.pattern, self.setting, what, size, shape)


def random_served(
    model: str, precisions: Sequence[str], patterns: Sequence[str], memories: Sequence[float], *, unfused: bool
) -> Iterator[Served]:
    """Stock vLLM and ours, of random weights: those of one checkpoint follow each other."""
    for precision in precisions:
        if precision == "bf16":
            yield Served(model, "bf16", precision, DENSE)
        elif precision in GROUPED:
            marlin = {"scheme": precision, "group_size": 128, "symmetric": True}
            yield Served(model, f"{precision} Marlin", precision, DENSE, QUANTIZE, tuple(marlin.items()))
            for pattern in patterns:
                if isinstance(parse_pattern(pattern), GroupPattern):
                    words = _words(precision, pattern, method="rtn", block_epochs=0, end_epochs=0)
                    name = f"{precision} {pattern}"
                    yield Served(model, name, precision, pattern, CONVERT, words, memory=0.0, halved=True)
        else:
            words = _words(precision, "2:8", method="magnitude", layout="dense")
            yield Served(model, f"{precision} dense", precision, DENSE, CONVERT, words)
            for pattern in patterns:
                if isinstance(parse_pattern(pattern), GroupPattern):
                    continue
                for memory in memories:
                    for fuse in (True, False) if unfused else (True,):
                        name, words = f"{precision} {pattern}", _words(precision, pattern, method="magnitude")
                        yield Served(model, name, precision, pattern, CONVERT, words, memory=memory, fuse=fuse)


def _words(scheme: str, pattern: str, **more: object) -> tuple[tuple[str, object], ...]:
    return tuple({"scheme": scheme, "pattern": pattern, **more}.items())


class Checkpoints:
    """A folder for sources, and for the checkpoints of engines that are starting.

    layers: of the random model; one is converted, and then repeated. device: where they are made.
    """

    def __init__(self, folder: Path, model: str, layers: int, device: str, convert: Convert) -> None:
        self.folder, self.model, self.layers, self.device, self._convert = folder, model, layers, device, convert
        self._converting = Lock()

    def prepare(self, some: Sequence[Served]) -> None:
        """Write the sources that these need, which several threads would else write at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for halved in {one.halved for one in some if one.path is None}:
            self._source(halved=halved)

    def make(self, one: Served) -> Path:
        """The whole checkpoint: the user's own, or made anew. SlideConvertError if it cannot be converted."""
        if one.path is not None:
            return one.path
        path = self.folder / f"served-{one.slug}"
        shutil.rmtree(path, ignore_errors=True)
        source = self._source(halved=one.halved)
        if not one.job:
            return random_model.repeat(source, path, self.layers)
        layer = self.folder / f"layer-{one.slug}"
        shutil.rmtree(layer, ignore_errors=True)
        with self._converting:  # libraries change settings of the process while they load a model
            self._convert(one.job, source, layer, dict(one.words))
        random_model.repeat(layer, path, self.layers)
        shutil.rmtree(layer)
        return path

    def remove(self, path: Path) -> None:
        """A checkpoint that was made; not one of the user's."""
        if path.parent == self.folder:
            shutil.rmtree(path)

    def kv_bytes(self, path: Path, tokens: int) -> int:
        """Of the cache for so many tokens of several sequences, a quarter more for blocks that are not full."""
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        kv = config.get("num_key_value_heads") or heads
        token: int = 2 * 2 * config["num_hidden_layers"] * kv * size
        return max(LEAST_CACHE, tokens * token * 5 // 4)

    def _source(self, *, halved: bool = False) -> Path:
        path = self.folder / ("source-halved" if halved else "source")
        if not (path / "config.json").exists():
            shutil.rmtree(path, ignore_errors=True)
            if halved:
                random_model.halve(self._source(), path)
            else:
                random_model.write(path, self.model, 1, self.device)
        return path
