"""The files of a checkpoint folder by name: what is read, what travels along, what is never touched."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHANNEL_ORDERS = "channel_orders.json"
"""Where each channel stood in the source, if a conversion has permuted any."""
REPORT_JSON, REPORT_HTML, CARD = "report.json", "report.html", "README.md"
STAGING = ".slideconvert-partial"
"""Where a conversion works until it is complete: a folder that holds it is unfinished."""
COMPANIONS = (
    "generation_config.json", "tokenizer*", "tekken.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template*", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What belongs to a model whatever its weights are: tokenizer, generation settings, licence."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NEVER = (*PICKLES, ".py", ".pyc", ".so", ".sh", ".h5", ".msgpack", ".npz")
"""Never fetched nor copied, even if a name above matches (tokenizer.py): opening them can run code."""


def is_companion(name: str) -> bool:
    """Whether a file of this name travels with the model."""
    return not name.endswith(NEVER) and any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def companions(folder: Path) -> list[Path]:
    """The companion files of a folder, in order of name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_companion(path.name))
