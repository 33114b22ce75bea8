"""The `tue` command: options in, a job run, an exit code out. Heavy imports stay inside."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tue_cli import __version__
from tue_cli.check.run import CheckSpec
from tue_cli.dataset.remote import is_url, redact
from tue_cli.errors import BadSetting, ExitCode
from tue_cli.exits import end_interrupted, translate_errors
from tue_cli.fields import format_command
from tue_cli.options import Given, Json, Quiet, TrainMethod, Verbose, add_options, choose_recipe
from tue_cli.protect.request import ProtectSpec
from tue_cli.train.export import ExportSpec
from tue_cli.train.run import TrainSpec
from tue_cli.verify.request import VerifySpec


class _Commands(TyperGroup):
    """The commands, which Ctrl-C ends with a sentence also before a job runs."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; typer alone would end it in silence."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            end_interrupted()


app = typer.Typer(
    name="tue",
    cls=_Commands,
    help="Make copies of your pictures that look almost the same but are hard to learn from.",
    no_args_is_help=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "The method is that of Fang et al. 2023 (arXiv 2305.11191). Ren et al. (arXiv 2210.10114) "
        "call another method TUE; this is not it."
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tue {__version__} (Fang et al. 2023, arXiv 2305.11191)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _run_without_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version.",
            metavar="",
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        if _has_terminal():
            _open_ui(None)
        typer.echo(context.get_help(), nl=False)  # typer prints it, and returns nothing
        raise typer.Exit(ExitCode.USAGE)


@app.command()
@add_options(ProtectSpec)
def protect(
    given: Given[ProtectSpec],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write protected copies of your pictures to a new folder; originals are never changed."""
    from tue_cli.console import SHOWN_FAILURES, Console
    from tue_cli.protect.result import ProtectSummary
    from tue_cli.protect.run import protect as job
    from tue_cli.protect.watch import watch

    if given["engine"] != "local" or any(map(is_url, [*given["paths"], given["output"] or ""])):
        _protect_collection(given, Console(as_json=as_json, quiet=quiet, verbose=verbose))
        return
    spec = replace(given.read_spec(), command=given.typed)
    again = given.typed
    if spec.existing != "skip":
        again += " --existing skip"
    console = Console(
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
        most_failures=SHOWN_FAILURES if spec.dry_run else math.inf,
    )
    result = console.run(watch(spec) if spec.watch else job(spec), again)
    if isinstance(result, ProtectSummary) and result.failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _protect_collection(given: Given[ProtectSpec], console: Any) -> None:
    """Protect shards by URL."""
    from tue_cli.protect.collection import CollectionSpec, protect_collection

    if not given["output"]:
        raise BadSetting("The output is not named.", "Add -o and a URL or a folder.")
    spec = replace(given.read_spec(paths=["."], output=None), output=None)
    asked = CollectionSpec(tuple(given["paths"]), given["output"], spec)
    result = console.run(protect_collection(asked), redact(given.typed))
    if result.failed or result.shards_failed or result.incomplete:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
@add_options(CheckSpec)
def check(
    given: Given[CheckSpec],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """List copies that are missing or were changed, and how much of their noise is left."""
    from tue_cli.check.run import check as job
    from tue_cli.console import Console

    read_spec = given.read_spec()
    if verbose:
        read_spec = replace(read_spec, listed=None)
    result = Console(as_json=as_json, quiet=quiet, verbose=verbose).run(job(read_spec))
    if result.mismatches:
        raise typer.Exit(ExitCode.MISMATCH)


@app.command()
@add_options(VerifySpec)
def verify(
    given: Given[VerifySpec],
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Exit with code 5 if the lowest protection that could be measured is below this "
            "percentage, or if none could be.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure the protection: train models on copies and on originals, and compare them."""
    from tue_cli.console import Console
    from tue_cli.verify.run import verify as job

    if fail_under is not None and not 0 <= fail_under <= 100:
        raise BadSetting(
            f"--fail-under must be 0 to 100, not {fail_under:g}.", "Write 60 for 60 percent."
        )
    read_spec = replace(given.read_spec(), command=given.typed)
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    result = console.run(job(read_spec), _add_resume(given.typed, read_spec.resume))
    if fail_under is not None and result.is_below(fail_under):
        raise typer.Exit(ExitCode.MISMATCH)


@app.command()
@add_options(TrainSpec, undecided=("recipe",))
def train(
    given: Given[TrainSpec],
    method: TrainMethod = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Train your own weights for `tue protect` from a folder with one subfolder per class."""
    from tue_cli.console import Console
    from tue_cli.train.run import train as job

    spec = given.read_spec(recipe=choose_recipe(method, given["recipe"]))
    lasting = format_command("train", replace(spec, resume=False, max_seconds=None))
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    spec = replace(spec, command=lasting)
    result = console.run(job(spec), _add_resume(given.typed, spec.resume))
    if result.failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
@add_options(ExportSpec)
def export(given: Given[ExportSpec], as_json: Json = False, quiet: Quiet = False) -> None:
    """Write the ONNX graph of weights, so that `tue protect` can use them without torch."""
    from tue_cli.console import Console
    from tue_cli.train.export import export as job

    Console(as_json=as_json, quiet=quiet).run(job(given.read_spec()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Find out whether this installation works: versions, devices, extras, and where files are."""
    from tue_cli.console import Console
    from tue_cli.doctor import examine

    if Console(as_json=as_json).run(examine()).problems:
        raise typer.Exit(ExitCode.ENVIRONMENT)


secret_app = typer.Typer(
    help="Show, export, import or replace your secret: codes and noise depend on it.",
    no_args_is_help=True,
)
app.add_typer(secret_app, name="secret")


def _run_secret(job: Any, *, as_json: bool) -> None:
    from tue_cli.console import Console

    Console(as_json=as_json).run(job)


@secret_app.command("show")
def show_secret(as_json: Json = False) -> None:
    """Print where your secret is kept and its fingerprint, but not the secret itself."""
    from tue_cli.dataset import secret

    _run_secret(secret.show_secret(), as_json=as_json)


@secret_app.command("export")
def export_secret(
    file: Annotated[Path, typer.Argument(help="A new file. - prints the secret.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Write your secret to a file, to keep it safe or to use it on another machine."""
    from tue_cli.dataset import secret

    _run_secret(secret.export_secret(file), as_json=as_json)


@secret_app.command("import")
def import_secret(
    file: Annotated[
        Path,
        typer.Argument(help="What `tue secret export` wrote. - reads stdin.", metavar="FILE"),
    ],
    as_json: Json = False,
) -> None:
    """Use an exported secret from now on. The former one is kept beside it."""
    from tue_cli.dataset import secret

    _run_secret(secret.import_secret(file), as_json=as_json)


@secret_app.command("new")
def renew_secret(as_json: Json = False) -> None:
    """Make a new secret. The former one is kept beside it."""
    from tue_cli.dataset import secret

    _run_secret(secret.renew_secret(), as_json=as_json)


@app.command()
def ui(
    folder: Annotated[
        Path | None,
        typer.Argument(help="The folder to start with.", metavar="FOLDER", show_default=False),
    ] = None,
) -> None:
    """Open the terminal app, which does all of this step by step. `tue` alone opens it, too."""
    if not _has_terminal():
        raise BadSetting(
            "The app needs a terminal.", "Run `tue ui` in one; in a script, use `tue protect`."
        )
    _open_ui(folder)


def _has_terminal() -> bool:
    # Python has None for a stream that was closed before it began.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _open_ui(folder: Path | None) -> None:
    from tue_cli.tui.app import run

    raise typer.Exit(run(folder))


def _add_resume(typed: str, resumes: bool) -> str:
    """Return the command that goes on from where one was stopped."""
    return typed if resumes else f"{typed} --resume"


def main(arguments: list[str] | None = None) -> Any:
    """Run `tue` and exit with its code."""
    # Said before torch is loaded: spinning OpenMP threads slow it tenfold on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    # Where in tue a warning was given helps nobody who uses it.
    warnings.formatwarning = lambda message, *_, **__: f"Note: {message}\n"
    # So is Pillow's word on damaged tags; a person hears of them only if the picture suffers.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with translate_errors():
        app(arguments, prog_name="tue", obj=shlex.join(["tue", *arguments]))
