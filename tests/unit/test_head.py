"""Losses in pieces: the numbers of transformers' whole logits, without their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models import head
from slideconvert.models.decoder import Decoder
from slideconvert.models.layered import LayeredModel
from slideconvert.recover.adam import Adam
from slideconvert.recover.end_to_end import recover_end_to_end
from slideconvert.recover.options import Schedule, TrainingOptions
from slideconvert.recover.trainable import Compressed, make_trainable
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


def layered(folder: Path, tokens: Tensor, **words: Any) -> LayeredModel:
    """The source model of a folder out of its parts, a sequence at a time unless `words` say otherwise."""
    decoder = Decoder(Checkpoint.open(folder), torch.device("cpu"))
    decoder.record_passed(tokens.shape[1])
    layers = [decoder.layer(number) for number in range(decoder.source.config["num_hidden_layers"])]
    words = {"at_once": 1, **words}
    return LayeredModel(decoder.embedding(), layers, decoder.final_norm(), decoder.head(), **words)


@pytest.mark.parametrize("family", family_models.CASES)
def test_the_parts_of_a_model_are_the_model(family: str, tmp_path: Path) -> None:
    """Logits of stock transformers, masks, scales and caps of the family included; 1e-5: sums in another order."""
    folder = family_models.write(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = layered(folder, TOKENS, at_once=2)
    with torch.no_grad():
        logits = made.head.logits(made.hidden(made.embed(TOKENS)).flatten(0, 1))
        expected = model(input_ids=TOKENS).logits.flatten(0, 1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("taught", [True, False], ids=["divergence", "entropy"])
def test_training_in_pieces_has_the_losses_and_gradients_of_whole_logits(
    taught: bool, offload: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: list[int]
) -> None:
    """The loss and the gradient of the first step, against autograd of the stock model."""
    folder = family_models.write(tmp_path, "gemma2")  # caps its logits
    teacher, twin = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    in_pieces(twin, monkeypatch)
    student, place = layered(folder, TOKENS, offload=offload), "mlp.down_proj"
    name = f"model.layers.1.{place}"
    weight = twin.get_submodule(name).weight.detach().bfloat16()
    weight[:, ::2] = 0
    twin.get_submodule(name).weight = nn.Parameter(weight.float())
    twin.requires_grad_(False)
    own = twin.get_submodule(name).weight.requires_grad_()
    with torch.no_grad():
        wanted = teacher(input_ids=TOKENS, output_hidden_states=True)

    def loss() -> Tensor:
        given = twin(input_ids=TOKENS).logits.double().log_softmax(-1)
        if taught:
            dense = wanted.logits.double().log_softmax(-1)
            return (dense.exp() * (dense - given)).sum(-1).mean()
        return -given[:, :-1].gather(-1, TOKENS[:, 1:, None]).mean()

    before = loss()
    before.backward()
    gradients: list[Tensor] = []

    def step(self: Adam, rate: Tensor, broken: Tensor) -> Tensor:
        assert self._parameter.grad is not None
        gradients.append(self._parameter.grad.clone())
        return broken

    monkeypatch.setattr(Adam, "step", step)
    trained = make_trainable(student.layers[1].module, Compressed({place: weight}))
    numbers = torch.arange(len(TOKENS))
    _, curve = recover_end_to_end(
        student, trained, wanted.hidden_states[-1].__getitem__ if taught else None, TOKENS, numbers, numbers,
        Schedule(1, 1e-3), TrainingOptions(offload=offload),
    )  # fmt: skip
    assert curve.losses[0] == pytest.approx(float(before.detach()), rel=1e-5)
    assert own.grad is not None and len(gradients) == 1, "once, though sequences run through layers one at a time"
    torch.testing.assert_close(gradients[0], own.grad[weight != 0], rtol=1e-4, atol=1e-8)
    assert max(cut) <= PIECES


ROOT = Path(__file__).parents[2]
MEASURE = """
import sys, torch
from pathlib import Path
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models.load import load_model
from slideconvert.recover.end_to_end import recover_end_to_end
from slideconvert.recover.trainable import Compressed, make_trainable
from slideconvert.recover.options import Schedule, TrainingOptions
from benches.peak import peak_bytes
from tests.unit.test_head import layered

folder, place = Path(sys.argv[1]), "mlp.down_proj"
tokens = torch.arange(16 * 128).view(16, 128)
teacher, student = load_model(Checkpoint.open(folder)), layered(folder, tokens)
weight = student.layers[0].linear(place).weight.bfloat16()
trained = make_trainable(student.layers[0].module, Compressed({place: weight}))
held, options = torch.arange(8), TrainingOptions()
perplexity(teacher, tokens[:1])
dense = teacher.base_model(input_ids=tokens).last_hidden_state.detach()
start = peak_bytes()
perplexity(teacher, tokens)
print(peak_bytes() - start)
recover_end_to_end(student, trained, dense.__getitem__, tokens, held, held, Schedule(1, 1e-5), options)
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
