"""push, and what `convert --push` shares with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    checkpoint_argument,
    choose_device,
    device_option,
    echo_json,
    json_option,
    progress_bar,
    show,
    verbosity_options,
)

if TYPE_CHECKING:
    from ..errors import SlideConvertError
    from ..hub.account import Target
    from ..hub.publish import Pushed
    from ..hub.upload import Upload

public_option = click.option("--public", is_flag=True, help="Make a new repository public; one that is there stays.")


@click.command("push")
@checkpoint_argument
@click.argument("repo")
@click.option("--dry-run", is_flag=True, help="Only show what would be sent and deleted.")
@public_option
@click.option("--revision", metavar="BRANCH", help="Push to this branch; made from main if it is new.")
@click.option("--message", help="Of the commit.  [default: what the checkpoint is]")
@click.option("--verify", is_flag=True, help="Re-read the checkpoint first; needed after convert --no-verify.")
@device_option
@json_option
@verbosity_options
def push_command(
    ckpt: Path,
    repo: str,
    dry_run: bool,
    public: bool,
    revision: str | None,
    message: str | None,
    verify: bool,
    device: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Publish the checkpoint CKPT as the Hub repository REPO ("user/name", or "name" of yours), in one commit.

    A new repository is private unless --public. Interrupted, run it again: what has arrived is not sent again. Files
    of an earlier checkpoint that this one does not have are deleted there, others never.
    """
    from ..errors import InputError
    from ..hub.account import find_target
    from ..hub.publish import carry_out, check_target, plan_push, read_folder

    if message is not None and not message.strip():
        raise InputError("--message is empty", hint="leave it out, or say something")
    target = find_target(repo, revision)
    check_target(target)  # before every byte of the folder is read
    with progress_bar(not (quiet or as_json)) as tell:
        folder = read_folder(ckpt, verify=verify, device=choose_device(device) if verify else "cpu", progress=tell)
        upload = plan_push(folder, target)
        if dry_run:
            pushed = None
        else:
            pushed = carry_out(folder, upload, public=public, message=message, progress=tell)
            upload = pushed.upload
    if as_json:
        echo_json({"ckpt": str(ckpt), "dry_run": dry_run, **push_json(upload, pushed)})
    elif not quiet:
        if dry_run or verbose:
            show(push_table(upload))
        show(push_summary(target, upload, pushed, public))


def push_json(upload: Upload, pushed: Pushed | None) -> dict[str, Any]:
    """What a push did, or would do, for machines. state: new, or there already; bytes_new: of the new ones."""
    return {
        "repo": upload.target.id,
        "branch": upload.target.branch,
        "url": upload.target.url,
        "commit": pushed.commit if pushed else None,
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


def push_table(upload: Upload) -> Any:
    """One row a file, and one for each that is deleted."""
    from rich.markup import escape

    from .tables import table

    made = table(f"{upload.target.id}, {upload.target.branch}", ["file", "state", "sha256"], ["bytes"])
    for file in upload.files:
        state = "new" if file.name in upload.new else "already there"
        made.add_row(escape(file.name), state, file.sha256[:12], f"{file.size:,}")
    for name in upload.deleted:
        made.add_row(escape(name), "deleted", "", "")
    return made


def push_summary(before: Target, upload: Upload, pushed: Pushed | None, public: bool) -> str:
    """What a push did, or would do, in words. before: the target as it was found."""
    from rich.markup import escape

    from ..report.summary import size

    seen = {None: "a new repository, " + ("public" if public else "private"), True: "private", False: "public"}
    if before.exists and before.private is None:
        seen[None] = "an empty repository"
    stays = " (--public changes no repository that is there)" if public and before.private else ""
    new, there = len(upload.new), len(upload.files) - len(upload.new)
    lines = [
        f"repo     {upload.target.url}, {seen[before.private]}{stays}",
        f"files    {new} {'sent' if pushed else 'to be sent'}, {size(upload.bytes)}; {there} already there",
        *([f"delete{'d ' if pushed else '  '} {', '.join(upload.deleted)}"] if upload.deleted else []),
        *([f"commit   {pushed.commit}, every file compared with its hash"] if pushed else []),
    ]
    return escape("\n".join(lines))


def check_push(repo: str | None, *, public: bool, no_verify: bool) -> None:
    """Before hours of work: whether their result may be pushed to `repo`. InputError or HubError if not."""
    from ..errors import InputError
    from ..hub.account import find_target
    from ..hub.publish import check_target

    if repo is None:
        if public:
            raise InputError("--public belongs to --push", hint="add --push REPO, or leave it out")
        return
    if no_verify:
        raise InputError("--push publishes only what was verified", hint="leave out --no-verify or --push")
    check_target(find_target(repo))


@dataclass(frozen=True)
class Attempt:
    """The push after a conversion. error: why it failed, and how to go on; the conversion is there all the same."""

    pushed: Pushed | None
    error: SlideConvertError | None

    @classmethod
    def make(cls, out: Path, repo: str, *, public: bool, shown: bool) -> Attempt:
        """Push the folder `out`, and say what came of it if `shown`."""
        from ..errors import SlideConvertError
        from ..hub.account import find_target
        from ..hub.publish import carry_out, plan_push, read_folder

        try:
            target = find_target(repo)
            with progress_bar(shown) as tell:
                folder = read_folder(out, progress=tell)
                pushed = carry_out(folder, plan_push(folder, target), public=public, message=None, progress=tell)
        except SlideConvertError as error:
            words = ["slideconvert", "push", str(out), repo, *(["--public"] if public else [])]
            hint = f"{error.hint}; the checkpoint in {out} is complete: `{shlex.join(words)}` goes on from here"
            return cls(None, type(error)(error.what, hint=hint))
        if shown:
            show(push_summary(target, pushed.upload, pushed, public))
        return cls(pushed, None)

    def to_json(self) -> dict[str, Any] | None:
        """For machines; None if it failed."""
        return push_json(self.pushed.upload, self.pushed) if self.pushed else None
