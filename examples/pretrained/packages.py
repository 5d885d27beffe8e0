"""Fetches packages from the Python package index at pinned versions, whose hashes pip compares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Unavailable(Exception):
    """pip could not fetch a package, or its bytes are not those that are pinned; the message is one line."""


def fetch(requirements: Path, folder: Path) -> list[Path]:
    """Download the files of the packages that `requirements` pins into `folder`, nothing that they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--require-hashes", "--dest", str(folder), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise Unavailable(
            f"pip could not download what {requirements.name} pins: {' '.join(errors[-1:])[:300]} (it needs a package "
            "index: are you offline?)"
        )
    return sorted(folder.iterdir())
