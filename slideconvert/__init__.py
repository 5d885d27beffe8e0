"""slideconvert converts BF16 language models to verified checkpoints with 2:L sparse INT8 or FP8 weights (SlideSparse),
or with 4-bit weights and pruned groups (GQSA).

Each function does what the command of its name does (`evaluate`: the command `eval`), with the same options and errors:

    from slideconvert import ConvertOptions, convert, verify

    report = convert("meta-llama/Llama-3.2-1B", "out", ConvertOptions(scheme="int8", pattern="2:8"))
    assert not verify("out").faults

Functions are imported when they are first used, so `import slideconvert` does not load torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .runtime import hook

if TYPE_CHECKING:
    from .api.bench import bench_compare, bench_kernel, bench_layer, bench_published
    from .api.bench_serve import bench_serve
    from .api.checkpoints import download, evaluate, inspect, push, verify
    from .api.compare import compare
    from .api.convert import allocate, convert, plan, quantize, relayout, slide, sparsify
    from .api.memory import as_source
    from .api.options import (
        AllocateOptions,
        BenchOptions,
        ChatOptions,
        CompareOptions,
        ConvertOptions,
        EvaluateOptions,
        GenerateOptions,
        ModelOptions,
        PlanOptions,
        PushOptions,
        QuantizeOptions,
        RelayoutOptions,
        RotateOptions,
        ServeBenchOptions,
        SlideOptions,
        SparsifyOptions,
        VerifyOptions,
    )
    from .api.probe import probe
    from .api.rotate import rotate
    from .api.writing import chat, generate, load_model
    from .errors import SlideConvertError
    from .report import Report
    from .texts.named import Documents

__version__ = "0.1.0"
__all__ = [
    "AllocateOptions",
    "BenchOptions",
    "ChatOptions",
    "CompareOptions",
    "ConvertOptions",
    "Documents",
    "EvaluateOptions",
    "GenerateOptions",
    "ModelOptions",
    "PlanOptions",
    "PushOptions",
    "QuantizeOptions",
    "RelayoutOptions",
    "Report",
    "RotateOptions",
    "ServeBenchOptions",
    "SlideConvertError",
    "SlideOptions",
    "SparsifyOptions",
    "VerifyOptions",
    "allocate",
    "as_source",
    "bench_compare",
    "bench_kernel",
    "bench_layer",
    "bench_published",
    "bench_serve",
    "chat",
    "compare",
    "convert",
    "download",
    "evaluate",
    "generate",
    "inspect",
    "load_model",
    "plan",
    "probe",
    "push",
    "quantize",
    "relayout",
    "rotate",
    "slide",
    "sparsify",
    "verify",
]

_MODULES = {
    ".api.bench": ("bench_compare", "bench_kernel", "bench_layer", "bench_published"),
    ".api.bench_serve": ("bench_serve",),
    ".api.checkpoints": ("download", "evaluate", "inspect", "push", "verify"),
    ".api.compare": ("compare",),
    ".api.convert": ("allocate", "convert", "plan", "quantize", "relayout", "slide", "sparsify"),
    ".api.memory": ("as_source",),
    ".api.probe": ("probe",),
    ".api.rotate": ("rotate",),
    ".api.writing": ("chat", "generate", "load_model"),
    ".errors": ("SlideConvertError",),
    ".report": ("Report",),
    ".texts.named": ("Documents",),
}
"""The modules of public names; all others come from .api.options."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _MODULES.items() if name in names), ".api.options")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `slideconvert.convert` the function: an import of the package of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def _follow_link(link: Path) -> None:
    """Make slideconvert.kernels the folder that `link` names, where the link itself is a text file.

    In the repository slideconvert/kernels is a symbolic link to kernels/. Git without core.symlinks, and archives that
    are unpacked without links, leave a file with the target's name. ImportError if the target is not there: a package
    that was built from such a checkout.
    """
    folder = link.parent / link.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise ImportError(
            f"{link} is a text file, and {folder} is not there: slideconvert was packed from a checkout without "
            "symbolic links; pack it again from one with links (git config core.symlinks true, then git checkout -- .)"
        )
    spec = ModuleSpec(f"{__name__}.kernels", None, is_package=True)
    spec.submodule_search_locations = [str(folder.resolve())]
    sys.modules[spec.name] = module_from_spec(spec)


if (_link := Path(__file__).with_name("kernels")).is_file():
    _follow_link(_link)
sys.modules[__name__].__class__ = _Package
hook.install()
