"""Compiles the Triton kernels for GPUs that need not be here, down to machine code.

    python -m tests.helpers.compiled_kernels

As they are launched: addresses that are multiples of 16, integers not specialized, nothing fused.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slideconvert.kernels.dense_gemm import kernel as dense_gemm
from slideconvert.kernels.dequant import kernel as dequant
from slideconvert.kernels.lift_quant import kernel as lift_quant
from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers import kernel as producers
from slideconvert.kernels.producers import values
from slideconvert.kernels.producers.reference import Producer
from slideconvert.kernels.quantize import kernel as quantize
from slideconvert.kernels.windows import slid_columns
from tests.helpers.produced import ADD_NORM, GATE, GATE_NORM, NORM

CAPABILITIES = (80, 90, 100)
WITH_FP8 = 89


def compiled(capability: int, function: Any, types: list[str], constants: tuple[Any, ...], warps: int) -> Any:
    names = function.arg_names
    signature = {name: types[place] if place < len(types) else "constexpr" for place, name in enumerate(names)}
    values = {(len(types) + place,): constant for place, constant in enumerate(constants)}
    assert len(types) + len(constants) == len(names)
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def check_parameters(kernel: Any, ours: int) -> None:
    """native.c gives a kernel its parameters and up to four of Triton's own after them."""
    ptx = kernel.asm["ptx"]
    entry = ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]
    assert ours <= entry.count(".param") <= ours + 4, entry


def compiled_producer(capability: int, producer: Producer, operand: Operand, kind: torch.dtype) -> Any:
    constants = producers.constants(producer, operand, kind, (operand.columns, 2 * operand.columns))
    types = [WORDS[kind]] * 4 + ["*i8", "*fp32", "i32"]
    return compiled(capability, producers.produce_kernel, types, constants, producers.reading(operand.columns)[1])


def compiled_values(capability: int, producer: Producer, columns: int, kind: torch.dtype) -> Any:
    norm, pairs = producer.eps is not None, kind.itemsize == 2 and columns % 2 == 0
    read, warps = producers.reading(columns)
    constants = (columns, columns, 2 * columns, producer.element, norm, producer.eps or 0.0, pairs, True, read)
    return compiled(capability, values.values_kernel, [WORDS[kind]] * 5, constants, warps)


def additions(kernel: Any) -> list[str]:
    """The shapes and layouts of what a kernel sums up: the order of the additions follows from them."""
    text = re.sub(r" loc\(.*\)$", "", kernel.asm["ttgir"], flags=re.MULTILINE)
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    found = re.findall(r"arith\.addf .*\n *tt\.reduce\.return .*\n *\}\) : \((.*)\) ->", text)
    return [re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), one) for one in found]


def check_order(producer: Producer, columns: int, kind: torch.dtype) -> None:
    """The mean square of a token has the same bits whatever is made of it."""
    expected = additions(compiled_values(90, producer, columns, kind))
    assert expected
    for operand in (Operand(columns, torch.int8), Operand(columns, torch.int8, True, 8, 16, 384)):
        found = additions(compiled_producer(90, producer, operand, kind))
        assert found == expected, (producer, columns, kind, found, expected)


WORDS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
PRODUCERS = (
    (ADD_NORM, Operand(512, torch.int8, True, 8), torch.bfloat16),
    (GATE, Operand(512, torch.int8), torch.float16),
    (NORM, Operand(43, torch.int8), torch.float32),
    (GATE_NORM, Operand(512, torch.float8_e4m3fn, True, None), torch.bfloat16),
)


def main() -> None:
    for capability in CAPABILITIES:
        for fp8 in (False, True) if capability >= WITH_FP8 else (False,):
            qmax = 448.0 if fp8 else 127.0
            for kind, steps, pairs in (("*bf16", 1, True), ("*fp32", 2, False))[: 2 if capability == 90 else 1]:
                types = [kind, "*i8", "*fp32", "i32"]
                for windows, length in ((3, 8), (0, None)):
                    constants = (512, slid_columns(512, length), windows, qmax, fp8, steps, pairs, True, 256, 512)
                    check_parameters(compiled(capability, lift_quant.lift_quant_kernel, types, constants, 4), 4)
                compiled(capability, quantize.quantize_kernel, types, (512, qmax, fp8, steps, 512), 4)
        for producer, operand, kind in PRODUCERS if capability == 90 else PRODUCERS[:1]:
            compiled_producer(capability, producer, operand, kind)
        compiled_values(capability, ADD_NORM, 512, torch.bfloat16)
        types = ["*i32", "*fp32", "*fp32", "*bf16", "*bf16", "i32"]
        check_parameters(compiled(capability, dequant.dequant_kernel, types, (4608, 4608, True, 1024, 8), 4), 6)
        types = ["*i8", "*i8", "*fp32", "*fp32", "*fp32", "*bf16", "i32", "i32", "i32"]
        # The larger ones take seconds each; on a GPU all are compiled and run.
        for *shape, warps, stages in dense_gemm.TILES[::3] if capability == 90 else dense_gemm.TILES[:1]:
            compiled(capability, dense_gemm.dense_gemm_kernel, types, (True, False, *shape, stages, 8), warps)
    check_order(GATE_NORM, 1408, torch.float32)
    check_order(ADD_NORM, 1408, torch.bfloat16)


if __name__ == "__main__":
    main()
