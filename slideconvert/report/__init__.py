"""What a conversion did, as data, as a page to look at, and as a model card."""

from .record import LayerReport, Report, Training, totals

__all__ = ["LayerReport", "Report", "Training", "totals"]
