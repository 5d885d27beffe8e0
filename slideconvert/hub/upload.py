"""Put files on a branch of a Hub repository so that nobody ever sees half of them.

    create          the repository (private unless said otherwise) or the branch, if there is none
    preupload       large files, one after another, into the Hub's storage: named by their SHA-256, seen by nobody
    _check_still    every file on this disk is still what it was when its SHA-256 was taken
    create_commit   all new files, small ones inside, and the deletions: one commit on top of the head that was read
    _check_remote   size, and SHA-256 (large files) or git's blob SHA-1 (small ones), of every file at that commit

The storage knows contents, not names, so an interrupted push that runs again sends only what is missing, without any
commit before the last. A commit for each shard would resume as well, but between the first and the last of them
anybody could pull new shards under an old index. The commit names its parent: the Hub refuses it if the branch has
moved since it was read. Through Xet (hf_xet) files travel in deduplicated chunks, without it by HTTP (Git LFS);
huggingface_hub chooses.
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
from .listing import RemoteFile
from .transfers import Tell, addition, silence, xet_told
from .upload_errors import REINSTALL_HINT, upload_errors

IN_GIT = 16 << 20
"""Bytes of a file from which on the Hub surely keeps it outside git, in storage."""
ALONE = IN_GIT
"""Bytes from which on a file is sent by itself, from the disk. Smaller ones are read once more, compared with their
SHA-256 and sent together from memory: what is committed is what was checked."""
_CHUNK = 8 << 20


@dataclass(frozen=True)
class LocalFile:
    """What is to lie in the repository as `name`: `size` bytes with this SHA-256 (hex).

    blob: git's SHA-1, by which the Hub lists files that it keeps inside git; "" for one that is too large for that.
    content: the file on this disk, or the bytes themselves. state: of the file on disk before it was read, so that a
    change can be noticed: size, times in nanoseconds, inode.
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
    def of_path(cls, name: str, path: Path, tell: Tell = lambda done: None) -> LocalFile:
        """The file at `path`, read once for its SHA-256. tell: told the bytes read. OSError passes."""
        state, done, digest = _state(path), 0, hashlib.sha256()
        if state[0] < IN_GIT:
            tell(state[0])
            return replace(cls.of_bytes(name, path.read_bytes()), content=path, state=state)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                tell(done)
        return cls(name, done, digest.hexdigest(), "", path, state)

    def is_at(self, remote: RemoteFile) -> bool:
        """Whether the Hub's listing tells the same contents."""
        return bool(remote.etag) and self.size == remote.size and remote.etag in (self.sha256, self.blob)


@dataclass(frozen=True)
class Upload:
    """What a push does: `files` are to lie on `target`, of which `new` are not there yet (names), and `deleted` go."""

    target: Target
    files: tuple[LocalFile, ...]
    new: frozenset[str]
    deleted: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of the files that are not there yet."""
        return sum(file.size for file in self.files if file.name in self.new)


def plan_upload(target: Target, files: Sequence[LocalFile], deleted: Sequence[str] = ()) -> Upload:
    """Compare `files` with what lies on the target. deleted: names that are to go from there."""
    there = {file.name: file for file in target.files}
    new = frozenset(file.name for file in files if file.name not in there or not file.is_at(there[file.name]))
    return Upload(target, tuple(files), new, tuple(sorted(deleted)))


def create(target: Target, *, public: bool) -> Target:
    """Make the repository, private unless public, and the branch, as far as they are missing; the state afterwards.

    A repository that is there keeps its visibility. HubError as `upload_errors` knows them.
    """
    with upload_errors(target.id):
        api = hub_api()
        if not target.exists:
            api.create_repo(target.id, private=not public, exist_ok=True)
        if target.branch != MAIN and target.commit is None:
            api.create_branch(target.id, branch=target.branch, exist_ok=True)
        return read_target(api, target.id, target.branch)


def send(upload: Upload, message: str, progress: Progress = silent) -> str:
    """Publish the upload with one commit, check what lies there then, and return the commit (40 hex).

    progress("upload", bytes, bytes of all new files). Nothing to change makes no commit. Until the commit nothing of
    it can be seen: HubError or InputError (a file changed on this disk) leave the branch as it was. VerificationError
    if the Hub's listing of the commit is not what was sent.
    """
    target, commit, most = upload.target, upload.target.commit, 0

    def forward(stage: str, done: int, total: int) -> None:
        nonlocal most  # a broken file starts over, and the commit reads small ones again
        most = max(most, done)
        progress(stage, most, total)

    with upload_errors(target.id), silence():
        api = hub_api()
        if upload.new or upload.deleted:
            operations = _preupload(api, upload, forward)
            for file in upload.files:
                _check_still(file)
            commit = _commit(api, upload, operations, message)
        _check_remote(read_commit(api, target.id, str(commit)), upload, str(commit))
    return str(commit)


def _preupload(api: Any, upload: Upload, progress: Progress) -> list[Any]:
    """Send the large ones of the new files into storage. The operations of the commit, in the order of the files."""
    done, small, operations = 0, [], []
    progress("upload", 0, upload.bytes)
    for file in (file for file in upload.files if file.name in upload.new):
        _check_still(file)

        def tell(sent: int, before: int = done) -> None:
            progress("upload", before + sent, upload.bytes)

        content = file.content
        if isinstance(content, Path) and file.size < ALONE:
            content = content.read_bytes()
        operation = addition(file.name, content, tell)
        operations.append(operation)
        if file.size < ALONE:
            small.append((file, operation))
            continue
        with xet_told(tell):
            _send_to_storage(api, upload.target, [(file, operation)])
        done += file.size
        tell(0, done)
    if small:
        _send_to_storage(api, upload.target, small)
    progress("upload", upload.bytes, upload.bytes)
    return operations


def _send_to_storage(api: Any, target: Target, files: Sequence[tuple[LocalFile, Any]]) -> None:
    """Let huggingface_hub send what the Hub keeps outside git; the SHA-256 of what was read must be the known one."""
    operations = [operation for _, operation in files]
    try:
        api.preupload_lfs_files(target.id, operations, revision=target.branch, free_memory=False)
    except Exception:
        for file, _ in files:
            _check_still(file)  # the storage refuses a file that has changed: that is the cause then
        raise
    for file, operation in files:
        if getattr(operation, "_should_ignore", False):
            raise HubError(
                f"{target.id}: its .gitignore keeps {file.name} out, and without it the checkpoint is not whole",
                hint="take the line out of the repository's .gitignore, or push to another repository",
            )
        if operation.upload_info.sha256.hex() != file.sha256:
            raise _changed(file)


def _commit(api: Any, upload: Upload, operations: list[Any], message: str) -> str:
    from huggingface_hub import CommitOperationDelete

    gone = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in upload.deleted]
    done = api.create_commit(
        upload.target.id,
        [*operations, *gone],
        commit_message=message,
        revision=upload.target.branch,
        parent_commit=upload.target.commit,
    )
    return str(done.oid)


def _check_still(file: LocalFile) -> None:
    """InputError if a file on this disk is gone or was touched since it was read: nothing of it is published then."""
    if isinstance(file.content, Path) and _state(file.content) != file.state:
        raise _changed(file)


def _changed(file: LocalFile) -> InputError:
    where = file.content if isinstance(file.content, Path) else file.name
    return InputError(
        f"{where} was changed while it was being pushed: nothing was published",
        hint="let nobody write into the folder, check it with `slideconvert verify`, and push again",
    )


def _blob(content: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """What changes with every write to a file; zeros for a file that is gone."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return (0,) * 4
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _check_remote(found: Sequence[RemoteFile], upload: Upload, commit: str) -> None:
    """VerificationError unless every file lies there as it was sent, and the deleted ones do not."""
    there = {file.name: file for file in found}
    faults = [
        f"{file.name} is {'damaged' if file.name in there else 'missing'}"
        for file in upload.files
        if file.name not in there or not file.is_at(there[file.name])
    ]
    faults += [f"{name} is still there" for name in upload.deleted if name in there]
    if faults:
        raise VerificationError(
            f"{upload.target.id} at {commit}: what lies on the Hub is not what was sent: {faults[0]} "
            f"({len(faults)} of {len(upload.files)} files)",
            hint=f"nobody should use this commit; {REINSTALL_HINT}",
        )
