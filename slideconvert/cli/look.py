"""Looking without changing: verify, inspect, doctor."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from .common import (
    checkpoint_argument,
    choose_device,
    device_option,
    echo_json,
    json_option,
    progress_bar,
    resolve_source,
    revision_option,
    show,
    verbosity_options,
)


@click.command("verify")
@checkpoint_argument
@device_option
@click.option("--source", help="The model it was made from (folder or Hub id): checks every weight against it.")
@revision_option
@json_option
@verbosity_options
def verify_command(
    ckpt: Path, source: str | None, revision: str | None, device: str, as_json: bool, verbose: bool, quiet: bool
) -> None:
    """Re-read the checkpoint CKPT and check hashes, shapes, patterns, windows and weights. Exit code 1 on a fault."""
    from ..checkpoint.reader import Checkpoint
    from ..verify import verify_checkpoint
    from .tables import verdict_table

    original = Checkpoint.open(resolve_source(source, revision, quiet or as_json).path) if source else None
    where = choose_device(device)
    with progress_bar(not (quiet or as_json)) as tell:
        verdict = verify_checkpoint(Checkpoint.open(ckpt), source=original, device=where, progress=tell)
    if as_json:
        echo_json({"ckpt": str(ckpt), "sound": not verdict.faults, "against_source": bool(source), **asdict(verdict)})
    elif not quiet:
        show(verdict_table(verdict, every_linear=verbose))
    for note in verdict.notes:
        click.echo(f"note: {note}", err=True)
    for fault in verdict.faults:
        click.echo(f"fault: {fault}", err=True)
    if verdict.faults:
        click.echo(f"error: {ckpt}: {len(verdict.faults)} faults in {verdict.tensors} tensors", err=True)
        sys.exit(1)
    if not (as_json or quiet):
        against = f" and agree with {source}" if source else "; give --source to compare the weights with it"
        click.echo(f"{ckpt}: {verdict.tensors} tensors are sound{against}")


@click.command("inspect")
@checkpoint_argument
@json_option
@verbosity_options
def inspect_command(ckpt: Path, as_json: bool, verbose: bool, quiet: bool) -> None:
    """Show the pattern, zeros, error and bytes of every linear of the checkpoint CKPT."""
    from ..report.inspect import inspect_checkpoint
    from .tables import inspect_summary, inspect_table

    with progress_bar(not (quiet or as_json)) as tell:
        found = inspect_checkpoint(ckpt, progress=tell)
    if as_json:
        echo_json(asdict(found))
    else:
        show(inspect_table(found))
        show(inspect_summary(found))


@click.command("doctor")
@click.argument("ckpt", metavar="[CKPT]", required=False, type=click.Path(path_type=Path))
@device_option
@json_option
def doctor_command(ckpt: Path | None, device: str, as_json: bool) -> None:
    """Say what is installed, which GPUs are here, what can run on them and what would help.

    With a checkpoint CKPT: which backend runs its linears on this machine, and why.
    """
    from ..checkpoint.reader import Checkpoint
    from .doctor import examine, explain
    from .tables import backends_table, doctor_table

    found = examine()
    rows = explain(Checkpoint.open(ckpt), choose_device(device)) if ckpt else []
    if as_json:
        echo_json({**found, "linears": rows})
        return
    show(doctor_table(found))
    if ckpt:
        show(backends_table(rows))
