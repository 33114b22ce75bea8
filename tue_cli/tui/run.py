"""The fourth step: the pictures are protected; what is written and what failed, as it comes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import DataTable, RichLog

from tue_cli.events import Done, Event, Failed, Note, Saved, Skipped, Started
from tue_cli.text import printable
from tue_cli.tui.draft import Draft
from tue_cli.tui.result import ResultScreen
from tue_cli.tui.steps import Said
from tue_cli.tui.summary import Part, lines, named, near
from tue_cli.tui.watching import Progress, WatchScreen

WIDTH = 7
MOST_ROWS = 2000
"""Rows that the tables keep; the manifest has them all."""


class RunScreen(WatchScreen):
    """Protect the folder."""

    STEP = "Run"
    HELP = (
        "Every copy appears whole or not at all, and a journal in the output remembers it. Stop, "
        "close the window, pull the plug: the same folder goes on where it was."
    )

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._failures: list[Failed] = []

    def body(self) -> ComposeResult:
        """Lay out the progress, the plan, and what happens."""
        yield Progress()
        yield from self.buttons()
        with Horizontal(id="happening"):
            with Vertical(id="written", classes="box") as written:
                written.border_title = "Written"
                yield RichLog(id="log", max_lines=MOST_ROWS, wrap=False, auto_scroll=True)
            with Vertical(id="aside"):
                with Vertical(id="plan", classes="box") as plan:
                    plan.border_title = "The plan"
                    yield Said("", id="facts", markup=False)
                with Vertical(id="failures", classes="box") as failures:
                    failures.border_title = "Not protected"
                    yield DataTable(id="failed", cursor_type="none", show_header=False)

    def job(self) -> Generator[Event, None, None]:
        """Return the job that protects."""
        return self._draft.protect()

    def command(self) -> str:
        """Return the equivalent command; run again, it goes on."""
        return self._draft.command()

    def prepared(self) -> None:
        """Clear what a former attempt painted."""
        self._failures = []
        self.query_one("#log", RichLog).clear()
        self.query_one("#failures").display = False
        table = self.query_one("#failed", DataTable)
        table.clear(columns=True)
        table.add_columns("picture", "reason")

    def happened(self, event: Event) -> None:
        """Paint an event."""
        log = self.query_one("#log", RichLog)
        if isinstance(event, Started):
            self.query_one("#facts", Said).update(_plan(event.facts))
        elif isinstance(event, Saved):
            facts = event.facts
            line = Text.assemble(
                ("✓ ", "green"), printable(facts.get("path", event.path)), overflow="ellipsis"
            )
            if "psnr" in facts:
                line.append(f"  {facts['psnr']:.1f} dB", "dim")
            log.write(line)
        elif isinstance(event, Skipped):
            log.write(Text.assemble(("· ", "dim"), (f"{near(event.path)}  {event.reason}", "dim")))
        elif isinstance(event, Failed):
            self._failures.append(event)
            log.write(Text.assemble(("✗ ", "red"), near(event.path), f"  {event.reason}"))
            self.query_one("#failures").display = True
            if len(self._failures) <= MOST_ROWS:
                row = (Text(printable(event.path.name)), Text(event.reason, "red"))
                self.query_one("#failed", DataTable).add_row(*row)
        elif isinstance(event, Note):
            log.write(Text(event.message))
        elif isinstance(event, Done):
            self.finished()
            result = ResultScreen(self._draft, event.facts, tuple(self._failures))
            self.app.switch_screen(result)


def _plan(facts: dict[str, Any]) -> Content:
    """Return what was decided, for people."""
    rows: list[tuple[Part, ...]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            pairs = [
                f"{printable(str(label))} → {printable(str(key))}" for label, key in value.items()
            ]
            value = ", ".join(pairs[:8]) + (f" and {len(pairs) - 8} more" if pairs[8:] else "")
        said = near(value) if name == "output" else printable(str(value))
        rows.append(named(name, said, WIDTH))
    return lines(*rows)
