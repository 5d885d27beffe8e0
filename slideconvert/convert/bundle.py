"""Copy the code that a checkpoint contains: its kernels, and the modules that run them in transformers."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.staging import write_file
from ..kernels.sources import ROOT
from ..runtime.slidesparse_record import CODE_FILES, KERNELS, SOURCES

RUNTIME, OPERATIONS = Path(__file__).resolve().parents[1] / "runtime", ROOT


def bundle_kernels(folder: Path) -> dict[str, str]:
    """Copy the operations, without tests and benches, into folder/kernels, and modules for transformers into folder.

    Returns the sha256 (hex) of each file by its path in the folder. OSError passes.
    """
    files = {name: RUNTIME / name for name in CODE_FILES}
    for path in sorted(OPERATIONS.rglob("*")):
        development = path.name.startswith(("test_", "bench_")) or "__pycache__" in path.parts
        if path.suffix in (*SOURCES, ".md") and not development:
            files[f"{KERNELS}/{path.relative_to(OPERATIONS).as_posix()}"] = path
    digests = {}
    for name, path in sorted(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digests[name] = write_file(folder / name, path.read_bytes())
    return digests
