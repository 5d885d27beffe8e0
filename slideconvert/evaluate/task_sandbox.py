"""Prevent lm-eval from running code of tasks, printing, and starting processes.

A task of lm-eval is a YAML file. Tasks of lm-eval's own collection are trusted like lm-eval itself. Any other file is
checked here before lm-eval loads it, and its templates run in a sandbox that has no access to Python.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import InputError

ALONE = "DISABLE_MULTIPROC"
"""Environment variable of lm-eval; without it, lm-eval forks this process with all threads for every bootstrap."""


class _Reader(yaml.SafeLoader):
    """Reads a task definition and refuses Python functions."""


def _refuse_function(loader: yaml.SafeLoader, node: yaml.Node) -> NoReturn:
    raise _code_error(Path(loader.name), f"the Python function {node.value} in line {node.start_mark.line + 1}")


_Reader.add_constructor("!function", _refuse_function)


def _code_error(path: Path, what: str) -> InputError:
    hint = "slideconvert never runs code of a task: use prepared data and lm-eval's own metrics, or run lm-eval itself"
    return InputError(f"{path} uses {what}", hint=hint)


def parts(index: Mapping[str, Any], name: str) -> set[str]:
    """`name` and the names of all its parts: the members of a group, also of nested groups, and the tasks of a tag.

    index: the task_index of lm-eval's TaskManager. The result may have names that the index lacks: tasks of another
    index, and tasks that a group defines itself.
    """
    found, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        entry = index.get(name)
        if entry is not None:
            todo += entry.tags if entry.yaml_path is None else _members(entry.cfg.get("task"))
    return found


def refuse_code(index: Mapping[str, Any], name: str) -> None:
    """InputError if a file of the task, group or tag `name`, or of its parts, contains code or is not valid YAML."""
    for part in parts(index, name) & index.keys():
        if index[part].yaml_path is not None:
            _refuse_in_file(Path(index[part].yaml_path), set())


def _members(node: Any) -> Iterator[str]:
    """The names of tasks and groups in the `task` entry of a group, including its inline groups."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for member in node:
            yield from _members(member)
    elif isinstance(node, dict):
        yield from _members([node.get("group"), node.get("task")])


def _refuse_in_file(path: Path, seen: set[Path]) -> None:
    import lm_eval.tasks

    path = path.resolve()
    if path in seen or path.is_relative_to(Path(lm_eval.tasks.__file__).resolve().parent):
        return
    seen.add(path)
    try:
        with path.open(encoding="utf-8") as file:
            found = yaml.load(file, Loader=_Reader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML file ({error})") from error
    if isinstance(found, dict):
        _refuse_scripts(path, found)
        includes = found.get("include", [])
        for include in includes if isinstance(includes, list) else [includes]:
            _refuse_in_file(path.parent / include, seen)


def _refuse_scripts(path: Path, node: Any) -> None:
    """InputError for a metric that lm-eval does not know: lm-eval would download it as a script and run it."""
    import lm_eval.api.metrics  # noqa: F401 (fills the registry)
    from lm_eval.api.registry import metric_registry

    if isinstance(node, dict):
        metric = node.get("metric")
        if node.get("hf_evaluate") or (isinstance(metric, str) and metric not in metric_registry):
            raise _code_error(path, f"the metric {metric}, which is a script of the evaluate library")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _refuse_scripts(path, child)


class _Listener(logging.Handler):
    """Keeps the first warning from each line of lm-eval's code; later ones differ only in numbers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: set[tuple[str, int]] = set()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = (record.pathname, record.lineno)
        if line not in self.seen:
            self.seen.add(line)
            self.lines.append(record.getMessage())


@contextmanager
def sandboxed() -> Iterator[list[str]]:
    """Run lm-eval with its templates in a sandbox, and without progress bars, prints and new processes.

    Yields a list to which warnings of lm-eval are appended.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from tqdm import tqdm

    plain, start_bar, logger, listener = utils.env, tqdm.__init__, logging.getLogger("lm_eval"), _Listener()
    propagate, level, alone = logger.propagate, logger.level, os.environ.get(ALONE)
    sandbox = SandboxedEnvironment(undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline)
    sandbox.filters.update(plain.filters)

    def start_hidden(bar: Any, *args: Any, **options: Any) -> None:
        start_bar(bar, *args, **{**options, "disable": True})

    utils.env, tqdm.__init__, logger.propagate, os.environ[ALONE] = sandbox, start_hidden, False, "1"
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield listener.lines
    finally:
        utils.env, tqdm.__init__, logger.propagate = plain, start_bar, propagate
        logger.removeHandler(listener)
        logger.setLevel(level)
        os.environ.pop(ALONE)
        if alone is not None:
            os.environ[ALONE] = alone
