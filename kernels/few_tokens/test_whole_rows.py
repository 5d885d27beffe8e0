"""The product of few tokens where blocks have whole rows, as it is chosen for linears of many rows and as tests
force it for others, against the reference."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.few_tokens.division import Division, whole
from slideconvert.kernels.few_tokens.kernel import STATIC_SHARED, TILES, WARPGROUPS, FewTokens
from slideconvert.kernels.few_tokens.test_few_tokens import (
    CODES,
    DTYPES,
    FORMS,
    INSTRUCTIONS,
    activations,
    check,
    compile_all,
    poisoned,
    weight,
)
from slideconvert.kernels.slide_spec import SlideSpec, SlideWeight

pytestmark = pytest.mark.gpu

SHAPES = [
    (321, 528, 2),  # slabs: 11 and 10, the last one of a single row
    (200, 1040, 1),  # 13 of one block
    (2500, 96, 9),  # 18 or 17, of one unit
    (4610, 2048, 15),  # 20 or 19; rows no multiple of 4
    (304, 18944, 2),  # 10 or 9
    (1000, 3584, 4),  # 16 or 15
]
"""Rows, columns, and the blocks among which they are divided."""
LENGTHS = (4, 6, 8, 10, 12, None)
DEVICE = torch.device("cuda", 0)


class WholeRows(FewTokens):
    """Divided by whole rows among so many blocks, in units or halves of them, whatever the estimate says."""

    blocks: int
    halves: bool = False

    def division(self, tokens: int) -> Division:
        padded = 8 * next(tiles for tiles in TILES if 8 * tiles >= tokens)
        ways = whole(self.spec.rows, self.columns, padded, self.unit, self.blocks)
        free = self.gpu.shared_bytes - STATIC_SHARED
        return next(one for one in ways if one.fits(free) and (one.unit != self.unit) == self.halves)


def whole_rows(
    spec: SlideSpec, blocks: int, *, halves: bool = False, dense: bool = False, warpgroup: bool = True
) -> WholeRows:
    op = WholeRows(spec, DEVICE, dense=dense, warpgroup=warpgroup)
    op.blocks, op.halves = blocks, halves
    return op


@pytest.fixture(autouse=True)
def hopper() -> None:
    if torch.cuda.get_device_capability() != WARPGROUPS:
        pytest.skip("whole rows are for compute capability 9.0")


def compared(op: FewTokens, tokens: int, dtype: torch.dtype, kind: torch.dtype | None, made: SlideWeight) -> None:
    prepared = op.prepare(made)
    x = activations(tokens, op.spec, dtype)
    bias = None if kind is None else torch.randn(op.spec.rows, device="cuda").to(kind)
    poisoned()
    found = op(x, prepared, bias)
    check(found, x, made, bias)
    for _ in range(3):
        assert torch.equal(op(x, prepared, bias), found)


@INSTRUCTIONS
@FORMS
@CODES
def test_every_pattern_and_number_of_tokens(codes: torch.dtype, dense: bool, warpgroup: bool) -> None:
    torch.manual_seed(0)
    cases = []
    for number, length in enumerate(LENGTHS[:1] if dense else LENGTHS):
        for rows, columns, blocks in SHAPES if dense else (SHAPES[number % 6], SHAPES[(number + 2) % 6]):
            spec = SlideSpec(rows, columns, length, codes)
            cases.append((whole_rows(spec, blocks, dense=dense, warpgroup=warpgroup), weight(spec)))
    for rows, columns, blocks in SHAPES:
        spec = SlideSpec(rows, columns, 8, codes)
        cases.append((whole_rows(spec, blocks, halves=True, dense=dense, warpgroup=warpgroup), weight(spec)))
    kinds = [(DTYPES[i % 3], (*DTYPES, None)[i % 4]) for i in range(len(cases))]
    runs = [
        (op, made, many, *kind)
        for (op, made), kind in zip(cases, kinds, strict=True)
        for many in (1, 7, 8, 9, 16, 17, 32, 33, 64)
        if any_fits(op, many)
    ]
    compile_all([(op, many, dtype, kind) for op, _, many, dtype, kind in runs])
    for op, made, many, dtype, kind in runs:
        compared(op, many, dtype, kind, made)


def any_fits(op: WholeRows, tokens: int) -> bool:
    """Of many tokens three whole units do not, in some shapes."""
    try:
        op.division(tokens)
    except StopIteration:
        return False
    return True


@CODES
@pytest.mark.parametrize("length", [4, 6, 8, 10])
def test_gate_up_as_it_is_chosen(length: int, codes: torch.dtype) -> None:
    """Qwen2.5-7B's."""
    torch.manual_seed(1)
    spec = SlideSpec(37888, 3584, length, codes)
    op = FewTokens(spec, DEVICE)
    if op.gpu.processors != 132:
        pytest.skip("other GPUs may divide it otherwise")
    made = weight(spec)
    assert op.division(64).form.slabs == 18
    for tokens in (33, 64):
        compared(op, tokens, torch.bfloat16, None, made)


def test_a_graph_in_which_launches_overlap_gives_the_same_every_time() -> None:
    torch.manual_seed(2)
    spec = SlideSpec(37888, 3584, 8, torch.int8)
    op, made = FewTokens(spec, DEVICE), weight(spec)
    prepared, xs = op.prepare(made), [activations(64, spec, torch.bfloat16) for _ in range(3)]
    expected = [op(x, prepared, None) for x in xs]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [op(x, prepared, None) for x in xs]
    for _ in range(20):
        for one in found:
            one.zero_()
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
