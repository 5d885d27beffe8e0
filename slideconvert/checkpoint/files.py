"""The files of a checkpoint folder by name: those that are read, copied, or never opened."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHANNEL_ORDERS = "channel_orders.json"
"""The channel permutations of the checkpoint, if a conversion has permuted any."""
REPORT_JSON, REPORT_HTML, CARD = "report.json", "report.html", "README.md"
STAGING = ".slideconvert-partial"
"""The working folder of a conversion inside its output: an output that contains it is unfinished."""
COMPANIONS = (
    GENERATION, "tokenizer*", "tekken.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template*", "*.model", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""Files of a model that do not depend on its weights: tokenizer, generation settings, licence."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NEVER = (*PICKLES, ".py", ".pyc", ".so", ".sh", ".h5", ".msgpack", ".npz")
"""Never fetched or copied, even if a name above matches (tokenizer.py): opening them can run code."""


def is_companion(name: str) -> bool:
    """Whether a file of this name is copied with the model."""
    return not name.endswith(NEVER) and any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def companions(folder: Path) -> list[Path]:
    """The companion files of a folder, in order of name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_companion(path.name))
