"""Copy the code that travels with a checkpoint: the kernels it was made for, and what lets transformers run them."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.staging import write_file
from ..runtime.slidesparse_record import CODE_FILES, KERNELS, SOURCES

PACKAGE = Path(__file__).resolve().parents[1]
RUNTIME, OPERATIONS = PACKAGE / "runtime", PACKAGE / KERNELS


def bundle_kernels(folder: Path) -> dict[str, str]:
    """Copy the operations (not their tests and benches) into folder/kernels, and the files that run them from
    transformers beside it; sha256 by path in the folder."""
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
