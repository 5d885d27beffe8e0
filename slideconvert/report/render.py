"""Render all files of a report."""

from __future__ import annotations

from ..checkpoint.files import CARD, REPORT_HTML, REPORT_JSON
from .card import render_card
from .html import render_html
from .record import Report


def render_reports(
    report: Report, *, repo: str | None = None, branch: str | None = None, package: str | None = None
) -> dict[str, bytes]:
    """The content of report.json, report.html and README.md, by file name.

    repo: the Hub id in the commands of the model card; None for placeholders. branch: its branch; None for main.
    package: what they install slideconvert from; None for a placeholder.
    """
    texts = {
        REPORT_JSON: report.to_json(),
        REPORT_HTML: render_html(report),
        CARD: render_card(report, repo=repo, branch=branch, package=package),
    }
    return {name: text.encode() for name, text in texts.items()}
