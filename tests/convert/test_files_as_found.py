"""Checkpoints as people have them: what files say beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import write_tokenizer

PROMPT = ("--prompt", "w1 w2", "--max-new-tokens", "4")
EXECUTION: dict[str, Any] = {
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "flash_attention_3",
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "torchscript": True,
}
"""Fields of config.json that say how to run a model."""


def written(folder: Path, ends: Any = 1, **config: Any) -> Path:
    """A pico model with a tokenizer. ends: eos_token_id of generation_config.json; None: there is no such file."""
    write_tokenizer(pico.write(folder, config=config))
    path = folder / "generation_config.json"
    path.unlink() if ends is None else path.write_text(json.dumps({"eos_token_id": ends}))
    return folder


def test_how_to_run_a_model_is_not_read_from_its_config(cli: Cli, text: Path, tmp_path: Path) -> None:
    """Packages that are not installed, tuples instead of objects: the same numbers, and a calibrated conversion."""
    plain, odd = written(tmp_path / "plain"), written(tmp_path / "odd", **EXECUTION)
    words = ("--text", text, "--length", "24", "--json")
    found = [cli("eval", folder, *words) for folder in (plain, odd)]
    assert [one.code for one in found] == [0, 0], found
    before, after = (json.loads(one.out)["results"][0] for one in found)
    assert before["perplexity"] == after["perplexity"] > 1
    assert cli("generate", odd, *PROMPT).out == cli("generate", plain, *PROMPT).out
    done = cli("convert", odd, tmp_path / "out", "--calibration", text, "--samples", "9", "--length", "24")
    assert done.code == 0, done.err


def test_generation_ends_at_the_end_tokens_of_both_files(cli: Cli, tmp_path: Path) -> None:
    """Servers stop at those of generation_config.json, of which config.json often names one alone."""
    every = list(range(1, pico.VOCABULARY))

    def generated(folder: Path) -> int:
        return len(cli("generate", folder, *PROMPT).out.removeprefix("w1 w2").split())

    assert generated(written(tmp_path / "one")) == 4
    assert generated(written(tmp_path / "all", every)) == 1
    assert generated(written(tmp_path / "config", None, eos_token_id=every)) == 1


@pytest.mark.parametrize("ends", ["1", 1.5, [1, "x"], True, -1, [None], {"a": 1}])
def test_end_tokens_that_are_no_numbers_are_refused(cli: Cli, tmp_path: Path, ends: Any) -> None:
    done = cli("generate", written(tmp_path / "model", ends), *PROMPT)
    said = done.err.strip().splitlines()
    assert done.code == 2 and len(said) == 1 and "generation_config.json: eos_token_id names" in said[0]
