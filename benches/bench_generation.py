"""Generation end to end: a Llama-7B-shaped model in transformers, decode steps replayed as CUDA graphs.

    python benches/bench_generation.py --lengths 128 --lengths 1024 --out generation.json

Random weights (speed does not depend on them), one sequence, a prompt of 15 tokens, greedy: table 16 of the GQSA paper.
Every decoder linear runs as slideconvert serves it: float16 by cuBLAS; W4 by our kernel with all groups, and with 30,
40 and 50 % of the groups of 16 pruned. The model and the static cache are those of transformers. A decode step with its
argmax is captured once for each length and replayed. Memory is the peak that torch allocates during generation. Latency
is the time from the prompt to the last token.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor, nn

from slideconvert.kernels.bench_common import header, table
from slideconvert.kernels.group_gemm.bench_group_gemm import random_weight
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.models.families import LLAMA

PROMPT = 15
LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
SETTINGS: dict[str, float | None] = {"fp16": None, "W4": 0.0, "W4S30": 0.3, "W4S40": 0.4, "W4S50": 0.5}
"""By name, the share of pruned groups; None: not quantized."""


def model_of(sparsity: float | None, shape: dict[str, int], size: int) -> Any:
    """The model with random weights on the GPU, its decoder linears as in the setting."""
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.float16)
    for layer in model.model.layers:
        for submodule in LLAMA.linears:
            if sparsity is not None:
                linear = layer.get_submodule(submodule)
                layer.set_submodule(submodule, group_linear(linear.out_features, linear.in_features, sparsity, size))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, part = name.rpartition(".")
            drawn = torch.randn(parameter.shape, dtype=torch.float16, device="cuda").mul_(0.02)
            model.get_submodule(owner).register_parameter(part, nn.Parameter(drawn, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config, device="cuda")
    return model.eval()


def group_linear(rows: int, columns: int, sparsity: float, size: int) -> SlideSparseLinear:
    """A linear with random 4-bit codes. The kept groups are drawn at random over the whole linear."""
    scores = torch.rand(rows, columns // size, device="cuda")
    keep = scores.flatten().argsort().view_as(scores) >= round(sparsity * scores.numel())
    spec, weight = random_weight(keep, columns, size, 4, dense=sparsity == 0)
    weight.scale.mul_(0.002)
    return SlideSparseLinear.of(spec, weight.named(), None)


class Generation:
    """Generation with one model to one length, with a captured decode step."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model, self.tokens = model, tokens
        self.whole = PROMPT + tokens
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=self.whole)
        device = next(model.parameters()).device
        self.token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.places = torch.arange(self.whole, device=device)
        self.out = torch.zeros(self.whole, dtype=torch.long, device=device)
        self.graph: Any = None

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        """Run the prompt [1, PROMPT] through the model and choose the first token."""
        self.cache.reset()
        self._forward(prompt, self.places[:PROMPT])
        self.position.fill_(PROMPT)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one more token, from and into the buffers."""
        self.out.index_copy_(0, self.position, self.token[0])
        self._forward(self.token, self.position)
        self.position.add_(1)

    def _forward(self, tokens: Tensor, places: Tensor) -> None:
        mask = (self.places[None, :] <= places[:, None])[None, None]
        logits = self.model(
            input_ids=tokens, position_ids=places[None], attention_mask=mask, past_key_values=self.cache, use_cache=True
        ).logits
        self.token.copy_(logits[:, -1].argmax(-1, keepdim=True))

    def capture(self, prompt: Tensor) -> None:
        """Capture `step` as a CUDA graph."""
        self.prefill(prompt)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def generate(self, prompt: Tensor) -> Tensor:
        """The tokens [tokens] that follow the prompt."""
        self.prefill(prompt)
        for _ in range(self.tokens):
            if self.graph:
                self.graph.replay()
            else:
                self.step()
        return self.out[PROMPT:]


def measure(model: Any, tokens: int, repeats: int) -> tuple[float, float]:
    """Seconds from the prompt to the last token, the best of several runs, and the peak memory in GB."""
    prompt = torch.randint(0, model.config.vocab_size, (1, PROMPT), device="cuda")
    generation = Generation(model, tokens)
    generation.capture(prompt)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        generation.generate(prompt)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds), torch.cuda.max_memory_allocated() / 1e9


@click.command()
@click.option("--lengths", multiple=True, type=int, default=(128, 256, 512, 1024), help="Tokens to generate.")
@click.option("--setting", "settings", multiple=True, type=click.Choice(list(SETTINGS)), default=tuple(SETTINGS))
@click.option("--group-size", default=16)
@click.option("--layers", default=LLAMA_7B["num_hidden_layers"], help="Fewer, to try it out.")
@click.option("--repeats", default=3)
@click.option("--out", type=click.Path(path_type=Path), help="JSON.")
def main(
    lengths: tuple[int, ...], settings: tuple[str, ...], group_size: int, layers: int, repeats: int, out: Path | None
) -> None:
    click.echo(header())
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for setting in settings:
        model = model_of(SETTINGS[setting], {**LLAMA_7B, "num_hidden_layers": layers}, group_size)
        for tokens in lengths:
            seconds, memory = measure(model, tokens, repeats)
            click.echo(f"{setting} {tokens}: {1000 * seconds:.1f} ms, {memory:.2f} GB", err=True)
            rows.append({"setting": setting, "tokens": tokens, "seconds": seconds, "gigabytes": memory})
        del model
        torch.cuda.empty_cache()
    first = {row["tokens"]: row for row in rows if row["setting"] == settings[0]}
    lines = [
        [
            row["setting"],
            str(row["tokens"]),
            f"{1000 * row['seconds']:.1f}",
            f"{row['tokens'] / row['seconds']:.1f}",
            f"{first[row['tokens']]['seconds'] / row['seconds']:.2f}",
            f"{row['gigabytes']:.2f}",
        ]
        for row in rows
    ]
    click.echo(table(["setting", "tokens", "ms", "tokens/s", f"× {settings[0]}", "GB"], lines))
    if out:
        out.write_text(json.dumps({"machine": header(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
