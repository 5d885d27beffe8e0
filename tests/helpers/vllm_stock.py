"""vLLM's own kernel called as one of our ways, beside a layer of vLLM that it prepared itself. For vLLM's environment.

    python vllm_stock.py TASK OUT

OUT: a folder; outcome.json appears in it: by dtype of the codes, why it is refused, and otherwise whether the outputs
have the same bits, with and without a bias, and whether the prepared weight is that of our dense ways.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update({"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})


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
        told["host"] = [stock.HOST.name, stock.HOST.stock, stock.HOST.version]
    (Path(out) / "outcome.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
