"""vLLM's own kernel called as one of our ways, beside a layer of vLLM that it prepared itself. For vLLM's environment.

    python vllm_stock.py TASK OUT

OUT: a folder; outcome.json appears in it: by dtype of the codes, why it is refused, and otherwise whether the outputs
have the same bits, with and without a bias, whether the prepared weight is that of our dense ways, and what becomes of
codes that were made before.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.update({"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})


def of_codes(stock, way, prepared) -> list:
    """Whether it takes codes here, and with CUTLASS (multiplied in float64 instead); the error of its outputs then."""
    import torch
    from vllm import _custom_ops as ops

    from slideconvert.kernels.quantize.reference import quantize

    class CutlassFP8ScaledMMLinearKernel:
        pass

    def product(codes, weight, scale, weight_scale, dtype, bias):
        return ((codes.double() @ weight.double()) * scale * weight_scale.view(-1) + bias.double()).to(dtype)

    found = [way.operand(5) is not None]
    template, ops.cutlass_scaled_mm = way._template, product
    own = stock.product_of(SimpleNamespace(fp8_linear=CutlassFP8ScaledMMLinearKernel()))
    way._template = dataclasses.replace(template, product=own)
    x, bias = torch.randn(5, 112, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    codes, scale = quantize(x, way.spec.dtype)
    expected = way.launch(x, prepared, bias).double()
    error = (way.launch_codes(codes, scale, prepared, bias, x.dtype) - expected).norm() / expected.norm()
    return [*found, way.operand(5) is not None, float(error)]


def main(_: str, out: str) -> None:
    import torch

    from slideconvert.kernels.slide_spec import SlideSpec
    from slideconvert.runtime import vllm_stock as stock

    told, device = {}, torch.device("cpu")
    with stock.standing_alone():
        for dtype in (torch.int8, torch.float8_e4m3fn):
            spec = SlideSpec(64, 112, 8, dtype)
            refusal = stock.Stock.refusal(spec, device)
            told[str(dtype)] = {"refusal": refusal}
            if refusal:
                continue
            weight = spec.random(device)
            weight.scale.copy_(torch.linspace(0.5, 1.5, 64)[:, None])
            scheme, layer = stock.build(64, 112, dtype, device, weight)
            way = stock.Stock(spec, device)
            prepared = way.prepare(weight)
            same = []
            for bias in (None, torch.randn(64, dtype=torch.bfloat16)):
                x = torch.randn(5, 112, dtype=torch.bfloat16)
                same.append(torch.equal(way.launch(x, prepared, bias), scheme.apply_weights(layer, x, bias)))
            dense = prepared[0].data_ptr() == weight.dense.data_ptr()
            told[str(dtype)] |= {"same": same, "form": way.form, "no second copy": dense}
            told[str(dtype)]["of codes"] = of_codes(stock, way, prepared)
        told["host"] = [stock.HOST.name, stock.HOST.stock, stock.HOST.version]
    (Path(out) / "outcome.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
