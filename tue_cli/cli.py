"""The `tue` command: options in, a job run, an exit code out. Heavy imports stay inside."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tue_cli import __version__
from tue_cli.config import (
    BUDGETS,
    METHODS,
    PRESETS,
    RECIPES,
    AdversarySettings,
    ProtectSettings,
)
from tue_cli.errors import BadSetting, ExitCode, TueError, stdout_problem
from tue_cli.options import (
    NAMES,
    PROTECT,
    TRAIN,
    Device,
    Gray,
    InnerRadius,
    InnerSteps,
    Json,
    Quiet,
    Samples,
    Score,
    ScoreMode,
    Verbose,
    folder_of,
    lasting,
    noise_of,
    paths_of,
    recipe_of,
    seconds_of,
    training_of,
)


class _Commands(TyperGroup):
    """The commands, which Ctrl-C ends with a sentence also before a job runs."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; typer alone would end it in silence."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _end_interrupted()


app = typer.Typer(
    name="tue",
    cls=_Commands,
    help="Protect pictures from being learned from.",
    no_args_is_help=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Implements Fang et al. 2023 (arXiv 2305.11191); not the method of the same short name by "
        "Ren et al. (arXiv 2210.10114)."
    ),
)

AGAIN = shlex.join(["tue", *sys.argv[1:]])
"""The command as it was typed, to be typed again."""

ADVERSARY = AdversarySettings()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tue {__version__} (Fang et al. 2023, arXiv 2305.11191)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _tue(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        if _has_terminal():
            _open_ui(None)
        typer.echo(context.get_help(), nl=False)  # typer prints it, and returns nothing
        raise typer.Exit(ExitCode.USAGE)


@app.command()
def protect(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help="Folders (with all they hold) and files; - reads a list from stdin, one path a "
            "line or separated by NUL.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=folder_of,
            metavar="<path>",
            help="Where the copies go; default <folder>-protected.",
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="What a class is: folders (a subfolder each), single (all pictures), cluster or "
            "cluster:N (pictures that look alike), FILE.csv (columns path,class); auto takes "
            "folders where there are several, else single."
        ),
    ] = "auto",
    key: Annotated[
        str | None, typer.Option(help="Key of the weights for a run with one class.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"{NAMES}.")] = "tue",
    radius: Annotated[
        float | None,
        typer.Option(
            help="Largest change of a pixel, in levels of 255; of lsp, the root of the mean "
            "square; default: as published, which is 8 for most."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of gradient descent; default: as published.")
    ] = None,
    score: Score = None,
    score_mode: ScoreMode = None,
    gray: Gray = None,
    samples: Samples = None,
    inner_radius: InnerRadius = None,
    inner_steps: InnerSteps = None,
    smooth: Annotated[
        float,
        typer.Option(
            help="Share of the noise where a picture is smooth, as skies are; 1: all of it, which "
            "is as published, and seen."
        ),
    ] = PROTECT.smooth,
    weights: Annotated[
        str | None, typer.Option(help="Name of packaged weights, or a file.", show_default=False)
    ] = None,
    device: Device = "auto",
    backend: Annotated[
        str,
        typer.Option(
            help="What computes: torch, onnx (ONNX Runtime, which has --device directml too), or "
            "auto: what is faster here, and in a folder that was begun what began it."
        ),
    ] = "auto",
    format: Annotated[str, typer.Option(help="keep, png, jpeg or webp.")] = "keep",
    quality: Annotated[
        int | None,
        typer.Option(help="1 to 100 for JPEG, WebP and AVIF; default: the source's, or better."),
    ] = None,
    existing: Annotated[
        str, typer.Option(help="Where a copy exists: skip what is done, overwrite, or error.")
    ] = "skip",
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Write nothing; tell the plan and the time.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with some of the pictures: FILE.html.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Threads that decode and encode; 0: one a processor.")
    ] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write protected copies of pictures beside them; the originals are never touched."""
    from tue_cli.console import Console
    from tue_cli.protect.request import ProtectSpec
    from tue_cli.protect.result import ProtectSummary
    from tue_cli.protect.run import protect as job

    spec = ProtectSpec(
        paths=paths_of(paths),
        output=output,
        labels=labels,
        key=key,
        settings=ProtectSettings(
            method=method,
            noise=noise_of(
                method,
                radius=radius,
                steps=steps,
                score=score,
                score_mode=score_mode,
                gray=gray,
                samples=samples,
                inner_radius=inner_radius,
                inner_steps=inner_steps,
            ),
            smooth=smooth,
            seed=seed,
        ),
        weights=weights,
        device=device,
        backend=backend,
        format=format,
        quality=quality,
        existing=existing,
        dry_run=dry_run,
        jobs=jobs,
        report=report,
        command=AGAIN,
    )
    again = f"{AGAIN} --existing skip" if existing == "overwrite" else AGAIN
    result = Console(as_json=as_json, quiet=quiet, verbose=verbose).run(job(spec), again)
    if isinstance(result, ProtectSummary) and result.failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
def train(
    data: Annotated[
        Path, typer.Argument(help="A folder with one subfolder a class.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The weights: FILE.safetensors.", show_default=False),
    ],
    method: Annotated[
        str | None,
        typer.Option(help=f"What the weights are for: {NAMES}; default: {TRAIN.method}."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(RECIPES)}: clean trains on the pictures as they are, for tap; "
            "default: the method's own."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="paper (wants a GPU), or packaged: as the packaged weights were made, on one core "
            "of a processor in 45 minutes."
        ),
    ] = "paper",
    net: Annotated[
        str, typer.Option(help="vgg16, resnet18, resnet50, densenet121 or wrn34-10.")
    ] = TRAIN.net,
    width: Annotated[
        int | None,
        typer.Option(
            help="Channels of the surrogate's first stage, 64 in the published net; default: the "
            "preset's."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels a side at which noise is made.")] = TRAIN.size,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the surrogate; default: the preset's.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = TRAIN.batch,
    rate: Annotated[float, typer.Option(help="Peak learning rate of the surrogate.")] = TRAIN.rate,
    score_steps: Annotated[
        int | None, typer.Option(help="Steps of the score network; default: the preset's.")
    ] = None,
    score_width: Annotated[
        int | None, typer.Option(help="Channels of the score network; default: the preset's.")
    ] = None,
    sigma: Annotated[
        float, typer.Option(help="Noise of score matching, pixels in [0, 1].")
    ] = TRAIN.sigma,
    radius: Annotated[
        float | None,
        typer.Option(
            help="Radius of the protective noise, in levels of 255; default: as published."
        ),
    ] = None,
    noise_steps: Annotated[
        int | None, typer.Option(help="Steps of the protective noise; default: as published.")
    ] = None,
    score: Score = None,
    score_mode: ScoreMode = None,
    samples: Samples = None,
    inner_radius: InnerRadius = None,
    inner_steps: InnerSteps = None,
    adversary_radius: Annotated[
        float, typer.Option(help="Radius of the adversarial noise, in levels of 255.")
    ] = round(ADVERSARY.radius * 255, 3),
    adversary_steps: Annotated[
        int, typer.Option(help="Steps of the adversarial noise.")
    ] = ADVERSARY.steps,
    limit: Annotated[
        int | None, typer.Option(help="Use at most this many pictures of each class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, exactly.")
    ] = False,
    max_time: Annotated[
        str | None, typer.Option(help="Stop after this long: 90s, 30m or 2h.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Train weights anew; of tue: the score network, then the surrogate on its own copies."""
    from tue_cli.console import Console
    from tue_cli.train.run import TrainSpec
    from tue_cli.train.run import train as job

    sizes = {
        "width": width,
        "score_width": score_width,
        "steps": steps,
        "score_steps": score_steps,
    }
    spec = TrainSpec(
        data=data,
        output=output,
        settings=replace(
            training_of(preset, sizes),
            method=recipe_of(method, recipe),
            net=net,
            size=size,
            sigma=sigma,
            rate=rate,
            batch=batch,
            noise=noise_of(
                recipe if recipe in METHODS else method or TRAIN.method,
                radius=radius,
                steps=noise_steps,
                score=score,
                score_mode=score_mode,
                gray=0.0,
                samples=samples,
                inner_radius=inner_radius,
                inner_steps=inner_steps,
            ),
            adversary=AdversarySettings(radius=adversary_radius / 255, steps=adversary_steps),
            seed=seed,
        ),
        device=device,
        resume=resume,
        max_seconds=None if max_time is None else seconds_of(max_time),
        limit=limit,
        command=lasting(sys.argv[1:]),
    )
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    result = console.run(job(spec), AGAIN if resume else f"{AGAIN} --resume")
    if result.failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
def export(
    weights: Annotated[
        str | None,
        typer.Argument(help="Name of packaged weights, or a file; default: the packaged ones."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="FILE.onnx. Beside the weights and under their name (the default), where protect "
            "looks for it, it reads the weights from their file; elsewhere it holds them.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the weights' step graph for ONNX Runtime, proved against torch."""
    from tue_cli.console import Console
    from tue_cli.train.export import ExportSpec
    from tue_cli.train.export import export as job

    Console(as_json=as_json, quiet=quiet).run(job(ExportSpec(weights, output)))


@app.command()
def verify(
    protected: Annotated[
        Path, typer.Argument(help="A folder that `tue protect` wrote.", show_default=False)
    ],
    original: Annotated[
        Path, typer.Option(help="The folder of originals that was given to `tue protect`.")
    ],
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Attackers, with commas between: std, early, at1 to at4 (at), gray, jpeg10 "
            "(jpeg), jpeg50, jpeg75, resize, blur, bits, cutout, cutmix, mixup, ueraser, labels, "
            "part20 (40, 50, 60, 80); default: the budget's.",
            show_default=False,
        ),
    ] = None,
    victim: Annotated[
        str,
        typer.Option(
            help="Architectures, each with its width: resnet18:0.25,vgg16 (1: as published)."
        ),
    ] = "resnet18:0.25",
    budget: Annotated[
        str, typer.Option(help="quick, standard, full, or how long it may take: 10m, 2h.")
    ] = "quick",
    seeds: Annotated[
        int | None, typer.Option(help="Victims of each kind; default: the budget's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    holdout: Annotated[
        Path | None,
        typer.Option(help="Clean pictures to test on, a subfolder a class; default: a fifth."),
    ] = None,
    background: Annotated[
        Path | None, typer.Option(help="Other people's pictures, as one more class.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side that victims see; default: 32 or 64.")
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            help="Exit with 5 unless every attacker was measured and leaves so many percent."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page to show: FILE.html.")] = None,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the victims that are finished.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Train models on the copies, and tell how much less they learn than from the originals."""
    from tue_cli.attacks.registry import attacks_named
    from tue_cli.console import Console
    from tue_cli.verify.request import VerifySpec, victims_named
    from tue_cli.verify.run import verify as job

    if fail_under is not None and not 0 <= fail_under <= 100:
        raise BadSetting(f"--fail-under {fail_under:g} cannot be.", "Choose 0 to 100 percent.")
    settings = BUDGETS.get(budget, BUDGETS["quick"])
    spec = VerifySpec(
        protected=protected,
        original=original,
        settings=replace(
            settings,
            victims=victims_named(victim),
            attacks=settings.attacks if attacks is None else attacks_named(attacks.split(",")),
            seeds=settings.seeds if seeds is None else seeds,
            seed=seed,
            size=size,
        ),
        seconds=None if budget in BUDGETS else seconds_of(budget),
        holdout=holdout,
        background=background,
        report=report,
        device=device,
        resume=resume,
        command=AGAIN,
    )
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    result = console.run(job(spec), AGAIN if resume else f"{AGAIN} --resume")
    if fail_under is not None:
        weakest, doubts = result.weakest, [attack.inconclusive for attack in result.attacks]
        if weakest is None or weakest.value < fail_under or any(doubts):
            raise typer.Exit(ExitCode.MISMATCH)


@app.command()
def check(
    protected: Annotated[
        Path,
        typer.Argument(metavar="PROTECTED", help="A folder of copies.", show_default=False),
    ],
    original: Annotated[
        Path | None,
        typer.Option(
            help="The folder that was protected. Tells what is left of the noise in changed "
            "copies: <d', d> / <d, d>, with d what protecting changed and d' what is changed now; "
            "only an upper bound where the manifest's folder has no intact copy."
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="The folder that tue protect wrote, or its manifest; default PROTECTED. Copies "
            "are found at their paths there, else by their names, whatever the extension."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Tell which copies differ from their manifest, and how much of their noise is left."""
    from tue_cli.check.run import CheckSpec
    from tue_cli.check.run import check as job
    from tue_cli.console import Console

    spec = CheckSpec(protected, original, manifest, listed=None if verbose else 10)
    result = Console(as_json=as_json, quiet=quiet, verbose=verbose).run(job(spec))
    if result.mismatches:
        raise typer.Exit(ExitCode.MISMATCH)


@app.command()
def bench(
    data: Annotated[
        list[Path],
        typer.Option(
            help="A folder with train/CLASS/ and test/CLASS/ or val/CLASS/, or where torchvision "
            "keeps CIFAR-10 or CIFAR-100; may be given several times."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=folder_of,
            metavar="<path>",
            help="Where results are kept, and gone on with.",
        ),
    ],
    table: Annotated[
        list[str],
        typer.Option(
            help="1 (methods), 2 (victims), 3 to 6 (surrogates and victims), partial, ablations; "
            "may be given several times."
        ),
    ] = ["1"],  # noqa: B006 - typer copies it
    preset: Annotated[
        str, typer.Option(help="mini (hours of two cores), small, or paper (days of a GPU).")
    ] = "mini",
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; default: the preset's, 32.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random; the first victim's.")] = 0,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Measure nothing; write what is known.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure the paper's tables: all methods, with equal budgets; goes on where it was stopped."""
    from tue_cli.bench.run import BenchSpec
    from tue_cli.bench.run import bench as job
    from tue_cli.console import Console

    if preset not in PRESETS:
        raise BadSetting(f"There is no preset {preset!r}.", f"Choose {', '.join(PRESETS)}.")
    settings = replace(PRESETS[preset], seed=seed)
    if size is not None:
        settings = replace(settings, size=size)
    spec = BenchSpec(tuple(data), output, tuple(table), settings, device, dry_run)
    Console(as_json=as_json, quiet=quiet, verbose=verbose).run(job(spec), AGAIN)


@app.command()
def ui(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder to begin with.", show_default=False)
    ] = None,
) -> None:
    """Open the terminal app: choose, look, protect, verify, train; `tue` alone opens it too."""
    if not _has_terminal():
        raise BadSetting("There is no terminal to draw on.", "Run `tue ui` in one.")
    _open_ui(folder)


def _has_terminal() -> bool:
    # Python has None for a stream that was closed before it began.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _open_ui(folder: Path | None) -> None:
    from tue_cli.tui.app import run

    raise typer.Exit(run(folder))


def main(arguments: list[str] | None = None) -> Any:
    """Run `tue` and exit with its code; the one place where errors become exit codes."""
    # Said before torch is loaded: spinning OpenMP threads slow it tenfold on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that a pipe's encoding lacks is spelt out, as stderr does it, and stops nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    # Where in tue a warning was given helps nobody who uses it.
    warnings.formatwarning = lambda message, *_, **__: f"Note: {message}\n"
    try:
        try:
            app(arguments, prog_name="tue")
        finally:
            _flush()
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        from tue_cli.console import print_error

        told = error if isinstance(error, TueError) else _unforeseen(error)
        with suppress(OSError):  # stderr may be full too
            print_error(told)
        sys.exit(told.exit_code)


def _end_interrupted() -> NoReturn:
    with suppress(OSError):
        typer.echo("Interrupted.", err=True)
    sys.exit(ExitCode.INTERRUPTED)


def _flush() -> None:
    """Write what stdout still holds.

    Raises:
        OutputProblem: it cannot be written; the interpreter will not try again.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise stdout_problem(error) from None


def _unforeseen(error: Exception) -> TueError:
    """Return what a person is told of an error that nothing in tue foresaw."""
    if os.environ.get("TUE_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return TueError("There is not enough memory.", "Use fewer --jobs, or smaller pictures.")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return TueError(
            f"The operating system reported an error: {where}{error.strerror or error}."
        )
    return TueError(
        f"This should not have happened: {type(error).__name__}: {str(error)[:300]}.",
        "Finished work is kept. Please report this, with the traceback that TUE_DEBUG=1 shows.",
    )
