"""The search for rotations: its gradient, saved states, and what a GPU does otherwise, which waits for nothing in a
step and repeats a layer as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slideconvert.calibrate.run import RunSettings
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.core import captured
from slideconvert.core.choices import PLACES
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.precision import full_precision
from slideconvert.models.architecture import HEADS
from slideconvert.models.decoder import Decoder
from slideconvert.progress import silent
from slideconvert.rotate.gradient import LossGradient, _add_layer
from slideconvert.rotate.objective import linear_losses
from slideconvert.rotate.problems import Problems
from slideconvert.rotate.rotations import RESIDUAL, Rotations, Sides
from slideconvert.rotate.search import ANGLE, STATE, Descents, Found, Goal, search
from tests.helpers import pico
from tests.helpers.calibrated import write_model

GPU = pytest.mark.gpu
PATTERN = BlockPattern(4)


def prepared(
    folder: Path, device: str = "cpu", *, residual: bool = True, place: str = "device"
) -> tuple[Problems, Rotations]:
    """The problems of a small Qwen2 of three layers with a text of its own, and the rotations that change nothing."""
    source = Checkpoint.open(write_model(folder / "model", "qwen2"))
    decoder = Decoder(source, torch.device(device))
    start = Rotations.identity(decoder.architecture, source.config, residual=residual)
    problems = Problems(decoder, start, RunSettings(device, keep_on=place), folder / "problems")
    tokens = torch.randint(2, pico.VOCABULARY, (9, 24), generator=torch.Generator().manual_seed(7))
    problems.collect(tokens, silent)
    assert len(problems) == 3
    return problems, start


def turned(start: Rotations, seed: int) -> Rotations:
    """Random rotations of the shapes of `start`, float32."""
    drawn = torch.Generator().manual_seed(seed)
    made = [
        torch.linalg.qr(torch.randn(blocks.shape, dtype=torch.float64, generator=drawn)).Q
        for blocks in (*start.heads, *([] if start.residual is None else [start.residual]))
    ]
    heads = tuple(made[: len(start.heads)])
    return Rotations(None if start.residual is None else made[-1], heads).to(torch.float32)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("residual", [True, False])
def test_the_gradient_is_that_of_all_layers_at_once(tmp_path: Path, residual: bool, place: str) -> None:
    """Twice, since what the first call leaves must not remain. The same float32 sums, but those over the layers in
    another order."""
    problems, start = prepared(tmp_path, residual=residual, place=place)
    gradient = LossGradient(problems, PATTERN, start)
    for seed in range(2):
        leaves = turned(start, seed)
        every = (*leaves.heads, *([] if leaves.residual is None else [leaves.residual]))
        for blocks in every:
            blocks.requires_grad_()
        losses = [
            linear_losses(problems[number], problems.sides, leaves.layer(number), PATTERN)
            for number in range(len(problems))
        ]
        torch.cat(losses).sum().backward()
        found = gradient.at(turned(start, seed))
        assert found.keys() == ({RESIDUAL, HEADS} if residual else {HEADS})
        pairs = [(found[HEADS], torch.cat([blocks.grad for blocks in leaves.heads]))]
        if residual:
            pairs.append((found[RESIDUAL], leaves.residual.grad))
        for ours, theirs in pairs:
            assert float((ours - theirs).abs().amax()) < 1e-6 * float(theirs.abs().amax())


@pytest.mark.parametrize("columns", [24, 22], ids=["whole blocks", "ragged"])
def test_a_layers_gradient_asks_for_no_value(columns: int) -> None:
    """Tensors of the device "meta" have none, so whoever would wait for one fails."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    sides = {"v": Sides(RESIDUAL, HEADS), "o": Sides(HEADS, RESIDUAL), "down": Sides("", RESIDUAL)}
    gradient = {RESIDUAL: empty(1, 24, 24), HEADS: empty(2, 6, 6)}
    groups = [
        (empty(12, 24), empty(1, 24, 24), empty(1, dtype=torch.float64)),
        (empty(24, 24), empty(4, 6, 6), empty(1, dtype=torch.float64)),
        (empty(24, columns), empty(columns), empty(1, dtype=torch.float64)),
    ]
    inputs = [*gradient.values(), *(tensor for group in groups for tensor in group)]
    _add_layer(sides, [("v",), ("o",), ("down",)], PATTERN, gradient, *inputs)


def found_in(folder: Path, problems: Problems, start: Rotations, steps: int, device: str = "cpu") -> Found:
    folder.mkdir(exist_ok=True)
    return search(problems, start, Goal(PATTERN, steps), device, folder, silent)


def test_a_search_leaves_its_start_as_it_was(tmp_path: Path) -> None:
    problems, start = prepared(tmp_path)
    before = {name: rotation.clone() for name, rotation in start.tensors().items()}
    found = found_in(tmp_path / "work", problems, start, 3).rotations.tensors()
    for name, rotation in start.tensors().items():
        assert torch.equal(rotation, before[name])
        assert float((found[name] - rotation).abs().amax()) > 0.1


def test_the_state_of_another_version_starts_the_search_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its tensors have other names; that of the residual has the same one."""
    problems, start = prepared(tmp_path)
    wanted = found_in(tmp_path / "fresh", problems, start, 4)
    kept = load_file(tmp_path / "fresh" / STATE)
    (tmp_path / "resumed").mkdir()
    parts = ("rotation", "first", "second")
    older = {f"{RESIDUAL}.{part}": kept[f"{RESIDUAL}.{part}"] for part in parts}
    for part in parts:
        heads = kept[f"{HEADS}.{part}"].chunk(len(problems))
        older.update({f"{number}.{part}": blocks.clone() for number, blocks in enumerate(heads)})
    save_file(older, tmp_path / "resumed" / STATE, {"done": "3"})
    with caplog.at_level(logging.WARNING):
        found = found_in(tmp_path / "resumed", problems, start, 4)
    assert "another version" in caplog.text and "3 steps are lost" in caplog.text
    assert torch.equal(found.rotations.residual, wanted.rotations.residual)
    assert all(map(torch.equal, found.rotations.heads, wanted.rotations.heads))


@GPU
@pytest.mark.parametrize("residual", [True, False])
def test_a_captured_search_is_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[int], residual: bool
) -> None:
    """Eight steps of three layers, the first two of which run before the capture.

    Float32 gradients in two orders of sums differ by some 1e-6 of their size. Adam divides entries by their own size:
    those of one in ten thousand are so small that their steps then differ by a hundredth. A gradient that is stale or
    of another layer turns its rotation elsewhere with each step, by far more.
    """
    problems, start = prepared(tmp_path, "cuda", residual=residual)
    found = found_in(tmp_path / "captured", problems, start, 8, "cuda")
    assert len(replays) == 8 * len(problems) - captured.EAGER
    count = len(replays)
    monkeypatch.setattr(captured, "EAGER", 1 << 30)
    wanted = found_in(tmp_path / "eager", problems, start, 8, "cuda")
    assert len(replays) == count
    assert found.before == pytest.approx(wanted.before, rel=1e-6)
    assert found.after == pytest.approx(wanted.after, rel=1e-3)
    for name, rotation in found.rotations.tensors().items():
        off = (rotation - wanted.rotations.tensors()[name]).abs().amax()
        assert float(off) < 0.01 * ANGLE / rotation.shape[-1] ** 0.5, name
        assert float((rotation - start.tensors()[name]).abs().amax()) > 0.1


@contextmanager
def not_waiting() -> Iterator[None]:
    """Within the block, whatever waits for the GPU fails."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@GPU
@pytest.mark.parametrize("eager", [captured.EAGER, 1 << 30], ids=["captured", "as it is"])
def test_nothing_in_a_step_waits_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: int) -> None:
    monkeypatch.setattr(captured, "EAGER", eager)
    problems, start = prepared(tmp_path, "cuda")
    descents = Descents(start, 6, "cuda")
    gradient = LossGradient(problems, PATTERN, descents.present(torch.float32))

    def step(number: int) -> None:
        descents.step(number, gradient.at(descents.present(torch.float32)))

    with full_precision():
        for number in range(2):  # reads the problems, initializes libraries, captures
            step(number)
        with not_waiting():
            for number in range(2, 6):
                step(number)
    assert bool(descents.present(torch.float64).heads[0].isfinite().all())


@GPU
def test_many_steps_stay_orthogonal_there(tmp_path: Path) -> None:
    problems, start = prepared(tmp_path, "cuda")
    descents = Descents(start, 200, "cuda")
    gradient = LossGradient(problems, PATTERN, descents.present(torch.float32))
    with full_precision():
        for number in range(200):
            descents.step(number, gradient.at(descents.present(torch.float32)))
    for rotation in descents.present(torch.float64).tensors().values():
        blocks = rotation.view(-1, *rotation.shape[-2:])
        off = blocks.mT @ blocks - torch.eye(blocks.shape[-1], dtype=torch.float64, device="cuda")
        # Each step multiplies by a matrix that is orthogonal within some roundings of 1e-16.
        assert float(off.abs().amax()) < 1e-12
