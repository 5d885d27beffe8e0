"""What all pages share: one file without requests, which also a narrow screen shows whole."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from .. import __version__
from ..errors import printable
from .style import STYLE

NUMBER = ' class="number"'
"""Of cells that hold numbers, and of their heads."""


def escaped(value: object) -> str:
    """Text of any checkpoint for HTML."""
    return escape(printable(str(value)))


def whole_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A page. title: plain text. body: markup. style: more rules.

    Its content security policy forbids requests, and every script but this one, which it knows by its hash.
    """
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'" + (f"; script-src 'sha256-{allowed}'" if script else "")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}"
        f"<footer>slideconvert {__version__}</footer>\n</main>\n"
        f"{f'<script>{script}</script>{chr(10)}' if script else ''}</body>\n</html>\n"
    )


def figure(title: str, about: str, content: str) -> str:
    """A titled box with a plot or table. All three texts are markup."""
    return f'<section class="box figure"><h2>{title}</h2><p class="soft">{about}</p>{content}</section>\n'
