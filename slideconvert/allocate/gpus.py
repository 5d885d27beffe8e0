"""The GPUs whose tables of times the package contains. --help lists them, so this module must not import torch."""

from __future__ import annotations

PUBLISHED = ("a100", "rtx4090", "h100", "b200", "rtx5080", "gb10")
"""The GPUs of the table that SlideSparse published."""
BUNDLED = {**dict.fromkeys(PUBLISHED, "speed_published_int8.csv"), "h200": "speed_h200.csv"}
"""The file of times by name of the GPU."""
