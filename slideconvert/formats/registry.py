"""Every storage format, which one a linear gets, and which one a checkpoint holds it in.

To add a format: a subclass of Format in a module of this package, and its place in FORMATS.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint.reader import Checkpoint
from ..core.patterns import Pattern
from ..core.schemes import Scheme
from ..core.ternary import FLOATS, LATENT, PACKED, PACKED_INVERSE
from ..errors import InputError, pick
from ..runtime.slidesparse_record import DENSE, LAYOUTS
from .base import Declared, Format, Found, StoredLinear
from .bitnet import TernaryFloats, TernaryPacked
from .channels import ChannelCodes, Floats
from .groups import Gqs, PackedGroups
from .slide import Slide

OWN: dict[str, Format] = {form.layout: form for form in (Slide(), Gqs())}
"""By layout, the formats that no stock loader reads."""
FORMATS: tuple[Format, ...] = (
    OWN[Gqs.layout],
    PackedGroups(),
    OWN[Slide.layout],
    *(TernaryPacked(coding) for coding in (PACKED, PACKED_INVERSE)),
    *(TernaryFloats(coding) for coding in (LATENT, FLOATS)),
    Floats(),
    ChannelCodes(),
)
"""In the order in which they are asked whether they match; the last one takes what no other claims."""


def parse_layout(name: str) -> str:
    """The name of a layout, checked. InputError with the nearest one if it is unknown."""
    return pick(name, LAYOUTS, "layout")


def format_for(layout: str, scheme: Scheme, pattern: Pattern) -> Format:
    """The format of a linear in a checkpoint of that layout: the layout's own if it stores such linears, else a dense
    one."""
    able = [form for form in FORMATS if form.stores(scheme, whole_groups=pattern.whole_groups)]
    return next(form for wanted in (layout, DENSE) for form in able if form.layout == wanted)


def usual_layout(schemes: Iterable[Scheme], *, whole_groups: bool) -> str:
    """The layout that kernels of these schemes read. whole_groups: whether some pattern zeroes whole groups."""
    known = list(schemes)
    own = (form for form in OWN.values() if any(form.stores(scheme, whole_groups=whole_groups) for scheme in known))
    return next((form.layout for form in own), DENSE)


def describe(checkpoint: Checkpoint, name: str, declared: Declared | None, *, coding: str | None) -> StoredLinear:
    """How linear `name` is stored. declared: what the checkpoint's own record says of it, if it does. coding: how its
    ternary weights are coded should they be no codes of a scheme; None if they are not ternary.

    InputError for what cannot be read: packed by others, asymmetric, not two-dimensional, unknown scales.
    """
    found = Found(checkpoint, name, declared, coding)
    form = next(form for form in FORMATS if form.match(found))
    if found.has("weight_zero_point") and not form.asymmetric:
        raise InputError(f"{name}: asymmetric quantization (it has a zero point)", hint="start from the BF16 model")
    return form.describe(found)
