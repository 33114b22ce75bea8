"""Measure the paper's tables: all methods, with equal budgets; goes on where it was stopped.

    python -m benchmarks.paper --data DIR/cifar-10 -o results [--table 3 --table 5] [--preset small]

Drawing its figures needs matplotlib: `pip install -e '.[benchmarks]'`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.layout import TABLES
from benchmarks.paper.run import BenchSpec, bench
from benchmarks.paper.settings import PRESETS
from benchmarks.rows import format_command
from tue_cli.config import DEVICES
from tue_cli.console import Console, print_error
from tue_cli.errors import TueError


def _parse_folder(text: str) -> Path:
    if not text:  # would be the folder that one is in
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        action="append",
        required=True,
        help="a folder with train/CLASS/ and test/CLASS/ or val/CLASS/, or where torchvision "
        "keeps CIFAR-10 or CIFAR-100; may be given several times",
    )
    add(
        "-o",
        "--output",
        type=_parse_folder,
        required=True,
        help="where results are kept, and gone on with",
    )
    add(
        "--table",
        action="append",
        choices=tuple(TABLES),
        help="1 (methods), 2 (victims), 3 to 6 (surrogates and victims), partial, ablations; may "
        "be given several times; default 1",
    )
    add(
        "--preset",
        choices=tuple(PRESETS),
        default="mini",
        help="mini (hours of two cores; the default), small, or paper (days of a GPU)",
    )
    add("--size", type=int, help="pixels a side; default: the preset's, 32")
    add("--seed", type=int, default=0, help="seed of everything random; the first victim's")
    add("--device", choices=DEVICES, default="auto")
    add("-n", "--dry-run", action="store_true", help="measure nothing; write what is known")
    add("--json", action="store_true", help="print events as JSON, one a line")
    add("-q", "--quiet", action="store_true", help="print no progress")
    add("-v", "--verbose", action="count", default=0, help="print every file that is written")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Do what the command line says; what tue refuses ends with its exit code."""
    given = parse_arguments(words)
    settings = replace(PRESETS[given.preset], seed=given.seed)
    if given.size is not None:
        settings = replace(settings, size=given.size)
    spec = BenchSpec(
        tuple(given.data),
        given.output,
        tuple(given.table or ["1"]),
        settings,
        given.device,
        given.dry_run,
    )
    console = Console(as_json=given.json, quiet=given.quiet, verbose=given.verbose)
    try:
        console.run(bench(spec), format_command())
    except TueError as error:
        print_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
