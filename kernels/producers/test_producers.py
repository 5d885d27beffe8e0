"""The Triton kernel against the slow twins, on a GPU: to the bit wherever no rounding is in doubt."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.few_tokens import produce as few
from slideconvert.kernels.few_tokens.kernel import FewTokens
from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers.kernel import produce
from slideconvert.kernels.producers.reference import SAME, SILU, Producer
from slideconvert.kernels.producers.reference import produce as reference
from slideconvert.kernels.producers.values import values
from slideconvert.kernels.quantize.kernel import quantize
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.produced import PRODUCERS, check, check_values, inputs

pytestmark = pytest.mark.gpu

FP8 = torch.float8_e4m3fn
CODES = pytest.mark.parametrize("codes", [torch.int8, FP8], ids=["int8", "fp8"])
EVERY = pytest.mark.parametrize("producer", PRODUCERS, ids=lambda producer: producer.text)


def compare(producer: Producer, operand: Operand, dtype: torch.dtype, tokens: int, rows: int) -> int:
    given = inputs(producer, tokens, operand.columns, dtype, "cuda")
    return check(producer, given, operand, produce(producer, given.x, given.other, given.weight, operand, rows))


@EVERY
@CODES
def test_every_pattern_and_unlifted_rows(producer: Producer, codes: torch.dtype) -> None:
    for columns in (43, 354, 352):
        compare(producer, Operand(columns, codes), torch.bfloat16, 17, 24)
    for turn, length in enumerate([4, 6, 8, 10, 12, 14, 16, None]):
        compare(producer, Operand(96 + turn % 2, codes, lifted=True, length=length), torch.bfloat16, 17, 24)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_values_are_what_is_quantized(producer: Producer, dtype: torch.dtype) -> None:
    for tokens, columns in ((17, 43), (5, 3584), (300, 8192)):
        given = inputs(producer, tokens, columns, dtype, "cuda")
        words = given.x, given.other, given.weight
        found, total = values(producer, *words)
        if tokens < 300:
            check_values(producer, given, found, total)
        codes, scale, again = produce(producer, *words, Operand(columns, torch.int8), tokens)
        expected, expected_scale = quantize(found, torch.int8)
        assert torch.equal(codes, expected) and torch.equal(scale, expected_scale)
        assert total is None or (again is not None and torch.equal(total, again))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_other_dtypes(producer: Producer, dtype: torch.dtype) -> None:
    compare(producer, Operand(96, torch.int8, lifted=True, length=8), dtype, 20, 20)
    compare(producer, Operand(43, FP8), dtype, 20, 20)


@EVERY
@CODES
@pytest.mark.parametrize("columns", [2048, 3584, 6912, 8192, 18944])
def test_real_sizes(producer: Producer, codes: torch.dtype, columns: int) -> None:
    for operand in (Operand(columns, codes), Operand(columns, codes, lifted=True, length=8)):
        compare(producer, operand, torch.bfloat16, 5, 16)
        given = inputs(producer, 300, columns, torch.bfloat16, "cuda")
        found = produce(producer, given.x, given.other, given.weight, operand, 304)
        wanted = reference(producer, given.x, given.other, given.weight, operand, 304)
        differ = (found[0].view(torch.int8) != wanted[0].view(torch.int8)).float().mean().item()
        # A bfloat16 in 2**12 may be another one, and with it the code; the scale of a row in as many, and all of it.
        assert differ < 2**-6, (columns, differ)
        if wanted[2] is not None:
            assert found[2] is not None and torch.equal(found[2], wanted[2])


@EVERY
@CODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_interleaved_codes(producer: Producer, codes: torch.dtype, dtype: torch.dtype) -> None:
    """As the product of few tokens reads them: every pattern and dense weights, one token and all."""
    cases = [(turn, 96 + 8 * turn, length) for turn, length in enumerate([4, 6, 8, 10, 12, 14, 16, None, 0])]
    for turn, columns, length in cases if dtype == torch.bfloat16 else cases[2:9:3]:
        op = FewTokens(SlideSpec(64, columns, length or None, codes), torch.device("cuda"), dense=length == 0)
        for tokens in ((1, 5), (13, 64), (17, 8))[turn % 3]:
            compare_interleaved(producer, op.operand(tokens), dtype, tokens)
    for columns in (3584, 18944):
        for dense in (False, True):
            op = FewTokens(SlideSpec(64, columns, 8, codes), torch.device("cuda"), dense=dense)
            compare_interleaved(producer, op.operand(3), dtype, 3)


def compare_interleaved(producer: Producer, operand: Operand, dtype: torch.dtype, tokens: int) -> None:
    given = inputs(producer, tokens, operand.columns, dtype, "cuda")
    words = given.x, given.other, given.weight
    found = few.produce(producer, *words, operand)
    check(producer, given, operand, found)
    again = few.produce(producer, *words, operand)
    codes = [
        one[0].view(torch.int8).view(operand.pieces, operand.interleaved, 16)[:, :tokens] for one in (found, again)
    ]
    assert torch.equal(*codes) and torch.equal(found[1], again[1])


def test_interleaved_codes_of_halves_of_one_tensor() -> None:
    both = torch.randn(33, 2 * 512, dtype=torch.bfloat16, device="cuda")
    gate, up = both.chunk(2, -1)
    op = FewTokens(SlideSpec(64, 512, 8, torch.int8), torch.device("cuda"))
    found = few.produce(Producer(SILU), gate, up, None, op.operand(33))
    apart = few.produce(Producer(SILU), gate.contiguous(), up.contiguous(), None, op.operand(33))
    codes = [one[0].view(-1, 64, 16)[:, :33] for one in (found, apart)]
    assert torch.equal(*codes) and torch.equal(found[1], apart[1])
    with pytest.raises(ValueError, match="65 tokens, 64 are interleaved"):
        few.produce(Producer(SAME), torch.zeros(65, 512, device="cuda"), None, None, op.operand(33))


def test_halves_of_one_tensor() -> None:
    """Gate and up as vLLM has them, side by side."""
    both = torch.randn(33, 2 * 512, dtype=torch.bfloat16, device="cuda")
    gate, up = both.chunk(2, -1)
    operand, producer = Operand(512, torch.int8, lifted=True, length=8), Producer(SILU)
    found = produce(producer, gate, up, None, operand, 48)
    apart = produce(producer, gate.contiguous(), up.contiguous(), None, operand, 48)
    assert torch.equal(found[0], apart[0]) and torch.equal(found[1], apart[1])


def test_more_than_two_to_the_31_elements() -> None:
    x = torch.randn(70_000, 32_768, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(32_768, dtype=torch.bfloat16, device="cuda")
    operand, producer = Operand(32_768, torch.int8, lifted=True, length=4), Producer("same", 1e-5)
    found = produce(producer, x, None, weight, operand, len(x))[0]
    last = produce(producer, x[-64:], None, weight, operand, 64)[0]
    assert torch.equal(found[-64:], last)
