"""Figures as PNG. The font comes with the extra: machines that measure often have none, and text would be left out."""

from __future__ import annotations

import importlib
import importlib.resources
from typing import Any

from ..errors import InputError

FONT, FAMILY = "font_lato", "Lato"
"""The package of the font, and its name."""
ZOOM = 2
"""Pixels for each of the SVG."""


def png_package() -> Any:
    """What draws SVG as PNG. InputError if it or the font is not installed."""
    try:
        importlib.import_module(FONT)
        return importlib.import_module("resvg_py")
    except ImportError as error:
        raise InputError(
            f"PNG files of figures need the packages resvg-py and font-lato: {error}",
            hint="pip install 'slideconvert[png]', or omit --png: the figures are there as SVG",
        ) from error


def png_of(svg: str) -> bytes:
    """svg: a file of its own -> PNG, twice as large. InputError if a package is missing."""
    resvg = png_package()
    fonts = [str(path) for path in (importlib.resources.files(FONT) / "files").iterdir() if path.name.endswith(".ttf")]
    drawn: bytes = resvg.svg_to_bytes(
        svg_string=svg, zoom=ZOOM, skip_system_fonts=True, font_files=fonts, sans_serif_family=FAMILY
    )
    return bytes(drawn)
