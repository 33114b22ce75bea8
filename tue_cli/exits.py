"""How a command ends: the one place where errors become exit codes."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer

from tue_cli.errors import ExitCode, TueError, explain_stdout_error


@contextmanager
def translate_errors() -> Iterator[None]:
    """Run a command; tell its error and exit with the code of that."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that a pipe's encoding lacks is spelt out, as stderr does it, and stops nothing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            _flush()
    except KeyboardInterrupt:
        end_interrupted()
    except Exception as error:
        from tue_cli.console import print_error

        told = error if isinstance(error, TueError) else _explain_unforeseen(error)
        with suppress(OSError):  # stderr may be full too
            print_error(told)
        sys.exit(told.exit_code)


def end_interrupted() -> NoReturn:
    """End as Ctrl-C does, with a sentence."""
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
        raise explain_stdout_error(error) from None


def _explain_unforeseen(error: Exception) -> TueError:
    """Return what a person is told of an error that nothing in tue foresaw."""
    if os.environ.get("TUE_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return TueError("There is not enough memory.", "Use --jobs 1, or smaller pictures.")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return TueError(
            f"The operating system reported an error: {where}{error.strerror or error}."
        )
    return TueError(
        f"An unexpected error: {type(error).__name__}: {str(error)[:300]}.",
        "Finished work is kept. Please report this, with the traceback that TUE_DEBUG=1 shows.",
    )
