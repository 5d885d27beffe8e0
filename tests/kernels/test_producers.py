"""Producers of quantized activations: the specification against slow twins, exact cases, and transformers' modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from slideconvert.core.patterns import LENGTHS
from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers.reference import RELU2, SAME, SILU, SUM, Producer, produce, values
from slideconvert.kernels.quantize.reference import quantize
from tests.helpers.produced import PRODUCERS, check, check_values, inputs

FP8 = torch.float8_e4m3fn
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
EVERY = pytest.mark.parametrize("producer", PRODUCERS, ids=lambda producer: producer.text)


@EVERY
@DTYPES
@pytest.mark.parametrize("codes", [torch.int8, FP8], ids=["int8", "fp8"])
def test_codes_equal_the_twins(producer: Producer, dtype: torch.dtype, codes: torch.dtype) -> None:
    """Unlifted, and in the windows of every pattern; padding rows and rows of zeros among them."""
    for columns, length in [(43, None), *((36 + turn % 2, length) for turn, length in enumerate([*LENGTHS, None]))]:
        operand = Operand(columns, codes, lifted=columns < 40, length=length)
        given = inputs(producer, 10, columns, dtype)
        exact = check(producer, given, operand, produce(producer, given.x, given.other, given.weight, operand, 13))
        assert exact >= 5 or (dtype == torch.float32 and producer != Producer(SAME))
    for length, multiple in ((8, 384), (10, 256)):  # as the product of many tokens reads them
        operand = Operand(136, codes, lifted=True, length=length, blocks=16, multiple=multiple)
        given = inputs(producer, 3, 136, dtype)
        check(producer, given, operand, produce(producer, given.x, given.other, given.weight, operand, 4))


@EVERY
@pytest.mark.parametrize("codes", [torch.int8, FP8], ids=["int8", "fp8"])
def test_interleaved_codes_equal_the_twins(producer: Producer, codes: torch.dtype) -> None:
    """As the product of few tokens reads them, of sparse and of dense weights."""
    for length, blocks, multiple in ((4, 1, 256), (6, 1, 256), (8, 16, 384), (10, 16, 256), (None, 1, 256)):
        operand = Operand(136, codes, True, length, blocks, multiple, interleaved=8)
        given = inputs(producer, 3, 136, torch.bfloat16)
        check(producer, given, operand, produce(producer, given.x, given.other, given.weight, operand, operand.rows(3)))
    operand = Operand(136, codes, blocks=4, multiple=256, interleaved=16)
    given = inputs(producer, 10, 136, torch.bfloat16)
    check(producer, given, operand, produce(producer, given.x, given.other, given.weight, operand, operand.rows(10)))


def test_interleaved_codes_by_hand() -> None:
    """Two tokens' first 16 codes, of the first words of four blocks of 16 columns; no third token."""
    x = torch.arange(128.0).view(2, 64)
    operand = Operand(64, torch.int8, blocks=4, multiple=64, interleaved=3)
    codes, scale, _ = produce(Producer(SAME), x, None, None, operand, operand.rows(2))
    assert codes.shape == (4, 48) and codes[:, 32:].eq(0).all()
    columns = [[16 * block + 4 * word + place for block in range(4) for place in range(4)] for word in range(4)]
    expected = [[round(x[token, column].item() / scale[token].item()) for token in range(2) for column in some]
                for some in columns]  # fmt: skip
    assert codes[:, :32].tolist() == expected


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@DTYPES
def test_values_are_those_of_the_unfused_modules(dtype: torch.dtype) -> None:
    """To the bit, with leading dimensions."""
    x, other = (normal(2, 5, 96, seed=seed).to(dtype) for seed in (0, 1))
    norm = LlamaRMSNorm(96, eps=1e-5).to(dtype)
    norm.weight.data = normal(96, seed=2).to(dtype)
    silu, relu2 = ACT2FN["silu"], ACT2FN["relu2"]
    for producer, expected in {
        Producer(SAME, 1e-5): norm(x),
        Producer(SUM, 1e-5): norm(other + x),
        Producer(SILU): silu(x) * other,
        Producer(RELU2): relu2(x) * other,
        Producer(RELU2, 1e-5): norm(relu2(x) * other),
    }.items():
        found, total = values(producer, x, other, norm.weight)
        assert found.dtype == dtype and torch.equal(found, expected)
        assert (total is not None) == (producer.element == SUM) and (total is None or torch.equal(total, x + other))


@EVERY
@DTYPES
def test_values_equal_the_twins(producer: Producer, dtype: torch.dtype) -> None:
    """Also where exponentials are infinite."""
    for columns in (43, 2048):
        given = inputs(producer, 10, columns, dtype)
        check_values(producer, given, *values(producer, given.x, given.other, given.weight))


def test_a_norm_by_hand() -> None:
    """Mean squares of 1 and 4, so that nothing is rounded: 3, 3, 3 and five 1 are divided by 2."""
    x = torch.tensor([[1.0, -1, 1, -1, 1, 1, 1, 1], [3.0, 3, -3, 1, 1, 1, 1, -1]]).bfloat16()
    weight = torch.tensor([2.0, 1, 1, 1, 1, 1, 1, 127]).bfloat16()
    codes, scale, _ = produce(Producer(SAME, 0.0), x, None, weight, Operand(8, torch.int8), 2)
    assert scale.tolist() == [[1.0], [0.5]]
    assert codes.tolist() == [[2, -1, 1, -1, 1, 1, 1, 127], [6, 3, -3, 1, 1, 1, 1, -127]]


def test_the_sum_is_rounded_before_it_is_normalized_and_given_back() -> None:
    x, other = torch.tensor([[256.0, 1.0]]).bfloat16(), torch.tensor([[1.0, 0.0]]).bfloat16()  # 257 is no bfloat16
    _, _, total = produce(Producer(SUM, 0.0), x, other, torch.ones(2).bfloat16(), Operand(2, torch.int8), 1)
    assert total is not None and total.tolist() == [[256.0, 1.0]]


def test_quantization_alone_is_quantize() -> None:
    x = normal(4, 32, seed=3)
    codes, scale, total = produce(Producer(SAME), x, None, None, Operand(32, torch.int8), 4)
    expected, expected_scale = quantize(x, torch.int8)
    assert torch.equal(codes, expected) and torch.equal(scale, expected_scale) and total is None


@EVERY
def test_text_form(producer: Producer) -> None:
    assert Producer.parse(producer.text) == producer


@pytest.mark.parametrize(("element", "eps"), [("gelu", None), (SUM, None)])
def test_producers_that_do_not_exist(element: str, eps: float | None) -> None:
    with pytest.raises(ValueError, match=f"no producer of '{element}' with eps None"):
        Producer(element, eps)
