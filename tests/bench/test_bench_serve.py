"""`slideconvert bench serve` without vLLM: its checkpoints are real, its engine is a script that counts tensors.

And with a real vLLM, where there is one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slideconvert.api.bench_serve import bench_serve, load_of, with_preset
from slideconvert.api.options import ServeBenchOptions
from slideconvert.bench.serving.presets import PRESETS
from slideconvert.bench.serving.serve import LONGEST_MIXED, MIXED_SEQUENCES, UNMEASURABLE, percentiles
from slideconvert.core import choices
from slideconvert.errors import InputError
from slideconvert.models import shapes
from slideconvert.runtime import vllm_speed
from slideconvert.runtime.vllm_speed import arrivals
from tests.conftest import MAGNITUDE, Cli
from tests.helpers.vllm_runner import PLUGIN

TINY = {
    **shapes.SHAPES["Llama-3.2-1B"],
    "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "tie_word_embeddings": False,
}  # fmt: skip

ENGINE = """
import json, os, sys, threading
from pathlib import Path

task = json.loads(Path(sys.argv[1]).read_text())
model, beside = Path(task["model"]), Path(sys.argv[1]).parent
files = [path.read_bytes() for path in model.glob("*.safetensors")]
headers = [json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in files]
layers = {name.split(".")[2] for header in headers for name in header if name.startswith("model.layers.")}
config = json.loads((model / "config.json").read_text())
print("INFO SlideSparse slide layout on backend few_sparse:64,stock (measured)")
print(f"Model loading took {len(layers)}.25 GiB memory")
if os.environ.get("SLIDESPARSE_MEMORY") == "1.0" and not (beside / "mended").exists():
    threading.Event().wait()
Path(sys.argv[3]).touch()
ours = "SLIDESPARSE_MEMORY" in os.environ
assert ours == ("slidesparse_config" in config) or config["slidesparse_config"]["layout"] == "dense"
assert os.environ.get("VLLM_PLUGINS") == (None if ours else "none")
speed = 200.0 if ours else 100.0
rows = [("decode", size, str(size), [speed * size * one for one in (1.1, 1.0, 0.9)]) for size in task["batches"]]
rows += [("latency", size, str(size), [speed + sum(task["graphs"])]) for size in task["lengths"]]
for shape in task["prefill"]:
    count, length = map(int, shape.split("x"))
    rows.append(("prefill", count * length, shape, [speed * count]))
rows += [("mixed", size, str(size), [speed]) for size in task["mixed"]]
rows = [dict(zip(("what", "size", "shape", "samples"), row)) for row in rows]
for row in rows:
    if row["what"] == "latency":
        row["peak_gib"] = 4.5
for rate in task["rates"]:
    latency = {"ttft": [number / speed for number in range(1, 101)], "tpot": [1 / speed], "itl": [1 / speed]}
    rows.append({"what": "rate", "size": rate, "shape": f"{rate:g}/s", "samples": [speed], **latency})
assert task["kv_bytes"] == 2**28
for number, line in enumerate(sys.stdin):
    assert line == "measure\\n"
    turn = beside / "turn"
    turn.mkdir()  # fails if another measures
    with (beside / "turns").open("a") as file:
        file.write(f"{Path(sys.argv[1]).stem.removesuffix('.task')} ")
    turn.rmdir()
    so_far = [{**row, "samples": row["samples"][: 1 + number]} for row in rows]
    Path(sys.argv[2] + ".part").write_text(json.dumps({"load_s": 1.0, "rows": so_far}))
    Path(sys.argv[2] + ".part").rename(sys.argv[2])
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(shapes.SHAPES, "Llama-3.2-1B", TINY)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    (tmp_path / "engine.py").write_text(ENGINE)
    return tmp_path / "engine.py"


def options(tmp_path: Path, **more: Any) -> ServeBenchOptions:
    words: dict[str, Any] = {"scheme": "bf16,int8,w4a16", "pattern": "2:8,1x16:50%", "batch": "1,16", "limit": 60}
    return ServeBenchOptions(**{"device": "cpu", "out": tmp_path / "out", "prefill": "4x8", **words, **more})


def longer(source: Path) -> None:
    """A model that takes the sequences of a mixture."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))


def test_rows_are_run_once_and_compared_with_stock(engine: Path, tmp_path: Path) -> None:
    """A checkpoint that does not start in time is a row; one that there is no time for is run again the next time."""
    late = bench_serve((), options(tmp_path, budget=1), engine=engine)
    assert (late.outcome.measured, late.outcome.left) == (0, 15) and not late.results.rows
    first = bench_serve((), options(tmp_path, together=3), engine=engine)
    assert (first.outcome.measured, first.outcome.failed, first.outcome.left) == (15, 0, 0)
    rows = [row for row in first.results.rows.values() if row.case.what == "decode" and row.case.size == 16]
    assert [(row.case.checkpoint, row.case.precision, row.case.pattern) for row in rows] == [
        ("bf16", "bf16", "dense"), ("int8 dense", "int8", "dense"), ("int8 2:8", "int8", "2:8"),
        ("w4a16 Marlin", "w4a16", "dense"), ("w4a16 1x16:50%", "w4a16", "1x16:50%"),
    ]  # fmt: skip
    assert [row.tokens_per_second for row in rows] == [1600, 1600, 3200, 1600, 3200]
    assert all((row.low, row.high) == (row.tokens_per_second * 0.9, row.tokens_per_second * 1.1) for row in rows)
    assert all(row.gib == 3.25 and row.load_s is None and "few_sparse:64,stock" in row.runs for row in rows)
    work = tmp_path / "out" / "work"
    assert not list(work.glob("served-*")) and not list(work.glob("layer-*"))
    found = {(table.precision, table.axis): table for table in first.tables}
    decode = found["int8", "sequences decoded at once"]
    assert decode.tokens == [1, 16] and decode.speedup("2:8", 16) == pytest.approx(2.0)
    assert decode.speedup("2:8", 16, "bf16") == pytest.approx(2.0) and decode.of_ideal("2:8", 16) is None
    assert found["w4a16", "tokens of prompts of 8"].speedup("1x16:50%", 32) == pytest.approx(2.0)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "sequences decoded at once" in page and "1x16:50%" in page
    engine.write_text("raise SystemExit('must not run')")
    again = bench_serve((), options(tmp_path), engine=engine)
    assert again.outcome.measured == 0 and again.results.rows == first.results.rows


def test_what_does_not_start_or_fails_says_so(engine: Path, tmp_path: Path) -> None:
    found = bench_serve((), options(tmp_path, scheme="int8", memory="0,1", limit=6, together=3), engine=engine)
    failures = {row.case.setting: row.failure for row in found.results.rows.values() if row.failure}
    assert list(failures) == ["memory 1"] and failures["memory 1"].startswith("not ready in 6 s")
    assert found.outcome.failed == 3 and found.outcome.measured == 6
    engine.write_text(ENGINE.replace("    turn.mkdir()", "    raise SystemExit('out of luck')"))
    other = bench_serve((), options(tmp_path / "b", scheme="bf16"), engine=engine)
    assert all("status 1" in row.failure and "out of luck" in row.failure for row in other.results.rows.values())
    assert "out of luck" in (tmp_path / "b" / "out" / "index.html").read_text()


def test_loads_of_equal_size_and_other_shape_are_told_apart(engine: Path, tmp_path: Path) -> None:
    """Two prompts of 16 tokens and four of 8 are 32 tokens each."""
    found = bench_serve((), options(tmp_path, scheme="bf16", prefill="2x16,4x8"), engine=engine)
    prompts = [row for row in found.results.rows.values() if row.case.what == "prefill"]
    assert {row.case.shape: row.tokens_per_second for row in prompts} == {"2x16": 200, "4x8": 400}


def test_engines_that_start_together_take_turns(engine: Path, tmp_path: Path) -> None:
    """A sample of everything each, five times; then the engines of the next group."""
    bench_serve((), options(tmp_path, scheme="bf16,int8", together=2), engine=engine)
    turns = (tmp_path / "out" / "work" / "turns").read_text().split()
    assert turns == ["bf16", "int8-dense"] * 5 + ["int8-2-8"] * 5


@pytest.mark.parametrize(("together", "turns"), [(None, ["int8-dense", "int8-2-4"] * 5), (1, None)])
def test_a_quick_benchmark_starts_stock_and_ours_side_by_side(
    engine: Path, tmp_path: Path, together: int | None, turns: list[str] | None
) -> None:
    """Unless --together says otherwise. The time of a start is told where engines start alone."""
    words = options(tmp_path, scheme=None, pattern=None, quick=True, together=together)
    found = bench_serve((), words, engine=engine)
    seen = (tmp_path / "out" / "work" / "turns").read_text().split()
    assert seen == (turns or ["int8-dense"] * 5 + ["int8-2-4"] * 5)
    assert {row.load_s for row in found.results.rows.values()} == {None if turns else 1.0}


def test_an_engine_that_fails_in_a_turn_does_not_stop_the_others(engine: Path, tmp_path: Path) -> None:
    engine.write_text(
        ENGINE.replace("    turn.mkdir()", "    if not ours and number == 2: raise SystemExit(3)\n    turn.mkdir()")
    )
    found = bench_serve((), options(tmp_path, scheme="int8", together=2), engine=engine)
    assert (found.outcome.measured, found.outcome.failed, found.outcome.left) == (3, 3, 0)
    failed = {row.case.checkpoint: row.failure for row in found.results.rows.values() if row.failure}
    assert list(failed) == ["int8 dense"] and "status 3" in failed["int8 dense"]


def test_what_noise_hides_is_no_speed(engine: Path, tmp_path: Path) -> None:
    engine.write_text(ENGINE.replace("(1.1, 1.0, 0.9)", "(1.1, 1.0, -3.0)"))
    found = bench_serve((), options(tmp_path, scheme="bf16"), engine=engine)
    failures = {row.case.shape: row.failure for row in found.results.rows.values() if row.failure}
    assert set(failures) == {"1", "16"} and all("--output" in why for why in failures.values())


def test_own_checkpoints_are_compared_with_the_first(
    cli: Cli, engine: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = options(tmp_path, scheme=None, pattern=None, rate="2", mixed="4")
    with pytest.raises(InputError, match="source takes 128 tokens, this load has 1,153 in a sequence"):
        bench_serve((source,), words, engine=engine)
    longer(source)
    assert cli("convert", source, tmp_path / "sparse", *MAGNITUDE, "--pattern", "2_4").code == 0
    before = sorted(path.name for path in source.iterdir())
    found = bench_serve((source, tmp_path / "sparse"), words, engine=engine)
    assert found.outcome.measured == 2 * 5 and sorted(path.name for path in source.iterdir()) == before
    tables = {table.axis: table for table in found.tables}
    assert {axis: table.speedup("sparse", table.tokens[0]) for axis, table in tables.items()} == {
        "sequences decoded at once": 2.0, "tokens of prompts of 8": 2.0, "mixed requests": 2.0,
        "requests per second: time to first token, 90 %": 2.0, "requests per second: time to a token, median": 2.0,
    }  # fmt: skip
    row = next(row for row in found.results.rows.values() if row.case.what == "rate" and row.case.pattern == "sparse")
    assert (row.ttft_50_ms, row.ttft_90_ms, row.ttft_99_ms, row.tpot_50_ms) == (250.0, 450.0, 495.0, 5.0)
    with pytest.raises(InputError, match="--scheme has no effect"):
        bench_serve((source,), options(tmp_path, pattern=None), engine=engine)
    with pytest.raises(InputError, match="have one name"):
        bench_serve((source, source), words, engine=engine)


def test_results_of_other_loads_are_not_mixed(engine: Path, tmp_path: Path) -> None:
    bench_serve((), options(tmp_path, scheme="bf16"), engine=engine)
    with pytest.raises(InputError, match="output was 128, is 64"):
        bench_serve((), options(tmp_path, output=64), engine=engine)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"prefill": "8*1024"}, "--prefill"), ({"batch": "0"}, "--batch"), ({"rate": "fast"}, "--rate"),
        ({"memory": "all"}, "--memory"), ({"scheme": "w4a8"}, "w4a8"), ({"model": "GPT-5"}, "GPT-5"),
        ({"pattern": "3:4"}, "3:4"), ({"preset": "gqsa-table-9"}, "gqsa-table-9"), ({"lengths": "0"}, "--lengths"),
    ],
)  # fmt: skip
def test_unknown_words_are_refused(engine: Path, tmp_path: Path, words: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_serve((), ServeBenchOptions(device="cpu", out=tmp_path / "out", **words), engine=engine)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_without_vllm_it_says_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    refused = cli("bench", "serve", "--quick", "--out", tmp_path / "out")
    assert refused.code == 2 and "vLLM is not installed" in refused.err and not (tmp_path / "out").exists()


def test_the_cache_is_for_what_the_engine_asks() -> None:
    """The engine stands alone, so its numbers stand in both places."""
    assert (LONGEST_MIXED, MIXED_SEQUENCES) == (vllm_speed.MIXED_LONGEST, vllm_speed.MIXED_SEQUENCES)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([0.004, 0.001, 0.003, 0.002]) == (2.0, 4.0, 4.0) and percentiles([]) == (None, None, None)
    assert percentiles([number / 1000 for number in range(1, 201)]) == (100.0, 180.0, 198.0)


def test_arrivals_come_at_the_rate_that_is_asked() -> None:
    due = arrivals(50.0, 200.0)
    assert due == sorted(due) and due[0] == 0.0 and due[-1] < 200.0 and due == arrivals(50.0, 200.0)
    # A Poisson count: ten thousand, within five standard deviations of a hundred.
    assert abs(len(due) - 10_000) < 500


def test_a_preset_measures_latency_and_memory_of_its_settings(engine: Path, tmp_path: Path) -> None:
    """Table 13: 16 bits, and 8 and 4 with and without half of the groups. The engine gives 100 tokens/s, ours 200."""
    words = ServeBenchOptions(
        preset="gqsa-table-13", model="Llama-3.2-1B", together=3, limit=60, device="cpu", out=tmp_path / "out"
    )
    found = bench_serve((), words, engine=engine)
    rows = list(found.results.rows.values())
    assert [(row.case.precision, row.case.pattern) for row in rows] == [
        ("bf16", "dense"), ("w8a16", "dense"), ("w8a16", "1x16:50%"), ("w4a16", "dense"), ("w4a16", "1x16:50%"),
    ]  # fmt: skip
    assert {(row.case.what, row.case.size, row.gib, row.peak_gib) for row in rows} == {("latency", 128, 3.25, 4.5)}
    assert found.results.machine["prompt"] == 15
    tables = {table.precision: table for table in found.tables if table.patterns}
    assert tables["w8a16"].baselines["stock"] == {128: pytest.approx(1.28e6)}  # microseconds of the whole output
    assert tables["w4a16"].speedup("1x16:50%", 128, "bf16") == pytest.approx(2.0)
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in before["rows"]:
        del row["peak_gib"]  # as written before there was one
    (tmp_path / "out" / "results.json").write_text(json.dumps(before))
    again = bench_serve((), words, engine=engine)
    assert again.outcome.measured == 0 and all(row.peak_gib is None for row in again.results.rows.values())


def test_presets_are_the_published_tables_and_give_way_to_options() -> None:
    assert tuple(PRESETS) == choices.SERVED
    whole = with_preset(ServeBenchOptions(preset="gqsa-table-16"), own=False)
    assert (whole.model, whole.scheme) == ("Llama-2-7B", "bf16,w8a16,w4a16,int8")
    assert whole.pattern == "1x16:30%,1x16:40%,1x16:50%,2:4"
    load = load_of(whole)
    assert (load.lengths, load.prompt, load.batches, load.prefill) == ((128, 256, 512, 1024), 15, (), ())
    assert (load.longest, load.most_tokens) == (15 + 1024 + 1,) * 2
    other = with_preset(ServeBenchOptions(preset="gqsa-table-16", model="Llama-2-13B", lengths="64"), own=False)
    assert (other.model, other.lengths, other.scheme) == ("Llama-2-13B", "64", whole.scheme)
    quick = with_preset(ServeBenchOptions(preset="gqsa-table-16", quick=True), own=False)
    assert (quick.lengths, quick.scheme, quick.pattern) == ("128", "bf16,w4a16", "1x16:50%")
    given = with_preset(ServeBenchOptions(preset="gqsa-table-16"), own=True)
    assert given.lengths == whole.lengths and (given.model, given.scheme, given.pattern) == (None, None, None)
    both = load_of(ServeBenchOptions(lengths="8", batch="2"))
    assert (both.lengths, both.batches, both.prefill) == ((8,), (2,), ())


def test_graphs_are_asked_for_and_tell_results_apart(engine: Path, tmp_path: Path) -> None:
    """The engine of these tests gets faster by as many tokens/s as it is told tokens."""
    words = {"scheme": "int8", "pattern": "2:8", "batch": None, "prefill": None, "lengths": "8"}
    plain = bench_serve((), options(tmp_path, **words), engine=engine).results
    with pytest.raises(InputError, match="--out"):
        bench_serve((), options(tmp_path, **words, graphs="16,32"), engine=engine)
    elsewhere = options(tmp_path, **words, graphs="16,32", out=tmp_path / "captured")
    captured = bench_serve((), elsewhere, engine=engine).results
    speeds = [[row.tokens_per_second for row in some.rows.values()] for some in (plain, captured)]
    assert speeds == [[100, 200], [148, 248]] and captured.machine["graphs"] == [16, 32]


def test_the_quick_load_is_small() -> None:
    load = load_of(ServeBenchOptions(quick=True))
    assert (load.batches, load.prefill, load.mixed, load.rates) == ((1, 16), ("4x512",), (), ())


@pytest.mark.vllm
@pytest.mark.skipif(PLUGIN not in os.environ, reason=f"{PLUGIN} names no Python with vLLM and slideconvert")
def test_a_real_server_is_measured(tmp_path: Path, short_demo: Path, cli: Cli) -> None:
    """On a CPU: throughput and latency of a server that answers. On one that other work disturbs, the first token of a
    few sequences may take longer than all of them: that is told as a failure, and is none of this test."""
    source = Path(shutil.copytree(short_demo, tmp_path / "source"))
    longer(source)
    assert cli("convert", source, tmp_path / "sparse", *MAGNITUDE, "--layout", "dense").code == 0
    words = ["--batch", "1,4", "--prefill", "2x16", "--mixed", "3", "--rate", "4", "--output", "96", "--lengths", "8"]
    words += ["--together", "2", "--device", "cpu", "--graphs", "16,32"]
    command = [os.environ[PLUGIN], "-m", "slideconvert", "bench", "serve", str(source), str(tmp_path / "sparse")]
    done = subprocess.run(
        [*command, *words, "--out", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    every = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    rows = [row for row in every if not (row["what"] == "decode" and UNMEASURABLE in row["failure"])]
    assert (told["measured"], told["measured"] + told["failed"], told["left"]) == (len(rows), 12, 0), told
    assert all(0 < row["low"] <= row["tokens_per_second"] <= row["high"] for row in rows)
    rates = [row for row in rows if row["what"] == "rate"]
    assert all(0 < row["ttft_50_ms"] <= row["ttft_99_ms"] and row["tpot_50_ms"] > 0 for row in rates)
