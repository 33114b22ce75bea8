"""Events to a terminal: progress and notes on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table as Grid
from rich.text import Text

from tue_cli.errors import ExitCode, TueError, explain_stdout_error
from tue_cli.events import (
    SCHEMA,
    Advanced,
    AnyEvent,
    Checked,
    Done,
    Failed,
    Job,
    Looked,
    Metric,
    Note,
    R,
    Record,
    Saved,
    Skipped,
    Started,
    Table,
    make_plain,
)
from tue_cli.text import escape, format_duration

_PLAN = {"adversary_steps": "adversary steps", "labels": "classes", "name": "class", "key": "code"}
"""What people are told for the names in a plan."""
SHOWN_ROWS = 20
"""Of the records in a plan."""
SHOWN_FAILURES = 10
"""Of a dry run; a run tells of all, as they come."""
WIDTH = 200
"""Of a table where there is no terminal, in columns."""
LINE_SECONDS = 10.0
"""Where no bar can be drawn, progress is a line this often."""
UNPAIRED = ("no-original", "changed")
SHOWN_UNPAIRED = 3
"""Copies without their originals may be hundreds, for one reason; so many are named."""


class Terminal(RichConsole):
    """A stream whose reader may go away: rich alone would end the command with the exit code 1."""

    def on_broken_pipe(self) -> None:
        """Say nothing more on stderr, for the work goes on; of stdout raise what was met."""
        if not self.stderr:
            raise  # rich calls this while it handles the error
        self.quiet = True
        # The interpreter would fail over what is still to be written.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), self.file.fileno())


class Console:
    """Prints a job's events; with `as_json` one object a line on stdout."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: int = 0,
        most_failures: float = math.inf,
    ) -> None:
        """`most_failures` are named, and all where there is `verbose`."""
        self._json = as_json
        self._quiet = quiet
        self._verbose = verbose
        self._most_failures = math.inf if verbose else most_failures
        self._failures = 0
        self._terminal = _open_stderr()
        self._unit = ""
        self._metric = ""
        self._alike: Counter[str] = Counter()
        self._printed = time.monotonic()
        self._told: dict[str, Any] = {}

    def run(self, job: Job[R], again: str | None = None) -> R:
        """Run a job to its end and return its result.

        Ctrl-C closes the job, prints the command `again`, if one goes on from there, and exits.
        """
        try:
            return self._run(job)
        except KeyboardInterrupt:
            if again is None:
                self._print_error("Interrupted.")
            else:
                self._print_error("Interrupted. Finished work is kept. To continue:")
                self._print_error(f"  {escape(again)}")
            raise SystemExit(ExitCode.INTERRUPTED) from None

    def _run(self, job: Job[R]) -> R:
        done: Done[R] | None = None
        tables: list[Table] = []
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._terminal,
            transient=True,
            # What goes to a pipe or a file must not be drawn above the bar instead.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            disable=self._quiet or not self._terminal.is_terminal,
        )
        with progress, closing(job):
            bar = progress.add_task("", total=None, visible=False, state="")
            for event in job:
                if self._json:
                    self._print_json(event)
                if not isinstance(event, Failed):
                    self._tell_unpaired()
                if isinstance(event, Started):
                    self._unit = event.unit
                    progress.start()
                    self._show_start(event)
                    progress.update(
                        bar,
                        description=event.title,
                        total=event.total,
                        completed=0,
                        visible=event.total > 0,
                    )
                elif isinstance(event, Advanced):
                    state = self._format_state(event)
                    progress.update(bar, completed=event.done, state=state)
                    self._print_line(event, state)
                elif isinstance(event, Metric):
                    self._metric = _format_metric(event)
                elif isinstance(event, Table):
                    tables.append(event)
                elif isinstance(event, Done):
                    done = event
                    progress.update(bar, visible=False, state="")
                    progress.live.stop()  # which would take what is printed for its own
                    self._print_result(event, tables)
                    tables.clear()
                elif not isinstance(event, Checked | Looked):
                    self._show(event)
        assert done is not None  # the last event of every job
        return done.result

    def _print_result(self, done: Done[R], tables: Sequence[Table]) -> None:
        """Print what came of a job, or of one run of a job that has several."""
        if self._json or self._quiet:
            return
        for table in tables:
            _print_table(table)
        for sentence in done.said or _list_fields(done.result):
            _print(escape(sentence))

    def _show_start(self, event: Started) -> None:
        if (more := self._failures - self._most_failures) > 0:
            self._print_error(f"and {more:,} more; -v names them.")
        unit = event.unit.removesuffix("s") if event.total == 1 else event.unit
        self._print_note(f"{event.title}: {event.total:,} {unit}")
        if event.seconds is not None:
            self._print_note(f"  estimated time: about {format_duration(event.seconds)}")
        if event.plan is None:
            return
        plan = make_plain(event.plan)
        told = {name: value for name, value in plan.items() if not isinstance(value, list)}
        if told == self._told:  # of a watch, whose runs differ in their pictures alone
            return
        self._told = told
        for name, value in plan.items():
            if not isinstance(value, dict | list):  # those are in tables
                self._print_note(f"  {_PLAN.get(name, name)}: {escape(str(value))}")
        for value in plan.values():
            if value and isinstance(value, list):
                self._print_records(value)

    def _print_records(self, records: list[dict[str, Any]]) -> None:
        """Print records as rows, and leave out columns that say nothing."""
        if self._quiet:
            return
        names = [name for name in records[0] if any(one[name] is not False for one in records)]
        shown = records if self._verbose else records[:SHOWN_ROWS]
        rows = tuple(tuple(_format_cell(one[name]) for name in names) for one in shown)
        columns = tuple(_PLAN.get(name, name) for name in names)
        right = [type(records[0][name]) is int for name in names]
        width = None if self._terminal.is_terminal else WIDTH
        self._terminal.print(_make_grid(columns, rows, right), width=width, soft_wrap=False)
        if (more := len(records) - len(shown)) > 0:
            self._print_note(f"and {more:,} more; -v lists them.")

    def _show(self, event: Saved[Record | None] | Skipped | Failed | Note) -> None:
        if isinstance(event, Note):
            more = "" if self._verbose or not event.names else " -v lists the names."
            self._print_note(f"{escape(event.message)}{more}")
            for name in event.names if self._verbose else ():
                self._print_note(f"  {escape(name)}")
        elif isinstance(event, Failed):
            self._failures += 1
            if self._failures > self._most_failures:
                return
            self._alike[event.reason] += event.reason in UNPAIRED
            if self._alike[event.reason] > SHOWN_UNPAIRED and not self._verbose:
                return
            self._print_error(f"{escape(event.path)}: {escape(event.message)}")
        elif self._verbose:
            if isinstance(event, Skipped):
                word = event.message
            else:
                word = "protected" if event.source else "written"
            self._print_note(f"{escape(event.path)}: {word}")

    def _tell_unpaired(self) -> None:
        """Count the failures that were not shown."""
        for reason, count in self._alike.items():
            word = "without an original" if reason == "no-original" else "with a changed original"
            if (more := count - SHOWN_UNPAIRED) > 0 and not self._verbose:
                self._print_error(
                    f"and {more:,} more {word}; -v names them. Is --original the right folder?"
                )
        self._alike.clear()

    def _format_state(self, event: Advanced) -> str:
        rate = f"{self._metric}{event.rate:.1f} pictures/s"
        if event.seconds_left is None or event.done >= event.total:
            return rate
        return f"{rate}, {format_duration(event.seconds_left)} left"

    def _print_line(self, event: Advanced, state: str) -> None:
        now = time.monotonic()
        if not self._terminal.is_terminal and now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._print_note(f"{event.done:,} of {event.total:,} {self._unit}; {state}")

    def _print_note(self, text: str) -> None:
        if not self._quiet:
            self._terminal.print(text)

    def _print_error(self, text: str) -> None:
        self._terminal.print(text, style="red")

    def _print_json(self, event: AnyEvent) -> None:
        if isinstance(event, Advanced | Table | Looked):
            return
        name = type(event).__name__.lower()
        _print(json.dumps({"event": name, "schema": SCHEMA, **make_plain(event)}))


def _print(line: str) -> None:
    """Print a line on stdout, at once.

    Raises:
        OutputProblem: it is full, or was closed by its reader.
    """
    try:
        print(line, flush=True)
    except (OSError, ValueError) as error:
        raise explain_stdout_error(error) from None


def print_error(error: TueError) -> None:
    """Print an error and its remedy on stderr."""
    terminal = _open_stderr()
    terminal.print("Error: ", style="bold red", end="")
    terminal.print(escape(error.message))
    if error.remedy:
        terminal.print(escape(error.remedy))


def _open_stderr() -> Terminal:
    """Return stderr as it is: file names may hold rich's markup and `:emoji:` names."""
    return Terminal(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def _print_table(table: Table) -> None:
    """Print a table on stdout: as wide as the terminal, or as it needs where there is none."""
    right = [place >= table.words for place in range(len(table.columns))]
    grid = _make_grid(table.columns, table.rows, right)
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal.width = WIDTH
    try:
        terminal.print(table.title)  # as a title of the grid it would be folded to its width
        terminal.print(grid)
    except OSError as error:
        raise explain_stdout_error(error) from None


def _make_grid(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]
) -> Grid:
    """Return a table whose figures are on the right of their columns."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(columns, right, strict=True):
        # Names are folded, not cut: they are there to be found again.
        grid.add_column(name, justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escape(cell)) for cell in row))
    return grid


def _format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _format_metric(event: Metric) -> str:
    values = (
        f"{name} {value:.0%}" if name == "accuracy" else f"{name} {value:.4g}"
        for name, value in event.values.items()
    )
    return f"{event.phase}: {event.step} of {event.steps}, {', '.join(values)}; "


def _list_fields(result: Record) -> Iterator[str]:
    """Return each field that says something, as a line."""
    for name, value in make_plain(result).items():
        if value not in (None, "", {}):
            yield f"{name.replace('_', ' ')}: {_format_value(value)}"


def _format_value(value: Any) -> str:
    """Return a plain value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{_format_value(v)} × {escape(str(k))}" for k, v in value.items())
    return escape(str(value))
