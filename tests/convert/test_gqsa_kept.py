"""Training that is interrupted goes on to the same result; training that cannot help ends early, and says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from slideconvert.errors import SlideConvertError
from slideconvert.recover.options import Curve, Schedule, TrainingOptions
from slideconvert.recover.run import MOST_SKIPPED
from slideconvert.recover.training import train
from tests.helpers import pico
from tests.unit.test_recover import FITTED, HELD, SCHEDULE, Line, away, sized

STEPS = 3
"""Of an epoch: ten windows in batches of four."""


class Killed(BaseException):
    """What no handler of errors takes."""


def killer(after: int) -> Callable[[int, int], None]:
    """Dies once that many steps have been told."""

    def tell(done: int, total: int) -> None:
        if done == after:
            raise Killed

    return tell


def state(keep: Path, attempt: int = 0) -> Path:
    return keep.with_name(f"{keep.stem}-{attempt}{keep.suffix}")


def kept(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """What a state says and holds; its words stand in any order."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


@pytest.mark.parametrize(
    ("after", "words"),
    [
        *((after, {}) for after in range(1, STEPS * SCHEDULE.epochs + 1)),
        *((after, words) for after in (3, 4, 11, 18) for words in ({"offload": True}, {"micro": 3})),
    ],
    ids=str,
)
def test_resumed_training_gives_the_same_bits(tmp_path: Path, after: int, words: dict[str, Any]) -> None:
    """Killed after any step. Whole epochs are not done again; what had been done of one is."""
    whole, keep = tmp_path / "whole.safetensors", tmp_path / "keep.safetensors"
    line = Line()
    curve = train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=whole, **words))
    first = Line()
    with pytest.raises(Killed):
        train(
            sized(first.weight),
            first.loss,
            FITTED,
            HELD,
            SCHEDULE,
            TrainingOptions(state=keep, progress=killer(after), **words),
        )
    assert state(keep).is_file() == (after > STEPS), "kept after whole epochs"
    second, told = Line(), list[int]()
    made = train(
        sized(second.weight),
        second.loss,
        FITTED,
        HELD,
        SCHEDULE,
        TrainingOptions(state=keep, progress=lambda done, total: told.append(done), **words),
    )
    assert made == curve and torch.equal(second.weight, line.weight)
    assert told == list(range((after - 1) // STEPS * STEPS + 1, STEPS * SCHEDULE.epochs + 1))
    assert kept(state(keep)) == kept(state(whole))


def test_without_a_file_the_same_comes_out(tmp_path: Path) -> None:
    lines = Line(), Line()
    curves = [
        train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep))
        for line, keep in zip(lines, (None, tmp_path / "keep.safetensors"), strict=True)
    ]
    assert curves[0] == curves[1] and torch.equal(lines[0].weight, lines[1].weight)


def test_a_training_that_is_finished_is_not_done_again(tmp_path: Path) -> None:
    first, second, keep = Line(), Line(), tmp_path / "keep.safetensors"
    curve = train(sized(first.weight), first.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep))
    assert (
        train(
            sized(second.weight), second.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep, progress=killer(1))
        )
        == curve
    )
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_a_partly_written_state_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Killed with the new state written and not yet by its name, or half of it: the one before it counts."""
    keep, calls, real = tmp_path / "keep.safetensors", 0, Path.replace

    def dying(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == epoch:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise Killed
        return real(path, target)

    first, second, line = Line(), Line(), Line()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", dying)
        train(sized(first.weight), first.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep))
    assert state(keep).is_file() == (epoch > 1) and len(list(tmp_path.iterdir())) == (1 if epoch == 1 else 2)
    told: list[int] = []
    options = TrainingOptions(state=keep, progress=lambda done, total: told.append(done))
    curve = train(sized(second.weight), second.loss, FITTED, HELD, SCHEDULE, options)
    assert curve == train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE)
    assert torch.equal(second.weight, line.weight) and told[0] == STEPS * (epoch - 1) + 1


# ---- retries and patience


def hurting(schedule: Schedule, keep: Path | None = None, tell: Any = lambda *_: None) -> tuple[nn.Parameter, Curve]:
    """What fits wants 9 and what is held out 1.05, where it nearly is: only small steps help."""
    number, loss = away(9.0, 1.05)
    return number, train(sized(number), loss, FITTED, HELD, schedule, TrainingOptions(state=keep, progress=tell))


EAGER = Schedule(6, 0.1, batch=4, warmup=0.0, floor=1.0, retries=2)


def test_training_without_improvement_restarts_with_half_the_rate() -> None:
    number, curve = hurting(EAGER)
    alone, second = hurting(replace(EAGER, rate=EAGER.rate / 4, retries=0))
    for rate in (EAGER.rate, EAGER.rate / 2):
        assert hurting(replace(EAGER, rate=rate, retries=0))[1].best == 0
    assert curve == replace(second, restarts=2) and curve.best > 0 and torch.equal(number, alone)
    patient, told = hurting(replace(EAGER, retries=1))
    assert told.best == 0 and patient.item() == 1


def test_training_with_improvement_does_not_restart() -> None:
    lines, told = (Line(), Line()), list[int]()
    curves = [
        train(
            sized(line.weight),
            line.loss,
            FITTED,
            HELD,
            replace(SCHEDULE, retries=retries),
            TrainingOptions(progress=lambda done, _: told.append(done)),
        )
        for line, retries in zip(lines, (0, 2), strict=True)
    ]
    assert curves[0] == curves[1] and curves[0].best and torch.equal(lines[0].weight, lines[1].weight)
    assert told == [*range(1, 19), *range(1, 19)]


def test_an_attempt_without_improvement_ends_with_its_epoch_but_the_last_does_not() -> None:
    told: list[int] = []
    _, curve = hurting(replace(EAGER, retries=1), tell=lambda done, total: told.append(done))
    assert told == [*range(1, STEPS + 1), *range(1, 6 * STEPS + 1)] and len(curve.losses) == 7
    _, alone = hurting(replace(EAGER, retries=0))
    assert len(alone.losses) == 7 and alone.losses[1] > alone.losses[0]


def test_an_attempt_that_gets_better_first_and_worse_then_goes_on() -> None:
    number, loss = away(9.0, 1.9)
    schedule, told = Schedule(4, 0.15, batch=4, floor=1.0, warmup=0.0, retries=2), list[int]()
    train(sized(number), loss, FITTED, HELD, schedule, TrainingOptions(progress=lambda done, _: told.append(done)))
    assert told == [*range(1, 4 * STEPS + 1)]


@pytest.mark.parametrize(
    ("attempt", "after"), [(0, 1), (0, STEPS), (1, 1), (1, STEPS), (2, 1), (2, 4), (2, 7), (2, 6 * STEPS)]
)
def test_attempts_that_were_interrupted_go_on(tmp_path: Path, attempt: int, after: int) -> None:
    """In any of them; those that are over are not repeated. The first two improve nothing in their first epoch."""
    keep, calls = tmp_path / "keep.safetensors", 0

    def tell(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == attempt * STEPS + after:
            raise Killed

    with pytest.raises(Killed):
        hurting(EAGER, keep, tell)
    told: list[int] = []
    number, curve = hurting(EAGER, keep, lambda done, total: told.append(done))
    expected, wanted = hurting(EAGER)
    assert curve == wanted and torch.equal(number, expected)
    assert len(told) == sum((STEPS, STEPS, 6 * STEPS)[attempt:]) - (after - 1) // STEPS * STEPS


@pytest.mark.parametrize("patience", [0, 1, 2, 4])
def test_training_ends_early_where_nothing_gets_better(patience: int) -> None:
    number, curve = hurting(replace(EAGER, retries=0, patience=patience))
    assert len(curve.losses) == 1 + (patience or EAGER.epochs) and curve.best == 0 and number.item() == 1


def test_patience_restarts_with_every_best_epoch(tmp_path: Path) -> None:
    """Better for some epochs, then worse: two more after the best one, interrupted or not."""
    schedule = Schedule(12, 0.15, batch=4, floor=1.0, warmup=0.0, patience=2)
    number, loss = away(9.0, 1.9)
    curve = train(sized(number), loss, FITTED, HELD, schedule)
    assert 1 <= curve.best < 9 and len(curve.losses) == curve.best + 3
    for after in range(1, STEPS * (len(curve.losses) - 1) + 1):
        keep = tmp_path / f"{after}.safetensors"
        for tell in (killer(after), lambda *_: None):
            again, own = away(9.0, 1.9)
            try:
                made = train(sized(again), own, FITTED, HELD, schedule, TrainingOptions(state=keep, progress=tell))
            except Killed:
                continue
        assert made == curve and torch.equal(again, number)


# ---- losses that are no numbers


def broken_from(step: int, count: int) -> tuple[Line, Callable[[Tensor], Tensor]]:
    """A line whose loss is not a number in `count` steps from that one on."""
    line, done = Line(), 0

    def loss(windows: Tensor) -> Tensor:
        nonlocal done
        if not torch.is_grad_enabled():
            return line.loss(windows)
        done += 1
        return line.loss(windows) * (math.nan if step <= done < step + count else 1.0)

    return line, loss


def test_some_consecutive_steps_may_fail() -> None:
    line, loss = broken_from(3, MOST_SKIPPED - 1)
    curve = train(sized(line.weight), loss, FITTED, HELD, SCHEDULE)
    assert curve.skipped == MOST_SKIPPED - 1 and curve.best and bool(line.weight.isfinite().all())


def test_many_steps_that_are_not_consecutive_may_fail() -> None:
    line, done = Line(), 0

    def loss(windows: Tensor) -> Tensor:
        nonlocal done
        done += torch.is_grad_enabled()
        return line.loss(windows) * (math.nan if done % 3 and torch.is_grad_enabled() else 1.0)

    curve = train(sized(line.weight), loss, FITTED, HELD, SCHEDULE)
    assert curve.skipped == 2 * SCHEDULE.epochs > MOST_SKIPPED and curve.best


def test_too_many_in_a_row_end_training_with_words() -> None:
    line, loss = broken_from(3, MOST_SKIPPED)
    with pytest.raises(SlideConvertError) as error:
        train(sized(line.weight), loss, FITTED, HELD, SCHEDULE)
    assert error.value.what.endswith("not finite in 8 steps in a row, 8 in all (step 10 of 18)")
    assert "--block-epochs 0" in error.value.hint and "--precision float32" in error.value.hint
    assert error.value.exit_code == 1


def test_steps_are_in_a_row_over_the_ends_of_epochs_and_of_runs(tmp_path: Path) -> None:
    """Killed behind the second epoch, of which all steps were lost; two more are one row with them."""
    keep = tmp_path / "keep.safetensors"
    line, loss = broken_from(1, 99)
    with pytest.raises(Killed):
        train(
            sized(line.weight),
            loss,
            FITTED,
            HELD,
            SCHEDULE,
            TrainingOptions(state=keep, progress=killer(2 * STEPS + 1)),
        )
    line, loss = broken_from(1, 99)
    with pytest.raises(SlideConvertError, match=r"in 8 steps in a row, 8 in all \(step 8 of 18\)"):
        train(sized(line.weight), loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep))


def test_failed_steps_are_counted_over_all_runs_and_attempts(tmp_path: Path) -> None:
    counts = []
    for keep in (None, tmp_path / "keep.safetensors"):
        line, loss = broken_from(2, 3)
        if keep:
            with pytest.raises(Killed):
                train(sized(line.weight), loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep, progress=killer(9)))
            line, loss = Line(), line.loss
            loss = line.loss
        counts.append(train(sized(line.weight), loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep)).skipped)
    assert counts == [3, 3]
    number, loss = away(9.0, 1.0)
    curve = train(
        sized(number),
        lambda windows: loss(windows) * (math.nan if 3 in windows and torch.is_grad_enabled() else 1),
        FITTED,
        HELD,
        replace(EAGER, retries=1),
    )
    assert curve.best == 0 and curve.skipped == 1 + EAGER.epochs


def test_the_state_of_adam_is_restored(tmp_path: Path) -> None:
    """Files hold what is needed and no more: each parameter now, at its best if that is another state, and three
    things of Adam's."""
    line, keep = Line(), tmp_path / "keep.safetensors"
    curve = train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE, TrainingOptions(state=keep))
    found = pico.read(tmp_path)
    assert curve.best == SCHEDULE.epochs
    assert found.keys() == {f"0.{part}" for part in ("now", "exp_avg", "exp_avg_sq", "step")}
    assert float(found["0.step"]) == STEPS * SCHEDULE.epochs and torch.equal(found["0.now"], line.weight)
    state(keep).unlink()
    number, loss = away(9.0, 1.5)
    curve = train(
        sized(number), loss, FITTED, HELD, replace(SCHEDULE, rate=0.15, floor=1.0), TrainingOptions(state=keep)
    )
    found = pico.read(tmp_path)
    assert curve.best < SCHEDULE.epochs and found.keys() == {
        f"0.{part}" for part in ("now", "best", "exp_avg", "exp_avg_sq", "step")
    }
    assert torch.equal(found["0.best"], number) and not torch.equal(found["0.now"], number)
