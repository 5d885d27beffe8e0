"""from_pretrained of transformers with slideconvert imported: in every format, our linears run on SlideSparseLinear;
others are left alone.

Logits are compared to the last bit with our own loader, which reads the files itself: both run the same operations.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CompressedTensorsConfig,
    modeling_utils,
)
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.core.schemes import SCHEMES
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.kernels.spec import LinearSpec
from slideconvert.models.load import load_model
from slideconvert.verify import verify_checkpoint
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.serving import (
    EVERY_CASE,
    EVERY_LAYOUT,
    FORMATS,
    LAYOUTS,
    RECIPES,
    TOKENS,
    Format,
    checkpoint,
    edit_config,
    logits,
    our_linears,
    same_bytes,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, "auto")
every_layout = pytest.mark.parametrize(("form", "layout"), EVERY_LAYOUT, indirect=["form"])


def load(folder: Path, dtype: Any = torch.float32, **words: Any) -> Any:
    """As a user loads it, every tensor accounted for."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **words)
    assert not any(info.values()), info
    return model


@pytest.fixture(scope="module", params=EVERY_CASE, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, recipe, layout = request.param
    return FORMATS[name].make(tmp_path_factory.mktemp("made"), recipe, layout)


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["slidesparse_config"]


# ---- what a model is made of


def assert_spec(spec: LinearSpec, entry: dict[str, Any], layout: str) -> None:
    """The spec of a linear says what its record says."""
    assert [spec.rows, spec.columns] == entry["shape"]
    scheme = SCHEMES[entry["scheme"]]
    if isinstance(spec, SlideSpec):
        assert not scheme.grouped and spec.layout == ("slide" if layout == "slide" else "dense")
        assert f"2:{spec.length or 'inf'}" == entry["pattern"]
        assert spec.dtype == {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[entry["scheme"]]
    else:
        assert isinstance(spec, GroupSpec) and scheme.grouped and spec.size == entry["group_size"]
        assert (spec.bits, spec.activation_bits) == (scheme.bits, scheme.activation_bits)
        assert spec.symmetric == entry["symmetric"] and spec.kept == entry.get("kept_groups", spec.whole)
        assert spec.layout == ("gqs" if layout == "gqs" and "kept_groups" in entry else "dense")


def test_quantized_linears_are_ours_and_all_else_is_stock(folder: Path) -> None:
    model, record = load(folder), record_of(folder)
    ours = our_linears(model)
    assert ours.keys() == record["layers"].keys() and len(ours) in (14, 18, 21)
    for name, linear in ours.items():
        assert_spec(linear.spec, record["layers"][name], record["layout"])
        assert linear.backend is not None and not list(linear.parameters())
    others = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert len(others) == 1 + 21 - len(ours) and "lm_head" in others
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"


def test_logits_are_those_of_our_loader(folder: Path) -> None:
    found = logits(load(folder))
    assert torch.equal(found, logits(load_model(Checkpoint.open(folder))))
    floats = load_model(Checkpoint.open(folder), activations="float")
    assert not our_linears(floats) and (logits(floats) - found).abs().max() < 0.05 * found.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_layout
def test_tensors_are_those_of_the_file_whatever_the_dtype(
    tmp_path: Path, form: Format, layout: str, dtype: Any
) -> None:
    """With biases."""
    biased = form.make(tmp_path, form.biased, layout, biases=True)
    model, stored, ours = load(biased, dtype), pico.read(biased), record_of(biased)["layers"]
    with_bias = [name for name, linear in our_linears(model).items() if linear.bias is not None]
    assert with_bias == [name for name in our_linears(model) if name.endswith(("q_proj", "k_proj", "v_proj"))]
    assert len(with_bias) in (6, 9)
    wanted = torch.bfloat16 if dtype == "auto" else dtype
    state = model.state_dict()
    assert stored.keys() == state.keys() - {"lm_head.weight"}
    for name, tensor in stored.items():
        own = name.rpartition(".")[0] in ours and not name.endswith(".bias")
        assert same_bytes(state[name], tensor if own else tensor.to(wanted)), name
        assert not name.endswith("scale") or tensor.dtype == form.scale_dtype
    assert model.dtype == wanted and logits(model).dtype == wanted
    if dtype == torch.float32:
        assert torch.equal(logits(model), logits(load_model(Checkpoint.open(biased))))


def test_biases_may_be_stored_in_another_float(tmp_path: Path, form: Format) -> None:
    out = form.make(tmp_path, biases=True)
    expected = logits(load(out))
    tensors = {name: (t.float() if name.endswith("bias") else t) for name, t in pico.read(out).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load(out)), expected) and logits(load(out, "auto")).dtype == torch.bfloat16


def test_dtype_auto_without_a_word_in_config(tmp_path: Path) -> None:
    """transformers then takes the first floating tensor of the file, which must not be a code or a scale."""
    out = checkpoint(tmp_path, "fp8")
    edit_config(out, lambda config: config.pop("dtype"))
    assert load(out, "auto").dtype == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards(tmp_path: Path, layout: str) -> None:
    source = pico.write(tmp_path / "source")
    from tests.helpers.demo import converted

    whole = converted(source, tmp_path / "whole", layout=layout, **RECIPES["int8"])
    parts = converted(source, tmp_path / "parts", layout=layout, shard_gb="0.00004", **RECIPES["int8"])
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(load(parts)), logits(load(whole)))


def test_without_a_head_and_with_another(tmp_path: Path, form: Format) -> None:
    out = form.make(tmp_path)
    whole = load(out)
    body = AutoModel.from_pretrained(out, dtype=torch.float32)
    assert our_linears(body).keys() == {name.removeprefix("model.") for name in our_linears(whole)}
    with torch.no_grad():
        hidden = body(input_ids=TOKENS, use_cache=False).last_hidden_state
        assert torch.equal(whole.lm_head(hidden), logits(whole))
    classifier = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32, num_labels=3)
    assert our_linears(classifier).keys() == our_linears(whole).keys()


@every_layout
def test_generate(tmp_path: Path, form: Format, layout: str) -> None:
    out = form.make(tmp_path, layout=layout)
    expected = TOKENS
    reference = load_model(Checkpoint.open(out))
    for _ in range(8):
        with torch.no_grad():
            following = reference(input_ids=expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], dim=1)
    found = load(out).generate(TOKENS, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(found, expected)


# ---- saved again


def test_saved_again_in_shards_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    load(folder, "auto").save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 2
    before, after = pico.read(folder), pico.read(tmp_path)
    assert before.keys() == after.keys()
    assert not [name for name in before if not same_bytes(after[name], before[name])]
    was, now = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert now["quantization_config"] == was["quantization_config"]
    record = was["slidesparse_config"]
    kept = {key: value for key, value in record.items() if key not in ("files", "kernels", "reports", "sha256")}
    assert now["slidesparse_config"] == {**kept, "saved_again": "transformers"}
    assert "auto_map" not in now and not list(tmp_path.glob("*.py"))
    assert torch.equal(logits(load(tmp_path)), logits(load(folder)))
    assert torch.equal(logits(load_model(Checkpoint.open(tmp_path))), logits(load(folder)))


def test_saved_again_from_another_dtype(tmp_path: Path, form: Format) -> None:
    out = form.make(tmp_path)
    load(out, torch.float32).save_pretrained(tmp_path / "again", max_shard_size="50KB")
    before, after = pico.read(out), pico.read(tmp_path / "again")
    for name, tensor in before.items():
        own = name.rpartition(".")[0] in record_of(out)["layers"]
        assert same_bytes(after[name], tensor if own else tensor.float()), name
    assert torch.equal(logits(load(tmp_path / "again")), logits(load(out)))


def test_verify_and_inspect_report_missing_hashes_after_saving_again(tmp_path: Path, cli: Cli) -> None:
    out = checkpoint(tmp_path)
    load(out, "auto").save_pretrained(tmp_path / "again")
    assert not verify_checkpoint(Checkpoint.open(out)).notes
    outcome = cli("verify", tmp_path / "again", "--source", tmp_path / "source")
    assert outcome.code == 0 and "transformers has saved" in outcome.err and "note" in outcome.err
    told = json.loads(cli("verify", tmp_path / "again", "--json").out)
    assert told["sound"] and "left out the sha256" in told["notes"][0]
    assert "sha256   of no files" in cli("inspect", tmp_path / "again").out
    assert json.loads(cli("inspect", tmp_path / "again", "--json").out)["hashed"] == 0
    hashed = json.loads(cli("inspect", out, "--json").out)["hashed"]
    assert hashed > 10 and f"sha256   of {hashed} files" in cli("inspect", out).out
    assert cli("relayout", tmp_path / "again", tmp_path / "dense", "--layout", "dense").code == 0
    assert not verify_checkpoint(Checkpoint.open(tmp_path / "dense")).notes


def test_a_loaded_config_loads_again(tmp_path: Path) -> None:
    """The config of a loaded model holds a quantization config that is no dict any more, and no hashes."""
    out = checkpoint(tmp_path)
    model = load(out)
    assert torch.equal(logits(load(out, config=model.config)), logits(model))


# ---- where it runs


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}], ids=str)
def test_device_map(tmp_path: Path, device_map: Any) -> None:
    out = checkpoint(tmp_path)
    assert torch.equal(logits(load(out, device_map=device_map)), logits(load(out)))


OFFLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "a layer on disk": (
        {"device_map": {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.layers.1": "disk", "": "cpu"}},
        "model.layers.1.self_attn.q_proj would be offloaded to disk",
    ),
    "a layer on the CPU beside a GPU": (
        {"device_map": {"": 0, "model.layers.2": "cpu"}},
        "model.layers.2.self_attn.q_proj would be offloaded to cpu",
    ),
    "what auto makes of too little memory": (
        {"device_map": "auto", "max_memory": {"cpu": 60_000}},
        "would be offloaded to disk",
    ),
}


@pytest.mark.parametrize("case", OFFLOADS)
def test_offloading_is_refused(tmp_path: Path, form: Format, case: str) -> None:
    words, message = OFFLOADS[case]
    with pytest.raises(ValueError, match=message):
        load(form.make(tmp_path), offload_folder=tmp_path / "offload", **words)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_backend_from_the_config(tmp_path: Path, form: Format, backend: str) -> None:
    out = form.make(tmp_path)
    edit_config(out, lambda config: config.update(slidesparse_runtime={"backend": backend}))
    model = load(out)
    said = {linear.why for linear in our_linears(model).values()}
    assert ("asked for" in said) == (backend == "reference") and len(said) == 1
    config = AutoConfig.from_pretrained(out)
    config.slidesparse_runtime = {"backend": "reference"}
    assert {linear.why for linear in our_linears(load(out, config=config)).values()} == {"asked for"}
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["slidesparse_runtime"] == {"backend": backend}


# ---- others, and the way in


def test_checkpoints_of_others_go_to_the_stock_quantizer(tmp_path: Path) -> None:
    """The same classes, tensors and logits as with transformers' own function, which we stand before."""
    folder = pico.w8a8(tmp_path / "others")
    model = load(folder)
    assert type(model.hf_quantizer) is CompressedTensorsHfQuantizer
    assert type(model.config.quantization_config) is CompressedTensorsConfig and not our_linears(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_utils, "get_hf_quantizer", modeling_utils.get_hf_quantizer.__wrapped__)
        stock = load(folder)
    assert torch.equal(logits(model), logits(stock))
    plain = load(pico.write(tmp_path / "plain"))
    assert not hasattr(plain, "hf_quantizer") and not our_linears(plain)


def test_pruned_bfloat16_is_a_plain_checkpoint(tmp_path: Path, cli: Cli) -> None:
    pico.write(tmp_path / "source")
    out = tmp_path / "out"
    assert cli("sparsify", tmp_path / "source", out, "--pattern", "2_8", "--method", "magnitude").code == 0
    assert not our_linears(load(out)) and "auto_map" not in json.loads((out / "config.json").read_text())


def test_who_asks_for_the_stock_quantizer_gets_it_in_the_dense_layout(tmp_path: Path, form: Format) -> None:
    wanted = CompressedTensorsConfig(dequantize=True)
    model = load(form.make(tmp_path / "dense", layout="dense"), quantization_config=wanted)
    assert not our_linears(model) and model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=rf"{form.own_layout} layout takes no quantization_config .*relayout"):
        load(form.make(tmp_path / "own"), quantization_config=wanted)


ORDERS = """
import os, sys
sys.modules["sklearn"] = None  # transformers would import it, for seconds

def forked(check):
    child = os.fork()
    if not child:
        check()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def light():
    import slideconvert
    assert not {"torch", "transformers"} & sys.modules.keys()

def load(first):
    exec(first)
    import slideconvert
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    print(first, type(model.model.layers[0].mlp.up_proj).__name__, sep=": ")
    import transformers.quantizers.auto as auto, inspect
    assert "def get_hf_quantizer" in inspect.getsource(auto) and auto.__loader__ is auto.__spec__.loader

forked(light)
import torch._dynamo, torch.distributed.tensor, scipy.optimize, huggingface_hub  # once, not in each fork
assert not {"slideconvert", "transformers"} & sys.modules.keys()
for first in ("", "import transformers", "from transformers import modeling_utils"):
    forked(lambda: load(first))
"""


def test_imported_before_or_after_transformers(tmp_path: Path) -> None:
    """One Python imports what transformers needs, and a fork of it tries each order."""
    done = subprocess.run(
        [sys.executable, "-c", ORDERS, checkpoint(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        ": SlideSparseLinear",
        "import transformers: SlideSparseLinear",
        "from transformers import modeling_utils: SlideSparseLinear",
    ]
