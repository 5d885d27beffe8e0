"""The container's bytes, and writing it: what is damaged is refused, and what was interrupted ends the same."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slideconvert.checkpoint import reader
from slideconvert.checkpoint.container import MAX_HEADER, Placed, TensorSpec, header_bytes, read_header
from slideconvert.checkpoint.reader import DTYPE_NAMES, Checkpoint
from slideconvert.checkpoint.staging import JOURNAL, STATE, Staging, write_file, writing
from slideconvert.checkpoint.writer import Shard, Unit, WeightWriter, read_journals
from slideconvert.errors import InputError, OutputError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PARTIAL = ".slideconvert-partial"

# ---- a tiny file, byte for byte

TINY_SPECS = (TensorSpec("b", "BF16", (2,)), TensorSpec("a", "I8", (1, 3)))
TINY_HEADER = (
    b"\x90\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt"},'
    b'"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
    b'"a":{"dtype":"I8","shape":[1,3],"data_offsets":[4,7]}}'
    b"    "
)
TINY_FILE = TINY_HEADER + bytes.fromhex("803f 00c0 01ff80")  # 1, -2 and 1, -1, -128


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / SINGLE


def test_header_bytes() -> None:
    assert header_bytes(TINY_SPECS) == TINY_HEADER
    assert len(TINY_HEADER) % 8 == 0


def test_tiny_file_is_read(file: Path) -> None:
    file.write_bytes(TINY_FILE)
    places = read_header(file)
    assert places == {
        "b": Placed(file, len(TINY_HEADER), TINY_SPECS[0]),
        "a": Placed(file, len(TINY_HEADER) + 4, TINY_SPECS[1]),
    }
    checkpoint = Checkpoint(file.parent, {}, places)
    assert checkpoint.read("b").tolist() == [1, -2] and checkpoint.read("b").dtype == torch.bfloat16
    assert checkpoint.read("a").tolist() == [[1, -1, -128]]


def test_file_cut_anywhere_or_longer_is_refused(file: Path) -> None:
    for size in range(len(TINY_FILE)):
        file.write_bytes(TINY_FILE[:size])
        with pytest.raises(InputError, match=r"model\.safetensors: "):
            read_header(file)
    file.write_bytes(TINY_FILE + b"\0")
    with pytest.raises(InputError, match=f"{len(TINY_FILE) + 1} bytes, but its header describes {len(TINY_FILE)}"):
        read_header(file)


def entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    """A tensor of bytes at start … stop, with whatever is wrong about it."""
    return {"dtype": "I8", "shape": [stop - start], "data_offsets": [start, stop]} | changes


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(0, 4), "b": entry(2, 8)}, "tensor b is at 2 … 8, expected 4 … 10"),
        ({"a": entry(0, 4), "b": entry(0, 4), "c": entry(4, 8)}, "tensor b is at 0 … 4, expected 4 … 8"),
        ({"a": entry(0, 3), "b": entry(4, 8)}, "tensor b is at 4 … 8, expected 3 … 7"),
        ({"a": entry(1, 8)}, "tensor a is at 1 … 8, expected 0 … 7"),
        ({"a": entry(0, 7)}, "header describes"),
        ({"a": entry(0, 9)}, "header describes"),
        ({"a": entry(0, 8, shape=[7])}, "tensor a is at 0 … 8, expected 0 … 7"),
        ({"a": entry(0, 8, shape=[3, 3])}, "expected 0 … 9"),
        ({"a": entry(0, 8, dtype="F16")}, "expected 0 … 16"),
        ({"a": entry(0, 8, dtype="F4")}, "tensor a has dtype F4, which is not supported"),
        ({}, "header describes"),
        ({"a": entry(0, 8, dtype=["I8"])}, "unreadable"),
        ({"a": entry(0, 8, shape=[-2, -4])}, "unreadable"),
        ({"a": entry(0, 8, shape=["8"])}, "unreadable"),
        ({"a": entry(0, 8, shape=[8.0])}, "unreadable"),
        ({"a": entry(0, 8, shape=8)}, "unreadable"),
        ({"a": entry(0, 8, data_offsets=[0, 4, 8])}, "unreadable"),
        ({"a": entry(0, 8, data_offsets=[8])}, "unreadable"),
        ({"a": entry(0, 8, data_offsets=["0", "8"])}, "unreadable"),
        ({"a": entry(0, 4), "b": entry(4, 8, data_offsets=[None, 8])}, "unreadable"),
        ({"a": entry(0, 8, data_offsets=None)}, "unreadable"),
        ({"a": {"dtype": "I8", "shape": [8]}}, "unreadable"),
        ({"a": [0, 8]}, "unreadable"),
        (["a"], "unreadable"),
        (None, "unreadable"),
    ],
)
def test_headers_that_are_not_consistent(header: Any, said: str, file: Path) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(InputError) as error:
        read_header(file)
    assert str(file) in error.value.what and said in error.value.what


@pytest.mark.parametrize(
    "text", [b"{", b'{"a"}', b"\xff\xfe{}", b"[" * 100_000, b"weights "], ids=lambda text: text[:8]
)
def test_headers_that_are_no_json(text: bytes, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(InputError, match="unreadable safetensors header"):
        read_header(file)


@pytest.mark.parametrize("length", [0, len(TINY_FILE) - 7, MAX_HEADER, MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_absurd_header_lengths(length: int, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", length) + TINY_FILE[8:])
    with pytest.raises(
        InputError, match=rf"not a whole safetensors file \({len(TINY_FILE)} bytes, header length {length}"
    ):
        read_header(file)


def test_tensor_that_would_lie_between_items_is_not_planned() -> None:
    with pytest.raises(ValueError, match="c would lie at offset 3, not a multiple of its item size"):
        header_bytes([TensorSpec("a", "I8", (3,)), TensorSpec("c", "F32", (1,))])


# ---- the same container as the library's


def of_every_dtype() -> dict[str, Tensor]:
    """Random bytes as tensors of each dtype and number of dimensions, widest first; an empty one and a scalar."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in sorted(DTYPE_NAMES, key=lambda dtype: -dtype.itemsize):
        for shape in ((), (0, 3), (5,), (3, 4), (2, 3, 4)):
            most = 2 if dtype == torch.bool else 256
            data = torch.randint(0, most, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
            tensors[f"{DTYPE_NAMES[dtype]} {shape}"] = data.view(dtype).view(shape)
    return tensors


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def test_the_library_reads_what_we_write(file: Path) -> None:
    tensors = of_every_dtype()
    specs = tuple(TensorSpec(name, DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items())
    unit = Unit("all", specs)
    WeightWriter(file.parent, [Shard(file.name, (unit,))]).write(unit, lambda spec: [tensors[spec.name]], {})
    with safe_open(file, "pt") as library:
        assert library.metadata() == {"format": "pt"}
        assert set(library.keys()) == set(tensors)
        for name, tensor in tensors.items():
            found = library.get_tensor(name)
            assert (found.dtype, found.shape, bytes_of(found)) == (tensor.dtype, tensor.shape, bytes_of(tensor)), name


def test_we_read_what_the_library_writes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = of_every_dtype()
    save_file(tensors, file)
    checkpoint = Checkpoint(file.parent, {}, read_header(file))
    assert set(checkpoint.tensors) == set(tensors)
    monkeypatch.setattr(reader, "PIECE_ELEMENTS", 5)
    for name, tensor in tensors.items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape, bytes_of(found)) == (tensor.dtype, tensor.shape, bytes_of(tensor)), name
        pieces = list(checkpoint.pieces(name))
        assert max((piece.numel() for piece in pieces), default=0) == min(5, tensor.numel())
        assert b"".join(map(bytes_of, pieces)) == bytes_of(tensor)


def test_dtypes_that_we_do_not_know_are_named(file: Path) -> None:
    save_file({"odd": torch.zeros(2, dtype=torch.uint16)}, file)
    with pytest.raises(InputError, match="tensor odd has dtype U16, which is not supported"):
        read_header(file)


def test_file_that_shrinks_after_it_was_opened(file: Path) -> None:
    file.write_bytes(TINY_FILE)
    checkpoint = Checkpoint(file.parent, {}, read_header(file))
    file.write_bytes(TINY_FILE[:-1])
    with pytest.raises(InputError, match="ended inside tensor a"):
        checkpoint.read("a")


# ---- writing, interrupted and resumed


def layer(number: int) -> Unit:
    specs = TensorSpec(f"{number}.scale", "F32", (2, 1)), TensorSpec(f"{number}.weight", "I8", (2, 6))
    return Unit(f"layer {number}", specs)


OUTSIDE = Unit("outside", (TensorSpec("embedding", "F32", (3, 5)), TensorSpec("norm", "BF16", (4,))))
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLAN = [Shard(FIRST, (OUTSIDE, layer(0))), Shard(SECOND, (layer(1), layer(2)))]
UNITS = [unit for shard in PLAN for unit in shard.units]


def contents(spec: TensorSpec) -> Iterable[Tensor]:
    """Bytes that depend on the tensor's name, in two pieces."""
    data = np.frombuffer(hashlib.shake_256(spec.name.encode()).digest(spec.bytes), dtype=np.uint8).copy()
    return torch.from_numpy(data).tensor_split([spec.bytes // 3])


def write(folder: Path, most: int = len(UNITS)) -> None:
    """Begin or resume the plan, write at most so many units, leave."""
    write_units(WeightWriter(folder, PLAN), most)


def write_units(writer: WeightWriter, most: int) -> None:
    for unit in writer.remaining[:most]:
        writer.write(unit, contents, {"wrote": unit.name})
    writer.close()


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a run that nothing disturbs, checked by the library."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    for shard in PLAN:
        with safe_open(folder / shard.file, "np") as library:
            for spec in shard.tensors:
                expected = b"".join(bytes_of(piece) for piece in contents(spec))
                if spec.dtype != "BF16":  # NumPy has none
                    assert library.get_tensor(spec.name).tobytes() == expected
                assert expected in (folder / shard.file).read_bytes()
    return shards(folder)


def assert_resumes(folder: Path, trusted: Collection[int], uninterrupted: dict[str, bytes]) -> None:
    """A new writer believes in these units, no more and no fewer, and completes them to the same bytes."""
    writer = WeightWriter(folder, PLAN)
    assert [unit.name for unit in writer.remaining] == [
        unit.name for number, unit in enumerate(UNITS) if number not in trusted
    ]
    kept = shards(folder)
    assert list(kept) == [(FIRST, SECOND)[number] for number in sorted({unit // 2 for unit in trusted})]
    assert all(uninterrupted[name].startswith(data) for name, data in kept.items())
    write_units(writer, len(UNITS))
    assert shards(folder) == uninterrupted
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in uninterrupted.items()}
    assert read_journals(folder, PLAN) == ([{"wrote": unit.name} for unit in UNITS], digests)
    again = WeightWriter(folder, PLAN)
    assert again.remaining == [] and again.units == UNITS
    assert shards(folder) == uninterrupted


@pytest.mark.parametrize("units", range(len(UNITS) + 1))
def test_interrupted_between_units(units: int, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    write(tmp_path, units)
    assert_resumes(tmp_path, range(units), uninterrupted)


@pytest.mark.parametrize("units", range(len(UNITS)))
@pytest.mark.parametrize("tensor", [0, 1])
def test_interrupted_inside_a_unit(units: int, tensor: int, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Between the two pieces of one of its tensors."""
    write(tmp_path, units)
    writer = WeightWriter(tmp_path, PLAN)

    def cut_off(spec: TensorSpec) -> Iterable[Tensor]:
        first, second = contents(spec)
        yield first
        if spec == UNITS[units].tensors[tensor]:
            raise KeyboardInterrupt
        yield second

    with pytest.raises(KeyboardInterrupt):
        writer.write(UNITS[units], cut_off, {})
    writer.close()
    assert_resumes(tmp_path, range(units), uninterrupted)


def test_interrupted_after_every_unit(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    for _ in UNITS:
        write(tmp_path, 1)
    assert_resumes(tmp_path, range(len(UNITS)), uninterrupted)


Damage = Callable[[Path], None]


def append(name: str, data: bytes) -> Damage:
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(data)

    return damage


def cut(name: str, count: int) -> Damage:
    """Take `count` bytes off the end."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-count])

    return damage


def flip(name: str, place: int) -> Damage:
    """Change one bit."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Damage, tuple[int, ...]]] = {
    # what happened after three of four units (the first shard was complete): which units can still be believed
    "garbage behind the open shard": (append(SECOND, b"\1" * 50), (0, 1, 2)),
    "garbage behind the complete shard": (append(FIRST, b"\1" * 50), (0, 1, 2)),
    "torn last journal line": (cut(JOURNAL, 9), (0, 1)),
    "last journal line without its end": (cut(JOURNAL, 1), (0, 1, 2)),
    "zeros behind the journal": (append(JOURNAL, bytes(512)), (0, 1, 2)),
    "journal lost": (remove(JOURNAL), ()),
    "flipped bit in the header": (flip(FIRST, 20), (2,)),
    "flipped bit in the first unit": (flip(FIRST, -21), (2,)),  # the second one takes the last 20 bytes
    "flipped bit in the second unit": (flip(FIRST, -20), (0, 2)),
    "flipped bit in the third unit": (flip(SECOND, -1), (0, 1)),
    "first shard lost": (remove(FIRST), (2,)),
    "open shard lost": (remove(SECOND), (0, 1)),
    "first shard shorter by a byte": (cut(FIRST, 1), (0, 2)),
    "first shard shorter by a unit": (cut(FIRST, 20), (0, 2)),
    "first shard shorter by more": (cut(FIRST, 21), (2,)),
    "open shard shorter by a byte": (cut(SECOND, 1), (0, 1)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_bytes_missing_on_disk_are_written_again(name: str, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    damage, trusted = DAMAGES[name]
    write(tmp_path, 3)
    damage(tmp_path)
    assert_resumes(tmp_path, trusted, uninterrupted)


def test_damage_after_the_last_unit(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    write(tmp_path)
    append(SECOND, b"more")(tmp_path)
    assert_resumes(tmp_path, range(4), uninterrupted)
    flip(SECOND, -1)(tmp_path)
    assert_resumes(tmp_path, range(3), uninterrupted)


def test_leftovers_of_another_plan_are_not_reused(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    other = [Shard(FIRST, (layer(0), OUTSIDE))]
    writer = WeightWriter(tmp_path, other)
    writer.write(layer(0), contents, {})
    writer.close()
    assert_resumes(tmp_path, range(0), uninterrupted)


def test_what_the_journal_tells_of_has_left_the_process(tmp_path: Path) -> None:
    """A killed process loses its buffers, so they must be empty when the journal's line is written."""
    writer = WeightWriter(tmp_path, PLAN)
    for unit in UNITS:
        writer.write(unit, contents, {})
        line = json.loads((tmp_path / JOURNAL).read_text().splitlines()[-1])
        on_disk = (tmp_path / line["file"]).read_bytes()
        assert (line["unit"], line["end"]) == (unit.name, len(on_disk))
        assert line["sha256"] == hashlib.sha256(on_disk).hexdigest()


def test_units_come_in_the_planned_order(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path, PLAN)
    with pytest.raises(ValueError, match="unit layer 0 is out of order: outside is next"):
        writer.write(layer(0), contents, {})
    assert shards(tmp_path) == {}


@pytest.mark.parametrize("difference", [-1, 1])
def test_tensors_must_have_the_planned_size(difference: int, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    writer = WeightWriter(tmp_path, PLAN)
    with pytest.raises(ValueError, match=f"embedding: {60 + difference} bytes were given, 60 were planned"):
        writer.write(OUTSIDE, lambda spec: [torch.zeros(spec.bytes + difference, dtype=torch.uint8)], {})
    writer.close()
    assert_resumes(tmp_path, range(0), uninterrupted)


def test_tensors_are_written_row_by_row_however_they_lie_in_memory(tmp_path: Path) -> None:
    unit = Unit("u", (TensorSpec("t", "I8", (2, 3)),))
    transposed = torch.tensor([[1, 4], [2, 5], [3, 6]], dtype=torch.int8).T
    WeightWriter(tmp_path, [Shard(SINGLE, (unit,))]).write(unit, lambda _: [transposed], {})
    assert (tmp_path / SINGLE).read_bytes().endswith(bytes([1, 2, 3, 4, 5, 6]))


def test_a_full_disk_is_reported_while_writing_and_closing(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path, PLAN)
    (tmp_path / FIRST).symlink_to("/dev/full")  # takes everything, then says that there is no space
    with pytest.raises(OutputError, match="the disk is full"):
        writer.write(OUTSIDE, contents, {})
    with pytest.raises(OutputError, match="the disk is full"):
        writer.close()  # what could not be written is tried once more
    writer.close()
    assert writer.remaining == UNITS and (tmp_path / JOURNAL).read_bytes() == b""


# ---- the folder an output is built in

STATE_OF_JOB = {"recipe": {"pattern": "2:8"}, "layout": "slide", "shard_bytes": 5}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


def test_work_happens_out_of_sight_until_it_is_published(out: Path) -> None:
    staging = Staging(out, STATE_OF_JOB, resume=False)
    assert staging.path == out / PARTIAL and [path.name for path in out.iterdir()] == [PARTIAL]
    with pytest.raises(InputError, match=r"is an unfinished conversion \(finish it with --resume"):
        Checkpoint.open(out)


def test_folder_that_holds_something_is_not_touched(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match="is not an empty folder"):
            Staging(out, STATE_OF_JOB, resume=resume)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_file_in_place_of_the_folder_or_above_it(out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(InputError, match="is not an empty folder"):
        Staging(out, STATE_OF_JOB, resume=False)
    with pytest.raises(OutputError, match="out/below: a part of this path is a file"):
        Staging(out / "below", STATE_OF_JOB, resume=False)
    assert out.read_text() == "mine"


def test_unfinished_work_is_resumed_only_if_asked(out: Path) -> None:
    first = Staging(out, STATE_OF_JOB, resume=False)
    (first.path / FIRST).write_bytes(b"weights")
    with pytest.raises(InputError, match=r"is an unfinished conversion \(finish it with --resume"):
        Staging(out, STATE_OF_JOB, resume=False)
    assert (Staging(out, STATE_OF_JOB, resume=True).path / FIRST).read_bytes() == b"weights"


def test_resume_without_anything_to_resume_begins(out: Path) -> None:
    assert (Staging(out, STATE_OF_JOB, resume=True).path / STATE).is_file()


def test_killed_before_the_state_was_written_begins_again(out: Path) -> None:
    (out / PARTIAL).mkdir(parents=True)
    assert (Staging(out, STATE_OF_JOB, resume=True).path / STATE).is_file()


def test_another_job_cannot_resume_and_the_error_names_the_difference(out: Path) -> None:
    Staging(out, STATE_OF_JOB, resume=False)
    changed = {**STATE_OF_JOB, "recipe": {"pattern": "2:6"}, "shard_bytes": 7}
    with pytest.raises(InputError) as error:
        Staging(out, changed, resume=True)
    assert error.value.what == (
        f"{out} was started with other settings: recipe was {{'pattern': '2:8'}}, is {{'pattern': '2:6'}}; "
        "shard_bytes was 5, is 7"
    )
    Staging(out, STATE_OF_JOB, resume=True)


def finished(out: Path, last: str) -> Staging:
    """A staging folder with all files of an output, `last` being the one that makes it loadable."""
    staging = Staging(out, STATE_OF_JOB, resume=False)
    for name in (CONFIG, last, "tokenizer.json", "zz.txt", JOURNAL, *([FIRST, SECOND] if last == INDEX else [])):
        (staging.path / name).write_text(name)
    (staging.path / "kernels").mkdir()
    (staging.path / "kernels" / "reference.py").write_text("pass")
    return staging


@pytest.mark.parametrize("last", [SINGLE, INDEX])
def test_the_file_that_makes_it_loadable_is_published_last(
    last: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before any of the moves, the output cannot be taken for finished, and publishing again ends it."""
    whole = {path.name for path in finished(out, last).path.iterdir()} - {JOURNAL, STATE}
    move = Path.replace
    for moves in range(len(whole)):
        shutil.rmtree(out)
        staging, left = finished(out, last), moves

        def interrupted(path: Path, target: Path) -> Path:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return move(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                staging.publish()
        assert not (out / last).exists() and (out / PARTIAL / last).is_file()
        with pytest.raises(InputError, match="unfinished"):
            Checkpoint.open(out)
        Staging(out, STATE_OF_JOB, resume=True).publish()
        assert {path.name for path in out.iterdir()} == whole
        assert (out / last).read_text() == last and (out / "kernels" / "reference.py").read_text() == "pass"


def test_published_folders_replace_those_of_an_interrupted_publication(out: Path) -> None:
    staging = finished(out, SINGLE)
    (out / "kernels").mkdir()
    (out / "kernels" / "old.py").write_text("")
    staging.publish()
    assert [path.name for path in (out / "kernels").iterdir()] == ["reference.py"]


def test_discard_removes_the_work(out: Path) -> None:
    finished(out, SINGLE).discard()
    assert list(out.iterdir()) == []


def test_discard_keeps_files_of_others(out: Path) -> None:
    staging = finished(out, SINGLE)
    (out / "notes.txt").write_text("mine")
    staging.discard()
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full (free disk space and --resume)"),
        (errno.EDQUOT, "the disk is full (free disk space and --resume)"),
        (errno.EACCES, "no permission to write (choose another folder)"),
        (errno.EPERM, "no permission to write (choose another folder)"),
        (errno.EROFS, "the file system is read-only (choose another folder)"),
    ],
)
def test_refusals_of_the_operating_system_become_sentences(number: int, said: str) -> None:
    with pytest.raises(OutputError) as error, writing(Path("out")):
        raise OSError(number, "refused")
    assert str(error.value) == f"out: {said}"
    assert isinstance(error.value.__cause__, OSError)


def test_other_errors_of_the_operating_system_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="broken"), writing(Path("out")):
        raise OSError(errno.EIO, "broken")


def test_small_files_are_written_whole_and_hashed(tmp_path: Path) -> None:
    assert write_file(tmp_path / CONFIG, b"{}") == hashlib.sha256(b"{}").hexdigest()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {CONFIG: b"{}"}
