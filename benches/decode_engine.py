"""Speed of one checkpoint in one start of vLLM. bench_decode.py runs it, once for each row of its table.

    python benches/decode_engine.py TASK.json OUT.json READY

TASK: model, batches, prompt (tokens), output (tokens), prefill (numbers of prompts and of their tokens, as 32x1024),
mixed (numbers of requests), repeats, kv_bytes (of the cache).
READY appears once vLLM has started; a line on stdin then begins the measurement, and OUT appears once all is done:
engines start side by side and measure one after the other. Stands alone: it needs vLLM, and slideconvert where the
checkpoint is ours.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

MIXED_PROMPT, MIXED_OUTPUT = (128, 1024), (16, 128)
"""Tokens of requests that arrive all at once: prompts are cut into what a step may take, others decode beside them."""
MIXED_LONGEST = MIXED_PROMPT[1] + MIXED_OUTPUT[1]
MIXED_SIZES = (128, 256, 512)
"""Numbers of tokens, beside the batches, for which graphs are captured then: vLLM captures up to 512."""
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


def main(task_path: str, out: str, ready: str) -> None:
    task = json.loads(Path(task_path).read_text())
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    batches, prefill = task["batches"], [tuple(map(int, one.split("x"))) for one in task["prefill"]]
    mixed = MIXED_LONGEST if task["mixed"] else 0
    longest = max(task["prompt"] + task["output"], mixed, *(length for _, length in prefill)) + 1
    llm = LLM(
        model=task["model"],
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_batched_tokens=max(longest, *(count * length for count, length in prefill)),
        max_num_seqs=max(batches),
        gpu_memory_utilization=0.05,  # only asked for at the start: others may use the GPU
        kv_cache_memory_bytes=task["kv_bytes"],
        enable_prefix_caching=False,
        seed=0,
        compilation_config={"cudagraph_capture_sizes": [*batches, *(MIXED_SIZES if task["mixed"] else ())]},
    )
    told = {"load_s": time.perf_counter() - started}
    told |= {"tokens_per_s": {}, "spread": {}, "prefill_per_s": {}, "mixed_per_s": {}}
    drawn, vocabulary = random.Random(0), json.loads((Path(task["model"]) / "config.json").read_text())["vocab_size"]

    def seconds(batch: int, tokens: int, prompt: int) -> float:
        prompts = [{"prompt_token_ids": [drawn.randrange(3, vocabulary) for _ in range(prompt)]} for _ in range(batch)]
        parameters = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        llm.generate(prompts, parameters, use_tqdm=False)
        return time.perf_counter() - begun

    def several(batch: int, tokens: int, prompt: int = task["prompt"]) -> list[float]:
        seconds(batch, min(tokens, 8), prompt)  # warms up
        return [seconds(batch, tokens, prompt) for _ in range(task["repeats"])]

    def mixture(requests: int) -> float:
        """Tokens/s, of prompts and outputs; the same requests for every checkpoint."""
        sizes = random.Random(1)
        asked = [(sizes.randint(*MIXED_PROMPT), sizes.randint(*MIXED_OUTPUT)) for _ in range(requests)]
        prompts = [{"prompt_token_ids": [drawn.randrange(3, vocabulary) for _ in range(length)]} for length, _ in asked]
        parameters = [
            SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False) for _, tokens in asked
        ]
        begun = time.perf_counter()
        llm.generate(prompts, parameters, use_tqdm=False)
        return sum(map(sum, asked)) / (time.perf_counter() - begun)

    for batch in batches:
        seconds(batch, 8, task["prompt"])
    Path(ready).touch()
    sys.stdin.readline()
    for batch in batches:
        # From the first token to the last: without the prompt, and what a call costs beside its steps.
        first, whole = min(several(batch, 1)), several(batch, 1 + task["output"])
        told["tokens_per_s"][str(batch)] = batch * task["output"] / (min(whole) - first)
        told["spread"][str(batch)] = (sorted(whole)[len(whole) // 2] - first) / (min(whole) - first) - 1
    for name, (count, length) in zip(task["prefill"], prefill, strict=True):
        told["prefill_per_s"][name] = count * length / min(several(count, 1, length))
    for requests in task["mixed"]:
        told["mixed_per_s"][str(requests)] = max(mixture(requests) for _ in range(task["repeats"]))
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main(*sys.argv[1:])
