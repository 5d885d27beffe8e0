"""Prose and code for calibration and evaluation, from packages of the package index at pinned versions.

    python examples/pretrained/make_texts.py pretrained/texts

Writes OUT/prose and OUT/code, each with calibration.jsonl and evaluation.jsonl. The same pins give the same bytes.

- prose: the paragraphs of the documentation of Django and Scrapy, without code, lists, tables and markup
- code: the modules of NetworkX and Rich, without tests

A document is a page or a module; a hash of its path decides whether it is calibration or evaluation, and the order.
Licences: BSD (Django, Scrapy, NetworkX), MIT (Rich).
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
from packages import Unavailable, fetch

HERE = Path(__file__).parent
PARTS = ("calibration", "evaluation")
EVALUATION = 0.3
"""The share of the documents."""
CHARACTERS = range(1_000, 60_000)
"""Of a document: so that none dominates."""
PAGES = re.compile(r"[^/]+/docs/(?!releases/|_)(?P<page>.+\.(?:txt|rst))")
MODULES = re.compile(r"(?P<page>(?:networkx|rich)/(?!.*\btests?/)(?!.*_(?:emoji|cell)\w*\.py).+\.py)")
"""Without tables of characters."""
FEWEST_WORDS = 12
"""Of a paragraph."""
MARKUP = (
    (re.compile(r":[\w:+.-]+:`!?~?([^`<]+?)\s*(?:<[^>]*>)?`"), r"\1"),
    (re.compile(r"`+([^`<]+?)\s*(?:<[^>]*>)?`+_*"), r"\1"),
    (re.compile(r"\*{1,2}(\S[^*]*)\*{1,2}"), r"\1"),
    (re.compile(r"\|([\w-]+)\|"), r"\1"),
    (re.compile(r"\b([A-Za-z]\w*[A-Za-z])_(?!\w)"), r"\1"),
)


def paragraphs(page: str) -> str:
    """The paragraphs of a reStructuredText page as plain prose."""
    kept = []
    for block in re.split(r"\n\s*\n", page):
        lines = block.strip("\n").splitlines()
        plain = lines and all(re.match(r"[A-Za-z\"'(`*:|]", line) for line in lines)
        marked = any(re.match(r"[:*|] |:\w+:(?!`)|\*\s|\.\. |[=~^\"'#*+-]{4,}", line) for line in lines)
        text = " ".join(lines)
        if not plain or marked or text.endswith("::") or len(text.split()) < FEWEST_WORDS:
            continue
        for pattern, plainly in MARKUP:
            text = pattern.sub(plainly, text)
        kept.append(text)
    return "\n\n".join(kept)


def members(path: Path) -> Iterator[tuple[str, str]]:
    """The text files of an archive: name and text."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            yield from ((name, wheel.read(name).decode()) for name in wheel.namelist() if name.endswith(".py"))
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith((".txt", ".rst")) and (file := archive.extractfile(member)):
                yield member.name, file.read().decode(errors="replace")


def documents(archives: list[Path]) -> dict[str, dict[str, str]]:
    """The documents of each kind, by the name that orders them."""
    found: dict[str, dict[str, str]] = {"prose": {}, "code": {}}
    for archive in archives:
        package = archive.name.split("-")[0]
        for name, text in members(archive):
            if page := PAGES.fullmatch(name):
                found["prose"][f"{package}/{page['page']}"] = paragraphs(text)
            elif module := MODULES.fullmatch(name):
                found["code"][module["page"]] = text
    return {kind: {name: text for name, text in of.items() if len(text) in CHARACTERS} for kind, of in found.items()}


def write(out: Path, found: dict[str, str]) -> None:
    """Write calibration.jsonl and evaluation.jsonl to the folder `out`, in the order of the hashes of names."""
    out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    ordered = sorted((hashlib.sha256(name.encode()).hexdigest(), text) for name, text in found.items())
    for digest, text in ordered:
        part = "evaluation" if int(digest[-4:], 16) < EVALUATION * 0x10000 else "calibration"
        lines[part].append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for part, made in lines.items():
        (out / f"{part}.jsonl").write_text("".join(made), encoding="utf-8")
        click.echo(f"{out / part}.jsonl: {len(made)} documents, {sum(map(len, made)):,} characters")


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = documents(fetch(HERE / "texts.txt", Path(folder)))
    except Unavailable as error:
        raise click.ClickException(str(error)) from error
    for kind, texts in found.items():
        write(out / kind, texts)


if __name__ == "__main__":
    main()
