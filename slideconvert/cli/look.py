"""Looking without changing: verify, inspect, recipes, doctor."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ..api.options import DeviceOptions, VerifyOptions
from .common import Folder, checkpoint_argument, echo_json, show
from .options import Display, ResultDisplay, command
from .progress import progress_bar


@command("verify", VerifyOptions)
@checkpoint_argument
def verify_command(ckpt: Path, options: VerifyOptions, display: Display) -> None:
    """Read the checkpoint CKPT back and check hashes, shapes, patterns, windows and weights. Exit code 1 on a fault.

    \b
      slideconvert verify out/ --source MODEL
    """
    from ..api.checkpoints import verify
    from .tables import verdict_table

    source = options.source
    with progress_bar(display.shown) as progress:
        verdict = verify(ckpt, options, progress=progress)
    if display.as_json:
        echo_json({"ckpt": str(ckpt), "sound": not verdict.faults, "against_source": bool(source), **asdict(verdict)})
    elif display.shown:
        show(verdict_table(verdict, every_linear=display.verbose))
    for note in verdict.notes:
        click.echo(f"note: {note}", err=True)
    for fault in verdict.faults:
        click.echo(f"fault: {fault}", err=True)
    if verdict.faults:
        click.echo(f"error: {ckpt}: {len(verdict.faults)} faults in {verdict.tensors} tensors", err=True)
        sys.exit(1)
    if display.shown:
        against = f" and agree with {source}" if source else "; give --source to compare the weights with it"
        show(f"{ckpt}: {verdict.tensors} tensors are sound{against}")


@command("inspect", display=ResultDisplay, without=("verbose",))
@checkpoint_argument
def inspect_command(ckpt: Path, display: Display) -> None:
    """Show the pattern, zeros, weight change and bytes of every linear of the checkpoint CKPT.

    \b
      slideconvert inspect out/
      slideconvert inspect out/ --json
    """
    from ..api.checkpoints import inspect
    from .tables import inspect_summary, inspect_table

    with progress_bar(display.shown) as progress:
        found = inspect(ckpt, progress=progress)
    if display.as_json:
        echo_json(asdict(found))
    else:
        show(inspect_table(found))
        show(inspect_summary(found))


@command("recipes", without=("verbose", "quiet"))
@click.argument("name", metavar="[NAME]", required=False)
def recipes_command(name: str | None, display: Display) -> None:
    """List the recipes that slideconvert provides, for --recipe NAME. With a NAME: print that recipe as YAML.

    \b
      slideconvert recipes
    """
    from ..plan.bundled import bundled_recipes, find_recipe, recipe_purpose

    found = {name: find_recipe(name)} if name else bundled_recipes()
    if display.as_json:
        from ..plan.recipe import load_recipe

        about = {one: {"about": recipe_purpose(path), **load_recipe(path).describe()} for one, path in found.items()}
        echo_json({"recipes": about})
    elif name:
        click.echo(found[name].read_text(encoding="utf-8"), nl=False)
    else:
        formatter = click.HelpFormatter()
        formatter.write_dl([(one, recipe_purpose(path)) for one, path in found.items()])
        click.echo(formatter.getvalue(), nl=False)


@command("doctor", DeviceOptions, without=("verbose", "quiet"))
@click.argument("ckpt", metavar="[CKPT]", required=False, type=Folder())
def doctor_command(ckpt: Path | None, options: DeviceOptions, display: Display) -> None:
    """Show what is installed, which GPUs are here, what can run on them and what would help.

    \b
      slideconvert doctor
      slideconvert doctor out/

    With a checkpoint CKPT: also show which backend runs its linears on this machine, and why.
    """
    from ..api.settings import choose_device
    from ..checkpoint.reader import Checkpoint
    from ..errors import InputError
    from .doctor import covered, examine, explain
    from .tables import backends_table, doctor_table

    if options.device is not None and ckpt is None:
        raise InputError("--device belongs to a checkpoint CKPT", hint="name the checkpoint, or omit it")
    found = examine()
    rows, known = [], {}
    if ckpt:
        device = choose_device(options.device)
        rows = explain(Checkpoint.open(ckpt), device)
        known = covered(ckpt, device) if device.startswith("cuda") else {}
    if display.as_json:
        echo_json({**found, "linears": rows, "covered": known})
        return
    show(doctor_table(found))
    if ckpt:
        show(backends_table(rows))
    for host, (done, all_of_them) in known.items():
        show(f"{host}: times of {done} of {all_of_them} kinds of linears are known (slideconvert tune adds others)")
