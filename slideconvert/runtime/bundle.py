"""Copy the kernels that a checkpoint was made for into it, so that it can be run and checked without us."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.staging import write_file

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
FOLDER = "kernels"


def bundle_kernels(folder: Path) -> dict[str, str]:
    """Copy the operations (not their tests and benches) into folder/kernels; sha256 by path in the folder."""
    digests = {}
    for path in sorted(KERNELS.rglob("*")):
        development = path.name.startswith(("test_", "bench_")) or "__pycache__" in path.parts
        if path.suffix not in (".py", ".md") or development:
            continue
        name = (FOLDER / path.relative_to(KERNELS)).as_posix()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digests[name] = write_file(folder / name, path.read_bytes())
    return digests
