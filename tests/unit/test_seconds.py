"""The time of a conversion from timed trials: laws that are invented here must be found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from slideconvert.plan.seconds import Shares, Size, Trial, Trials, busiest, predict

NARROW = Size(layers=2, weights=2 * 4**2 * 100, samples=8, generated=56, solved=64, length=32)
FEW = Size(layers=2, weights=2 * 8**2 * 100, samples=8, generated=56, solved=64, length=64)
MANY = replace(FEW, samples=16, generated=80, solved=96)
PLANNED = Size(layers=30, weights=30 * 64**2 * 100, samples=128, generated=896, solved=512, length=512)

Law = Callable[[Size], float]

STAGES: dict[str, Law] = {
    "check": lambda size: 0.2 + 3e-5 * size.weights,
    "verify": lambda size: 5e-4 * size.weights,
    "finish": lambda _: 0.7,
    "compare": lambda size: size.layers * (2e-5 * size.of_layer + 3e-7 * size.of_layer**1.5),
    # Eight sequences that are not held out; of eight, one is.
    "smooth": lambda size: size.layers * 1e-8 * size.of_layer * size.length * min(8, size.samples - size.samples // 8),
    "train": lambda size: size.layers * 1e-8 * size.of_layer * (size.samples + size.generated) * size.length,
    "source": lambda size: size.layers * 1e-9 * size.of_layer * size.samples * size.length,
}


def layer(size: Size) -> float:
    """Calibration: tokens, what grows with the square of the width, and what grows with its cube."""
    tokens = 4e-9 * size.of_layer * size.solved * size.length
    return float(tokens + 1e-5 * size.of_layer + 2e-6 * size.of_layer**1.5)


def trial(size: Size) -> Trial:
    """The beginning of calibration is no part of a layer."""
    calibrate = {"calibrate": 11.0 + size.layers * layer(size)}
    return Trial(
        size, {"plan": 9.0, "text": 9.0, **{name: law(size) for name, law in STAGES.items()}, **calibrate}, layer(size)
    )


TRIALS = Trials(trial(NARROW), trial(FEW), trial(MANY))


def test_the_laws_of_all_stages_are_found() -> None:
    wanted = {name: law(PLANNED) for name, law in STAGES.items()} | {"calibrate": PLANNED.layers * layer(PLANNED)}
    assert predict(PLANNED, TRIALS) == pytest.approx(wanted)


def test_a_model_that_was_tried_itself_takes_what_it_took() -> None:
    stages = dict(TRIALS.many.stages) if TRIALS.many else {}
    stages["calibrate"] = 2 * layer(MANY)
    assert predict(MANY, TRIALS) == pytest.approx({name: stages[name] for name in (*STAGES, "calibrate")})


def test_noise_makes_no_time_negative() -> None:
    slow = Trial(NARROW, dict.fromkeys(("check", "calibrate", "compare"), 100.0), 100.0)
    few, many = (Trial(size, {"check": 1.0, "calibrate": 2.0, "compare": 2.0}, 1.0) for size in (FEW, MANY))
    found = predict(PLANNED, Trials(slow, few, many))
    assert found["check"] == 1.0
    assert found["calibrate"] == found["compare"] == PLANNED.layers * PLANNED.of_layer / FEW.of_layer


def test_without_calibration_there_is_nothing_to_divide_but_files() -> None:
    sizes = [replace(size, samples=0, generated=0, solved=0, length=1) for size in (NARROW, FEW)]
    trials = Trials(*(Trial(size, {"convert": 1e-4 * size.weights, "verify": 1e-5 * size.weights}) for size in sizes))
    found = predict(PLANNED, trials, Shares(0.25, 0.25, 0.25, 0.25))
    assert found == pytest.approx({"convert": 0.25e-4 * PLANNED.weights, "verify": 1e-5 * PLANNED.weights})


def test_ranks_divide_what_depends_on_sequences() -> None:
    """Solvers, checks and the comparison are not divided; generated text and the targets of training are."""
    also = {"targets": STAGES["train"]}
    trials = Trials(
        *(
            replace(trial(size), stages={**trial(size).stages, "targets": also["targets"](size)})
            for size in (NARROW, FEW, MANY)
        )
    )
    found = predict(PLANNED, trials, Shares(sequences=0.5, block_batches=0.75, end_batches=0.625))
    tokens = 4e-9 * PLANNED.of_layer * PLANNED.solved * PLANNED.length
    assert found["calibrate"] == pytest.approx(PLANNED.layers * (layer(PLANNED) - 0.25 * tokens))
    assert found["train"] == pytest.approx(0.625 * STAGES["train"](PLANNED))
    assert found["targets"] == pytest.approx(0.5 * also["targets"](PLANNED))
    assert found["compare"] == pytest.approx(STAGES["compare"](PLANNED))


def test_generated_text_takes_rounds_of_steps() -> None:
    """Of each token, a round reads all weights once, however many sequences it has."""

    def generate(size: Size) -> float:
        rounds = -(-size.generated // (65536 // size.length))
        return size.weights * size.length * (1e-6 * rounds + 1e-9 * size.generated)

    trials = Trials(*(Trial(size, {"generate": generate(size)}) for size in (NARROW, FEW, MANY)))
    assert predict(PLANNED, trials, at_once=65536) == pytest.approx({"generate": generate(PLANNED)})


@pytest.mark.parametrize(("batch", "ranks"), [(1, 4), (4, 1), (4, 2), (4, 3), (3, 5), (6, 3), (4, 6), (2, 8)])
def test_the_busiest_rank_of_a_batch(batch: int, ranks: int) -> None:
    """Against all batches of numbers with every remainder once, below a multiple of both."""
    numbers = range(batch * ranks)
    batches = product(*([number for number in numbers if number % batch == kind] for kind in range(batch)))
    ways = [max(Counter(number % ranks for number in one).values()) for one in batches]
    assert busiest(batch, ranks) == pytest.approx(sum(ways) / len(ways))
