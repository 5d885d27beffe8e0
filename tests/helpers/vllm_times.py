"""Times by which a way of our choice wins everywhere, in the user's cache. A script for vLLM's environment on a GPU.

    python vllm_times.py TASK OUT

TASK: a JSON object: model, a checkpoint; ranks that divide it; way, which is to win where it runs ("": vLLM's own
wins). OUT: a folder; outcome.json appears in it, the linears.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update({"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})


def main(task: str, out: str) -> None:
    import torch

    from slideconvert.api.options import TuneOptions
    from slideconvert.api.tuned_linears import linears_of
    from slideconvert.kernels.backends.choose import backends_for
    from slideconvert.kernels.backends.rule import BUCKETS
    from slideconvert.kernels.backends.table import key_of, save, table_of
    from slideconvert.runtime.vllm_stock import HOST

    asked = json.loads(Path(task).read_text())
    table = table_of(key_of(torch.device("cuda", 0), HOST.name, HOST.version))
    linears = linears_of(Path(asked["model"]), TuneOptions(host=HOST.name, ranks=asked["ranks"]))
    for spec in linears:
        for kind in backends_for(type(spec), HOST).values():
            taken = 0.5 if kind.name == asked["way"] else 1.0 if kind.name in HOST.stock else 2.0
            for bucket in BUCKETS:
                table.put(kind.timed_as(spec), kind.name, bucket, taken)
    assert save(table), "there is no cache to write to"
    (Path(out) / "outcome.json").write_text(json.dumps([str(spec) for spec in linears]))


if __name__ == "__main__":
    main(*sys.argv[1:])
