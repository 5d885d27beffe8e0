"""Faults of weights, for the tests of verify: of each format, those that it shows by itself and those that only the
source shows.

A fault changes tensors of a checkpoint; its words are in what verify says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensors = dict[str, torch.Tensor]
Fault = tuple[Callable[[Tensors], object], tuple[str, ...]]
Q = "model.layers.1.self_attn.q_proj"

# ---- 2:L


def both_positions_alike(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_meta"][2, 1] = 0x45  # positions 1 and 1


def unordered_positions(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_meta"][2, 1] = 0x41  # positions 1 and 0


def value_in_the_padding(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.weight_packed"][0, -1] = 3  # 88 columns of 2:6: two padded windows and more


def other_place_for_the_same_code(tensors: Tensors) -> None:
    """A window with one non-zero stored with another empty position: same weights, not the canonical bytes."""
    values, meta = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_meta"]
    values[0, :4], meta[0, 0] = torch.tensor([5, 0, 0, 0], dtype=torch.int8), 0x44
    meta[0, 0] = 0x4C  # positions 0 and 3 for values 5, 0: position 1 is the free one that belongs there


SLIDE: dict[str, Fault] = {
    "position used twice": (both_positions_alike, (Q, "positions 1 and 1")),
    "positions out of order": (unordered_positions, (Q, "positions 1 and 0")),
    "non-canonical packing": (other_place_for_the_same_code, (Q, "canonical")),
    "value in the padding": (value_in_the_padding, ("model.layers.1.mlp.down_proj", "padding")),
    "negative scale": (lambda t: t[f"{Q}.weight_scale"].neg_(), (Q, "not positive")),
    "NaN scale": (lambda t: t[f"{Q}.weight_scale"].fill_(float("nan")), (Q, "weight_scale", "nan")),
    "wrong shape": (
        lambda t: t.update({f"{Q}.weight_meta": t[f"{Q}.weight_meta"][:, :-1].contiguous()}),
        (Q, "weight_meta"),
    ),
    "missing metadata": (lambda t: t.pop(f"{Q}.weight_meta"), (Q, "weight_meta")),
}


def one_weight_too_many(tensors: Tensors) -> None:
    tensors[f"{Q}.weight"][7, 16:24] = 1


def negative_zero(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"].view(torch.int8)
    codes[codes == 0] = -128


FP8: dict[str, Fault] = {
    "pattern broken": (one_weight_too_many, (Q, "row 7, columns 16 … 23 hold 8 non-zeros, 2:8 allows 6")),
    "negative zero": (negative_zero, (Q, "-0")),
    "NaN code": (lambda t: t[f"{Q}.weight"].view(torch.int8)[0, :1].fill_(127), (Q, "nan")),
}


def one_step_off(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"]
    row, column = (codes[:, :] > 1).nonzero()[0]
    codes[row, column] -= 2


def lost_weights(tensors: Tensors) -> None:
    tensors[f"{Q}.weight"][5, 8:16] = 0


INT8_SOURCE_FAULTS: dict[str, Fault] = {
    "a code too far off": (one_step_off, (Q, "more than rounding")),
    "a group that lost too much": (lost_weights, (Q, "row 5, block 1 lost")),
    "a norm that changed": (lambda t: t["model.norm.weight"].add_(1), ("model.norm.weight", "differs from the source")),
    "a tensor too many": (lambda t: t.update(extra=torch.ones(2)), ("extra", "no such tensor")),
}


# ---- GQSA


def swapped(part: str, *places: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensor = tensors[f"{Q}.{part}"]
        tensor[list(places)] = tensor[list(places[::-1])].clone()

    return change


def emptied(tensors: Tensors) -> None:
    """A group that is listed with all its codes at the zero point, though its scale is told."""
    zero = int(tensors[f"{Q}.weight_zero_point"][0]) & 15
    tensors[f"{Q}.weight_values"][0] = zero << 4 | zero


def added(part: str, place: int, step: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[f"{Q}.{part}"].flatten()[place : place + 1].add_(step) and None


GQS: dict[str, Fault] = {
    "rows that fall": (added("weight_row_index", 5, 500), (Q, "weight_row_index falls")),
    "rows that begin elsewhere": (added("weight_row_index", 0, 1), (Q, "weight_row_index goes from 1 to 256")),
    "rows that end elsewhere": (added("weight_row_index", -2 + 65, 1000), (Q, "weight_row_index")),
    "a last row too long": (lambda t: t[f"{Q}.weight_row_index"][-1:].add_(1), (Q, "from 0 to 257, not from 0 to 256")),
    "a group beyond the row": (
        lambda t: t[f"{Q}.weight_groups"][:1].fill_(8),
        (Q, "weight_groups[0] is 8", "8 groups"),
    ),
    "a group before the row": (lambda t: t[f"{Q}.weight_groups"][:1].fill_(-1), (Q, "weight_groups[0] is -1")),
    "a group twice": (
        lambda t: t[f"{Q}.weight_groups"].copy_(t[f"{Q}.weight_groups"].sort().values),
        (Q, "must ascend within a row"),
    ),
    "groups out of order": (swapped("weight_groups", 0, 1), (Q, "must ascend within a row")),
    "a negative scale": (lambda t: t[f"{Q}.weight_scale"][3:4].neg_(), (Q, "weight_scale is not positive")),
    "a scale of zero": (lambda t: t[f"{Q}.weight_scale"][3:4].zero_(), (Q, "weight_scale is not positive")),
    "a scale that is no number": (lambda t: t[f"{Q}.weight_scale"][3:4].fill_(float("nan")), (Q, "not finite")),
    "an empty group with a scale": (emptied, (Q, "weight_", "is not the canonical packing")),
    "a tensor that is gone": (lambda t: t.pop(f"{Q}.weight_groups"), (Q, "weight_groups", "missing")),
    "groups of another type": (
        lambda t: t.update({f"{Q}.weight_groups": t[f"{Q}.weight_groups"].int()}),
        (Q, "weight_groups", "I32"),
    ),
    "zero points of another shape": (
        lambda t: t.update({f"{Q}.weight_zero_point": t[f"{Q}.weight_zero_point"][:-1].contiguous()}),
        (Q, "weight_zero_point", "[127]"),
    ),
}


def woken(tensors: Tensors) -> None:
    """Codes in a group that was pruned."""
    packed, zero = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_zero_point"]
    empty = packed == packed.new_tensor(0x88888888 - 2**32)  # eight codes at the zero point in the middle
    row, group = (int(index) for index in empty.nonzero()[0])
    packed[row, group] ^= 1
    assert int(zero[row // 8, group]) >> (row % 8 * 4) & 15 == 8


DENSE: dict[str, Fault] = {
    "a group too many": (woken, (Q, "257 groups of 8 are non-zero, 1x8:50% allows 256")),
    "another shape": (
        lambda t: t[f"{Q}.weight_shape"].copy_(torch.tensor([32, 128])),
        (Q, "weight_shape is [32, 128]"),
    ),
    "a negative scale": (lambda t: t[f"{Q}.weight_scale"][3:4].neg_(), (Q, "weight_scale is not positive")),
    "a scale that is no number": (lambda t: t[f"{Q}.weight_scale"][3:4].fill_(float("inf")), (Q, "not finite")),
    "a scale of nothing": (
        lambda t: t[f"{Q}.weight_scale"].masked_fill_(t[f"{Q}.weight_packed"] == 0x88888888 - 2**32, 2),
        (Q, "weight_scale is not the canonical packing"),
    ),
    "a shape that is gone": (lambda t: t.pop(f"{Q}.weight_shape"), (Q, "weight_shape", "missing")),
}


def one_code(part: str) -> Callable[[Tensors], None]:
    """The first code two steps off, in its range."""

    def change(tensors: Tensors) -> None:
        tensor = tensors[f"{Q}.{part}"].flatten()
        tensor[:1] ^= 2

    return change


def lost_weight(tensors: Tensors) -> None:
    """One weight of a group that stays at the zero point, far from where it was."""
    packed, zero = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_zero_point"]
    for row in range(8):
        for group in range(8):
            point, word = int(zero[0, group]) >> (4 * row) & 15, int(packed[row, group]) & 0xFFFFFFFF
            far = [lane for lane in range(8) if abs((word >> (4 * lane) & 15) - point) > 1]
            if len(far) > 1:
                word = word & ~(15 << 4 * far[0]) | point << 4 * far[0]
                packed[row, group] = word - 2**32 if word >= 2**31 else word
                return


GQSA_SOURCE_FAULTS: dict[tuple[str, str], Fault] = {
    ("gqs", "a code, in groups"): (one_code("weight_values"), (Q, "more than rounding")),
    ("dense", "a code, packed"): (one_code("weight_packed"), (Q, "more than rounding")),
    ("whole", "a code, nothing pruned"): (one_code("weight_packed"), (Q, "more than rounding")),
    ("gqs", "groups that changed places"): (swapped("weight_values", 0, 9), (Q, "more than rounding")),
    ("gqs", "a scale, in groups"): (lambda t: t[f"{Q}.weight_scale"][:1].mul_(1.5), (Q, "more than rounding")),
    ("dense", "a scale, packed"): (
        lambda t: t[f"{Q}.weight_scale"].masked_fill_(t[f"{Q}.weight_packed"] != 0x88888888 - 2**32, 1.0),
        (Q, "more than rounding"),
    ),
    ("gqs", "a zero point"): (lambda t: t[f"{Q}.weight_zero_point"][:1].bitwise_xor_(1), (Q, "more than rounding")),
    ("gqs", "a row that took a group of the next"): (added("weight_row_index", 1, -1), (Q,)),
    ("dense", "a weight that is gone"): (lost_weight, (Q, "lost some of its weights, 1x8:50% prunes whole groups")),
}


FAULTS = {
    (checkpoint, name): fault
    for checkpoint, faults in {"slide": SLIDE, "fp8": FP8, "solved": GQS, "dense": DENSE}.items()
    for name, fault in faults.items()
}
"""By checkpoint (see verify_fixtures.py) and name."""

SOURCE_FAULTS = {("int8", name): fault for name, fault in INT8_SOURCE_FAULTS.items()} | GQSA_SOURCE_FAULTS

SOURCES = {"slide": "pico", "fp8": "pico", "int8": "pico"}
SOURCES |= {"solved": "lively", "whole": "lively", "gqs": "sparse", "dense": "sparse"}
"""The checkpoints of verify_fixtures.py, and what each was made from."""
