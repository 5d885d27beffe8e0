"""Zero-shot tasks of EleutherAI's lm-eval (an optional extra): the scores of checkpoints side by side.

lm-eval reads the tasks, runs their requests and scores the answers. slideconvert loads the model and its tokenizer, as
it does for perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..errors import InputError, SlideConvertError, UnavailableError, did_you_mean
from ..models.head import Head
from ..models.load import load_model, load_tokenizer
from ..progress import Progress, silent
from ..texts.read import network_fails
from .answers import answer_scores
from .perplexity import BATCH_TOKENS, DAMAGED
from .task_sandbox import parts, refuse_code, sandboxed

DRAWS = 1000
"""Bootstrap samples for the standard error of metrics that are not means: accurate to 1/√(2·1000), 2 %."""

SEED = 1234
"""The seed for the few-shot examples; lm-eval's default."""


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data, ready to run.

    loaded: the objects that lm-eval loaded, by requested name. notes: the warnings of lm-eval.
    """

    loaded: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TaskResults:
    """The scores of tasks. rows: one per task and checkpoint, see `measure_tasks`. notes: warnings of lm-eval.

    library: the version of lm-eval; scores depend on it and on the versions of the tasks.
    """

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]
    library: str


def load_tasks(
    names: Sequence[str], *, folder: Path | None = None, shots: int | None = None, progress: Progress = silent
) -> Tasks:
    """Load tasks, groups or tags by name, from lm-eval's collection and from the YAML files in `folder`.

    shots: few-shot examples per question; None for the task's own number.
    InputError if lm-eval cannot be imported, a name is unknown, a file of `folder` contains code, the data are not
    available, or a task is invalid or does not support `shots`; UnavailableError if the network fails.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        hint = "pip install 'slideconvert[lm-eval]'"
        raise InputError(f"tasks need lm-eval, which cannot be imported: {error}", hint=hint) from error

    loaded: dict[str, Any] = {}
    progress("tasks", 0, len(names))
    with sandboxed() as notes:
        manager = TaskManager(include_path=folder, include_defaults=False)
        if not all(parts(manager.task_index, name) <= manager.task_index.keys() for name in names):
            manager = TaskManager(include_path=folder)  # reads more than ten thousand files, which takes seconds
        for number, name in enumerate(names, 1):
            if name not in manager.task_index:
                meant = did_you_mean(name, manager.all_tasks, cutoff=0.5)
                raise InputError(f"unknown task '{name}'", hint=f"{meant}`lm-eval ls tasks` lists lm-eval's tasks")
            refuse_code(manager.task_index, name)
            loaded[name] = _load(manager, name)
            for task in loaded[name]["tasks"].values():
                _prepare(task, shots)
            progress("tasks", number, len(names))
    return Tasks(loaded, tuple(notes))


def _load(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except OSError as error:
        kind = UnavailableError if network_fails(error) else InputError
        raise kind(
            f"task {name}: its data cannot be read: {_reason(error)}",
            hint="connect to the network, fill the Hugging Face cache, or define a task over a local file",
        ) from error
    except Exception as error:  # an invalid definition can raise anything
        raise InputError(f"task {name} cannot be loaded: {_reason(error)}") from error


def _prepare(task: Any, shots: int | None) -> None:
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise InputError(f"task {task.task_name} is defined with no examples, not {shots}", hint="omit --shots")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"task {task.task_name} runs code that the model writes", hint="run lm-eval in a sandbox")
    task.set_config("num_fewshot", (own or 0) if shots is None else shots)


def measure_tasks(
    checkpoints: Mapping[str, Checkpoint],
    tasks: Tasks,
    *,
    limit: int | None = None,
    activations: str = "quantized",
    device: str = "cpu",
    progress: Progress = silent,
) -> TaskResults:
    """Run every task on one checkpoint after another, each with its own tokenizer.

    checkpoints: by the name to report. limit: run only this many questions of each task. activations: "quantized" per
    token as in serving, or "float".

    A row has ckpt, task, version, part_of (the requested group; None if the task itself was requested), samples, shots
    and metrics. A metric has metric, filter, value, stderr (None if lm-eval has none), higher_is_better, and difference
    (to the first checkpoint) and recovery: of the first checkpoint's value, in percent; for a metric of which less is
    better, the first one's value of this one's, so that 100 is as good and less is worse in both. It is None where the
    direction is unknown or a value is not positive. The main metric comes first: acc, if the task has it.
    InputError if a task fails on its questions. SlideConvertError if a log-likelihood is not finite: such a model is
    broken, and a score would hide that.
    """
    import lm_eval
    from jinja2 import TemplateError

    faults = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, TemplateError)
    rows: list[dict[str, Any]] = []
    notes = [*tasks.notes]
    for ckpt, checkpoint in checkpoints.items():
        tokenizer = load_tokenizer(checkpoint)
        model = load_model(checkpoint, activations=activations, device=device)
        with sandboxed():  # suppresses lm-eval's warning about a model that it did not load itself
            wrapped = _wrap(model, tokenizer)
        for name, loaded in tasks.loaded.items():
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed=SEED)
            wrapped.set_cache_hook(_Watcher(f"{ckpt}, {name}", progress))
            with sandboxed() as warnings:
                try:
                    found = lm_eval.evaluate(wrapped, loaded, limit=limit, bootstrap_iters=DRAWS, log_samples=False)
                except faults as error:
                    raise InputError(f"task {name} on {ckpt}: {_reason(error)}") from error
            notes += [f"{ckpt}, {name}: {line}" for line in warnings]
            rows += _rows(ckpt, name, found)
        del model, wrapped  # before the next one is loaded
    first: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for row in rows:
        start = first.setdefault((row["task"], row["part_of"]), row["metrics"])
        for metric, other in zip(row["metrics"], start, strict=True):
            metric["difference"] = metric["value"] - other["value"]
            metric["recovery"] = recovery(metric["value"], other["value"], higher_is_better=metric["higher_is_better"])
    order = list(first)
    rows.sort(key=lambda row: order.index((row["task"], row["part_of"])))
    return TaskResults(rows, tuple(notes), lm_eval.__version__)


def recovery(value: float, first: float, *, higher_is_better: bool | None) -> float | None:
    """How much of the first checkpoint's score is left, in percent: value / first, or first / value for a metric of
    which less is better; None where that means nothing."""
    if higher_is_better is None or min(value, first) < 0 or not (first if higher_is_better else value):
        return None
    return 100 * (value / first if higher_is_better else first / value)


def _rows(ckpt: str, name: str, found: Any) -> list[dict[str, Any]]:
    """The results of lm-eval for one requested name: a row for a group with a score of its own, and one per task."""
    rows = []
    for task, values in found["results"].items():
        metrics = []
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}", "N/A")
            higher = found["higher_is_better"].get(task, {}).get(metric)
            about = {"metric": metric, "filter": chosen, "value": float(value), "higher_is_better": higher}
            metrics.append({**about, "stderr": None if stderr == "N/A" else float(stderr)})
        if metrics:
            metrics.sort(key=lambda metric: metric["metric"] != "acc")
            group = name if name != task and name in found.get("groups", {}) else None
            where = {"ckpt": ckpt, "task": task, "version": found["versions"].get(task), "part_of": group}
            counts = {"samples": values["sample_len"], "shots": found["n-shot"].get(task)}
            rows.append({**where, **counts, "metrics": metrics})
    return sorted(rows, key=lambda row: row["part_of"] is not None)


class _Watcher:
    """Replaces lm-eval's cache, which receives every answer, to count answers and to refuse non-finite scores."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self.stage, self.progress, self.done, self.total = stage, progress, 0, 0

    def add_partial(self, _kind: str, _request: Any, answer: Any) -> None:
        score = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(score, float) and not math.isfinite(score):
            raise SlideConvertError(f"{self.stage}: the log-likelihood of an answer is {score}", hint=DAMAGED)
        self.done += 1
        self.progress(self.stage, self.done, self.total)


def _wrap(model: Any, tokenizer: Any) -> Any:
    """The model for lm-eval, in batches of at most BATCH_TOKENS tokens and at least one text."""
    from lm_eval.models.huggingface import HFLM

    head = Head(model)

    class Batched(HFLM):
        def expect(self, requests: list[Any], generated: int = 0) -> None:
            texts = ["".join(part for part in request.args if isinstance(part, str)) for request in requests]
            longest = max(map(len, self.tokenizer(texts, verbose=False)["input_ids"])) + generated
            self.batch_size_per_gpu = max(1, BATCH_TOKENS // max(1, min(longest, self.max_length)))
            self.cache_hook.total += len(requests)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.expect(requests)
            return super().loglikelihood(requests, disable_tqdm)

        def _loglikelihood_tokens(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
            pairs = [(context, answer) for _, context, answer in requests]
            words = {"batch": self.batch_size_per_gpu, "most": self.max_length, "device": self.device}
            found: dict[int, tuple[float, bool]] = {}
            for number, score, greedy in answer_scores(head, pairs, **words):
                found[number] = score, greedy
                if requests[number][0] is not None:  # windows of a whole text are counted with it
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
            return [found[number] for number in range(len(requests))]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.expect(requests)
            return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            self.expect(requests, generated=self.max_gen_toks)
            return super().generate_until(requests, disable_tqdm)

    return Batched(pretrained=model, tokenizer=tokenizer, backend="causal")


def _reason(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
