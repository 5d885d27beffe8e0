"""The report of a conversion as JSON, as an HTML page and as a model card."""

from .record import LayerReport, Report, Training, totals

__all__ = ["LayerReport", "Report", "Training", "totals"]
