"""Words and looks that the tests of `push` share. Their fixtures are in push_fixtures.py."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import Outcome
from tests.helpers.hub_models import TOKEN
from tests.helpers.hub_repo import Repo, sha256
from tests.helpers.hub_server import HubServer
from tests.helpers.hub_upload import SIGNATURE

REPO = "me/pico-2of8"
SHARDS = ("--shard-gb", "0.00005")
"""50 kB: several shards of a pico model."""


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("*.safetensors"))


def sent(hub: HubServer) -> list[str]:
    """The contents that went into storage, as sha256, in order."""
    return [r.path.split("/")[-1] for r in hub.requests if r.method == "PUT"]


def digests(files: list[Path]) -> list[str]:
    return [sha256(file.read_bytes()) for file in files]


def complaint(outcome: Outcome, code: int = 2) -> str:
    """The one line that a refused push prints, with a hint, without the token. code: the exit code it must have."""
    assert outcome.code == code, outcome
    progress = re.compile(r"\S+ (…|done in .*|\d+% after .*)")
    lines = [line for line in outcome.err.splitlines() if line and not progress.fullmatch(line)]
    assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith(")"), outcome.err
    assert TOKEN not in outcome.out + outcome.err and SIGNATURE not in outcome.err
    return lines[0]


def is_published(repo: Repo, out: Path, branch: str = "main") -> bool:
    """Whether the branch holds the weights, index and config of the folder."""
    files = repo.head(branch)
    return all(files.get(path.name) == path.read_bytes() for path in [*shards(out), *out.glob("*.json")])
