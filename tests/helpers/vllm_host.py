"""Runs scripts of this folder in forks of one process that has imported vLLM, which costs more than most engines do.
A script for vLLM's own environment.

    python vllm_host.py SAID

Reads requests from stdin, a JSON object in each line: script, words, folder, environment. A fork takes over that
environment, works in the folder, writes all that it says into SAID there, and runs the script as python would. The
answer, a line on stdout, is its exit status. Ends with stdin.
"""

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path

PRELOADED = ("vllm.entrypoints.llm", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "torch._inductor.compile_fx")
"""None of them loads plugins, starts threads of OpenMP or reads variables that jobs set."""


def main(said_in: str) -> None:
    # What is printed here is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = dict(os.environ)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # engines collect garbage again and again: there is none here
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            become(request, started, said_in)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def become(request: dict, started: dict, said_in: str) -> None:
    """Run a script in this process, which then ends as one that never did anything else."""
    os.chdir(request["folder"])
    with Path(os.devnull).open() as nothing, Path(said_in).open("wb") as said:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    asked = request["environment"]
    for name in started.keys() - asked.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in asked.items() if started.get(name) != value})
    sys.argv = [request["script"], *request["words"]]
    runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":  # vLLM may start processes that import this file again
    main(*sys.argv[1:])
