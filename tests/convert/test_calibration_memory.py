"""What `plan` says of the memory that conversions need, for models that no test could hold, and for one that is run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import slideconvert
from slideconvert.plan import training_memory
from slideconvert.recover.groups import FrozenGroups
from slideconvert.recover.trainable import SurvivorLinear
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import DEMO, DEMO_TEXT, write_model, write_text

ROOT = Path(__file__).parents[2]
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def without_weights(folder: Path) -> Path:
    """A checkpoint of 70 billion weights whose files are headers and holes: 141 GB to look at, nothing on the disk."""
    hidden, inner, narrow, words = 8192, 28672, 1024, 128256
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    shapes["lm_head.weight"] = (words, hidden)
    for layer in range(80):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"{prefix}{name}.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**pico.CONFIG, **LLAMA_70B}))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)
    return folder


def test_the_plan_of_a_70b_model_states_the_memory(cli: Cli, tmp_path: Path) -> None:
    model = without_weights(tmp_path / "70b")
    made = cli("plan", model, "--json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    need = told["calibration_memory"]
    tokens, hidden = 128 * 2048, 8192
    # Two streams (compressed and dense) of hidden states, float32, and of attention's outputs, bfloat16.
    assert need["hidden"] == 2 * tokens * (4 + 2) * hidden
    linears = 2 * hidden * hidden + 2 * hidden * 1024 + 3 * hidden * 28672
    assert told["weights"] == 80 * linears
    assert need["layer"] == 2 * 4 * linears  # one layer in each stream, never more
    assert need["target_states"] == need["end_training"]["device"] == need["generating"] == 0
    # Dense layer in float32, the solved one in 8 bits, the one that is passed in bfloat16; of the 3/4 that 2:8 keeps
    # a value, gradient, two moments and a place each, and a bit of every weight; what one sequence leaves, the largest
    # linear as it is rebuilt, and the inputs and targets of four sequences.
    least = linears * (4 + 1 + 2 + 20 * 3 / 4 + 1 / 8)
    most = least + 2 * 2048 * (28 * hidden + 8 * 28672) + 13 * hidden * 28672 + 4 * 8 * 2048 * hidden
    assert least < need["block_training"] < most
    untrained = json.loads(cli("plan", model, "--block-epochs", "0", "--json").out)["calibration_memory"]
    assert untrained["block_training"] == 0
    # One layer, its largest Gram matrices (28672²) and a batch: an 80 GB GPU does it, hidden states elsewhere.
    assert 4 * 28672**2 * 10 < need["device"] < 80e9
    assert need["peak"] == need["hidden"] + need["device"]
    assert need["offload"] == {"device": need["device"], "host": need["hidden"]}
    said = cli("plan", model).out.replace("\n", " ")
    assert "128 sequences of 2048 tokens of allenai/c4:en:train" in said and "25.8 GB" in said


def test_training_end_to_end_needs_what_is_kept_of_the_model(cli: Cli, tmp_path: Path) -> None:
    """A float32 value of each kept weight (2:8: three of four), with --offload no more; without, two moments as well.
    The dense model is not there: its last hidden states are, in bfloat16, in CPU memory with the best state, the
    embedding and the codes of all layers."""
    model = without_weights(tmp_path / "70b")
    told = json.loads(cli("plan", model, "--preset", "quality", "--json").out)
    need, kept = told["calibration_memory"], told["weights"] * 3 // 4
    end, state = need["end_training"], 4 * 8 * 2048 * 8192
    assert need["target_states"] == 1024 * 2048 * 4 * 8192
    assert end["host"] == 1024 * 2048 * 2 * 8192 + 4 * kept + 4 * 128256 * 8192 + told["weights"]
    assert end["offloaded"] == 8 * kept + 80 * state
    rest = end["device"] - end["offloaded"]
    assert 4 * kept + told["weights"] / 8 < rest < 4.2 * kept + told["weights"] / 8 + 15e9
    assert need["offload"]["device"] == max(rest, need["generating"], need["stages"]["solve"]["device"])
    assert 8 * kept + 80 * state < end["pinned"] < 2 * 8 * kept + 80 * state, "pinned memory comes in powers of two"
    grouped = cli("plan", model, "--method", "gqsa", "--sparsity", "0.5", "--json").out
    groups = told["weights"] // 32
    oqp = json.loads(grouped)["calibration_memory"]["end_training"]
    # Eight bytes of codes, a scale and a zero point of four, for each kept group; moments of 16 bytes.
    assert oqp["offloaded"] == 16 * groups + 80 * state // 2  # of four sequences, not eight
    assert 16 * groups < oqp["device"] - oqp["offloaded"] < 17 * groups + 12e9


def test_a_small_model_keeps_its_dense_weights_for_the_backward_pass(cli: Cli, tmp_path: Path) -> None:
    """Ten more layers of SmolLM2's shapes: of 2:4 a value, two moments and a place for each kept weight, a bit and the
    dense weight in bfloat16 for each, and a hidden state. With 80 layers in bfloat16 they would be more than a GiB."""
    config = {**QWEN_7B, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    needed, linears = [], 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    for layers in (20, 30, 80, 90):
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        made = cli("plan", tmp_path, "--preset", "quality", "--pattern", "2_4", "--json")
        assert made.code == 0, made.err
        needed.append(json.loads(made.out)["calibration_memory"]["end_training"]["device"])
    lasting, state = linears * (3 * 4 / 2 + 1 / 8), 4 * 8 * 2048 * 576
    assert needed[1] - needed[0] == 10 * (lasting + state + linears * (2 + 4 / 2))
    assert needed[3] - needed[2] == 10 * (lasting + state)


@pytest.mark.parametrize("groups", [False, True], ids=["2:4", "groups"])
def test_dense_weights_that_stay_are_made_once_a_step_with_the_same_result(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: bool
) -> None:
    """One epoch of one step, with the held-out loss before and after: 14 linears three times, else four times."""
    source, text = write_model(tmp_path / "source", "qwen2", num_hidden_layers=2), write_text(tmp_path / "text.jsonl")
    kind = ("--method", "gqsa", "--group-size", 8, "--sparsity", 0.5) if groups else ("--pattern", "2_4")
    words = (*kind, "--preset", "quality", "--block-epochs", 0, "--end-epochs", 1, "--generated", 0, "--samples", 5)
    made: list[int] = []
    for linear in (SurvivorLinear, FrozenGroups):
        dense = linear.dense
        monkeypatch.setattr(linear, "dense", lambda self, dtype, dense=dense: made.append(1) or dense(self, dtype))
    weights = []
    for times, limit in ((3, training_memory.RESIDENT), (4, 0)):
        monkeypatch.setattr(training_memory, "RESIDENT", limit)
        made.clear()
        out = tmp_path / f"out{times}"
        assert cli("convert", source, out, *words, "--length", 24, "--calibration", text, "--device", "cpu").code == 0
        report = json.loads((out / "report.json").read_text())
        assert len(made) == 14 * times * (report["training"][-1]["restarts"] + 1)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


QWEN_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("samples", [128, 1024])
@pytest.mark.parametrize(
    "words",
    [("--pattern", "2_4"), ("--pattern", "2_8"), ("--method", "gqsa", "--sparsity", 0.5)],
    ids=["2:4", "2:8", "gqsa"],
)
def test_a_7b_model_trains_on_one_gpu(cli: Cli, tmp_path: Path, words: tuple[object, ...], samples: int) -> None:
    """Of 80 GB: 128 sequences without any option, 1,024 with --offload, for which 48 GB would do."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    made = cli("plan", tmp_path, "--preset", "quality", *words, "--samples", samples, "--json")
    assert made.code == 0, made.err
    need = json.loads(made.out)["calibration_memory"]
    assert samples == 1024 or need["peak"] < 77e9
    assert need["offload"]["device"] < 36e9
    if "gqsa" in words:
        assert need["stages"]["train by block"]["device"] < 10e9
        assert need["end_training"]["device"] - need["end_training"]["offloaded"] < 8e9


def test_generating_needs_the_dense_model_and_its_cache(cli: Cli, tmp_path: Path) -> None:
    """Keys and values of 8 heads of 128 in 80 layers, for the 2**18 tokens that are generated together: bfloat16."""
    model, cache = without_weights(tmp_path / "70b"), 2 * 2 * 8 * 128 * 80
    made = json.loads(cli("plan", model, "--preset", "quality", "--json").out)
    need = made["calibration_memory"]
    weights = 2 * made["weights"] + 4 * 2 * 128256 * 8192  # embedding and head in float32
    assert weights + cache * 2**18 < need["generating"] < weights + 1.1 * cache * 2**18
    assert need["generating"] <= need["device"]
    few = json.loads(cli("plan", model, "--preset", "quality", "--samples", "8", "--json").out)["calibration_memory"]
    assert weights + cache * 24 * 2048 < few["generating"] < need["generating"]
    none = json.loads(cli("plan", model, "--preset", "quality", "--generated", "0", "--json").out)
    assert none["calibration_memory"]["generating"] == 0
    assert need["hidden"] == 4 * none["calibration_memory"]["hidden"]


def test_nothing_is_reported_without_calibration(cli: Cli, source: Path) -> None:
    assert json.loads(cli("plan", source, "--method", "magnitude", "--json").out)["calibration_memory"] is None


def test_a_run_takes_what_the_plan_says(cli: Cli, tmp_path: Path) -> None:
    """The whole process on a CPU, imports included: at most what is said, and no less than two thirds of it."""
    words = ("--samples", "16", "--length", "256", "--calibration", DEMO_TEXT / "calibration.jsonl")
    said = json.loads(cli("plan", DEMO, *words, "--json").out)["peak_memory"]
    options = slideconvert.PlanOptions(calibration=str(DEMO_TEXT / "calibration.jsonl"), samples=16, length=256)
    assert slideconvert.plan(str(DEMO), options).peak_memory == said
    command = [sys.executable, "-m", "benches.peak", tmp_path / "peak", "convert", DEMO, tmp_path / "out", *words]
    subprocess.run([*map(str, command), "--device", "cpu", "-q"], check=True, cwd=ROOT)
    taken = int((tmp_path / "peak").read_text())
    assert taken <= said <= 1.5 * taken
