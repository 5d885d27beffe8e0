"""Put files on a branch of a Hub repository with one atomic commit.

    create             the repository (private unless public=True) or the branch, if it does not exist
    preupload          large files, one by one, into the Hub's storage: addressed by SHA-256 and invisible
    _check_unchanged   every local file is the same as when its SHA-256 was computed
    create_commit      all new files, including small ones, and the deletions: one commit on the head that was read
    _check_remote      size, and SHA-256 (large files) or git's blob SHA-1 (small ones), of every file at that commit

The storage is addressed by content, so a repeated push sends only what is missing, and needs no commit before the last.
One commit per shard would resume as well, but readers could then pull new shards with an old index. The commit names
its parent: the Hub refuses it if the branch has moved. huggingface_hub sends files through Xet (hf_xet) in deduplicated
chunks, or by HTTP (Git LFS) without it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import HubError, InputError, VerificationError
from ..progress import Progress, silent
from .account import MAIN, Target, hub_api, read_commit, read_target
from .answers import EXPECTED, not_a_hub
from .listing import RemoteFile
from .snapshot import COMMIT
from .upload_errors import RESUME_HINT, upload_errors
from .upload_progress import Advance, addition, silence, xet_progress

IN_GIT = 16 << 20
"""From this size in bytes on, the Hub keeps a file in its storage, outside git."""
ALONE = IN_GIT
"""From this size in bytes on, a file is sent alone, from the disk. Smaller files are read again, compared with their
SHA-256 and sent together from memory, so that the commit contains what was checked."""
_CHUNK = 8 << 20


@dataclass(frozen=True)
class LocalFile:
    """A file to put into the repository as `name`: `size` bytes with this SHA-256 (hex).

    blob: git's SHA-1, by which the Hub lists files inside git; "" for larger files. content: path of the local file, or
    the bytes. state: size, times in nanoseconds and inode of the local file before it was read, to detect changes.
    """

    name: str
    size: int
    sha256: str
    blob: str
    content: Path | bytes
    state: tuple[int, ...] = ()

    @classmethod
    def of_bytes(cls, name: str, content: bytes) -> LocalFile:
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), _blob(content), content)

    @classmethod
    def of_path(cls, name: str, path: Path, advance: Advance = lambda done: None) -> LocalFile:
        """The file at `path`, read once for its SHA-256. advance: called with the bytes read so far. OSError passes."""
        state, done, digest = _state(path), 0, hashlib.sha256()
        if state[0] < IN_GIT:
            advance(state[0])
            return replace(cls.of_bytes(name, path.read_bytes()), content=path, state=state)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                advance(done)
        return cls(name, done, digest.hexdigest(), "", path, state)

    def is_at(self, remote: RemoteFile) -> bool:
        """Whether the Hub's listing shows the same content."""
        return bool(remote.etag) and self.size == remote.size and remote.etag in (self.sha256, self.blob)


@dataclass(frozen=True)
class Upload:
    """What a push does: put `files` on `target`, of which `new` (names) are missing there, and delete `deleted`."""

    target: Target
    files: tuple[LocalFile, ...]
    new: frozenset[str]
    deleted: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Total size of the new files."""
        return sum(file.size for file in self.files if file.name in self.new)


def plan_upload(target: Target, files: Sequence[LocalFile], deleted: Sequence[str] = ()) -> Upload:
    """Compare `files` with those of the target. deleted: names to delete there."""
    there = {file.name: file for file in target.files}
    new = frozenset(file.name for file in files if file.name not in there or not file.is_at(there[file.name]))
    return Upload(target, tuple(files), new, tuple(sorted(deleted)))


def create(target: Target, *, public: bool) -> Target:
    """Create the repository (private unless public) and the branch if they do not exist; the state afterwards.

    An existing repository keeps its visibility. Raises HubError.
    """
    with upload_errors(target.id):
        api = hub_api()
        if not target.exists:
            api.create_repo(target.id, private=not public, exist_ok=True)
        if target.branch != MAIN and target.commit is None:
            api.create_branch(target.id, branch=target.branch, exist_ok=True)
        return read_target(api, target.id, target.branch)


def send(upload: Upload, message: str, progress: Progress = silent) -> str:
    """Publish the upload with one commit, check its files, and return the commit (40 hex).

    progress("upload", bytes, bytes of all new files). Without changes there is no new commit. HubError or InputError (a
    local file changed) leave the branch as it was. VerificationError if the Hub's listing of the commit differs from
    the files that were sent.
    """
    target, commit, most = upload.target, upload.target.commit, 0

    def forward(stage: str, done: int, total: int) -> None:
        nonlocal most  # an interrupted file starts over, and the commit reads small files again
        most = max(most, done)
        progress(stage, most, total)

    with upload_errors(target.id), silence():
        api = hub_api()
        if upload.new or upload.deleted:
            operations = _preupload(api, upload, forward)
            for file in upload.files:
                _check_unchanged(file)
            commit = _commit(api, upload, operations, message)
        _check_remote(read_commit(api, target.id, str(commit)), upload, str(commit))
    return str(commit)


def _preupload(api: Any, upload: Upload, progress: Progress) -> list[Any]:
    """Send the large new files to the storage; the operations of the commit, in the order of the files."""
    done, small, operations = 0, [], []
    progress("upload", 0, upload.bytes)
    for file in (file for file in upload.files if file.name in upload.new):
        _check_unchanged(file)

        def advance(sent: int, before: int = done) -> None:
            progress("upload", before + sent, upload.bytes)

        content = file.content
        if isinstance(content, Path) and file.size < ALONE:
            content = content.read_bytes()
        operation = addition(file.name, content, advance)
        operations.append(operation)
        if file.size < ALONE:
            small.append((file, operation))
            continue
        with xet_progress(advance):
            _send_to_storage(api, upload.target, [(file, operation)])
        done += file.size
        advance(0, done)
    if small:
        _send_to_storage(api, upload.target, small)
    progress("upload", upload.bytes, upload.bytes)
    return operations


def _send_to_storage(api: Any, target: Target, files: Sequence[tuple[LocalFile, Any]]) -> None:
    """Let huggingface_hub send files that the Hub keeps outside git, and compare the SHA-256 of what it read."""
    operations = [operation for _, operation in files]
    try:
        api.preupload_lfs_files(target.id, operations, revision=target.branch, free_memory=False)
    except Exception:
        for file, _ in files:
            _check_unchanged(file)  # the storage refuses a file that has changed
        raise
    for file, operation in files:
        if getattr(operation, "_should_ignore", False):
            raise HubError(
                f"{target.id}: its .gitignore excludes {file.name}, which the checkpoint needs",
                hint="remove the line from the repository's .gitignore, or push to another repository",
            )
        if operation.upload_info.sha256.hex() != file.sha256:
            raise _changed(file)


def _commit(api: Any, upload: Upload, operations: list[Any], message: str) -> str:
    from huggingface_hub import CommitOperationDelete

    deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in upload.deleted]
    done = api.create_commit(
        upload.target.id,
        [*operations, *deletions],
        commit_message=message,
        revision=upload.target.branch,
        parent_commit=upload.target.commit,
    )
    if not COMMIT.fullmatch(str(done.oid)):
        raise not_a_hub(EXPECTED["create_commit"])
    return str(done.oid)


def _check_unchanged(file: LocalFile) -> None:
    """InputError if a local file is missing or has changed since it was read."""
    if isinstance(file.content, Path) and _state(file.content) != file.state:
        raise _changed(file)


def _changed(file: LocalFile) -> InputError:
    where = file.content if isinstance(file.content, Path) else file.name
    return InputError(
        f"{where} was changed while it was being pushed: nothing was published",
        hint="stop other writers, check the folder with `slideconvert verify`, and push again",
    )


def _blob(content: bytes) -> str:
    """Git's blob hash."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """Metadata that changes with every write to a file; zeros for a missing file."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return (0,) * 4
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _check_remote(found: Sequence[RemoteFile], upload: Upload, commit: str) -> None:
    """VerificationError unless the commit contains every file as sent, and none of the deleted ones."""
    there = {file.name: file for file in found}
    faults = [
        f"{file.name} is {'damaged' if file.name in there else 'missing'}"
        for file in upload.files
        if file.name not in there or not file.is_at(there[file.name])
    ]
    faults += [f"{name} is still there" for name in upload.deleted if name in there]
    if faults:
        raise VerificationError(
            f"{upload.target.id} at {commit}: the files on the Hub differ from those sent: {faults[0]} "
            f"({len(faults)} of {len(upload.files)} files)",
            hint=f"do not use this commit; {RESUME_HINT}",
        )
