"""The files of a checkpoint folder by name: those that are read, copied, or never opened."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InputError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHANNEL_ORDERS = "channel_orders.json"
"""The channel permutations of the checkpoint, if a conversion has permuted any."""
CHANNEL_SCALES = "channel_scales.json"
"""The channel scales that a conversion has folded into norms and linears, if any."""
REPORT_JSON, REPORT_HTML, CARD = "report.json", "report.html", "README.md"
STAGING = ".slideconvert-partial"
"""The working folder of a conversion inside its output: an output that contains it is unfinished."""
COMPANIONS = (
    GENERATION, "tokenizer*", "tekken.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template*", "*.model", "license*", "licence*", "notice*", "use_policy*",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Files of a model that do not depend on its weights: tokenizer, generation settings, licence. In lower case: licences
are written in any."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NEVER = (*PICKLES, ".py", ".pyc", ".so", ".sh", ".h5", ".msgpack", ".npz")
"""Never fetched or copied, even if a name above matches (tokenizer.py): opening them can run code."""


def is_companion(name: str) -> bool:
    """Whether a file of this path relative to the model's folder is copied with the model."""
    lower = name.lower()
    return not lower.endswith(NEVER) and any(
        lower.count("/") == pattern.count("/") and fnmatchcase(lower, pattern) for pattern in COMPANIONS
    )


def check_link(path: Path) -> None:
    """InputError if a path is a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path} is a link to {path.readlink()}, which does not exist", hint="download or copy the file again"
        )


def companions(folder: Path) -> list[str]:
    """The companion files of a folder, as sorted relative paths.

    InputError for a link that leads nowhere, or out of the folder: what it leads to would be copied and published.
    Links of the Hub's cache, to the blobs of the same model, are followed.
    """
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    names = sorted(name for path in found if is_companion(name := path.relative_to(folder).as_posix()))
    root = folder.resolve()
    inside = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    for name in names:
        check_link(folder / name)
        target = (folder / name).resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise InputError(
                f"{folder / name}: a link to {target}, outside the model's folder, would be copied and published",
                hint="put a copy of the file in its place if it belongs to the model, else delete the link",
            )
    return [name for name in names if (folder / name).is_file()]
