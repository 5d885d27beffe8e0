"""Speed of one checkpoint in one start of vLLM. `slideconvert bench serve` runs this file, once for each checkpoint.

    python vllm_speed.py TASK.json OUT.json READY

TASK: model, batches, prompt (tokens), output (tokens), lengths (tokens of outputs of one sequence), prefill (numbers of
prompts and of their tokens, as 32x1024), mixed (numbers of requests), rates (requests per second, in the first turn
alone), seconds (of each rate), graphs (tokens of steps that are captured too), kv_bytes (of the cache).
READY appears once vLLM has started. For each line on stdin then it takes one more sample of everything and writes OUT:
engines that have started side by side take turns, so that what slows the machine for a while slows all of them. The
end of stdin ends it. Stands alone: it needs vLLM, and slideconvert where the checkpoint is ours.
"""

import json
import os
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

MIXED_PROMPT, MIXED_OUTPUT = (128, 1024), (16, 128)
"""Tokens of requests that arrive all at once, or one after another at a rate: prompts are cut into what a step may
take, others decode beside them."""
MIXED_LONGEST = MIXED_PROMPT[1] + MIXED_OUTPUT[1]
MIXED_SIZES = (128, 256, 512)
"""Numbers of tokens, beside the batches, for which graphs are captured then: vLLM captures up to 512."""
MIXED_SEQUENCES = 64
"""Requests that run at once then, at most."""
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
Rows = list[dict[str, Any]]
"""what: decode, latency, prefill, mixed or rate. size, shape: of it. samples: tokens per second."""


class Meter:
    """One engine, and what it is asked."""

    def __init__(self, task: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.task, self._parameters = task, SamplingParams
        self.prefill = [(name, *map(int, name.split("x"))) for name in task["prefill"]]
        varied = bool(task["mixed"] or task["rates"])
        mixed = MIXED_LONGEST if varied else 0
        outputs = [*task["lengths"], *([task["output"]] if task["batches"] else [])]
        longest = max([task["prompt"] + max(outputs, default=0), mixed, *(length for _, _, length in self.prefill)]) + 1
        captured = {*task["batches"], *task["graphs"], *(MIXED_SIZES if varied else (1,))}
        started = time.perf_counter()
        self.llm = LLM(
            model=task["model"],
            skip_tokenizer_init=True,
            max_model_len=longest,
            max_num_batched_tokens=max([longest, *(count * length for _, count, length in self.prefill)]),
            max_num_seqs=max([1, *task["batches"], *([MIXED_SEQUENCES] if varied else [])]),
            gpu_memory_utilization=0.05,  # only asked for at the start: others may use the GPU
            kv_cache_memory_bytes=task["kv_bytes"],
            enable_prefix_caching=False,
            seed=0,
            compilation_config={"cudagraph_capture_sizes": sorted(captured)},
        )
        self.load_seconds = time.perf_counter() - started
        self._drawn = random.Random(0)
        self._vocabulary = json.loads((Path(task["model"]) / "config.json").read_text())["vocab_size"]
        self._samples: dict[tuple[str, str], list[float]] = {}
        self._arrived: Rows = []

    def warm_up(self) -> None:
        for batch in self.task["batches"]:
            self.seconds(batch, 8, self.task["prompt"])

    def turn(self) -> Rows:
        """Take one more sample of all that the task asks for; the rows of all samples so far."""
        return [*self._decode(), *self._latency(), *self._prefill(), *self._mixed(), *self._rates()]

    def _decode(self) -> Rows:
        rows: Rows = []
        output, prompt = self.task["output"], self.task["prompt"]
        for batch in self.task["batches"]:
            # From the first token to the last: without the prompt, and what a call costs beside its steps.
            firsts = sorted(self.taken("first", batch, 1, prompt))
            first = firsts[len(firsts) // 2]
            samples = [batch * output / (whole - first) for whole in self.taken("decode", batch, 1 + output, prompt)]
            rows.append({"what": "decode", "size": batch, "shape": str(batch), "samples": samples})
        return rows

    def _latency(self) -> Rows:
        rows: Rows = []
        for length in self.task["lengths"]:
            peak_gib()
            samples = [length / taken for taken in self.taken("latency", 1, length, self.task["prompt"])]
            found = {"what": "latency", "size": length, "shape": str(length), "samples": samples}
            rows.append({**found, "peak_gib": peak_gib()})
        return rows

    def _prefill(self) -> Rows:
        rows: Rows = []
        for name, count, length in self.prefill:
            samples = [count * length / taken for taken in self.taken("prefill", count, 1, length)]
            rows.append({"what": "prefill", "size": count * length, "shape": name, "samples": samples})
        return rows

    def _mixed(self) -> Rows:
        rows: Rows = []
        for count in self.task["mixed"]:
            self.mixture(min(count, 8))
            samples = self._kept("mixed", str(count), self.mixture(count))
            rows.append({"what": "mixed", "size": count, "shape": str(count), "samples": samples})
        return rows

    def _rates(self) -> Rows:
        if not self._arrived:
            found = [(rate, self.arriving(rate)) for rate in self.task["rates"]]
            self._arrived = [{"what": "rate", "size": rate, "shape": f"{rate:g}/s", **told} for rate, told in found]
        return self._arrived

    def taken(self, what: str, batch: int, tokens: int, prompt: int) -> list[float]:
        """Seconds of this load, now and all times before."""
        self.seconds(batch, min(tokens, 8), prompt)  # warms up: others may have had the GPU
        return self._kept(what, f"{batch} {tokens} {prompt}", self.seconds(batch, tokens, prompt))

    def _kept(self, what: str, load: str, sample: float) -> list[float]:
        samples = self._samples.setdefault((what, load), [])
        samples.append(sample)
        return samples

    def seconds(self, batch: int, tokens: int, prompt: int) -> float:
        prompts = [self._prompt(prompt) for _ in range(batch)]
        begun = time.perf_counter()
        self.llm.generate(prompts, self._asked(tokens), use_tqdm=False)
        return time.perf_counter() - begun

    def mixture(self, count: int) -> float:
        """Tokens/s, of prompts and outputs, of requests that are all there at once."""
        sizes = requests(count)
        prompts = [self._prompt(length) for length, _ in sizes]
        begun = time.perf_counter()
        self.llm.generate(prompts, [self._asked(tokens) for _, tokens in sizes], use_tqdm=False)
        return sum(map(sum, sizes)) / (time.perf_counter() - begun)

    def arriving(self, rate: float) -> dict[str, list[float]]:
        """Requests that arrive at random, `rate` of them a second. Seconds: ttft, from when one was due to its first
        token, so that waiting counts; tpot, by token from there to its last; itl, between two tokens."""
        due = arrivals(rate, self.task["seconds"])
        sizes, engine = requests(len(due)), self.llm.llm_engine
        waiting = [(self._prompt(length), self._asked(tokens)) for length, tokens in sizes]
        seen: dict[str, list[float]] = {}
        begun, number = time.perf_counter(), 0
        while number < len(due) or engine.has_unfinished_requests():
            now = time.perf_counter() - begun
            while number < len(due) and due[number] <= now:
                engine.add_request(str(number), *waiting[number])
                number += 1
            if not engine.has_unfinished_requests():
                time.sleep(max(0.0, due[number] - now))
                continue
            for one in engine.step():
                times = seen.setdefault(one.request_id, [])
                arrived = len(one.outputs[0].token_ids) - len(times)
                times += [time.perf_counter() - begun] * arrived
        taken = time.perf_counter() - begun
        return {
            "samples": [sum(map(sum, sizes)) / taken],
            "ttft": [times[0] - due[int(name)] for name, times in seen.items()],
            "tpot": [(times[-1] - times[0]) / (len(times) - 1) for times in seen.values() if len(times) > 1],
            "itl": [after - before for times in seen.values() for before, after in pairwise(times)],
        }

    def _prompt(self, length: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": [self._drawn.randrange(3, self._vocabulary) for _ in range(length)]}

    def _asked(self, tokens: int) -> Any:
        return self._parameters(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)


def peak_gib() -> float | None:
    """GiB that torch has allocated at most since the last call, in this process; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def requests(count: int) -> list[tuple[int, int]]:
    """Tokens of prompts and of outputs; the same for every checkpoint."""
    sizes = random.Random(1)
    return [(sizes.randint(*MIXED_PROMPT), sizes.randint(*MIXED_OUTPUT)) for _ in range(count)]


def arrivals(rate: float, seconds: float) -> list[float]:
    """When requests are due, at random, the first at once; the same for every checkpoint."""
    gaps, due, at = random.Random(2), [], 0.0
    while at < seconds:
        due.append(at)
        at += gaps.expovariate(rate)
    return due


def main(task_path: str, out: str, ready: str) -> None:
    task = json.loads(Path(task_path).read_text())
    os.environ.update(SETTINGS)
    if task["lengths"]:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # only the engine's own process knows its memory
    meter = Meter(task)
    meter.warm_up()
    Path(ready).touch()
    while sys.stdin.readline():
        part = Path(f"{out}.part")
        part.write_text(json.dumps({"load_s": meter.load_seconds, "rows": meter.turn()}))
        part.rename(out)  # whoever waits for it reads all of it


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main(*sys.argv[1:])
