"""Losses in pieces: the numbers of transformers' whole logits, without their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models import head
from slideconvert.recover.end_to_end import recover_end_to_end
from slideconvert.recover.trainable import Compressed
from slideconvert.recover.training import Schedule, TrainingOptions
from tests.helpers import family_models, pico

TOKENS = torch.randint(0, 30, (5, 12), generator=torch.Generator().manual_seed(0))
"""55 predicted tokens: no multiple of a piece."""
PIECES = 16


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of at most PIECES tokens, and the sizes of those that came."""
    met: list[int] = []
    whole = head.Head.logits

    def logits(self: head.Head, hidden: Tensor) -> Tensor:
        met.append(len(hidden))
        return whole(self, hidden)

    monkeypatch.setattr(head.Head, "logits", logits)
    return met


def in_pieces(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "PIECE", PIECES * model.config.vocab_size)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("family", family_models.CASES)
def test_pieces_have_the_losses_of_whole_logits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: list[int]
) -> None:
    """Scales and caps of the family included; sums of 32 products may be taken in another order."""
    model = AutoModelForCausalLM.from_pretrained(family_models.write(tmp_path, family), dtype=torch.float32).eval()
    in_pieces(model, monkeypatch)
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits[:, :-1].double()
    expected = -logits.log_softmax(-1).gather(-1, TOKENS[:, 1:, None]).mean()
    assert perplexity(model, TOKENS) == pytest.approx(float(expected.exp()), rel=1e-6)
    assert sum(cut) == 55 and max(cut) <= PIECES and min(cut) > PIECES // 2


@pytest.mark.parametrize("taught", [True, False], ids=["divergence", "entropy"])
def test_training_in_pieces_has_the_losses_and_gradients_of_whole_logits(
    taught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: list[int]
) -> None:
    """The losses before and after one step of plain descent, against the stock model with the weight before and the
    weight that autograd would move it to."""
    folder = family_models.write(tmp_path, "gemma2")  # caps its logits
    student, teacher, twin = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(3))
    in_pieces(student, monkeypatch)
    name = "model.layers.1.mlp.down_proj"
    weight = student.get_submodule(name).weight.detach().bfloat16()
    weight[:, ::2] = 0
    twin.get_submodule(name).weight = nn.Parameter(weight.float())
    twin.requires_grad_(False)
    own = twin.get_submodule(name).weight.requires_grad_()

    def loss() -> Tensor:
        given = twin(input_ids=TOKENS).logits.double().log_softmax(-1)
        if taught:
            with torch.no_grad():
                wanted = teacher(input_ids=TOKENS).logits.double().log_softmax(-1)
            return (wanted.exp() * (wanted - given)).sum(-1).mean()
        return -given[:, :-1].gather(-1, TOKENS[:, 1:, None]).mean()

    before = loss()
    before.backward()
    gradients: list[Tensor] = []

    def descend(parameters: list[dict[str, list[Tensor]]], **_: object) -> torch.optim.Optimizer:
        made = torch.optim.SGD([part for group in parameters for part in group["params"]], lr=0.0)
        made.register_step_pre_hook(lambda *_: gradients.append(made.param_groups[0]["params"][0].grad.clone()))
        return made

    monkeypatch.setattr(torch.optim, "AdamW", descend)
    numbers = torch.arange(len(TOKENS))
    _, curve = recover_end_to_end(
        student, teacher if taught else None, Compressed({name: weight}), TOKENS, numbers, numbers,
        Schedule(1, 1e-3), TrainingOptions(),
    )  # fmt: skip
    assert curve.losses[0] == pytest.approx(float(before.detach()), rel=1e-5)
    assert own.grad is not None
    kept = weight != 0
    torch.testing.assert_close(gradients[0][kept], own.grad[kept], rtol=1e-4, atol=1e-8)
    assert max(cut) <= PIECES


ROOT = Path(__file__).parents[2]
MEASURE = """
import sys, torch
from pathlib import Path
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models.load import load_model
from slideconvert.recover.end_to_end import recover_end_to_end
from slideconvert.recover.trainable import Compressed
from slideconvert.recover.training import Schedule, TrainingOptions
from benches.peak import peak_bytes

student, teacher = (load_model(Checkpoint.open(Path(sys.argv[1]))) for _ in range(2))
tokens = torch.arange(16 * 128).view(16, 128)
name = "model.layers.0.mlp.down_proj"
compressed = Compressed({name: teacher.get_submodule(name).weight.bfloat16()})
held, options = torch.arange(8), TrainingOptions()
perplexity(teacher, tokens[:1])
start = peak_bytes()
perplexity(teacher, tokens)
print(peak_bytes() - start)
recover_end_to_end(student, teacher, compressed, tokens, held, held, Schedule(1, 1e-5), options)
print(peak_bytes() - start)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """A model of next to nothing but words: whole logits of its 2,048 tokens take 403 MB, those of a training
    step 201 MB, each several times over."""
    words = 49152
    weights = pico.weights(layers=1)
    weights["model.embed_tokens.weight"] = torch.randn(words, pico.HIDDEN).mul_(0.05).bfloat16()
    model = pico.write(tmp_path, weights, {"vocab_size": words, "num_hidden_layers": 1})
    done = subprocess.run([sys.executable, "-c", MEASURE, model], capture_output=True, text=True, check=True, cwd=ROOT)
    measured, trained = map(int, done.stdout.split())
    assert measured < 3 * 4 * head.PIECE
    assert trained < 6 * 4 * head.PIECE
