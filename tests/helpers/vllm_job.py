"""Run a model in vLLM and write down what came out and what ran. A script for vLLM's own environment.

    python vllm_job.py JOB OUT

JOB: a JSON file, the fields of `Job` in vllm_runner.py. OUT: a folder; outcome.json appears in it once all is done.
Stands alone: it needs vLLM; whether slideconvert is installed beside it is the environment's matter.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(job: str, out: str) -> None:
    task = json.loads(Path(job).read_text())
    os.environ.update({**SETTINGS, **task["environment"]})
    if task["stock"] and importlib.util.find_spec("slideconvert"):
        raise SystemExit("slideconvert is installed here: this would not be stock vLLM")
    sys.path.insert(0, str(Path(__file__).parent))  # the workers' path, too: they import vllm_worker
    from vllm import LLM

    if task["way"] is not None:
        import vllm_times

        vllm_times.write(task["model"], task["engine"].get("tensor_parallel_size", 1), task["way"])
    length = max(map(len, task["prompts"])) + task["greedy"]
    llm = LLM(
        model=task["model"],
        max_model_len=length,
        seed=0,
        skip_tokenizer_init=True,
        worker_extension_cls="vllm_worker.Worker",
        **{"max_num_seqs": len(task["prompts"]), **task["engine"]},
    )
    told = {"pid": os.getpid(), "ranks": llm.collective_rpc("describe")}
    if task["capture"]:
        llm.collective_rpc("capture")
    told |= generate(llm, task)
    if task["capture"]:
        llm.collective_rpc("save_captured", args=(task["capture"], out))
    inputs = out if task["capture"] else task["inputs"]
    if inputs:
        llm.collective_rpc("replay", args=(inputs, out))
    told |= {kind: generate_after(llm, task, kind) for kind in task["after"]}
    (Path(out) / "outcome.json").write_text(json.dumps(told))


def generate_after(llm, task: dict, kind: str) -> dict:
    """The same once more, after something has happened to the engine."""
    if kind == "reloaded":
        llm.collective_rpc("reload_weights")
    elif kind == "awake":
        llm.sleep(level=1)
        llm.wake_up()
    return generate(llm, task)


def generate(llm, task: dict) -> dict:
    """greedy: token ids that follow each prompt. first: logprob of the first of them. logprobs: of every token of the
    prompts after the first, if they are to be scored."""
    from vllm import SamplingParams

    adapter = None
    if task["adapter"]:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest("adapter", 1, task["adapter"])
    scores = 0 if task["scored"] else None
    parameters = SamplingParams(
        max_tokens=task["greedy"], temperature=0, ignore_eos=True, logprobs=0, prompt_logprobs=scores
    )
    prompts = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    answers = llm.generate(prompts, parameters, use_tqdm=False, lora_request=adapter)
    told = {
        "greedy": [list(answer.outputs[0].token_ids) for answer in answers],
        "first": [next(iter(answer.outputs[0].logprobs[0].values())).logprob for answer in answers],
    }
    if task["scored"]:
        told["logprobs"] = [
            [place[token].logprob for token, place in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)]
            for ids, answer in zip(task["prompts"], answers, strict=True)
        ]
    return told


if __name__ == "__main__":  # vLLM may start processes that import this file again
    main(*sys.argv[1:])
