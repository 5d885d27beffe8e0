"""Import transformers' models without scikit-learn, which takes a second of every command.

transformers imports it with the first model, for one function of assisted generation. Until somebody calls that
function, a substitute stands in its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

GENERATION = "transformers.generation.candidate_generator"
"""The module of transformers that imports scikit-learn."""


def import_generation() -> None:
    """Import GENERATION, unless it or scikit-learn is imported already or scikit-learn is not installed."""
    if GENERATION in sys.modules or "sklearn" in sys.modules:
        return
    found = importlib.util.find_spec("sklearn")
    if found is None:
        return
    package, metrics = ModuleType("sklearn"), ModuleType("sklearn.metrics")
    package.__spec__, package.__path__ = found, list(found.submodule_search_locations or [])
    metrics.roc_curve = _roc_curve  # type: ignore[attr-defined]
    sys.modules |= {"sklearn": package, "sklearn.metrics": metrics}
    try:
        importlib.import_module(GENERATION)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
            del sys.modules[name]


def _roc_curve(*args: Any, **options: Any) -> Any:
    """sklearn.metrics.roc_curve, imported when it is called."""
    return importlib.import_module("sklearn.metrics").roc_curve(*args, **options)
