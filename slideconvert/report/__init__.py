"""The report of a conversion as JSON, as an HTML page and as a model card."""

from .record import HeldOut, LayerReport, Report, Training, totals

__all__ = ["HeldOut", "LayerReport", "Report", "Training", "totals"]
