"""Generation end to end: a Llama-7B-shaped model in transformers, decode steps replayed as CUDA graphs.

    python benches/bench_generation.py --lengths 128 --lengths 1024 --out generation.json
    python benches/bench_generation.py --shape Llama-3.2-1B --lengths 128 --batch 1 --batch 16 --memory 1 \\
        --setting fp16 --setting int8 --setting "int8 2:4" --setting "int8 2:8"

Random weights (speed does not depend on them), prompts of 15 tokens, greedy: table 16 of the GQSA paper. Every decoder
linear runs as slideconvert serves it: float16 by cuBLAS; W4 by our kernel with all groups, and with 30, 40 and 50 % of
the groups of 16 pruned; INT8 and FP8 dense, by backend dense, or of a pattern, by backend auto. The model and the
static cache are those of transformers. A decode step with its argmax is captured once for each length and replayed.
Memory is the peak that torch allocates during generation. Latency is the time from the prompt to the last token.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor, nn

from slideconvert.kernels.backends.choose import AUTO, Settings
from slideconvert.kernels.backends.dense import Dense
from slideconvert.kernels.bench_common import header, table
from slideconvert.kernels.group_gemm.bench_group_gemm import random_weight
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import CODES, SlideSpec
from slideconvert.models.families import LLAMA
from slideconvert.models.shapes import SHAPES as KNOWN

PROMPT = 15
SHAPES = {
    name: {key: size for key, size in shape.items() if type(size) is int}
    for name, shape in KNOWN.items()
    if shape["model_type"] == "llama"
}
GROUPS = {"W4": 0.0, "W4S30": 0.3, "W4S40": 0.4, "W4S50": 0.5}
"""By the name of a setting, the share of pruned groups."""
SETTINGS = ("fp16", *GROUPS)
Made = Callable[[int, int], SlideSparseLinear]
"""A linear of so many rows and columns."""


def linears_of(setting: str, group_size: int, memory: float) -> Made | None:
    """Makes the linears of a setting: fp16 (None: as they are), a name of GROUPS, or codes and a pattern, "int8 2:8".

    Without a pattern they are dense. ValueError if it is none of these.
    """
    if setting == "fp16":
        return None
    if setting in GROUPS:
        return lambda rows, columns: group_linear(rows, columns, GROUPS[setting], group_size)
    codes, _, pattern = setting.partition(" ")
    if codes not in CODES or not re.fullmatch(r"(2:\d+)?", pattern):
        raise ValueError(f"unknown setting {setting!r}")
    length = int(pattern[2:]) if pattern else 4
    settings = Settings(AUTO if pattern else Dense.name, memory)

    def made(rows: int, columns: int) -> SlideSparseLinear:
        spec = SlideSpec(rows, columns, length, CODES[codes])
        weight = spec.random(torch.device("cuda"))
        weight.scale.fill_(0.0003)
        return SlideSparseLinear.of(spec, weight.named(), None, backend=settings)

    return made


def model_of(made: Made | None, shape: dict[str, int]) -> Any:
    """The model with random weights on the GPU, its decoder linears as in the setting."""
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.float16)
    for layer in model.model.layers:
        for submodule in LLAMA.linears:
            if made is not None:
                linear = layer.get_submodule(submodule)
                layer.set_submodule(submodule, made(linear.out_features, linear.in_features))
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
    """Generation with one model of one length for a batch, with a captured decode step."""

    def __init__(self, model: Any, tokens: int, batch: int) -> None:
        self.model, self.tokens = model, tokens
        self.whole = PROMPT + tokens
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=self.whole)
        device = next(model.parameters()).device
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.places = torch.arange(self.whole, device=device)
        self.out = torch.zeros(batch, self.whole, dtype=torch.long, device=device)
        self.graph: Any = None

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> None:
        """Run the prompts [batch, PROMPT] through the model and choose the first token."""
        self.cache.reset()
        self._forward(prompt, self.places[:PROMPT])
        self.position.fill_(PROMPT)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one more token, from and into the buffers."""
        self.out.index_copy_(1, self.position, self.token)
        self._forward(self.token, self.position)
        self.position.add_(1)

    def _forward(self, tokens: Tensor, places: Tensor) -> None:
        mask = (self.places[None, :] <= places[:, None]).expand(len(tokens), 1, -1, -1)
        logits = self.model(
            input_ids=tokens,
            position_ids=places[None].expand(len(tokens), -1),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
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
        """The tokens [batch, tokens] that follow the prompts."""
        self.prefill(prompt)
        for _ in range(self.tokens):
            if self.graph:
                self.graph.replay()
            else:
                self.step()
        return self.out[:, PROMPT:]


def measure(model: Any, tokens: int, batch: int, repeats: int) -> tuple[float, float]:
    """Seconds from the prompt to the last token, the best of several runs, and the peak memory in GB."""
    prompt = torch.randint(0, model.config.vocab_size, (batch, PROMPT), device="cuda")
    generation = Generation(model, tokens, batch)
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
@click.option("--shape", type=click.Choice(list(SHAPES)), default="Llama-2-7B")
@click.option("--lengths", multiple=True, type=int, default=(128, 256, 512, 1024), help="Tokens to generate.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1,), help="Sequences at a time.")
@click.option(
    "--setting", "settings", multiple=True, default=SETTINGS, help='One of these, or codes such as "int8 2:8".'
)
@click.option("--group-size", default=16)
@click.option("--memory", default=0.0, help="As the setting of that name, of INT8 and FP8 linears.")
@click.option("--layers", type=int, help="Fewer than the shape has, to try it out.")
@click.option("--repeats", default=3)
@click.option("--out", type=click.Path(path_type=Path), help="JSON.")
def main(
    shape: str, lengths: tuple[int, ...], batches: tuple[int, ...], settings: tuple[str, ...], group_size: int,
    memory: float, layers: int | None, repeats: int, out: Path | None,
) -> None:  # fmt: skip
    click.echo(header())
    torch.manual_seed(0)
    sizes = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
    rows: list[dict[str, Any]] = []
    for setting in settings:
        model = model_of(linears_of(setting, group_size, memory), sizes)
        for tokens, batch in product(lengths, batches):
            seconds, peak = measure(model, tokens, batch, repeats)
            click.echo(f"{setting} {tokens} x {batch}: {1000 * seconds:.1f} ms, {peak:.2f} GB", err=True)
            row = {"setting": setting, "tokens": tokens, "batch": batch, "seconds": seconds, "gigabytes": peak}
            rows.append(row)
        del model
        torch.cuda.empty_cache()
    first = {(row["tokens"], row["batch"]): row for row in rows if row["setting"] == settings[0]}
    lines = [
        [
            row["setting"],
            str(row["tokens"]),
            str(row["batch"]),
            f"{1000 * row['seconds']:.1f}",
            f"{row['tokens'] * row['batch'] / row['seconds']:.1f}",
            f"{first[row['tokens'], row['batch']]['seconds'] / row['seconds']:.2f}",
            f"{row['gigabytes']:.2f}",
        ]
        for row in rows
    ]
    click.echo(table(["setting", "tokens", "batch", "ms", "tokens/s", f"× {settings[0]}", "GB"], lines))
    if out:
        out.write_text(json.dumps({"machine": header(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
