"""Log probabilities of a text, token after token, by vLLM on the CPU. A script for vLLM's own environment.

    python vllm_logprobs.py MODEL TOKENS OUT DTYPE

TOKENS: a JSON list of token ids. OUT: where the log probabilities of all but the first are written, as JSON, once
all is done. Stands alone: it needs vLLM, not slideconvert, and fails if vLLM's plugins have brought slideconvert in.
"""

import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",  # none, whatever is installed: this is about stock vLLM
    "HF_HUB_OFFLINE": "1",
}


def main(model: str, tokens: str, out: str, dtype: str) -> None:
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    ids = json.loads(tokens)
    llm = LLM(model=model, dtype=dtype, enforce_eager=True, max_model_len=len(ids) + 1, max_num_seqs=1, seed=0)
    parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    (answer,) = llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)
    found = [place[token].logprob for token, place in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)]
    if "slideconvert" in sys.modules:
        raise SystemExit("slideconvert was loaded: this was not stock vLLM")
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":  # vLLM may start processes that import this file again
    main(*sys.argv[1:])
