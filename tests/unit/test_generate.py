"""Text that the dense model generates for training: against a twin, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from slideconvert.calibrate import engine, run, whole_model
from slideconvert.calibrate import generate as module
from slideconvert.calibrate.generate import generate
from slideconvert.calibrate.run import GENERATED, RunSettings, compressed_layers, generated_tokens
from slideconvert.calibrate.stream import held_out
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.plan.plan import Plan
from slideconvert.progress import silent
from tests.helpers import pico
from tests.helpers.calibrated import KINDS, LENGTH, SAMPLES, plan_for, write_model, write_text
from tests.twins.generation import continued

EXACT = 1e-5
"""Between probabilities of engine and twin: sums in float32 in other orders move logits of up to 10 by some 2**-20."""


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, pico.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(3))


def stock(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_tokens_are_drawn_from_the_distribution_of_the_model(
    tmp_path: Path, tokens: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sequences at a time, with a cache; the twin has neither."""
    assert kind in KINDS
    model = stock(write_model(tmp_path / kind, kind))
    monkeypatch.setitem(module.GENERATED_AT_ONCE, "cpu", 3 * 24)
    made = generate(model, tokens, 7, seed=1, dtype=torch.float32)
    assert made.shape == (7, 24) and made.dtype == torch.int64
    source = torch.Generator().manual_seed(1)
    places = torch.randint(0, 24 - 6 + 1, (7, 1), generator=source)[:, 0].tolist()
    chances = torch.rand(7, 18, generator=source)
    decided = 0
    for number, place in enumerate(places):
        begun, rest = made[number, :6].tolist(), made[number, 6:].tolist()
        assert begun == tokens[number % 5, place : place + 6].tolist()
        for token, (expected, distance) in zip(
            rest, continued(model, begun, chances[number].tolist(), rest), strict=True
        ):
            assert token == expected or distance < EXACT
            decided += distance >= EXACT
    assert decided > 0.9 * 7 * 18, "hardly any chance is near a border"


def test_the_seed_decides_and_the_number_at_once_does_not(
    tmp_path: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where another order of sums moves no token."""
    model = stock(write_model(tmp_path / "model")).double()
    made = [generate(model, tokens, 6, seed, torch.float32) for seed in (0, 0, 1)]
    monkeypatch.setitem(module.GENERATED_AT_ONCE, "cpu", 1)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(made[0], generate(model, tokens, 6, 0, torch.float32))


def test_short_sequences_are_begun_by_one_token(tmp_path: Path, tokens: Tensor) -> None:
    made = generate(stock(write_model(tmp_path / "model")), tokens[:, :2], 3, 0, torch.float32)
    assert made.shape == (3, 2)


@pytest.mark.parametrize(
    ("sequences", "generated", "held"), [(16, 0, 2), (64, 48, 2), (11, 8, 1), (1024, 0, 32), (1024, 700, 32)]
)
def test_no_generated_sequence_is_held_out(sequences: int, generated: int, held: int) -> None:
    fitted, rest = held_out(sequences, generated)
    assert torch.equal(torch.cat([fitted, rest]), torch.arange(sequences))
    assert len(rest) == held and int(rest[0]) >= generated


# ---- in a calibration


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    text = write_text(tmp_path / "text.jsonl")
    words = {"block_epochs": "1", "end_epochs": "1", "generated": str(2 * SAMPLES)}
    return plan_for(write_model(tmp_path / "model"), text, preset="quality", pattern="2:4", **words)


def test_they_come_before_the_calibration_sequences_in_all_training(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both trainings are given the same sequences, and hold out none of the generated ones."""
    given: list[tuple[Tensor, Tensor]] = []
    streams, ends = engine.Streams, whole_model.recover_end_to_end

    def by_block(decoder: Any, tokens: Tensor, *args: Any, **words: Any) -> Any:
        made = streams(decoder, tokens, *args, **words)
        given.append((tokens, made.fitted[: 2 * SAMPLES]))
        return made

    def end(
        student: Any, teacher: Any, compressed: Any, tokens: Tensor, fitted: Tensor, held: Tensor, *rest: Any
    ) -> Any:
        assert int(held[0]) >= 2 * SAMPLES and len(held) == SAMPLES // 8
        given.append((tokens, fitted[: 2 * SAMPLES]))
        return ends(student, teacher, compressed, tokens, fitted, held, *rest)

    monkeypatch.setattr(engine, "Streams", by_block)
    monkeypatch.setattr(whole_model, "recover_end_to_end", end)
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    list(compressed_layers(plan, tokens, RunSettings(), tmp_path / "work", silent))
    assert any(f"{2 * SAMPLES} sequences that the source model" in note for note in plan.notes)
    made = load_file(tmp_path / "work" / GENERATED)["tokens"]
    assert made.shape == (2 * SAMPLES, LENGTH) and plan.generated == 2 * SAMPLES
    assert len(given) == 2
    for sequences, numbers in given:
        assert torch.equal(sequences, torch.cat([made, tokens]))
        assert torch.equal(numbers, torch.arange(2 * SAMPLES))


def test_they_continue_no_sequence_that_is_held_out(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    inner: Callable[..., Tensor] = generate

    def watched(model: Any, tokens: Tensor, *rest: Any) -> Tensor:
        shown.append(tokens)
        return inner(model, tokens, *rest)

    monkeypatch.setattr(run, "generate", watched)
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    first = generated_tokens(plan, tokens, RunSettings(), tmp_path / "work", silent)
    assert torch.equal(shown[0], tokens[: SAMPLES - SAMPLES // 8])
    monkeypatch.setattr(run, "load_model", None)  # a resumed run reads them
    assert torch.equal(generated_tokens(plan, tokens, RunSettings(), tmp_path / "work", silent), first)


def test_nothing_is_generated_where_nothing_trains_or_nobody_asks(tmp_path: Path) -> None:
    model, text = write_model(tmp_path / "model"), write_text(tmp_path / "text.jsonl")
    assert plan_for(model, text, preset="balanced").generated == 0
    assert plan_for(model, text, preset="quality", generated="0").generated == 0
    assert plan_for(model, text, preset="quality", block_epochs="0", end_epochs="0").generated == 0
    assert plan_for(model, text, preset="quality").generated == 7 * SAMPLES
    assert plan_for(model, text, 512, preset="quality").generated == 2048 - 512
    assert plan_for(model, text, 2048, preset="quality").generated == 0
    assert plan_for(model, text, preset="quality", scheme="w4a16", group_size="8").generated == 7 * SAMPLES


def test_layers_have_a_part_of_the_generated_text(tmp_path: Path) -> None:
    """512 sequences, your text first; without training end to end nobody else would have the others."""
    model, text = write_model(tmp_path / "model"), write_text(tmp_path / "text.jsonl")

    def parts(samples: int, **words: str) -> tuple[int, int]:
        plan = plan_for(model, text, samples, preset="quality", **words)
        return plan.layer_generated, plan.generated

    assert parts(SAMPLES) == (7 * SAMPLES, 7 * SAMPLES)
    assert parts(128) == (384, 896)
    assert parts(600) == (0, 1448)
    assert parts(128, generated="100") == (100, 100)
    assert parts(128, end_epochs="0") == (384, 384)
    assert parts(128, end_epochs="0", generated="1000") == (1000, 1000)
    assert parts(128, scheme="w4a16", group_size="8") == (384, 896)


def test_layers_are_given_your_text_and_their_part(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sequences by number, generated ones first: the last generated ones, and all of the text."""
    monkeypatch.setattr(Plan, "layer_generated", 3)
    tokens = torch.arange(plan.generated + SAMPLES)[:, None] + torch.zeros(1, LENGTH, dtype=torch.int64)
    given: list[tuple[Tensor, int]] = []

    def stop(_: Any, own: Tensor, *args: Any, generated: int, **words: Any) -> None:
        given.append((own, generated))
        raise InterruptedError

    monkeypatch.setattr(engine, "Streams", stop)
    with pytest.raises(InterruptedError):
        list(engine.compress_layers(plan, tokens, RunSettings().stream_options(tmp_path)))
    ((own, generated),) = given
    assert generated == 3 and own[:, 0].tolist() == list(range(plan.generated - 3, plan.generated + SAMPLES))


def test_a_linear_that_loses_nothing_is_not_trained(tmp_path: Path) -> None:
    """Neither pruned nor rounded; with one linear that is, all are trained to make up for it."""
    model, text = write_model(tmp_path / "model"), write_text(tmp_path / "text.jsonl")
    whole = {"scheme": "bf16", "pattern": "2:inf"}
    plan = plan_for(model, text, preset="quality", **whole)
    assert plan.recovery is None and plan.generated == 0 and not plan.calibrated
    assert not any(linear.record.moved for linear in plan.linears if linear.record)
    rule = {"match": "*.0.mlp.down_proj", "pattern": "2:4"}
    some = plan_for(model, text, preset="quality", **whole, rules=[rule])
    assert some.recovery is not None and all(linear.record and linear.record.moved == 1 for linear in some.linears)
