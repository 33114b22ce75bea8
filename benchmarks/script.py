"""What every script does around its measuring: shared options, a work folder, progress, rows."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import RESULTS, Rows, describe_hardware, format_command


def make_parser(doc: str | None, name: str, *, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has; `name` is of its results file."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", default="cpu")
    add("--threads", type=int, default=threads)
    add("--name", default=name, help="of the results file")
    add("--results", type=Path, default=RESULTS, help="where the results file lies")
    add("--done", type=Path, help="a folder of earlier results, which are not measured again")
    add("--work", type=Path, help="where copies are kept; default a temporary folder")
    return parser


def open_rows(arguments: argparse.Namespace, *, dtype: str, device: str = "cpu") -> Rows:
    """Return the rows of a script's results file."""
    where = describe_hardware(threads=arguments.threads, dtype=dtype, device=device)
    return Rows(
        arguments.results / f"{arguments.name}.jsonl",
        facts={"hardware": where, "command": format_command()},
        done=arguments.done,
    )


def run(arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], None]) -> None:
    """Measure in the folder `--work`, or in one of its own where none was given."""
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="tue-benchmark-") as folder:
        arguments.work = Path(folder)
        measure(arguments)


def say(text: str) -> None:
    """Print a line of the result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def parse_numbers(text: str) -> list[int]:
    """Read `32,64`."""
    return [int(part) for part in text.split(",")]
