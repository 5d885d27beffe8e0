"""All that a report is shown as, by the names of the files."""

from __future__ import annotations

from ..checkpoint.files import CARD, REPORT_HTML, REPORT_JSON
from .card import render_card
from .html import render_html
from .record import Report


def render_reports(report: Report, *, repo: str | None = None) -> dict[str, bytes]:
    """report.json, report.html and the model card. repo: the Hub id that the card's commands name, if it has one."""
    texts = {
        REPORT_JSON: report.to_json(),
        REPORT_HTML: render_html(report),
        CARD: render_card(report, repo=repo),
    }
    return {name: text.encode() for name, text in texts.items()}
