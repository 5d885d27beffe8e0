"""--low-disk and --source-cache: shards are fetched and deleted during the conversion; the output is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from slideconvert.checkpoint.files import CHANNEL_SCALES
from slideconvert.errors import HubError
from slideconvert.hub.lowdisk import open_remote
from tests.conftest import MAGNITUDE, Cli, Outcome
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_text, write_tokenizer
from tests.helpers.hub_repo import Fault, Request
from tests.helpers.hub_server import HubServer
from tests.helpers.outliers import enlarged

pytest_plugins = ["tests.helpers.hub_fixtures"]

STAGING = ".slideconvert-partial"
LAYERS, SHARDS, MOST = 5, 7, 3
ID = "org/model"
SHARD = "model-00004-of-00007.safetensors"
Files = dict[str, bytes]


def weights() -> dict[str, Tensor]:
    return enlarged(pico.weights(layers=LAYERS), LAYERS)


def sharded(folder: Path, *, scattered: bool = False, **config: Any) -> Path:
    """A pico model with large channels in shards: a layer each, as published models are cut, or all over them."""
    tensors, place = weights(), {}
    pico.write(folder, tensors, {**config, "num_hidden_layers": LAYERS}, shards=SHARDS)
    (folder / "tekken.json").write_text("{}")
    write_tokenizer(folder)
    if scattered:
        return folder
    parts = ("model.embed", *(f"model.layers.{layer}." for layer in range(LAYERS)), "model.norm")
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        save_file({tensor: value for tensor, value in tensors.items() if tensor.startswith(part)}, folder / name)
        place |= {tensor: name for tensor in tensors if tensor.startswith(part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sharded(tmp_path / "model")


@pytest.fixture
def expected(cli: Cli, hub: HubServer, model: Path, tmp_path: Path) -> Files:
    """What a conversion of the Hub id gives in the normal way, with a cache of its own; the model is on the Hub."""
    hub.add_repo(ID, pico.files(model))
    words = ("--source-cache", tmp_path / "normal cache")
    assert cli("convert", ID, tmp_path / "normal", *MAGNITUDE, *words).code == 0
    hub.requests.clear()
    return pico.files(tmp_path / "normal")


def low(cli: Cli, out: Path, *words: object) -> Outcome:
    return cli("convert", ID, out, *MAGNITUDE, "--low-disk", *words)


def fetched(hub: HubServer, name: str = ".safetensors") -> list[str]:
    """Names of the shards that were fetched whole, in order; the requests for their headers are left out."""
    whole = [r for r in hub.requests if r.path.startswith("/cdn/") and not (r.range or "").startswith("bytes=0-")]
    return [r.path.rpartition("/")[2] for r in whole if r.method == "GET" and r.path.endswith(name)]


def private(out: Path) -> Path:
    """Where the shards of a conversion into `out` lie for a while."""
    return out / STAGING / "work" / "source"


def watch_disk(hub: HubServer, folder: Path) -> list[int]:
    """The number of shards in `folder`, whole or in part, at every request."""
    counts: list[int] = []

    def count(request: Request) -> None:
        counts.append(len([path for path in folder.rglob("*") if path.suffix in (".safetensors", ".incomplete")]))

    hub.watch = count
    return counts


# ---- the same output, with less on the disk


@pytest.mark.parametrize("scattered", [False, True])
def test_the_same_bytes_with_a_few_shards_at_a_time(
    cli: Cli, hub: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scattered: bool
) -> None:
    monkeypatch.setattr("slideconvert.core.workers.MOST", 1)  # shards are always evicted in the same order
    commit = hub.add_repo(ID, pico.files(sharded(tmp_path / "model", scattered=scattered)))
    out = tmp_path / "out"
    counts = watch_disk(hub, private(out))
    made = low(cli, out, "--json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    sizes = {name: len(content) for name, content in hub.repos[ID].commits[commit].items()}
    assert told["fetched_bytes"] == sum(sizes[name] for name in fetched(hub)) > 0
    assert max(counts) <= MOST and counts[-1] > 0
    assert set(fetched(hub)) == {name for name in sizes if name.endswith(".safetensors")}
    if not scattered:
        assert len(fetched(hub)) <= 2 * SHARDS, "each once to convert and once to verify"
    # Nothing of it stays, and the cache holds no weights.
    assert not (out / STAGING).exists() and not list(cache.rglob("*.safetensors"))
    # The normal way gives the same.
    assert cli("convert", ID, tmp_path / "normal", *MAGNITUDE, "--json").code == 0
    assert pico.files(out) == pico.files(tmp_path / "normal")
    assert "tekken.json" in pico.files(out) and told["revision"] == commit
    # With all of it in the cache nothing has to be fetched.
    hub.requests.clear()
    assert json.loads(low(cli, tmp_path / "third", "--json").out)["fetched_bytes"] == 0
    assert not fetched(hub) and pico.files(tmp_path / "third") == pico.files(out)
    assert len(list(cache.rglob("*.safetensors"))) == SHARDS


@pytest.mark.parametrize(
    "words",
    [("--method", "obs"), ("--preset", "quality"), ("--text", "TEXT", "--sequences", "1", "--method", "magnitude")],
    ids=lambda words: words[0] + words[1],
)
def test_steps_that_need_shards_again_fetch_them_again(
    cli: Cli, hub: HubServer, model: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    hub.add_repo(ID, pico.files(model))
    text = write_text(tmp_path / "text.jsonl")
    chosen = [str(text) if word == "TEXT" else word for word in words]
    if words[-1] != "magnitude":
        chosen += ["--calibration", str(text), *map(str, FLAGS)]
    counts = watch_disk(hub, private(tmp_path / "out"))
    made = cli("convert", ID, tmp_path / "out", "--low-disk", *chosen)
    assert made.code == 0, made.err
    assert max(counts) <= MOST and "of shards, those needed again included" in made.out
    assert (tmp_path / "out" / CHANNEL_SCALES).exists() == (words[-1] != "magnitude")
    assert cli("convert", ID, tmp_path / "normal", *chosen, "-q").code == 0
    assert pico.files(tmp_path / "out") == pico.files(tmp_path / "normal")


def test_a_model_in_one_file(cli: Cli, hub: HubServer, source: Path, tmp_path: Path) -> None:
    hub.add_repo(ID, pico.files(source))
    assert low(cli, tmp_path / "out", "-q").code == 0
    assert fetched(hub) == ["model.safetensors"]
    assert cli("convert", ID, tmp_path / "normal", *MAGNITUDE, "-q").code == 0
    assert pico.files(tmp_path / "out") == pico.files(tmp_path / "normal")


def test_the_stages_and_quantized_sources(cli: Cli, hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_repo(ID, pico.files(model))
    low_disk = ("--low-disk", "-q")
    assert cli("sparsify", ID, tmp_path / "sparse", "--method", "magnitude", *low_disk).code == 0
    hub.add_repo("org/sparse", pico.files(tmp_path / "sparse"))
    assert cli("quantize", "org/sparse", tmp_path / "quantized", *low_disk).code == 0
    hub.add_repo("org/quantized", pico.files(tmp_path / "quantized"))
    assert cli("slide", "org/quantized", tmp_path / "slid", *low_disk).code == 0
    assert cli("convert", model, tmp_path / "once", *MAGNITUDE, "-q").code == 0
    slid, once = (tmp_path / name / "model.safetensors" for name in ("slid", "once"))
    assert slid.read_bytes() == once.read_bytes()


def test_a_target_needs_another_place_for_shards(cli: Cli, hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_repo(ID, pico.files(model))
    words = ("--density", "0.75", "--calibration", write_text(tmp_path / "text.jsonl"), *FLAGS, "-q", "--low-disk")
    refused = cli("convert", ID, tmp_path / "out", *words)
    assert refused.code == 2 and "--low-disk with a target" in refused.err and "--source-cache" in refused.err
    kept = tmp_path / "kept"
    assert cli("convert", ID, tmp_path / "out", *words, "--source-cache", kept).err == ""
    assert not list(kept.glob("low-disk-*")) and not list(kept.rglob("*.safetensors"))


# ---- where things lie


def test_source_cache(cli: Cli, hub: HubServer, cache: Path, model: Path, tmp_path: Path) -> None:
    commit = hub.add_repo(ID, pico.files(model))
    kept, out = tmp_path / "kept", tmp_path / "out"
    seen: list[Path] = []
    hub.watch = lambda request: seen.extend(kept.glob("low-disk-*/*.safetensors"))
    assert low(cli, out, "--source-cache", kept, "-q").code == 0
    assert seen and len({path.parent for path in seen}) == 1
    assert not list(kept.glob("low-disk-*")) and not cache.exists()
    assert cli("convert", ID, tmp_path / "all", *MAGNITUDE, "--source-cache", kept, "-q").code == 0
    assert not cache.exists()
    snapshot = kept / "models--org--model" / "snapshots" / commit
    assert len(list(snapshot.glob("*.safetensors"))) == SHARDS
    hub.requests.clear()
    words = ("--source-cache", kept, "--revision", commit, "-q")
    assert cli("convert", ID, tmp_path / "again", *MAGNITUDE, *words).code == 0 and not hub.requests


def test_local_folders_are_refused(cli: Cli, model: Path, tmp_path: Path) -> None:
    before = pico.files(model)
    refused = cli("convert", model, tmp_path / "out", *MAGNITUDE, "--low-disk")
    assert refused.code == 2 and "is already on the disk" in refused.err and "Hub ids" in refused.err
    assert not (tmp_path / "out").exists() and pico.files(model) == before


def test_room_for_output_and_shards(
    cli: Cli, hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_repo(ID, pico.files(model))
    sizes = sorted(len(data) for name, data in hub.repos[ID].commits[commit].items() if name.endswith(".safetensors"))
    _, known = open_remote(ID, tmp_path / "shards")
    assert known.shard_store.disk_use == (tmp_path / "shards", sum(sizes[-MOST:]))

    output = json.loads(cli("plan", model, *MAGNITUDE, "--json").out)["bytes_after"]

    class Usage:
        free = 64_000_000 + output  # enough for it alone

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    refused = low(cli, tmp_path / "out")
    assert refused.code == 75 and "needs 0.06 GB (the output 0.06 GB, shards of the source 0.00 GB)" in refused.err
    assert not (tmp_path / "out").exists()
    Usage.free += sum(sizes[-MOST:])
    assert low(cli, tmp_path / "out", "-q").code == 0


# ---- a Hub in trouble


def header_of(hub: HubServer) -> bytes:
    content = next(iter(hub.repos[ID].commits.values()))[SHARD]
    return content[: 8 + int.from_bytes(content[:8], "little")]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(SHARD, times=2, drop_after=2000),
        Fault(SHARD, times=1, drop_after=2000, reset=True),
        Fault(SHARD, times=1, method="HEAD", status=429, headers={"Retry-After": "7"}),
        Fault(SHARD, times=1, status=503),
    ],
    ids=["dropped", "reset", "429", "503"],
)
def test_temporary_faults_are_retried(cli: Cli, hub: HubServer, expected: Files, tmp_path: Path, fault: Fault) -> None:
    counts = watch_disk(hub, private(tmp_path / "out"))
    hub.faults.append(fault)
    made = low(cli, tmp_path / "out", "-q")
    assert made.code == 0, made.err
    assert fault.times == 0 and max(counts) <= MOST and pico.files(tmp_path / "out") == expected


class Spoiled:
    """Faults that begin with the first shard that is fetched whole: until then all headers are read."""

    def __init__(self, hub: HubServer, *faults: Fault) -> None:
        self.hub, self.faults = hub, list(faults)
        hub.watch = self.see

    def see(self, request: Request) -> None:
        if request.method == "HEAD" and request.path.endswith(".safetensors"):
            self.hub.faults += self.faults
            self.faults = []


BROKEN = {
    "connection": Fault(SHARD, times=99, drop_after=0),
    "429": Fault(SHARD, times=99, status=429, headers={"Retry-After": "7"}),
    "500": Fault(SHARD, times=99, status=500),
    "head": Fault(SHARD, times=99, method="HEAD", status=503),
    "wrong bytes": Fault(SHARD, times=1, body=b"\x00" * 100),
    "gone": Fault(SHARD, times=99, method="HEAD", status=404, headers={"X-Error-Code": "RevisionNotFound"}),
}
SAID = {
    "connection": "the download was interrupted",
    "429": "too many requests (HTTP 429) (wait 7 seconds",
    "500": "failed (HTTP 500)",
    "head": "failed (HTTP 503)",
    "wrong bytes": "",
    "gone": "has no revision",
}


@pytest.mark.parametrize("what", BROKEN)
def test_trouble_that_stays_can_be_resumed(
    cli: Cli, hub: HubServer, expected: Files, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    Spoiled(hub, Fault(**vars(BROKEN[what])))
    broken = low(cli, out)
    assert broken.code == (2 if what == "gone" else 75) and SAID[what] in broken.err, broken.err
    assert what == "gone" or "--resume" in broken.err, broken.err
    assert (out / STAGING).is_dir()
    assert "unfinished" in low(cli, out).err
    hub.faults.clear()
    counts = watch_disk(hub, private(out))
    made = low(cli, out, "--resume")
    assert made.code == 0, made.err
    assert max(counts) <= MOST and pico.files(out) == expected


def test_a_shard_that_is_not_the_listed_one(cli: Cli, hub: HubServer, expected: Files, tmp_path: Path) -> None:
    good = next(iter(hub.repos[ID].commits.values()))[SHARD]
    bad = good[:-1] + bytes([good[-1] ^ 1])
    Spoiled(hub, Fault(SHARD, times=1, body=bad))
    broken = low(cli, tmp_path / "out")
    assert broken.code == 75 and f"{SHARD} is damaged: expected" in broken.err and "--resume" in broken.err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.read_bytes() == bad]
    assert low(cli, tmp_path / "out", "--resume", "-q").code == 0
    assert pico.files(tmp_path / "out") == expected


def test_a_header_that_was_another_when_read_alone(cli: Cli, hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_repo(ID, pico.files(model))
    good = header_of(hub)
    content = next(iter(hub.repos[ID].commits.values()))[SHARD]
    assert b"v_proj" in good and b"k_proj" in good
    swapped = good.replace(b"k_proj", b"#").replace(b"v_proj", b"k_proj").replace(b"#", b"v_proj")
    hub.faults.append(Fault(f"{SHARD}", times=1, body=swapped + content[len(good) :]))
    hub.faults[0].path = f"/cdn/org/model/{hub.repos[ID].commit('main')}/{SHARD}"
    broken = low(cli, tmp_path / "out")
    assert broken.code == 75 and f"the header of {SHARD} differs from" in broken.err
    assert not (private(tmp_path / "out") / SHARD).exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"short", "ends after 5 bytes"), (b"\xff" * 200_000, "not a whole safetensors file")],
)
def test_headers_that_are_none(cli: Cli, hub: HubServer, model: Path, tmp_path: Path, body: bytes, words: str) -> None:
    commit = hub.add_repo(ID, pico.files(model))
    hub.faults.append(Fault(f"/cdn/org/model/{commit}/{SHARD}", body=body))
    broken = low(cli, tmp_path / "out")
    assert broken.code == (75 if "ends" in words else 2) and words in broken.err and not (tmp_path / "out").exists()


def test_long_headers_and_patience(
    cli: Cli, hub: HubServer, expected: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr("slideconvert.hub.headers.FIRST", 100)
    hub.faults.append(Fault(SHARD, times=1, status=429, headers={"Retry-After": "7"}))
    assert low(cli, tmp_path / "out", "-q").code == 0
    assert waits[0] == 8 and pico.files(tmp_path / "out") == expected
    asked = [r.range for r in hub.requests_for(SHARD) if r.range]
    assert asked[0] == "bytes=0-99" and asked[1] == f"bytes=0-{len(header_of(hub)) - 1}"


def test_a_gated_source(cli: Cli, hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_repo("org/gated", pico.files(model), gated=True)
    refused = cli("convert", "org/gated", tmp_path / "out", *MAGNITUDE, "--low-disk")
    assert refused.code == 2 and "org/gated is gated, and no token was sent" in refused.err
    assert not (tmp_path / "out").exists()


def test_the_token_goes_to_the_hub_alone(
    cli: Cli, hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/gated", pico.files(model), gated=True)
    hub.tokens["hf_reader"] = {"org/gated"}
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert cli("convert", "org/gated", tmp_path / "out", *MAGNITUDE, "--low-disk", "-q").code == 0
    assert all(r.token == (not r.path.startswith("/cdn/")) for r in hub.requests)


# ---- interruptions


def test_a_branch_that_moves_on(cli: Cli, hub: HubServer, expected: Files, model: Path, tmp_path: Path) -> None:
    old = hub.repos[ID].commit("main")
    moved: list[str] = []

    def move(request: Request) -> None:
        if request.method == "HEAD" and request.path.endswith(SHARD) and not moved:
            moved.append(hub.add_repo(ID, {**pico.files(model), SHARD: b"another model"}))

    hub.watch = move
    assert low(cli, tmp_path / "out", "-q").code == 0
    assert moved and pico.files(tmp_path / "out") == expected
    assert all(f"/{old}/" in r.path for r in hub.requests if r.path.endswith(".safetensors"))


def test_resuming_after_a_branch_moved_on_needs_the_old_commit(
    cli: Cli, hub: HubServer, expected: Files, model: Path, tmp_path: Path
) -> None:
    old = hub.repos[ID].commit("main")
    Spoiled(hub, Fault(SHARD, times=99, drop_after=0))
    assert low(cli, tmp_path / "out").code == 75
    hub.faults.clear()
    hub.add_repo(ID, pico.files(sharded(model, rms_norm_eps=1e-6)))
    refused = low(cli, tmp_path / "out", "--resume")
    assert refused.code == 2 and "other settings" in refused.err and f"revision was {old}" in refused.err
    assert low(cli, tmp_path / "out", "--resume", "--revision", old, "-q").code == 0
    assert pico.files(tmp_path / "out") == expected


def killed(hub: HubServer, cache: Path, out: Path, *words: object) -> None:
    """Run a conversion until the Hub stalls while it sends a shard, and kill it there."""
    command = [sys.executable, "-m", "slideconvert", "convert", ID, out, *MAGNITUDE, "--low-disk", "-q", *words]
    env = {"HF_ENDPOINT": hub.url, "NO_PROXY": "*", "HF_HOME": str(cache.parent), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(list(map(str, command)), env=env, cwd=Path(__file__).parents[2]) as process:
        assert hub.stalled.wait(timeout=60)
        process.kill()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_killed_and_resumed(
    cli: Cli, hub: HubServer, cache: Path, expected: Files, tmp_path: Path, elsewhere: bool
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    words: tuple[object, ...] = ("--source-cache", kept) if elsewhere else ()
    Spoiled(hub, Fault(SHARD, drop_after=3000, stall=True))
    killed(hub, cache, out, *words)
    folder = next(kept.glob("low-disk-*")) if elsewhere else private(out)
    left = sorted(path.name for path in folder.glob("*.safetensors"))
    assert left and list(folder.rglob("*.incomplete"))
    hub.requests.clear()
    counts = watch_disk(hub, folder)
    made = low(cli, out, *words, "--resume")
    assert made.code == 0, made.err
    assert pico.files(out) == expected and not folder.exists()
    assert max(counts) <= MOST


def test_leftovers_are_used_but_not_trusted(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.add_repo(ID, pico.files(model))
    tensor = "model.layers.1.mlp.up_proj.weight"

    def again() -> tuple[Any, int]:
        """A run that needs this one tensor."""
        hub.requests.clear()
        _, known = open_remote(ID, tmp_path / "shards")
        return known.read(tensor), known.shard_store.fetched

    read, size = again()
    [path] = (tmp_path / "shards").glob("*.safetensors")
    assert read.equal(weights()[tensor]) and size == path.stat().st_size and fetched(hub) == [path.name]
    read, size = again()
    assert read.equal(weights()[tensor]) and size == 0 and not fetched(hub)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(HubError, match=f"{path.name} is damaged"):
        again()
    assert not path.exists()
    read, size = again()
    assert read.equal(weights()[tensor]) and size == path.stat().st_size and fetched(hub) == [path.name]


def test_bad_weights_leave_nothing(cli: Cli, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = pico.weights()
    tensors["model.layers.1.self_attn.q_proj.weight"][3, 5] = float("nan")
    hub.add_repo(ID, pico.files(pico.write(tmp_path / "model", tensors, shards=SHARDS)))
    kept = tmp_path / "kept"
    for words in ((), ("--source-cache", kept)):
        outcome = low(cli, tmp_path / "out", *words)
        assert outcome.code == 2 and not (tmp_path / "out").exists()
    assert not list(kept.glob("low-disk-*"))


def test_a_tied_head_that_differs(cli: Cli, hub: HubServer, tmp_path: Path) -> None:
    tensors = pico.weights()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    hub.add_repo(ID, pico.files(pico.write(tmp_path / "model", tensors, shards=SHARDS)))
    outcome = low(cli, tmp_path / "out")
    assert outcome.code == 2 and "differs from the embedding" in outcome.err and not (tmp_path / "out").exists()
