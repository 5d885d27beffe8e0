"""How transformers comes to know our checkpoints once slideconvert is imported, without importing transformers.

transformers has no entry points for quantizers, and chooses one in quantizers.auto.get_hf_quantizer, by
quant_method alone. We stand before that function: for a checkpoint of ours the method becomes our own, all others
are passed on untouched. It is put in place when transformers.quantizers.auto is imported, before or after us.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

from .slidesparse_record import RECORD, is_ours

AUTO = "transformers.quantizers.auto"
USER = "transformers.modeling_utils"
"""Imports the function by name."""
FUNCTION = "get_hf_quantizer"


def install() -> None:
    """Stand before transformers' choice: now if it is imported already, else as soon as it is."""
    if AUTO in sys.modules:
        _wrap(sys.modules[AUTO])
        if USER in sys.modules:
            _wrap(sys.modules[USER])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds one module, where Python would, and has it wrapped once it is executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == AUTO else None
        if spec and spec.loader:
            spec.loader = cast(Any, _Loader(spec.loader))
        return spec


class _Loader:
    """The module's own loader, which takes its place again before the module runs, and `_wrap` after it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _wrap(module)


def _wrap(module: ModuleType) -> None:
    theirs = getattr(module, FUNCTION)

    @functools.wraps(theirs)
    def ours_or_theirs(config: Any, quantization_config: Any, *args: Any, **words: Any) -> Any:
        if is_ours(getattr(config, "quantization_config", None), getattr(config, RECORD, None)):
            from . import modeling_slidesparse as ours

            if quantization_config is None:
                ours.claim(config, ours.OURS, "slideconvert.kernels")
            else:
                ours.refuse_other_quantization(config)  # the dense layout is stock's as well, where it is asked for
        return theirs(config, quantization_config, *args, **words)

    setattr(module, FUNCTION, ours_or_theirs)
