"""`eval --served` against vLLM's real server on the CPU, without slideconvert in its environment.

It is started by its module: `vllm serve` asks for the version of a package vllm, and the one for CPUs has another name.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.helpers.completions_server import expected_of_server
from tests.helpers.demo import DEMO, TEXT, converted, text_windows
from tests.helpers.vllm_runner import STOCK, python

pytestmark = pytest.mark.vllm

SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
KEY, VARIABLE, NAME = "sk-of-this-test", "SLIDECONVERT_TEST_KEY", "pruned"
SHORT = ("--text", TEXT, "--sequences", 3, "--length", 64)


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """The URL of a server with a model, as soon as it says that it has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", model, "--host", "127.0.0.1", "--port", port, "--served-model-name", NAME, "--dtype", "float32"]
    words += ["--max-model-len", 128, "--max-num-seqs", 2, "--enforce-eager", "--max-logprobs", 40, "--api-key", KEY]
    environment = {**os.environ, **SETTINGS, "VLLM_CACHE_ROOT": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    command = [python(STOCK), "-P", "-m", "vllm.entrypoints.openai.api_server", *map(str, words)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "Application startup complete" in line:
                break
        else:
            pytest.fail("".join(said))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_real_server_gives_the_numbers_of_the_files(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pruned float model in float32 on both sides: two orders of the same sums, whose logits differ by some 1e-5."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = converted(DEMO, tmp_path / "model", scheme="bf16", pattern="2:4")
    with served(model, tmp_path) as url:
        words = ("eval", DEMO, model, *SHORT, "--served", url)
        outcome = cli(*words, "--api-key-env", VARIABLE, "--top", 40, "--json")
        assert outcome.code == 0, outcome.err
        refused = {
            "wants a key": cli(*words),
            "max-logprobs 41": cli(*words, "--api-key-env", VARIABLE, "--top", 41),
            "max_model_len": cli(*words, "--api-key-env", VARIABLE, "--length", 128),
            f"one of {NAME}": cli(*words, "--api-key-env", VARIABLE, "--served-model", "other"),
        }
    told = json.loads(outcome.out)
    _, local, row = told["results"]
    assert told["notes"] == []
    for name in ("perplexity", "ratio"):
        assert row[name] == pytest.approx(local[name], rel=1e-4), name
    kl, same, accepted = expected_of_server(DEMO, model, text_windows(64, 3), 40)
    assert row["kl_mean"] == pytest.approx(kl, abs=1e-4) and kl > 0.1
    assert row["acceptance"] == pytest.approx(accepted, abs=1e-4)
    assert row["same_top"] == pytest.approx(same, abs=0.011)  # two near ties of 189 positions
    for said, outcome in refused.items():
        assert outcome.code == 2 and said in outcome.err, (said, outcome.err)
        assert KEY not in outcome.out + outcome.err and len(re.findall("error: ", outcome.err)) == 1
