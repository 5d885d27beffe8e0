"""Tasks of lm-eval: on questions of our own, against answers computed with stock transformers and NumPy."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import TRY_AGAIN, InputError, SlideConvertError
from slideconvert.evaluate.task_sandbox import refuse_code, sandboxed
from slideconvert.evaluate.tasks import load_tasks, measure_tasks, recovery
from tests.conftest import Cli

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
CODE = Path(__file__).parents[2] / "examples" / "demo_text" / "evaluation.jsonl"

NATS = 2e-3
"""Tolerance of a log-likelihood of some ten tokens: each is a difference of float32 logits of size 30, to which a few
hundred roundings of 6e-8 each add up at worst to 30 · 6e-8 · 100 = 2e-4. One token more or less is whole nats."""

QUESTIONS = 24
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}


@cache
def questions() -> list[dict[str, Any]]:
    """Pieces of the demo text: which of three lines of different lengths comes next?"""
    text = " ".join(word for line in CODE.read_text().splitlines() for word in json.loads(line)["text"].split())
    out = []
    for number in range(QUESTIONS):
        start = 1000 + 4999 * number
        places = enumerate([start + 80, start + 700, start + 1500], number // 3)
        ends = [text[at : at + 8 + 12 * (turn % 3)].strip() for turn, at in places]
        choices = ends[number % 3 :] + ends[: number % 3]
        out.append({"question": text[start : start + 80].strip(), "choices": choices, "answer": -number % 3})
    return out


def with_questions(place: Path) -> Path:
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, questions())))
    (place / "tasks").mkdir()
    return place / "tasks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for tasks, next to the questions."""
    return with_questions(tmp_path)


def metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def define(folder: Path, name: str, **words: Any) -> str:
    """Write a task over the questions: multiple choice, unless the words say otherwise."""
    data = {"data_files": str(folder.parent / "questions.jsonl"), "cache_dir": str(folder.parent / "cache")}
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": metrics("acc", "acc_norm"),
        **words,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in task.items() if v is not None}))
    return name


def greedy_task(folder: Path, name: str, **words: Any) -> str:
    """A task whose metrics say the log-likelihood itself: perplexity is exp(-mean) of those of the right endings."""
    given = {"metric_list": [PERPLEXITY, *metrics("acc")], **words}
    return define(
        folder,
        name,
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" {{choices[answer]}}",
        target_delimiter="",
        **given,
    )


def written_task(folder: Path, name: str, **words: Any) -> str:
    """A task that is answered by six tokens of text."""
    return define(
        folder,
        name,
        output_type="generate_until",
        doc_to_choice=None,
        generation_kwargs={"until": ["<nothing>"], "max_gen_toks": 6},
        metric_list=metrics("exact_match"),
        **words,
    )


class Twin:
    """Stock transformers and the tokenizer's file: what a text is worth after another."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def score(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        """The log-likelihood of the tokens `after` given those before, in float64, and whether greedy finds them."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([before + after])).logits[0].double().numpy()[len(before) - 1 : -1]
        top = logits.max(1)
        logs = logits - top[:, None] - np.log(np.exp(logits - top[:, None]).sum(1))[:, None]
        return float(logs[np.arange(len(after)), after].sum()), bool((logits.argmax(1) == after).all())

    def answer(self, context: str, ending: str) -> tuple[float, bool]:
        """Tokens of the whole, split after as many as the context alone has."""
        whole, count = self.tokens(context + ending), len(self.tokens(context))
        return self.score(whole[:count], whole[count:])

    def accuracy(self, docs: Iterable[dict[str, Any]], *, norm: bool = False) -> float:
        hits = []
        for doc in docs:
            scores = [self.answer(doc["question"], f" {choice}")[0] for choice in doc["choices"]]
            shares = [score / (len(text) if norm else 1) for score, text in zip(scores, doc["choices"], strict=True)]
            hits.append(int(np.argmax(shares)) == doc["answer"])
        return float(np.mean(hits))


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin(DEMO)


def measure(folder: Path, *names: str, ckpts: dict[str, Path] | None = None, **words: Any) -> list[dict[str, Any]]:
    shots = words.pop("shots", None)
    opened = {name: Checkpoint.open(path) for name, path in (ckpts or {"demo": DEMO}).items()}
    return measure_tasks(opened, load_tasks(names, folder=folder, shots=shots), **words).rows


def value(row: dict[str, Any], metric: str) -> float:
    return next(found["value"] for found in row["metrics"] if found["metric"] == metric)


def test_multiple_choice_is_what_the_log_likelihoods_of_the_choices_say(folder: Path, twin: Twin) -> None:
    (row,) = measure(folder, define(folder, "endings"))
    plain, norm = twin.accuracy(questions()), twin.accuracy(questions(), norm=True)
    assert 0.2 < plain < 0.9, "right or wrong throughout, the questions would show nothing"
    assert plain != norm
    assert (value(row, "acc"), value(row, "acc_norm")) == (pytest.approx(plain), pytest.approx(norm))
    error = row["metrics"][0]["stderr"]
    assert error == pytest.approx(math.sqrt(plain * (1 - plain) / (QUESTIONS - 1)))  # of a mean of zeros and ones
    assert (row["ckpt"], row["task"], row["samples"], row["shots"]) == ("demo", "endings", QUESTIONS, 0)
    assert row["metrics"][0]["metric"] == "acc"
    assert row["metrics"][0]["higher_is_better"] is True


def test_log_likelihoods_are_those_of_stock_transformers(folder: Path, twin: Twin) -> None:
    (row,) = measure(folder, greedy_task(folder, "right"))
    answers = [twin.answer(doc["question"], f" {doc['choices'][doc['answer']]}") for doc in questions()]
    assert -math.log(value(row, "perplexity")) == pytest.approx(np.mean([score for score, _ in answers]), abs=NATS)
    assert value(row, "acc") == pytest.approx(np.mean([greedy for _, greedy in answers]))
    assert row["metrics"][0]["metric"] == "acc", "the main metric is accuracy, whatever the order"


def test_whole_texts_are_scored_after_the_begin_token(folder: Path, twin: Twin) -> None:
    words = {"doc_to_choice": None, "doc_to_text": "", "doc_to_target": "{{question}}"}
    task = define(folder, "texts", output_type="loglikelihood_rolling", metric_list=None, **words)
    (row,) = measure(folder, task)
    texts = [doc["question"] for doc in questions()]
    nats = sum(twin.score([0], twin.tokens(text))[0] for text in texts)
    expected = -nats / sum(len(text.encode()) for text in texts)
    assert math.log(value(row, "byte_perplexity")) == pytest.approx(expected, abs=NATS)
    assert row["metrics"][0]["higher_is_better"] is False


def test_answers_are_generated_greedily(folder: Path, twin: Twin) -> None:
    docs = questions()[:4]
    for doc in docs:
        tokens = twin.model.generate(torch.tensor([twin.tokens(doc["question"])]), max_new_tokens=6, do_sample=False)
        doc["greedy"] = twin.tokenizer.decode(tokens[0, len(twin.tokens(doc["question"])) :].tolist())
    docs = [*docs, {**docs[0], "greedy": "wrong"}]
    (folder.parent / "questions.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (row,) = measure(folder, written_task(folder, "written", doc_to_target="{{greedy}}"))
    assert value(row, "exact_match") == pytest.approx(4 / 5)


def test_examples_stand_before_the_question(folder: Path, twin: Twin) -> None:
    task = greedy_task(folder, "shown", fewshot_split="train", fewshot_config={"sampler": "first_n"})
    (row,) = measure(folder, task, shots=2, limit=5)
    scores = []
    for doc in questions()[:5]:
        examples = [other for other in questions() if other != doc][:2]
        shown = "".join(f"{other['question']} {other['choices'][other['answer']]}\n\n" for other in examples)
        scores.append(twin.answer(shown + doc["question"], f" {doc['choices'][doc['answer']]}")[0])
    assert -math.log(value(row, "perplexity")) == pytest.approx(np.mean(scores), abs=NATS)
    assert (row["shots"], row["samples"]) == (2, 5)


def test_examples_are_drawn_alike_for_every_checkpoint(folder: Path) -> None:
    task = greedy_task(folder, "drawn", fewshot_split="train")
    ckpts = {"one": DEMO, "two": DEMO}
    assert [
        m["difference"] for row in measure(folder, task, shots=2, limit=5, ckpts=ckpts) for m in row["metrics"]
    ] == [0] * 4


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model at 2:4 in INT8, in both layouts, and its weights as plain numbers."""
    from slideconvert.cli import group

    out = tmp_path_factory.mktemp("pruned")
    slide, dense, plain = out / "slide", out / "dense", out / "plain"
    words = ["--scheme", "int8", "--pattern", "2_4", "--method", "magnitude", "--no-verify", "-q"]
    group.main(["convert", str(DEMO), str(slide), *words], standalone_mode=False)
    group.main(["relayout", str(slide), str(dense), "--layout", "dense", "-q"], standalone_mode=False)
    shutil.copytree(DEMO, plain)
    tensors = load_file(dense / "model.safetensors")
    scales = {name: tensors.pop(name).float() for name in list(tensors) if name.endswith("_scale")}
    for name in scales:
        weight = name.removesuffix("_scale")
        tensors[weight] = tensors[weight].float() * scales[name]
    save_file({name: tensor.float() for name, tensor in tensors.items()}, plain / "model.safetensors")
    return {"slide": slide, "dense": dense, "plain": plain}


def test_checkpoints_stand_side_by_side(folder: Path, pruned: dict[str, Path], twin: Twin) -> None:
    names = [define(folder, "endings"), greedy_task(folder, "right")]
    ckpts = {"demo": DEMO, "slide": pruned["slide"], "dense": pruned["dense"]}
    rows = measure(folder, *names, ckpts=ckpts, activations="float")
    assert [(row["task"], row["ckpt"]) for row in rows] == [(name, ckpt) for name in names for ckpt in ckpts]
    other = Twin(pruned["plain"])
    assert value(rows[1], "acc") == pytest.approx(other.accuracy(questions()))
    assert rows[1]["metrics"][0]["difference"] == pytest.approx(
        other.accuracy(questions()) - twin.accuracy(questions())
    )
    scores = [other.answer(doc["question"], f" {doc['choices'][doc['answer']]}")[0] for doc in questions()]
    assert -math.log(value(rows[4], "perplexity")) == pytest.approx(np.mean(scores), abs=NATS)
    worse = rows[4]["metrics"][1]
    assert worse["difference"] == worse["value"] - value(rows[3], "perplexity") > 0
    assert [row["metrics"] for row in rows[2::3]] == [row["metrics"] for row in rows[1::3]], "one model, two layouts"


def test_activations_are_quantized_as_served_unless_float(folder: Path, pruned: dict[str, Path]) -> None:
    task, ckpts = greedy_task(folder, "right"), {"slide": pruned["slide"]}
    served, plain = (measure(folder, task, ckpts=ckpts, activations=word)[0] for word in ("quantized", "float"))
    nats = [-math.log(value(row, "perplexity")) for row in (served, plain)]
    assert NATS < abs(nats[0] - nats[1]) < 1, nats  # 8 bits change a little


def test_groups_and_tags_give_a_row_for_what_was_asked_and_for_its_members(folder: Path, twin: Twin) -> None:
    define(folder, "early", tag="halves", process_docs=None)
    few = folder.parent / "few.jsonl"
    few.write_text("\n".join(map(json.dumps, questions()[:6])))
    data = {"data_files": str(few), "cache_dir": str(folder.parent / "cache")}
    define(folder, "few", tag="halves", dataset_kwargs=data)
    group = {"group": "both", "task": ["early", "few"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    rows = measure(folder, "both", "halves")
    assert [(row["task"], row["part_of"]) for row in rows] == [
        ("both", None),
        ("early", "both"),
        ("few", "both"),
        ("early", None),
        ("few", None),
    ]
    every, first = twin.accuracy(questions()), twin.accuracy(questions()[:6])
    assert [value(row, "acc") for row in rows[1:3]] == [pytest.approx(every), pytest.approx(first)]
    assert value(rows[0], "acc") == pytest.approx((every * QUESTIONS + first * 6) / (QUESTIONS + 6))
    assert rows[0]["samples"] == QUESTIONS + 6


def test_progress_counts_every_answer(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    tasks = load_tasks([define(folder, "endings")], folder=folder)
    measure_tasks({"demo": Checkpoint.open(DEMO)}, tasks, progress=lambda *words: told.append(words))
    assert told == [("demo, endings", done, 3 * QUESTIONS) for done in range(1, 3 * QUESTIONS + 1)]


def watch(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[torch.Size]:
    """Batches of at most so many tokens; the shapes of those that the model is given."""
    from slideconvert.evaluate import tasks

    shapes: list[torch.Size] = []
    load = tasks.load_model

    def watched(*args: Any, **words: Any) -> torch.nn.Module:
        model = load(*args, **words)
        model.base_model.register_forward_pre_hook(  # type: ignore[operator, union-attr]
            lambda _, inputs, named: shapes.append((inputs[0] if inputs else named["input_ids"]).shape),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(tasks, "load_model", watched)
    monkeypatch.setattr(tasks, "BATCH_TOKENS", tokens)
    return shapes


def test_batches_are_as_large_as_the_tokens_allow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch(monkeypatch, 300)
    measure(folder, define(folder, "endings"))
    longest = max(shape[1] for shape in shapes)
    assert max(shape[0] for shape in shapes) in (300 // longest, 300 // (longest + 1))  # the last token is not asked
    assert max(shape.numel() for shape in shapes) <= 300


def test_one_text_is_run_however_long_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch(monkeypatch, 1)
    measure(folder, define(folder, "endings"), limit=2)
    assert {shape[0] for shape in shapes} == {1}


def test_batches_leave_room_for_what_is_generated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch(monkeypatch, 1000)
    measure(folder, written_task(folder, "written", doc_to_target="{{question}}"), limit=6)
    longest = max(shape[1] for shape in shapes)
    assert shapes[0][0] == 1000 // (longest + 256) > 1, "256 is what lm-eval allows an answer"


def test_a_truncated_context_is_reported(folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(DEMO, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    tasks = load_tasks([define(folder, "endings")], folder=folder)
    assert tasks.notes == ()
    (note,) = measure_tasks({"short": Checkpoint.open(short)}, tasks).notes
    assert note.startswith("short, endings: A context of ") and "exceed the 16 of the model. Truncating" in note


def test_a_model_that_computes_nonsense_gets_no_score(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DEMO, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SlideConvertError, match="broken, endings: the log-likelihood of an answer is nan") as stop:
        measure(folder, define(folder, "endings"), ckpts={"broken": broken})
    assert stop.value.exit_code == 1


@pytest.mark.parametrize(
    ("value", "first", "higher", "expected"),
    [
        *((0.45, 0.5, True, 90), (12.5, 10, False, 80), (10, 12.5, False, 125), (0.0, 0.5, True, 0)),
        *((0.45, 0.5, None, None), (0.45, 0.0, True, None), (0.0, 3.0, False, None), (-0.1, 0.5, True, None)),
    ],
)
def test_recovery_is_below_100_wherever_the_first_is_better(
    value: float, first: float, higher: bool | None, expected: float | None
) -> None:
    """And None where there is no direction, or nothing to divide by."""
    assert recovery(value, first, higher_is_better=higher) == (expected and pytest.approx(expected))


def test_recovery_stands_beside_each_metric(folder: Path, pruned: dict[str, Path]) -> None:
    tasks = define(folder, "endings"), greedy_task(folder, "endings_in_nats", metric_list=[PERPLEXITY])
    rows = measure(folder, *tasks, ckpts={"first": DEMO, "second": pruned["slide"]})
    pairs = [
        pair for number in (0, 2) for pair in zip(rows[number]["metrics"], rows[number + 1]["metrics"], strict=True)
    ]
    assert [after["metric"] for _, after in pairs] == ["acc", "acc_norm", "perplexity"]
    for before, after in pairs:
        assert before["recovery"] == 100
        up = after["metric"] != "perplexity"
        share = after["value"] / before["value"] if up else before["value"] / after["value"]
        assert after["recovery"] == pytest.approx(100 * share)


def test_the_command_prints_the_main_metric_and_json_has_all(folder: Path, cli: Cli, pruned: dict[str, Path]) -> None:
    define(folder, "endings", metadata={"version": 3})
    group = {"group": "both", "task": ["endings"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    words = ["eval", DEMO, pruned["slide"], "--tasks", "endings, both,endings", "--task-path", folder, "--limit", 8]
    outcome = cli(*words, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["limit"], found["activations"], found["notes"]) == (8, "quantized", [])
    assert found["lm_eval"] == importlib.metadata.version("lm_eval")
    assert [len(row["metrics"]) for row in found["tasks"]] == [2, 2, 1, 1, 2, 2]
    assert found["tasks"][1]["version"] == 3
    score = found["tasks"][1]["metrics"][0]
    outcome = cli(*words)
    assert "the first 8 questions" in outcome.out
    lines = [line.split() for line in outcome.out.splitlines() if str(pruned["slide"])[:20] in line]
    values = [f"{score['value']:.4f}", f"{score['stderr']:.4f}", f"{score['difference']:+.4f}"]
    cells = [*values, f"{score['recovery']:.1f}%", "8"]
    assert lines[0][0] == "endings"
    assert lines[0][-5:] == cells
    assert (outcome.out.count("acc ↑"), outcome.out.count("acc_norm")) == (4, 0)
    assert cli(*words, "-v").out.count("acc_norm") == 4
    assert cli(*words, "-q").err == ""
    define(folder, "endings", fewshot_split="train")
    assert "endings, 2 shots" in cli(*words, "--shots", 2).out


def test_text_and_tasks_go_together_and_one_is_needed(folder: Path, cli: Cli) -> None:
    task = ["--tasks", define(folder, "endings"), "--task-path", folder, "--limit", 2]
    found = json.loads(cli("eval", DEMO, "--text", CODE, "--sequences", 1, *task, "--json").out)
    assert found["results"][0]["sequences"] == 1
    assert found["tasks"][0]["samples"] == 2
    neither = cli("eval", DEMO)
    assert (neither.code, neither.out) == (2, "")
    assert "give --text, --tasks or both" in neither.err
    for option in (["--limit", 2], ["--shots", 0], ["--task-path", folder]):
        assert "belongs to --tasks" in cli("eval", DEMO, "--text", CODE, *option).err


def test_a_missing_library_is_named_with_the_way_to_install_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = cli("eval", DEMO, "--tasks", "arc_easy")
    assert outcome.code == 2
    assert "pip install 'slideconvert[lm-eval]'" in outcome.err


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task "endings", for several tests."""
    return with_questions(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def collection(home: Path) -> Any:
    """lm-eval's own tasks and those of a folder, read once: that takes seconds."""
    from lm_eval.tasks import TaskManager

    define(home, "endings")
    return TaskManager(include_path=home)


def test_a_task_of_the_collection(
    home: Path, twin: Twin, collection: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import lm_eval.tasks

    read = lm_eval.tasks.TaskManager

    def manager(include_path: Path | None = None, include_defaults: bool = True) -> Any:
        if include_defaults:
            assert include_path == home
            return collection
        return read(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    outcome = cli("eval", DEMO, "--tasks", "arc_eazy", "--task-path", home, "-q")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown task 'arc_eazy' (did you mean arc_easy?" in outcome.err

    load_dataset = datasets.load_dataset

    def unreachable(**_: object) -> object:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    outcome = cli("eval", DEMO, "--tasks", "arc_easy", "--task-path", home, "-q")
    assert (outcome.code, outcome.out) == (TRY_AGAIN, "")
    assert (
        "task arc_easy: its data cannot be read: ConnectionError: Couldn't reach the Hub (connect to the network"
        in outcome.err
    )

    load, asked = load_dataset, []

    def reachable(**words: Any) -> Any:
        if words["path"] == "json":
            return load(**words)
        asked.append(words["name"])
        lines = [
            {
                "id": str(number),
                "question": doc["question"],
                "choices": {"text": doc["choices"], "label": ["A", "B", "C"]},
                "answerKey": "ABC"[doc["answer"]],
            }
            for number, doc in enumerate(questions())
        ]
        rows = datasets.Dataset.from_list(lines)
        return datasets.DatasetDict(train=rows, validation=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset", reachable)
    own, row = measure(home, "endings", "arc_easy")
    assert asked == ["ARC-Easy"]
    assert value(own, "acc") == pytest.approx(twin.accuracy(questions()))
    docs = [{**doc, "question": f"Question: {doc['question']}\nAnswer:"} for doc in questions()]
    assert value(row, "acc") == pytest.approx(twin.accuracy(docs))
    assert value(row, "acc_norm") == pytest.approx(twin.accuracy(docs, norm=True))
    refuse_code(collection.task_index, "hellaswag")  # names Python, which came with lm-eval


@pytest.mark.parametrize("place", ["task", "included", "group", "tag", "aggregation"])
def test_python_of_a_task_is_refused_unread(folder: Path, cli: Cli, place: str) -> None:
    trace = folder.parent / "ran"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nrun = print\n")
    python = "process_docs: !function code.run\n"
    path = folder / f"{define(folder, 'bad')}.yaml"
    asked = "bad"
    if place == "included":
        (folder / "base").write_text(python)
        path.write_text("include: base\n" + path.read_text())
    elif place == "aggregation":
        path.write_text(path.read_text().replace("aggregation: mean", "aggregation: !function code.run"))
    else:
        path.write_text(path.read_text() + python + "tag: mine\n")
    if place == "group":
        asked = "outer"
        (folder / "outer.yaml").write_text("group: outer\ntask:\n- group: inner\n")
        (folder / "inner.yaml").write_text("group: inner\ntask:\n- task: bad\n")
    elif place == "tag":
        asked = "mine"
    outcome = cli("eval", DEMO, "--tasks", asked, "--task-path", folder, "-q")
    assert (outcome.code, outcome.out) == (2, "")
    assert "uses the Python function code.run in line" in outcome.err
    assert "slideconvert never runs code of a task" in outcome.err
    assert not trace.exists()
    define(folder, "good")
    assert cli("eval", DEMO, "--tasks", "good", "--task-path", folder, "--limit", 1, "-q").code == 0


@pytest.mark.parametrize("metric", [{"metric": "./code.py"}, {"metric": "acc", "hf_evaluate": True}])
def test_metrics_that_are_scripts_are_refused(folder: Path, metric: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a script of the evaluate library"):
        load_tasks([define(folder, "bad", metric_list=[metric])], folder=folder)


def test_templates_cannot_reach_into_python(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}"
    with pytest.raises(InputError, match="task bad cannot be loaded: SecurityError"):
        load_tasks([define(folder, "bad", doc_to_text=template)], folder=folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("words", "shots", "message"),
    [
        ({"test_split": "absent"}, None, "task bad cannot be loaded: KeyError"),
        ({"output_type": "guess"}, None, "task bad cannot be loaded: ValueError: .*guess"),
        ({"dataset_kwargs": {"data_files": "/nowhere.jsonl"}}, None, "data cannot be read: .*nowhere.*a local file"),
        ({"num_fewshot": 0}, 3, "task bad is defined with no examples, not 3"),
        ({"unsafe_code": True}, None, "task bad runs code that the model writes"),
    ],
)
def test_tasks_that_do_not_work_are_refused(
    folder: Path, words: dict[str, Any], shots: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_tasks([define(folder, "bad", **words)], folder=folder, shots=shots)


def test_a_template_that_fails_later_is_reported(folder: Path) -> None:
    docs = [{**doc, "number": number} for number, doc in enumerate(questions()[:3])]
    (folder.parent / "questions.jsonl").write_text("\n".join(map(json.dumps, docs)))
    task = define(folder, "late", doc_to_text="{{ question if number < 2 else absent }}")
    with pytest.raises(InputError, match="task late on demo: UndefinedError: 'absent' is undefined"):
        measure(folder, task)


def test_the_fence_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval import utils
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")

    def state() -> tuple[object, ...]:
        name = "DISABLE_MULTIPROC"
        return utils.env, tqdm.__init__, logger.level, logger.propagate, [*logger.handlers], os.environ.get(name)

    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    for setting in (None, "0"):
        if setting is not None:
            monkeypatch.setenv("DISABLE_MULTIPROC", setting)
        before = state()
        with pytest.raises(KeyError), sandboxed() as notes:
            for number in range(3):
                logger.getChild("api").warning("number %d", number)
            list(tqdm(range(3), disable=False))
            sys.stdout.write("bootstrapping")
            raise KeyError
        assert notes == ["number 0"]
        assert state() == before
    assert capsys.readouterr() == ("", "")
