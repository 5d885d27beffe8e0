"""push, and what `convert --push` shares with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..api.options import PushOptions, option
from .common import checkpoint_argument, echo_json, show
from .options import Display, command
from .progress import progress_bar

if TYPE_CHECKING:
    from ..api.checkpoints import Publication
    from ..errors import SlideConvertError


@dataclass(frozen=True)
class FileDisplay(Display):
    """Of a command whose details are the files."""

    verbose: bool = option("Print a line for every file.", default=False, flag="-v/--verbose")


@command("push", PushOptions, FileDisplay)
@checkpoint_argument
@click.argument("repo")
def push_command(ckpt: Path, repo: str, options: PushOptions, display: Display) -> None:
    """Publish the checkpoint CKPT as the Hub repository REPO ("user/name", or "name" of yours), in one commit.

    \b
      slideconvert push out/ USER/MODEL-int8-2of8 --dry-run

    A new repository is private unless --public. If interrupted, run it again: it sends only the missing files. Files
    of an earlier checkpoint that this one does not have are deleted there, other files never.
    """
    from ..api.checkpoints import push

    with progress_bar(display.shown) as progress:
        done = push(ckpt, repo, options, progress=progress)
    if display.as_json:
        echo_json({"ckpt": str(ckpt), "dry_run": options.dry_run, **push_json(done)})
    elif display.shown:
        if options.dry_run or display.verbose:
            show(push_table(done))
        show(push_summary(done, options))


def push_json(done: Publication) -> dict[str, Any]:
    """What a push did, or would do, for machines. state: new, or there already; bytes_new: of the new ones."""
    upload = done.upload
    return {
        "repo": upload.target.id,
        "branch": upload.target.branch,
        "url": upload.target.url,
        "commit": done.pushed.commit if done.pushed else None,
        "bytes_new": upload.bytes,
        "files": [
            {
                "name": file.name,
                "bytes": file.size,
                "sha256": file.sha256,
                "state": "new" if file.name in upload.new else "there",
            }
            for file in upload.files
        ],
        "deleted": list(upload.deleted),
    }


def push_table(done: Publication) -> Any:
    """One row for each file, and one for each that is deleted."""

    from .columns import Column, table

    upload = done.upload
    made = table(
        f"{upload.target.id}, {upload.target.branch}", ["file", "state", Column("sha256", 2)], [Column("bytes", 1)]
    )
    for file in upload.files:
        state = "new" if file.name in upload.new else "already there"
        made.add_row(file.name, state, file.sha256[:12], f"{file.size:,}")
    for name in upload.deleted:
        made.add_row(name, "deleted", "", "")
    return made


def push_summary(done: Publication, options: PushOptions) -> str:
    """What a push did, or would do, as text."""

    from ..report.summary import size

    before, upload, pushed = done.target, done.upload, done.pushed
    seen = {None: "a new repository, " + ("public" if options.public else "private"), True: "private", False: "public"}
    if before.exists and before.private is None:
        seen[None] = "an empty repository"
    stays = " (--public leaves existing repositories as they are)" if options.public and before.private else ""
    new, there = len(upload.new), len(upload.files) - len(upload.new)
    lines = [
        f"repo     {upload.target.url}, {seen[before.private]}{stays}",
        f"files    {new} {'sent' if pushed else 'to be sent'}, {size(upload.bytes)}; {there} already there",
        *([f"delete{'d ' if pushed else '  '} {', '.join(upload.deleted)}"] if upload.deleted else []),
        *([f"message  {options.message}"] if options.message and not pushed else []),
        *([f"commit   {pushed.commit}, every file compared with its hash"] if pushed else []),
    ]
    return "\n".join(lines)


def check_push(repo: str | None, *, public: bool, verify: bool) -> None:
    """Before hours of work: whether their result may be pushed to `repo`. InputError or HubError if not."""
    from ..errors import InputError
    from ..hub.account import find_target
    from ..hub.publish import check_target

    if repo is None:
        if public:
            raise InputError("--public belongs to --push", hint="add --push REPO, or omit it")
        return
    if not verify:
        raise InputError("--push publishes only what was verified", hint="leave out --no-verify or --push")
    check_target(find_target(repo))


@dataclass(frozen=True)
class Attempt:
    """The push after a conversion. error: why it failed, and how to go on; the conversion is there all the same."""

    done: Publication | None
    error: SlideConvertError | None

    @classmethod
    def make(cls, out: Path, repo: str, *, public: bool, shown: bool) -> Attempt:
        """Push the folder `out`, and print the result if `shown`."""
        from ..api.checkpoints import push
        from ..errors import SlideConvertError

        options = PushOptions(public=public)
        try:
            with progress_bar(shown) as progress:
                done = push(out, repo, options, progress=progress)
        except SlideConvertError as error:
            command = ["slideconvert", "push", str(out), repo, *(["--public"] if public else [])]
            hint = f"{error.hint}; the checkpoint in {out} is complete: `{shlex.join(command)}` continues from here"
            failed = type(error)(error.what, hint=hint)
            failed.told = True
            return cls(None, failed)
        if shown:
            show(push_summary(done, options))
        return cls(done, None)

    def to_json(self) -> dict[str, Any] | None:
        """For machines: what was pushed, or why it failed."""
        return push_json(self.done) if self.done else {"error": self.error.to_json()} if self.error else None
