"""Text to windows of tokens, and the tokenizer that makes them."""

from __future__ import annotations

import codecs
import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from slideconvert.calibrate import tokens as calibration_text
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import InputError
from slideconvert.models.load import load_tokenizer
from slideconvert.plan.calibration import Calibration
from slideconvert.texts import read as read_module
from slideconvert.texts import tokens as tokens_module
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import around_documents, sampled, token_sequences
from tests.helpers import pico
from tests.helpers.calibrated import write_text, write_tokenizer

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_tokens_are_those_of_the_tokenizer_file_whatever_the_architecture(tmp_path: Path, model_type: str) -> None:
    """AutoTokenizer splits numbers and comments differently for qwen2: perplexity 13.29 instead of 11.64."""
    folder = pico.write(tmp_path / "model", config={"model_type": model_type})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    text = "def f(x):\n    return x + 1  # It's 2026-11-20\n\n\n  done\r\n"
    expected = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    tokenizer = load_tokenizer(Checkpoint.open(folder))
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


class Letters:
    """A tokenizer of single letters: a is 10, b is 11 …"""

    bos_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) - ord("a") + 10 for letter in text] for text in texts]}


def test_documents_are_wrapped_joined_and_cut() -> None:
    windows = token_sequences(Letters(), ["abc", "de", "fgh"], 4)
    assert windows.tolist() == [[0, 10, 11, 12], [1, 0, 13, 14], [1, 0, 15, 16]]  # 17 and the last 1 are left over
    assert token_sequences(Letters(), ["abc", "de", "fgh"], 4, most=2).tolist() == windows[:2].tolist()
    assert windows.dtype == torch.int64


def test_reading_stops_after_enough_sequences() -> None:
    def endless() -> object:
        yield "abc"
        yield "def"
        raise AssertionError("read on")

    assert len(token_sequences(Letters(), endless(), 5, most=2)) == 2  # type: ignore[arg-type]


def test_tokenizers_without_begin_or_end() -> None:
    tokenizer = Letters()
    tokenizer.bos_token_id = None
    assert token_sequences(tokenizer, ["ab", "c"], 5).tolist() == [[10, 11, 1, 12, 1]]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="5 tokens, one sequence needs 8"):
        token_sequences(Letters(), ["abc"], 8)


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ["first\nline", "zweite Zeile ü", "third"]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": texts}), tmp_path / "a.parquet")
    assert list(read_documents(str(tmp_path / "a.jsonl"))) == texts
    assert list(read_documents(str(tmp_path / "a.parquet"))) == texts
    (tmp_path / "a.txt").write_text(texts[0])
    assert list(read_documents(str(tmp_path / "a.txt"))) == [texts[0]]


def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 inside strings; Windows ends lines with two characters."""
    texts = ["one \u2028 two \u2029 three \u0085 four", "a\rb", "last"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + "\r\n".join(lines).encode())
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + texts[0].encode())
    assert list(read_documents(str(tmp_path / "a.jsonl"))) == texts
    assert list(read_documents(str(tmp_path / "a.txt"))) == texts[:1]


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    """The last is never reached: it is not JSON."""
    (tmp_path / "a.jsonl").write_text('{"text": "abcdef"}\n' * 3 + "not JSON")
    assert len(token_sequences(Letters(), read_documents(str(tmp_path / "a.jsonl")), 5, most=3)) == 3


@pytest.mark.parametrize("column", [[1, 2], [b"a", b"b"], [["a", "b"], ["c", "d"]]], ids=["int64", "binary", "list"])
def test_columns_of_anything_but_strings_are_refused(tmp_path: Path, column: list[Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="column 'text' contains"):
        list(read_documents(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("columns", "words"), [(["text", "text"], "2 columns 'text'"), (["a", "b"], "no column 'text'")]
)
def test_one_column_is_text(tmp_path: Path, columns: list[str], words: str) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=columns)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=words):
        list(read_documents(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, "no such file"),
        ("a.csv", b"text\n", "a file of kind '.csv'"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("a.jsonl", b'{"body": "a"}', "line 1: no column 'text', 'messages', 'conversations' .its columns are .'body'"),
        ("a.txt", b"\xff\xfea\0", "UTF-16 text"),
        ("a.jsonl", b"\xfe\xff\0a", "UTF-16 text"),
        ("a.txt", b"a\xff", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\xff', "not UTF-8"),
        ("a.parquet", b"PAR?", "not a readable parquet file"),
    ],
)
def test_unreadable_text_is_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_documents(str(tmp_path / name)))


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set can be read, as without a network."""
    import datasets

    def refuse(*_: object, **__: object) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


@pytest.mark.usefixtures("unreachable")
def test_an_unreachable_data_set_may_be_read_later_unless_the_network_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for offline, code in ((False, 75), (True, 2)):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        with pytest.raises(InputError, match=r"wikitext:train cannot be read: no route.*pass a local") as refused:
            list(read_documents("wikitext:train"))
        assert refused.value.exit_code == code


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my.jsnol", "text my.jsnol: no such file .did you mean my.jsonl"),
        ("./nowhere/my", "text nowhere/my: no such file .give a"),
        ("texts/words", "text texts/words: no such file, and as a data set: no route .did you mean texts/words.txt"),
        ("texts/mine.json", "text texts/mine.json: no such file, and as a data set: no route .pass a local"),
    ],
)
def test_a_mistyped_file_is_a_file_and_no_failure_of_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for path in ("my.jsonl", "texts/words.txt"):
        (tmp_path / path).touch()
    with pytest.raises(InputError, match=words) as refused:
        list(read_documents(name))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("value", [3, b"text", ["a", "b"], {"de": "a"}], ids=["int", "bytes", "list", "dict"])
def test_a_data_set_of_anything_but_strings_is_refused(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    import datasets

    rows = [{"text": "one"}, {"text": None}, {"text": value}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(InputError, match=f"org/set: column 'text' contains {type(value).__name__} .it must contain"):
        list(read_documents("org/set"))


@pytest.mark.parametrize("error", [KeyError("id"), TypeError("not list"), csv.Error("field larger than field limit")])
def test_whatever_the_loader_of_a_data_set_raises_names_the_data_set(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import datasets

    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise error

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(InputError, match=rf"org/set cannot be read: {type(error).__name__}: .*pass a local"):
        list(read_documents("org/set"))


def test_a_data_set_is_read_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, config, split, streaming))
        return [{"text": "one"}, {"text": ""}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_documents("org/set:raw:train")) == ["one", "two"]
    list(read_documents("org/set"))
    assert asked == [("org/set", "raw", "train", True), ("org/set", None, "test", True)]


WORDS = [f"{'abcdefgh'[number % 8] * (1 + number % 5)}" for number in range(400)]


@pytest.mark.parametrize("piece", [7, 40, 300])
def test_long_documents_are_tokenized_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """The same tokens, and none around a piece: begin and end stand around the document."""
    documents = [" ".join(WORDS), "abc", "", "\n".join(WORDS[::-1])]
    whole = token_sequences(Letters(), documents, 5)
    seen: list[int] = []

    class Watched(Letters):
        def __call__(self, texts: list[str], **words: object) -> dict[str, list[list[int]]]:
            seen.append(sum(map(len, texts)))
            return super().__call__(texts, **words)

    monkeypatch.setattr(tokens_module, "PIECE", piece)
    assert torch.equal(token_sequences(Watched(), documents, 5), whole)
    assert max(seen) < 2 * piece and len(seen) > 3


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_a_large_text_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    """It holds several documents, cut at line ends or else between words, and nothing is lost."""
    path, text = tmp_path / "text.txt", separator.join(WORDS)
    path.write_text(text)
    assert list(read_documents(str(path))) == [text]
    monkeypatch.setattr(read_module, "DOCUMENT", 100)
    documents = list(read_documents(str(path)))
    assert "".join(documents) == text and len(documents) > 5 and max(map(len, documents)) <= 101
    assert all(document.endswith("\n") for document in documents[:-1]) or separator != "\n"
    assert all(after.startswith(" ") for after in documents[1:]) or separator != " "


def test_a_line_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a" * size}) for size in (3, 200)))
    monkeypatch.setattr(read_module, "LINE", 100)
    with pytest.raises(InputError, match="line 2: longer than 100 characters"):
        list(read_documents(str(path)))


def test_a_sample_of_documents_is_fair_and_repeatable() -> None:
    """All if they fit; else each as often as any other, whatever its place, in order, within the budget."""
    documents = [f"{number:04}" for number in range(50)]
    assert sampled(documents, 200, 0) == documents
    assert sampled(iter(documents), 80, 3) == sampled(documents, 80, 3) != sampled(documents, 80, 4)
    counts = dict.fromkeys(documents, 0)
    for seed in range(500):
        found = sampled(documents, 80, seed)
        assert len(found) == 20 and found == sorted(found)
        for document in found:
            counts[document] += 1
    # Binomial with n = 500, p = 0.4: mean 200, deviation 11; five deviations for the worst of 50.
    assert all(145 <= count <= 255 for count in counts.values()), counts
    assert sampled(["a" * 500, "b"], 100, 0) in (["a" * 500], ["b"])


def test_calibration_draws_from_all_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from its beginning alone; a small one is tokenized whole, as ever."""
    source = Checkpoint.open(write_tokenizer(pico.write(tmp_path / "source")))
    path = write_text(tmp_path / "text.jsonl", documents=400)
    calibration = Calibration(str(path), 4, 24)
    whole = calibration_tokens(calibration, source)
    monkeypatch.setattr(calibration_text, "LEAST_POOL", 20_000)
    monkeypatch.setattr(calibration_text, "POOL", 1)
    drawn = calibration_tokens(calibration, source)
    assert drawn.shape == whole.shape and not torch.equal(drawn, whole)
    assert torch.equal(drawn, calibration_tokens(calibration, source))


@pytest.mark.parametrize(("begin", "end"), [(None, None), (False, None), (None, False), (False, False), (True, True)])
def test_documents_stand_between_the_tokens_that_the_tokenizer_adds(
    tmp_path: Path, begin: bool | None, end: bool | None
) -> None:
    """By add_bos_token and add_eos_token of tokenizer_config.json; both tokens where it says nothing."""
    folder = write_tokenizer(pico.write(tmp_path / "source"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {name: flag for name, flag in (("add_bos_token", begin), ("add_eos_token", end)) if flag is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text.jsonl").write_text('{"text": "w5 w6"}\n' * 20)
    drawn = calibration_tokens(Calibration(str(tmp_path / "text.jsonl"), 1, 16), Checkpoint.open(folder))
    assert ((drawn == 0).any(), (drawn == 1).any()) == (begin is not False, end is not False)
    assert around_documents(Letters(), settings) == ([0] if begin is not False else [], [1] if end is not False else [])


@pytest.mark.parametrize("name", ["text.json", "text.jsonl.gz", "text.csv", "text", "folder"])
def test_other_kinds_of_text_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text('{"text": "abc"}')
    with pytest.raises(InputError) as error:
        list(read_documents(str(path)))
    said = str(error.value)
    assert ("a folder" if name == "folder" else f"kind '{path.suffix}'") in said and ".jsonl" in said, said
