"""Words for groups that cannot be meant: refused in one line that names the way out, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli, Outcome
from tests.convert.test_bad_input import refused
from tests.helpers import bitnet, pico
from tests.helpers.calibrated import FLAGS, write_model

Q = "model.layers.0.self_attn.q_proj"
GQSA = "--method gqsa"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "source", num_hidden_layers=1)


def misused(outcome: Outcome, out: Path, *words: str) -> None:
    """What the parser of the command line refuses: usage, and a last line with these words."""
    last = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 2 and not [word for word in words if word not in last], outcome.err
    assert not out.exists() and not outcome.out


WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "size that does not divide": (
        f"{GQSA} --group-size 16",
        ("model.layers.0.mlp.down_proj", "88 input columns", "group size 16", "use a group size of 4, 8)"),
    ),
    "size that does not divide, not pruned": (
        "--scheme w4a16 --pattern 2_inf --method rtn --group-size 128",
        (Q, "64 input columns", "group size 128", "use a group size of 4, 8, 16, 32, 64)"),
    ),
    "size by default": (GQSA, ("88 input columns", "group size 16")),
    "size of 2": (f"{GQSA} --group-size 2", ("group size 2 is not supported", "4, 8, 16, 32, 64, 128")),
    "size of 0": (f"{GQSA} --group-size 0", ("group size 0 is not supported",)),
    "size below 0": (f"{GQSA} --group-size -8", ("group size -8 is not supported",)),
    "size of 256": (f"{GQSA} --group-size 256", ("group size 256 is not supported",)),
    "size of no power of two": ("--scheme w4a16 --group-size 12", ("group size 12 is not supported",)),
    "sparsity below 0": ("--sparsity -0.1 --group-size 8", ("sparsity -0.1 is out of range", "0 to 0.9")),
    "sparsity near 1": ("--sparsity 0.95 --group-size 8", ("sparsity 0.95 is out of range",)),
    "sparsity in percents": ("--sparsity 50 --group-size 8", ("sparsity 50 is out of range",)),
    "sparsity nan": ("--sparsity nan --group-size 8", ("sparsity nan is out of range",)),
    "sparsity inf": ("--sparsity inf --group-size 8", ("sparsity inf is out of range",)),
    "rows with no group": (
        "--sparsity 0.9 --group-size 8",
        (Q, "1x8:90% keeps 56 groups of 64 rows with 8 each", "lower the sparsity or the group size"),
    ),
    "gqsa with 2:8": (f"{GQSA} --pattern 2_8", (Q, "pattern 2:8, but whole groups are pruned", "sparsity: 0.5")),
    "saliency with 2:4": ("--method saliency --pattern 2_4", ("pattern 2:4, but whole groups",)),
    "gqsa with 2:inf": (f"{GQSA} --pattern 2_inf", ("pattern 2:inf, but whole groups",)),
    "sparsity with 2:8": ("--sparsity 0.5 --pattern 2_8", ("pattern 2:8, but whole groups",)),
    "obs with sparsity": (
        "--method obs --sparsity 0.5 --group-size 8",
        (Q, "method obs prunes 2:L", "gqsa or saliency"),
    ),
    "magnitude with sparsity": ("--method magnitude --sparsity 0.5", ("method magnitude prunes 2:L",)),
    "sparsity with int8": (
        "--sparsity 0.5 --scheme int8 --group-size 8",
        (Q, "whole groups are pruned, but scheme int8 has no groups", "w4a16, w4a8 or w8a16"),
    ),
    "gqsa with fp8": (f"{GQSA} --scheme fp8 --group-size 8", ("scheme fp8 has no groups",)),
    "row cap below 1": ("--sparsity 0.5 --row-cap 0.9 --group-size 8", ("row cap 0.9", "1 or more")),
    "row cap of 0": ("--sparsity 0.5 --row-cap 0 --group-size 8", ("row cap 0", "1 or more")),
    "row cap nan": ("--sparsity 0.5 --row-cap nan --group-size 8", ("row cap nan",)),
    "row cap inf": ("--sparsity 0.5 --row-cap inf --group-size 8", ("row cap inf",)),
    "row cap without sparsity": ("--row-cap 1.5", (Q, "row_cap without sparsity")),
    "row cap without sparsity, in groups": (
        "--row-cap 1.5 --scheme w4a16 --group-size 8",
        ("row_cap without sparsity",),
    ),
    "5 bits": ("--bits 5", ("unknown number of bits '5'", "4, 8")),
    "8 bits and w4a16": ("--bits 8 --scheme w4a16", ("scheme w4a16 has 4 bits, not 8 (--bits)",)),
    "4 bits and int8": ("--bits 4 --scheme int8", ("scheme int8 has 8 bits, not 4 (--bits)",)),
    "8 bits and bf16": ("--bits 8 --scheme bf16", ("scheme bf16 has 16 bits",)),
    "symmetric with int8": ("--symmetric --scheme int8", (Q, "symmetric, but scheme int8 has no groups")),
    "asymmetric with fp8": ("--asymmetric --scheme fp8", ("symmetric, but scheme fp8 has no groups",)),
    "group size with int8": ("--group-size 16", ("group_size, but scheme int8 has no groups", "w4a16")),
    "slide for w4": (
        "--scheme w4a16 --group-size 8 --layout slide",
        ("the slide layout is for int8 and fp8", "--layout dense"),
    ),
    "slide for groups": (f"{GQSA} --group-size 8 --layout slide", ("the slide layout is for int8 and fp8",)),
    "gqs without groups": (
        "--scheme w4a16 --group-size 8 --layout gqs",
        ("the gqs layout is for w4a16, w4a8 and w8a16 weights that lost whole groups", "--layout dense"),
    ),
    "gqs for int8": ("--layout gqs", ("the gqs layout is for",)),
    "gqs for bf16": (f"{GQSA} --group-size 8 --scheme bf16 --layout gqs", ("the gqs layout is for",)),
    "paper with 2:L": ("--preset paper", ("preset paper is GQSA's", "not pattern 2:8", "--sparsity")),
    "paper with 2:L in groups": (
        "--preset paper --pattern 2_4 --scheme w4a16 --group-size 8",
        ("preset paper is GQSA's",),
    ),
    "unknown preset": ("--preset papers", ("unknown preset 'papers'", "did you mean paper")),
    "unknown method": ("--method gqas", ("unknown method 'gqas'", "did you mean gqsa")),
    "unknown layout": (f"{GQSA} --layout gsq", ("unknown layout 'gsq'",)),
    "a target and groups": (
        f"{GQSA} --group-size 8 --target-speedup 1.2 --gpu H100",
        ("whole groups are pruned", "2:L"),
    ),
    "a density and sparsity": ("--sparsity 0.5 --group-size 8 --density 0.7", ("whole groups are pruned", "2:L")),
    "epochs without a preset": ("--method obs --block-epochs 2", ("no preset is given", "--preset quality")),
    "pattern and sparsity twice": (
        "--pattern 1x8:50% --sparsity 0.5",
        ("1x8:50% has its own sparsity and group size",),
    ),
    "pattern and another size": ("--pattern 1x8:50% --group-size 4", ("1x8:50% has its own sparsity and group size",)),
    "a pattern of no size": ("--pattern 1x7:50%", ("group size 7 is not supported",)),
    "a pattern of no shape": ("--pattern 1x8", ("unknown pattern '1x8'", "1x16:50%")),
    "a pattern of groups in int8": ("--pattern 1x8:50% --scheme int8", ("scheme int8 has no groups",)),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_that_contradict_each_other(cli: Cli, tmp_path: Path, model: Path, text: Path, case: str) -> None:
    words, message = WORDS[case]
    calibration = ("--calibration", text, *FLAGS, "--device", "cpu")
    refused(cli("convert", model, tmp_path / "out", *calibration, "-q", *words.split()), tmp_path / "out", *message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sparsity x", ("--sparsity", "'x' is not a valid float")),
        ("--row-cap much", ("--row-cap", "not a valid float")),
        ("--group-size 8.5", ("--group-size", "not a valid int")),
        ("--block-epochs -1", ("--block-epochs", "-1 is not in the range")),
        ("--end-epochs many", ("--end-epochs", "not a valid int")),
        ("--symmetric yes", ("yes",)),
    ],
)
def test_words_that_are_no_numbers(cli: Cli, tmp_path: Path, model: Path, words: str, message: tuple[str, ...]) -> None:
    misused(cli("convert", model, tmp_path / "out", "-q", *words.split()), tmp_path / "out", *message)


RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "siblings: groups and 2:L": (
        "scheme: w4a16\ngroup_size: 8\nrules: [{match: '*.q_proj', sparsity: 0.5}]",
        ("q_proj: w4a16 group_size 8 symmetric False 1x8:50%", "k_proj: w4a16", "2:8", "must agree"),
    ),
    "siblings: sparsities": (
        "sparsity: 0.5\ngroup_size: 8\nrules: [{match: '*.up_proj', sparsity: 0.4}]",
        ("gate_proj: w4a16", "1x8:50%", "1x8:40%", "must agree"),
    ),
    "siblings: sizes": (
        "scheme: w4a16\ngroup_size: 8\npattern: 2:inf\nrules: [{match: '*.v_proj', group_size: 4}]",
        ("group_size 8", "group_size 4", "must agree"),
    ),
    "siblings: zero points": (
        "scheme: w4a16\ngroup_size: 8\npattern: 2:inf\nrules: [{match: '*.v_proj', symmetric: true}]",
        ("symmetric False", "symmetric True", "must agree"),
    ),
    "siblings: activations": (
        "scheme: w4a16\ngroup_size: 8\npattern: 2:inf\nrules: [{match: '*.gate_proj', scheme: w4a8}]",
        ("gate_proj: w4a8", "up_proj: w4a16", "must agree"),
    ),
    "a rule for groups with a 2:L method": (
        "scheme: w4a16\ngroup_size: 8\nmethod: obs\nrules: [{match: '*.down_proj', sparsity: 0.5}]",
        ("down_proj", "method obs prunes 2:L patterns"),
    ),
    "a rule for 2:L with a method of groups": (
        "scheme: w4a16\ngroup_size: 8\nmethod: gqsa\nsparsity: 0.5\nrules: [{match: '*.down_proj', pattern: 2:8}]",
        ("down_proj", "pattern 2:8, but whole groups are pruned"),
    ),
    "a method of groups alone": (
        "scheme: w4a16\ngroup_size: 8\nrules: [{match: '*.down_proj', method: gqsa}]",
        ("down_proj", "pattern 2:8, but whole groups are pruned"),
    ),
    "a rule's sparsity out of range": (
        "scheme: w4a16\nrules: [{match: '*.down_proj', sparsity: 1.5}]",
        ("sparsity 1.5 is out of range",),
    ),
    "a rule's sparsity in words": (
        "rules: [{match: '*.down_proj', sparsity: half}]",
        ("sparsity is 'half'", "a number"),
    ),
    "a rule's odd size": ("rules: [{match: '*.down_proj', group_size: 24}]", ("group size 24 is not supported",)),
    "a size in words": ("group_size: eight", ("group_size is 'eight', a number was expected",)),
    "a size with decimals": ("group_size: 8.5", ("group_size is '8.5', a number was expected",)),
    "symmetric in words": ("scheme: w4a16\nsymmetric: maybe", ("symmetric is 'maybe'", "true or false")),
    "a rule that keeps groups": (
        "rules: [{match: '*.down_proj', keep: true, group_size: 8}]",
        ("keep copies the linear unchanged",),
    ),
    "epochs below 0": ("block_epochs: -1", ("block_epochs is -1, it cannot be negative",)),
    "epochs in words": ("end_epochs: some", ("end_epochs is 'some', a number was expected",)),
    "epochs in a rule": ("rules: [{match: '*', block_epochs: 1}]", ("rule 1: 'block_epochs'",)),
    "bits of a rule": ("rules: [{match: '*', bits: 3}]", ("unknown number of bits '3'",)),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_cannot_be(cli: Cli, tmp_path: Path, model: Path, text: Path, case: str) -> None:
    words, message = RECIPES[case]
    (tmp_path / "recipe.yaml").write_text(words)
    calibration = ("--calibration", text, *FLAGS, "--device", "cpu")
    outcome = cli("convert", model, tmp_path / "out", "--recipe", tmp_path / "recipe.yaml", *calibration, "-q")
    refused(outcome, tmp_path / "out", *message)


def test_ternary_weights_have_no_groups(cli: Cli, tmp_path: Path, text: Path) -> None:
    source, out = bitnet.write(tmp_path / "bitnet"), tmp_path / "out"
    for words in ("--scheme w4a16 --group-size 8", "--method gqsa --group-size 8"):
        outcome = cli("convert", source, out, *words.split(), "--calibration", text, *FLAGS, "-q")
        refused(outcome, out, "its weights are ternary, and w4a16 has a scale for every group", "codes: full")


def test_stages_refuse_what_is_not_theirs(cli: Cli, tmp_path: Path, model: Path, text: Path) -> None:
    out, dense = tmp_path / "out", tmp_path / "dense"
    refused(cli("sparsify", model, out, "--method", "rtn"), out, "unknown method 'rtn'")
    refused(cli("sparsify", model, out, "--method", "obs", "--sparsity", 0.5), out, "method obs prunes 2:L")
    refused(cli("quantize", model, out, "--scheme", "int8", "--group-size", 8), out, "scheme int8 has no groups")
    refused(cli("quantize", model, out, "--bits", 8, "--scheme", "w4a8"), out, "scheme w4a8 has 4 bits")
    assert cli("quantize", model, dense, "--bits", 4, "--group-size", 8, "-q").code == 0
    refused(cli("quantize", dense, out, "--bits", 4), out, "already quantized to w4a16")
    refused(cli("slide", dense, out), out, "the slide layout is for int8 and fp8 weights")
    refused(cli("relayout", dense, out, "--layout", "gqs"), out, "the gqs layout is for")
    calibration = ("--calibration", text, *FLAGS, "-q")
    outcome = cli("sparsify", dense, out, "--sparsity", 0.5, "--group-size", 4, *calibration)
    refused(outcome, out, "groups of 4 are pruned, those of w4a16 have 8 weights", "group size of 8")
    assert pico.read(dense)


def test_codes_with_a_scale_per_row_lose_no_whole_groups(cli: Cli, tmp_path: Path, model: Path, text: Path) -> None:
    """No layout and no kernel has both."""
    out, int8 = tmp_path / "out", tmp_path / "int8"
    assert cli("quantize", model, int8, "--scheme", "int8", "-q").code == 0
    outcome = cli("sparsify", int8, out, "--sparsity", 0.5, "--group-size", 8, "--calibration", text, *FLAGS, "-q")
    refused(outcome, out, Q, "whole groups are pruned, but scheme int8 has no groups", "from the unquantized model")
