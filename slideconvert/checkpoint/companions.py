"""The files of a model folder besides config.json and the weights: tokenizer, generation settings, licence."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer*.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template*",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""Files that belong to a model whatever its weights are. No code and no pickles: those never travel."""


def companions(folder: Path) -> list[Path]:
    """The companion files of a folder, in order of name."""
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(path for path in files if any(fnmatchcase(path.name, pattern) for pattern in COMPANIONS))
