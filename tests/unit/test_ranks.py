"""What ranks divide, sum and exchange, and how they end together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slideconvert import ranks
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.schemes import SCHEMES
from slideconvert.errors import InputError
from slideconvert.prune import METHODS, Problem
from slideconvert.prune.refit import best_step_count
from slideconvert.prune.statistics import Statistics
from slideconvert.prune.sweep import block_order, damp
from tests.helpers.launches import on_ranks, started


def test_a_process_alone_has_everything_and_changes_nothing() -> None:
    numbers, tensor = torch.tensor([4, 1, 7]), torch.ones(3)
    own, weight = ranks.share(numbers)
    assert own is numbers and weight == 1.0
    assert ranks.total(tensor) is tensor and ranks.whole(tensor, 3) is tensor and ranks.given(lambda: tensor) is tensor
    assert ranks.sums(1.5, 2.0) == [1.5, 2.0] and ranks.agreed(7.0) == 7.0
    assert torch.equal(ranks.place(numbers), numbers) and torch.equal(tensor[ranks.own_rows()], tensor)
    assert (ranks.count(), ranks.number(), ranks.first()) == (1, 0, True)
    ranks.gate()
    with ranks.first_ahead(), ranks.joined("cpu"):
        assert ranks.count() == 1


def test_numbers_are_divided_without_remainder_and_weighted_by_count(tmp_path: Path) -> None:
    numbers = torch.tensor([8, 3, 0, 5, 4, 10, 11])

    def job() -> Any:
        own, weight = ranks.share(numbers)
        none, weightless = ranks.share(torch.tensor([3, 6]))
        every, _ = ranks.share(torch.arange(12))
        return own.tolist(), weight, none.tolist(), weightless, every[ranks.place(own)].tolist()

    found = on_ranks(tmp_path, 3, job)
    assert [own for own, *_ in found] == [[3, 0], [4, 10], [8, 5, 11]]  # modulo 3, in the order given
    assert [weight for _, weight, *_ in found] == [2 / 7, 2 / 7, 3 / 7]
    assert [(none, weight) for _, _, none, weight, _ in found] == [([3, 6], 1.0), ([], 0.0), ([], 0.0)]
    assert all(placed == own for own, *_, placed in found)


DTYPES = (torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int64, torch.uint8)


@pytest.mark.parametrize("shape", [(7, 5), (6, 4), (2, 3), (1, 3), (5,)], ids=str)
def test_rows_are_gathered_bit_by_bit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """With fewer rows than ranks too, and for dtypes that no collective operation takes."""
    bits = torch.arange(8 * 7 * 5, dtype=torch.uint8)

    def matrix(dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel()
        return bits[: size * dtype.itemsize].view(dtype).view(shape)

    def job() -> Any:
        gathered = {dtype: ranks.whole(matrix(dtype)[ranks.own_rows()], shape[0]) for dtype in DTYPES}
        assert all(made.dtype == dtype and made.shape == shape for dtype, made in gathered.items())
        return [
            torch.equal(made.view(torch.uint8), matrix(dtype).view(torch.uint8)) for dtype, made in gathered.items()
        ]

    assert on_ranks(tmp_path, 3, job) == [[True] * len(DTYPES)] * 3


def test_sums_and_decisions_of_the_first(tmp_path: Path) -> None:
    def job() -> Any:
        own = ranks.number() + 1
        tensor = torch.tensor([own, 10.0 * own])
        assert ranks.total(tensor) is tensor
        given = ranks.given(lambda: torch.arange(6).view(2, 3) if ranks.first() else torch.zeros(0, 0))
        return tensor.tolist(), ranks.sums(0.1 * own, 1), ranks.agreed(own), given.tolist()

    tenth = sum(0.1 * own for own in (1, 2, 3))
    (first, *others) = on_ranks(tmp_path, 3, job)
    assert others == [first, first], "every rank gets the same bits"
    total, (tenths, counted), agreed, given = first
    assert (total, counted, agreed, given) == ([6.0, 60.0], 3.0, 1.0, [[0, 1, 2], [3, 4, 5]])
    assert abs(tenths - tenth) <= 2 * 2.0**-53  # two sums in float64 of values below 1, in any order


def test_nobody_passes_a_gate_before_all_are_there_and_the_first_goes_ahead(tmp_path: Path) -> None:
    def job() -> Any:
        (tmp_path / f"here {ranks.number()}").touch()
        ranks.gate()
        seen = len(list(tmp_path.glob("here *")))
        with ranks.first_ahead():
            before = len(list(tmp_path.glob("went *")))
            (tmp_path / f"went {ranks.number()}").touch()
        for _ in range(5):
            ranks.gate()
        return seen, before

    (seen, before), *others = on_ranks(tmp_path, 3, job)
    assert (seen, before) == (3, 0) and all(seen == 3 and before >= 1 for seen, before in others)


def test_a_process_that_uses_torch_distributed_is_refused(tmp_path: Path) -> None:
    def job() -> Any:
        with pytest.raises(InputError, match=r"torch\.distributed already"), ranks.joined("cpu"):
            pass
        return True

    assert on_ranks(tmp_path, 2, job) == [True, True]


@pytest.mark.parametrize("meeting", [ranks.gate, lambda: ranks.sums(1.0), ranks.heed], ids=["gate", "sums", "heed"])
def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path, meeting: Callable[[], Any]) -> None:
    """As an error of the same class; ranks with long work between two gates learn of it if they heed."""

    def run(rank: int) -> None:
        with ranks.joined("cpu"):
            if rank == 1:
                raise InputError("a fault", hint="a way out")
            while True:
                meeting()

    ended = started(tmp_path, 3, run)
    said = [one.err.strip().splitlines()[-1].rpartition(".")[2] for one in ended]
    assert said[1] == "InputError: a fault (a way out)"
    assert said[0] == said[2] == "InputError: rank 1: a fault (a way out)"


def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"RANK, .*MASTER_ADDR.* is not set .*torchrun"), ranks.joined("cpu"):
        pass


# ---- solvers whose rows are divided

METHODS_BY_ROWS = ("wanda", "hessian", "obs", "alps", "gptq")


@pytest.mark.parametrize("held", [True, False], ids=["held out", "all fitted"])
def test_solvers_find_the_same_for_divided_rows(tmp_path: Path, held: bool) -> None:
    """One product by H of some rows is rounded as that of all rows, or a unit in the last place apart; weights and
    inputs are integers here, and H is diagonal, so that no sum is rounded and everything is equal."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-99, 100, (13, 32), generator=generator).float()
    gram = torch.randint(1, 50, (32,), generator=generator).float().diag()
    other = Statistics(gram * 2, None, 100) if held else None

    def solved(rows: slice, total: Any) -> dict[str, Tensor]:
        made = {}
        for name in METHODS_BY_ROWS:
            start = weight[rows] * (torch.arange(32) % 4 < 2) if name == "gptq" else weight[rows]
            problem = Problem(
                start.contiguous(), Statistics(gram, None, 300, other), BlockPattern(4), SCHEMES["int8"], total=total
            )
            solve = METHODS[name].solve
            assert solve is not None
            made[name] = solve(problem).weight.codes
        return made

    def job() -> Any:
        own = solved(ranks.own_rows(), ranks.total)
        return {name: ranks.whole(codes, len(weight)).tolist() for name, codes in own.items()}

    alone = {name: codes.tolist() for name, codes in solved(slice(None), lambda tensor: tensor).items()}
    assert on_ranks(tmp_path, 3, job) == [alone] * 3


def test_rows_agree_on_the_order_of_columns_and_on_the_steps_of_the_refit(tmp_path: Path) -> None:
    """Both follow from losses over all rows, which no part of them knows."""
    generator = torch.Generator().manual_seed(4)
    weight, target = torch.randn(2, 12, 32, generator=generator)
    inputs, other = torch.randn(2, 100, 32, generator=generator)
    gram, held = inputs.T @ inputs / 100, Statistics(other.T @ other / 100, None, 100)
    damped, keep = damp(gram), BlockPattern(4).select_largest(weight)

    def found(rows: slice, total: Any) -> tuple[list[int], int]:
        order = block_order(weight[rows], damped, BlockPattern(4), total)
        own = weight[rows], target[rows], (target * keep)[rows], keep[rows]
        return order.tolist(), best_step_count(*own, damped.gram, held, 12, total)

    alone = found(slice(None), lambda tensor: tensor)
    assert any(found(slice(rank, None, 3), lambda tensor: tensor)[0] != alone[0] for rank in range(3))
    assert on_ranks(tmp_path, 3, lambda: found(ranks.own_rows(), ranks.total)) == [list(alone)] * 3
