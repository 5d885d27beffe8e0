"""Runs of vLLM for tests, each in a process of its own: which Python runs them, what is asked, what came back.

On a CPU these processes are forks of one that has imported vLLM and starts with the first.

vLLM pins versions of torch and transformers that are not ours, so it lives in environments of its own, which
`make test-vllm` builds: one with vLLM alone, and one more that has slideconvert on top of the first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.load import load_model

STOCK = "SLIDECONVERT_VLLM_STOCK_PYTHON"
"""Names the Python of an environment with vLLM and without slideconvert."""
PLUGIN = "SLIDECONVERT_VLLM_PYTHON"
"""Names the Python of an environment with both."""

HERE = Path(__file__).parent
TIMEOUT = 600
SAID = "said.txt"


def saturates() -> bool:
    """Whether INT8 products of oneDNN, which stock vLLM takes on a CPU, add up pairs in 16 bits here: on x86 without
    VNNI. Of full codes nearly all come out wrong then (oneDNN, "Nuances of int8 computations")."""
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.exists() and platform.machine() == "x86_64" else {"avx512_vnni"}
    return words.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


STOCK_INT8 = pytest.mark.skipif(saturates(), reason="stock vLLM's INT8 products saturate: this CPU has no VNNI")
"""Of tests that compare with them."""


@dataclass(frozen=True)
class Job:
    """One start of the engine.

    prompts: token ids; every one is continued by `greedy` tokens. stock: slideconvert must not be installed.
    capture: by linear, the dtype of its codes ("" for none): keep what went into each and run it again on that.
    inputs: a folder where another job has captured: run each linear on that. after: generate again after each of these,
    under its name: reloaded (the weights, a second time), awake (from sleep), again (nothing). adapter: a folder of a
    LoRA adapter that every prompt goes through. scored: whether the logprobs of the prompts are wanted: then vLLM reads
    no cached prefixes, and on a CPU it cannot together with LoRA.
    way: the tables of times say that it wins wherever it runs, or ("") that vLLM's own does (vllm_times.py).
    engine: arguments of vllm.LLM. environment: variables; our reference backend is asked for unless they say otherwise,
    since on a CPU the plugin leaves all that it can to vLLM.
    """

    model: str
    prompts: list[list[int]]
    greedy: int = 8
    stock: bool = False
    capture: dict[str, str] | None = None
    inputs: str | None = None
    after: tuple[str, ...] = ()
    adapter: str | None = None
    scored: bool = True
    way: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
TWO_RANKS = {**ONE_PROCESS, "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""The engine itself is in the process of the job."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job. said: its stdout and stderr. told: what the job wrote; None if it gave up."""

    folder: Path
    said: str
    told: dict[str, Any] | None

    @property
    def results(self) -> dict[str, Any]:
        assert self.told is not None, self.said
        return self.told

    @property
    def logprobs(self) -> Tensor:
        """[prompts, tokens - 1]: of every token of the prompts after the first."""
        return torch.tensor(self.results["logprobs"], dtype=torch.float64)

    def linears(self, rank: int = 0) -> dict[str, Any]:
        return self.results["ranks"][rank]["linears"]

    def outputs(self, rank: int = 0) -> dict[str, Tensor]:
        """By linear, what it made of the captured inputs."""
        return load_file(self.folder / f"outputs{rank}.safetensors")


def python(variable: str) -> str:
    """The interpreter that a variable names. Skips the test where there is none."""
    found = os.environ.get(variable)
    if found is None and variable == PLUGIN and importlib.util.find_spec("vllm"):
        return sys.executable
    if found is None:
        pytest.skip(f"{variable} names no Python with vLLM: make test-vllm")
    return found


class Host:
    """A process of one interpreter that has imported vLLM and forks for every script (vllm_host.py)."""

    def __init__(self, interpreter: str) -> None:
        # vLLM asks a process of its own what a model's class can do, unless an earlier run has written it down.
        self.models = TemporaryDirectory()
        self.process = subprocess.Popen(
            [interpreter, "-P", HERE / "vllm_host.py", SAID],
            env=environment_of(interpreter) | {"HF_HUB_OFFLINE": "1"},  # read while vLLM is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, script: str, folder: Path, environment: dict[str, str]) -> int:
        """The exit status of a script, which writes all that it says into `folder`/SAID."""
        written = Path(environment["VLLM_CACHE_ROOT"])
        written.mkdir()
        (written / "modelinfos").symlink_to(self.models.name)
        words = [str(folder / "task.json"), str(folder)]
        request = {"script": str(HERE / script), "words": words, "folder": str(folder), "environment": environment}
        answers, questions = self.process.stdout, self.process.stdin
        assert answers is not None and questions is not None
        print(json.dumps(request), file=questions, flush=True)
        ready, _, _ = select.select([answers], [], [], TIMEOUT)
        if not ready:
            os.killpg(self.process.pid, signal.SIGKILL)  # with all that the script has started
            host.cache_clear()
            raise TimeoutError(f"{script} took more than {TIMEOUT} s: {(folder / SAID).read_text()}")
        answer = answers.readline()
        assert answer, "vllm_host.py has ended: what it said on stderr is among this test's output"
        return int(answer)


@cache
def host(interpreter: str) -> Host:
    return Host(interpreter)


def environment_of(interpreter: str) -> dict[str, str]:
    """The variables of this process; the packages of another interpreter are its own."""
    return {name: value for name, value in os.environ.items() if interpreter == sys.executable or name != "PYTHONPATH"}


def start(script: str, task: Any, folder: Path, variable: str) -> Outcome:
    """Run a script of this folder with (JSON file, folder); it writes outcome.json there unless it fails."""
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(task))
    interpreter = python(variable)
    environment = environment_of(interpreter)
    environment["VLLM_CACHE_ROOT"] = str(folder / "cache")  # nothing compiled in another run
    if torch.cuda.is_available():  # whose driver lives through no fork
        code = in_process(interpreter, script, folder, environment)
    else:
        code = host(interpreter)(script, folder, environment)
    out, said = folder / "outcome.json", (folder / SAID).read_text(errors="replace")
    assert out.exists() == (code == 0), said
    return Outcome(folder, said, json.loads(out.read_text()) if out.exists() else None)


def in_process(interpreter: str, script: str, folder: Path, environment: dict[str, str]) -> int:
    """As Host does, in a process that starts from nothing."""
    command = [interpreter, "-P", HERE / script, folder / "task.json", folder]
    with (folder / SAID).open("wb") as said:
        return subprocess.run(
            command, cwd=folder, env=environment, stdout=said, stderr=said, timeout=TIMEOUT, check=False
        ).returncode


def run(job: Job, folder: Path) -> Outcome:
    job = replace(job, environment={"SLIDESPARSE_BACKEND": "reference", **job.environment})
    return start("vllm_job.py", asdict(job), folder, STOCK if job.stock else PLUGIN)


def run_layouts(
    checkpoints: dict[str, Path], ids: list[list[int]], capture: dict[str, str], folder: Path, **common: Any
) -> tuple[Outcome, Outcome, Outcome]:
    """The dense layout, the packed one (the other of the two checkpoints) and stock vLLM on the dense one.

    The first captures the inputs of every linear in `folder`/run-dense; all three run their linears on these.
    In one process the packed layout also loads its weights a second time.
    """
    dense = str(checkpoints["dense"])
    (packed,) = (str(path) for layout, path in checkpoints.items() if layout != "dense")
    inputs, reload = folder / "run-dense", ("reloaded",) * (common["environment"] == ONE_PROCESS)
    return (
        run(Job(dense, ids, capture=capture, **common), inputs),
        run(Job(packed, ids, inputs=str(inputs), after=reload, **common), folder / "run-packed"),
        run(Job(dense, ids, inputs=str(inputs), stock=True, **common), folder / "run-stock"),
    )


def log_probabilities(
    model: Path, ids: list[list[int]], dtype: torch.dtype = torch.float32, activations: str = "quantized"
) -> Tensor:
    """[prompts, tokens - 1] of every token of the prompts after the first, float64, by our own loader."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        logits = load_model(Checkpoint.open(model), activations=activations, dtype=dtype)(tokens).logits[:, :-1]
    return logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
