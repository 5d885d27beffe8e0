"""Times by which a way of our choice wins everywhere, in the user's cache. Needs slideconvert beside vLLM, on a GPU."""

from pathlib import Path


def write(model: str, ranks: int, way: str) -> None:
    """For the linears of a checkpoint that so many ranks divide. way: wins where it runs ("": vLLM's own wins)."""
    import torch

    from slideconvert.api.options import TuneOptions
    from slideconvert.api.tuned_linears import linears_of
    from slideconvert.kernels.backends.choose import backends_for
    from slideconvert.kernels.backends.rule import BUCKETS
    from slideconvert.kernels.backends.table import key_of, save, table_of
    from slideconvert.runtime.vllm_stock import HOST

    table = table_of(key_of(torch.device("cuda", 0), HOST.name, HOST.version))
    for spec in linears_of(Path(model), TuneOptions(host=HOST.name, ranks=ranks)):
        for kind in backends_for(type(spec), HOST).values():
            taken = 0.5 if kind.name == way else 1.0 if kind.name in HOST.stock else 2.0
            for bucket in BUCKETS:
                table.put(kind.timed_as(spec), kind.timed_name(), bucket, taken)
    assert save(table), "there is no cache to write to"
