"""Speed of one checkpoint in one start of vLLM. bench_decode.py runs it, once for each row of its table.

    python benches/decode_engine.py TASK.json OUT.json READY

TASK: model, batches, prompt (tokens), output (tokens), prefill (numbers of tokens), repeats, kv_bytes (of the cache).
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

PROMPT = 1024
"""Tokens of each prompt where prompts are measured."""
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


def main(task_path: str, out: str, ready: str) -> None:
    task = json.loads(Path(task_path).read_text())
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    batches, longest = task["batches"], max(task["prompt"] + task["output"], PROMPT) + 1
    llm = LLM(
        model=task["model"],
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_batched_tokens=max(longest, *task["prefill"]),
        max_num_seqs=max(batches),
        gpu_memory_utilization=0.05,  # only asked for at the start: others may use the GPU
        kv_cache_memory_bytes=task["kv_bytes"],
        enable_prefix_caching=False,
        seed=0,
        compilation_config={"cudagraph_capture_sizes": batches},
    )
    told = {"load_s": time.perf_counter() - started, "tokens_per_s": {}, "spread": {}, "prefill_per_s": {}}
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

    for batch in batches:
        seconds(batch, 8, task["prompt"])
    Path(ready).touch()
    sys.stdin.readline()
    for batch in batches:
        # From the first token to the last: without the prompt, and what a call costs beside its steps.
        first, whole = min(several(batch, 1)), several(batch, 1 + task["output"])
        told["tokens_per_s"][str(batch)] = batch * task["output"] / (min(whole) - first)
        told["spread"][str(batch)] = (sorted(whole)[len(whole) // 2] - first) / (min(whole) - first) - 1
    for tokens in task["prefill"]:
        told["prefill_per_s"][str(tokens)] = tokens / min(several(tokens // PROMPT, 1, PROMPT))
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main(*sys.argv[1:])
