"""Conversations as text: columns, forms of messages, chat templates, and several texts together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from slideconvert import ConvertOptions, Documents
from slideconvert.api.recipe import recipe_of
from slideconvert.calibrate.tokens import POOL, calibration_tokens
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import InputError
from slideconvert.models.load import load_tokenizer
from slideconvert.plan.calibration import Calibration
from slideconvert.plan.recipe import load_recipe, recipe_text
from slideconvert.texts.chat import template_of
from slideconvert.texts.named import Text
from slideconvert.texts.read import read_documents
from tests.helpers.chat import write_chat_model

MESSAGES = [
    {"role": "system", "content": "w7"},
    {"role": "user", "content": "w8 w9"},
    {"role": "assistant", "content": "w10"},
]
SHAREGPT = [
    {"from": "system", "value": "w7"},
    {"from": "human", "value": "w8 w9"},
    {"from": "gpt", "value": "w10"},
]
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "w7"}], "name": None},
    {"role": "user", "content": [{"type": "text", "text": "w8 "}, {"type": "text", "text": "w9"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "w10"}]},
]
WRITTEN = "<s> w3 w7 </s> <s> w1 w8 w9 </s> <s> w2 w10 </s> "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_chat_model(tmp_path_factory.mktemp("chat") / "model"))


def written(source: Text, model: Checkpoint, column: str | None = None) -> list[str]:
    return list(read_documents(source, column=column, template=template_of(load_tokenizer(model), "model")))


def as_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


def as_rows(path: Path, rows: list[dict[str, Any]]) -> Documents:
    return Documents(rows)


def as_dataset(path: Path, rows: list[dict[str, Any]]) -> Documents:
    return Documents(datasets.Dataset.from_list(rows), name="chats")


@pytest.mark.parametrize("stored", [as_lines, as_parquet, as_rows, as_dataset])
@pytest.mark.parametrize(
    "row",
    [{"messages": MESSAGES}, {"conversations": SHAREGPT}, {"conversations": MESSAGES}, {"messages": PARTS}],
    ids=["messages", "conversations", "other column", "parts"],
)
def test_every_form_of_a_conversation_is_written_by_the_template(
    tmp_path: Path, model: Checkpoint, stored: Callable[[Path, list[dict[str, Any]]], Text], row: dict[str, Any]
) -> None:
    suffix = "parquet" if stored is as_parquet else "jsonl"
    assert written(stored(tmp_path / f"a.{suffix}", [{"id": 1, **row}] * 2), model) == [WRITTEN] * 2


def test_a_data_set_of_the_hub_is_streamed(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row beyond those that are needed is asked for."""

    def rows() -> Any:
        yield {"messages": MESSAGES}
        yield {"messages": []}
        yield {"messages": MESSAGES[1:]}
        raise AssertionError("read on")

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        assert (name, config, split, streaming) == ("org/chats", None, "train", True)
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    documents = read_documents("org/chats:train", template=template_of(load_tokenizer(model), "model"))
    assert next(documents) == WRITTEN
    assert next(documents) == WRITTEN.removeprefix("<s> w3 w7 </s> ")


def test_any_column_by_name(tmp_path: Path, model: Checkpoint) -> None:
    rows = [{"text": "w5", "body": "w6", "dialogue": SHAREGPT}]
    for source in (as_lines(tmp_path / "a.jsonl", rows), as_parquet(tmp_path / "a.parquet", rows), Documents(rows)):
        assert written(source, model) == ["w5"]
        assert written(source, model, "body") == ["w6"]
        assert written(source, model, "dialogue") == [WRITTEN]
        with pytest.raises(InputError, match=r"no column 'boby' .its columns are \['body', 'dialogue', 'text'\]"):
            written(source, model, "boby")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"from": "martian", "value": "w5"}], "line 1, message 1: from 'martian' .known are human"),
        ([*MESSAGES, {"role": "user"}], "message 4: without words"),
        ([{"content": "w5"}], "message 1: without speaker"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1: content that is no text"),
        ([{"role": "user", "content": 3}], "message 1: content that is no text"),
        ([{"role": "robot", "content": "w5"}], "line 1: the chat template of model refuses it .no robots"),
        ("", "no column"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, model: Checkpoint, messages: Any, words: str) -> None:
    row = {"messages": messages} if messages else {"chat": 1}
    with pytest.raises(InputError, match=words):
        written(as_lines(tmp_path / "a.jsonl", [row]), model)


def test_a_model_without_a_template_says_the_way_out(tmp_path: Path) -> None:
    model = Checkpoint.open(write_chat_model(tmp_path / "model", template=None))
    path = as_lines(tmp_path / "a.jsonl", [{"messages": MESSAGES}])
    with pytest.raises(InputError, match=r"line 1: .*model has no chat template .*chat_template\.jinja"):
        calibration_tokens(Calibration(path, 1, 4), model)


def test_a_template_reaches_no_python(tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    model = Checkpoint.open(write_chat_model(tmp_path / "model", template=template))
    with pytest.raises(InputError, match=r"the chat template of model refuses it .*unsafe"):
        written(Documents([{"messages": MESSAGES}]), model)


def test_a_text_is_the_same_every_day(tmp_path: Path) -> None:
    model = Checkpoint.open(write_chat_model(tmp_path / "model", template="{{ strftime_now('%Y-%m-%d') }}"))
    assert written(Documents([{"messages": MESSAGES}]), model) == ["2025-01-01"]


def test_the_tokens_of_a_conversation_are_those_that_the_template_writes(model: Checkpoint) -> None:
    """Begin and end are tokens of the template, not letters, and none are added around the conversation."""
    conversation = [0, 3 + 2, 7 + 2, 1, 0, 1 + 2, 8 + 2, 9 + 2, 1, 0, 2 + 2, 10 + 2, 1]
    found = calibration_tokens(Calibration(Documents([{"messages": MESSAGES}] * 4), 4, len(conversation)), model)
    assert found.tolist() == [conversation] * 4


@pytest.mark.parametrize(
    ("samples", "weights", "shares"),
    [
        (9, (2.0, 1.0), [6, 3]),
        (10, (1.0, 1.0, 1.0), [4, 3, 3]),
        (10, (0.55, 0.45), [6, 4]),
        (5, None, [3, 2]),
        (7, (1e-9, 1.0), [0, 7]),
    ],
)
def test_samples_are_shared_by_weight(samples: int, weights: tuple[float, ...] | None, shares: list[int]) -> None:
    texts = tuple("abc"[: len(shares)])
    assert Calibration(texts, samples, weights=weights).shares() == shares


def test_several_texts_are_mixed(tmp_path: Path, model: Checkpoint) -> None:
    """Each gives its share, and they follow one another in no order."""
    first = as_lines(tmp_path / "a:2,b*3=1.jsonl", [{"text": " ".join(["w20"] * 40)}] * 20)
    second = Documents([{"messages": [{"role": "user", "content": " ".join(["w30"] * 40)}]}] * 20)
    found = calibration_tokens(Calibration((first, second), 12, 16, weights=(2.0, 1.0)), model)
    of_first = (found == 22).any(1)
    assert found.shape == (12, 16) and int(of_first.sum()) == 8 and not (found[of_first] == 32).any()
    assert of_first.tolist() not in ([True] * 8 + [False] * 4, [False] * 4 + [True] * 8)
    assert torch.equal(found, calibration_tokens(Calibration((first, second), 12, 16, weights=(2.0, 1.0)), model))
    short = Documents(["w5 w6"], name="notes")
    with pytest.raises(InputError, match="calibration text notes: the text has 4 tokens"):
        calibration_tokens(Calibration((first, short), 12, 16), model)


def test_rows_without_a_length_are_read_as_far_as_needed(model: Checkpoint) -> None:
    class Endless:
        def __iter__(self) -> Any:
            yield from [{"text": "w5 w6 w7"}] * (
                POOL * 4 * 10
            )  # a row for each token of the pool: several times enough
            pytest.fail("rows are read to their end, which they need not have")

    assert calibration_tokens(Calibration(Documents(Endless()), 4, 10), model).shape == (4, 10)


def test_a_recipe_has_several_texts_and_options_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("calibration: {text: [a.jsonl, org/set:train], weights: [2, 1], column: body, samples: 30}\n")
    recipe = load_recipe(path)
    assert recipe.calibration == Calibration(("a.jsonl", "org/set:train"), 30, weights=(2.0, 1.0), column="body")
    assert recipe.calibration.describe_text() == "a.jsonl (20), org/set:train (10)"
    (tmp_path / "again.yaml").write_text(recipe_text(recipe, []))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    other = recipe_of(ConvertOptions(recipe=path, calibration="b.jsonl"))
    assert other.calibration == Calibration("b.jsonl", 30)
    weighed = recipe_of(ConvertOptions(recipe=path, weights="1,4", samples=10))
    assert weighed.calibration.describe_text() == "a.jsonl (2), org/set:train (8)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration": ["a.jsonl", "b.jsonl"], "weights": "1"}, "1 weights for 2 calibration texts"),
        ({"calibration": "a.jsonl", "weights": "1,2"}, "2 weights for 1 calibration texts"),
        ({"calibration": ["a.jsonl", "b.jsonl"], "weights": "1,x"}, "weights are '1,x'"),
        ({"calibration": ["a.jsonl", "b.jsonl"], "weights": "1,-1"}, "weights are '1,-1'.*positive"),
        ({"calibration": ["a.jsonl", "b.jsonl"], "weights": "1,nan"}, "weights are '1,nan'.*positive"),
        ({"calibration": ["a.jsonl", "b.jsonl"], "weights": "1,1000"}, "128 samples of 2 texts: one of them gives"),
        ({"calibration": "a.TXT", "column": "body"}, "--column has no effect"),
        ({"calibration": []}, "name a text"),
        ({"calibration": [["a"]]}, "list is no text .*Documents"),
        ({"calibration": datasets.Dataset.from_list([{"text": "a"}])}, "Dataset is no text .*Documents"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        recipe_of(ConvertOptions(**options))
