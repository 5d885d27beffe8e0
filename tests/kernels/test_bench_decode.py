"""benches/bench_decode.py without a GPU: its checkpoints are real, its engine is a script that counts tensors."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benches import bench_decode, synthetic

TINY = {
    "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "tie_word_embeddings": False,
}  # fmt: skip

ENGINE = """
import json, os, sys, threading
from pathlib import Path

task = json.loads(Path(sys.argv[1]).read_text())
model = Path(task["model"])
files = [path.read_bytes() for path in model.glob("*.safetensors")]
headers = [json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in files]
layers = {name.split(".")[2] for header in headers for name in header if name.startswith("model.layers.")}
ours = "slidesparse_config" in json.loads((model / "config.json").read_text())
print("INFO SlideSparse slide layout on backend few_sparse:64,stock (measured)")
print("Model loading took 1.25 GiB memory")
if os.environ.get("SLIDESPARSE_MEMORY") == "1.0" and not (model.parent / "mended").exists():
    threading.Event().wait()
Path(sys.argv[3]).touch()
assert sys.stdin.readline() == "measure\\n"
turn = model.parent / "turn"
turn.mkdir()  # fails if another measures
turn.rmdir()
speed = 200.0 if "SLIDESPARSE_MEMORY" in os.environ else 100.0
assert os.environ.get("VLLM_PLUGINS") == ("none" if speed == 100.0 else None)
told = {"load_s": 1.0, "tokens_per_s": {str(batch): speed * batch for batch in task["batches"]}}
told |= {"spread": {"1": 0.02}, "prefill_per_s": {name: speed * len(name) for name in task["prefill"]}}
told |= {"mixed_per_s": {str(requests): speed * requests for requests in task["mixed"]}}
assert task["kv_bytes"] == 2**28
Path(sys.argv[2]).write_text(json.dumps({**told, "layers": len(layers), "ours": ours}))
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    [model] = [parameter for parameter in bench_decode.main.params if parameter.name == "model"]
    monkeypatch.setattr(model, "type", click.Choice(["tiny"]))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    (tmp_path / "engine.py").write_text(ENGINE)
    words = [tmp_path / "work", "--out", tmp_path / "out.json", "--model", "tiny", "--device", "cpu"]
    return [*words, "--engine", tmp_path / "engine.py"]


def run(words: list[object], *more: object) -> tuple[int, str]:
    done = CliRunner().invoke(bench_decode.main, [str(word) for word in (*words, *more)], catch_exceptions=False)
    return done.exit_code, done.output


def test_rows_are_run_once_and_compared_with_stock(bench: list[object], tmp_path: Path) -> None:
    """A row that takes too long is left out and run again the next time; the others are kept."""
    some = [word for name in ("bf16", "int8 dense", "int8 2:8", "Marlin", "groups") for word in ("--only", name)]
    code, said = run(bench, *some, "--limit", 5, "--seconds", 0)
    assert code == 0 and "no time left for 6: bf16, int8 dense, int8 2:8, int8 2:8, memory 1, w4a16 Marlin" in said
    code, said = run(bench, *some, "--limit", 5, "--together", 4)
    assert code == 1 and "int8 2:8, memory 1: not ready in 5 s" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["rows"]) == ["bf16", "int8 dense", "int8 2:8", "w4a16 Marlin", "w4a16 groups 50 %"]
    assert all(row["layers"] == 3 and row["gib"] == 1.25 for row in found["rows"].values())
    assert [row["ours"] for row in found["rows"].values()] == [False, True, True, True, True]
    assert [row["together"] for row in found["rows"].values()] == [4, 4, 4, 2, 2]
    assert not list((tmp_path / "work").glob("served-*"))
    assert found["rows"]["int8 2:8"]["runs"] == ["slide layout on backend few_sparse:64,stock (measured)"]
    (tmp_path / "work" / "mended").touch()
    (tmp_path / "engine.py").write_text(ENGINE.replace("200.0", "300.0"))
    code, said = run(bench, *some, "--limit", 5)
    lines = [line for line in said.splitlines() if line.startswith("|")]
    assert lines[0].split("|")[6:10] == [" prompts 32x1024 ", " prompts 8x4096 ", " spread ", " GiB "]
    assert {line.split("|")[8].strip() for line in lines[2:]} == {"2%"}
    assert code == 0 and [line.split("|")[2].strip() for line in lines[2:]] == [
        "100 (1.00)", "100 (1.00)", "200 (2.00)", "300 (3.00)", "100 (1.00)", "200 (2.00)",
    ]  # fmt: skip


def test_rows_of_other_settings_are_not_mixed(bench: list[object], tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(json.dumps({"settings": {"model": "other"}, "rows": {}}))
    code, said = run(bench)
    assert code == 1 and "give another --out" in said
