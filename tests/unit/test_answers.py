"""Log-likelihoods of answers: those of transformers' whole logits, while only answers go through the head."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from slideconvert.errors import InputError
from slideconvert.evaluate.answers import answer_scores
from slideconvert.models import head
from tests.helpers import pico

REQUESTS = [
    ([5, 6, 7], [8]), ([5, 6, 7], [9]), ([5, 6], [7, 10]), ([11], [12, 13, 14, 15, 16]), ([20] * 30, [21, 22]),
    ([3], [4]), ([5, 6, 7, 8, 9], [1, 2, 3]),
]  # fmt: skip
"""The first three read the same text, which ends with the token before the last."""


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(pico.write(tmp_path / "model"), dtype=torch.float32)
    return found.eval()


def expected(model: PreTrainedModel, context: list[int], answer: list[int]) -> tuple[float, bool]:
    with torch.inference_mode():
        logs = model(torch.tensor([context + answer])).logits[0].double().log_softmax(-1)[len(context) - 1 : -1]
    wanted = torch.tensor(answer)
    return float(logs.gather(1, wanted[:, None]).sum()), bool((logs.argmax(1) == wanted).all())


def scores(model: PreTrainedModel, requests: list[tuple[list[int], list[int]]], batch: int, most: int = 128) -> list:
    found = answer_scores(head.Head(model), requests, batch=batch, most=most, device="cpu")
    return [score for _, *score in sorted(found)]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_scores_are_those_of_whole_logits(model: PreTrainedModel, batch: int) -> None:
    """Also of the answers that greedy decoding gives, alone and behind a wrong beginning."""
    greedy = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, eos_token_id=None)[0, 3:]
    requests = [*REQUESTS, ([5, 6, 7], greedy.tolist()), ([5, 6, 7], [2, *greedy.tolist()[1:]])]
    found = scores(model, requests, batch)
    for (score, hit), request in zip(found, requests, strict=True):
        wanted = expected(model, *request)
        assert score == pytest.approx(wanted[0], rel=1e-6) and hit == wanted[1]
    assert [hit for _, hit in found[-2:]] == [True, False]


def test_only_answers_go_through_the_head_and_shared_texts_through_the_model_once(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "PIECE", 2 * pico.VOCABULARY)
    asked: list[int] = []
    read: list[Tensor] = []
    whole, hidden = head.Head.logits, head.Head.hidden
    monkeypatch.setattr(head.Head, "logits", lambda self, states: (asked.append(len(states)), whole(self, states))[1])
    monkeypatch.setattr(head.Head, "hidden", lambda self, tokens: (read.append(tokens), hidden(self, tokens))[1])
    scores(model, REQUESTS, batch=1)
    assert sum(asked) == sum(len(answer) for _, answer in REQUESTS) and max(asked) <= 2
    assert sorted(tokens.shape[1] for tokens in read) == [1, 3, 5, 7, 31]


def test_contexts_lose_their_beginnings_where_the_model_reads_no_more(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (found,) = scores(model, [([40, 41, 5, 6, 7], [8, 9])], batch=1, most=4)
    assert found[0] == pytest.approx(expected(model, [5, 6, 7], [8, 9])[0], rel=1e-6)
    assert "A context of 5 and an answer of 2 tokens exceed the 4 of the model" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        scores(model, [([5, 6, 7], [8, 9])], batch=1, most=4)  # of which the last token is not read
    assert not caplog.records


@pytest.mark.parametrize("answer", [[], [1, 2, 3, 4, 5]])
def test_answers_that_cannot_be_scored_are_refused(model: PreTrainedModel, answer: list[int]) -> None:
    with pytest.raises(InputError, match=f"an answer has {len(answer)} tokens; 1 to 4 can be scored"):
        scores(model, [([7], answer)], batch=1, most=4)
