"""Every file that shows a report, by name."""

from __future__ import annotations

from ..checkpoint.files import CARD, REPORT_HTML, REPORT_JSON
from .card import render_card
from .html import render_html
from .record import Report


def render_reports(report: Report, *, repo: str | None = None, branch: str | None = None) -> dict[str, bytes]:
    """report.json, report.html and the card, whose commands name the Hub id `repo` and its branch (None: main)."""
    texts = {
        REPORT_JSON: report.to_json(),
        REPORT_HTML: render_html(report),
        CARD: render_card(report, repo=repo, branch=branch),
    }
    return {name: text.encode() for name, text in texts.items()}
