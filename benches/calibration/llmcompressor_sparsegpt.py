"""Prune a model with llm-compressor's SparseGPT, then quantize it by rounding; report the time of each step.

Runs in llm-compressor's own environment, which has no slideconvert:

    python3.11 -m venv peer
    peer/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    peer/bin/python benches/calibration/llmcompressor_sparsegpt.py models/llama sequences.safetensors out --mask 2:8

sequences.safetensors is made by sequences.py. OUT is a Hugging Face folder: plain safetensors, or symmetric W8A8 in
compressed-tensors with --scheme. Everything but the mask and the batch is llm-compressor's default.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click

SCHEMES = {"int8": "W8A8", "fp8": "FP8_DYNAMIC"}
"""Names of schemes in llm-compressor: one scale per output channel, activations quantized per token."""
HEAD = "re:.*lm_head"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("sequences", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--mask", required=True, metavar="2:L", help="Zeros per block.")
@click.option("--scheme", type=click.Choice(["bf16", *SCHEMES]), default="bf16", show_default=True)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Sequences of one forward pass.")
@click.option("--block", default=128, show_default=True, type=click.IntRange(1), help="Columns of one SparseGPT block.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch.  [default: torch's own choice]")
def main(
    model: Path, sequences: Path, out: Path, mask: str, scheme: str, batch: int, block: int, threads: int | None
) -> None:
    """Prune MODEL with the tokens in SEQUENCES into OUT. Prints JSON on the last line of stdout."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - started

    with timed("import"):
        import torch
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.pruning import SparseGPTModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM
    if threads:
        torch.set_num_threads(threads)
    with timed("load"):
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        tokens = load_file(sequences)["sequences"]
        rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    zeros, group = (int(number) for number in mask.split(":"))
    with timed("prune"):
        oneshot(
            model=network,
            recipe=SparseGPTModifier(
                sparsity=zeros / group, mask_structure=mask, block_size=block, targets=["Linear"], ignore=[HEAD]
            ),
            dataset=rows,
            num_calibration_samples=len(tokens),
            max_seq_length=tokens.shape[1],
            shuffle_calibration_samples=False,
            batch_size=batch,
        )
    if scheme in SCHEMES:
        with timed("quantize"):
            oneshot(
                model=network, recipe=QuantizationModifier(targets=["Linear"], scheme=SCHEMES[scheme], ignore=[HEAD])
            )
    with timed("save"):
        network.save_pretrained(out, save_compressed=scheme in SCHEMES)
    reported = {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")},
    }
    click.echo(json.dumps(reported))


if __name__ == "__main__":
    main()
