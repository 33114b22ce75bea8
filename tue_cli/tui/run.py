"""The fourth step: the pictures are protected; what is written and what failed, as it comes."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, RichLog

from tue_cli.errors import REASONS
from tue_cli.events import AnyEvent, Done, Failed, Job, Note, Saved, Skipped, Started
from tue_cli.fields import format_command
from tue_cli.protect.result import CopyRecord, ProtectForecast, ProtectPlan, ProtectSummary
from tue_cli.text import escape
from tue_cli.tui.draft import Draft
from tue_cli.tui.result import ResultScreen
from tue_cli.tui.steps import FittedText
from tue_cli.tui.summary import shorten_path, tabulate
from tue_cli.tui.watching import Progress, WatchScreen

MOST_ROWS = 2000
"""Rows that the tables keep; the manifest has them all."""


class RunScreen(WatchScreen):
    """Protect the folder."""

    STEP = "Run"
    HELP = (
        "A copy is written completely or not at all, and the output folder holds a record of what "
        "is done. You can stop, close the window, or lose power: choose the same folder again to "
        "continue."
    )

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._failures: list[Failed] = []

    def body(self) -> ComposeResult:
        """Lay out the progress, the plan, and what happens."""
        yield Progress()
        yield from self.compose_buttons()
        with Horizontal(id="happening"):
            with Vertical(id="written", classes="box") as written:
                written.border_title = "Copies and their PSNR"
                yield RichLog(
                    id="log", max_lines=MOST_ROWS, min_width=0, wrap=True, auto_scroll=True
                )
            with Vertical(id="aside"):
                with Vertical(id="plan", classes="box") as plan:
                    plan.border_title = "Settings"
                    yield FittedText("", id="facts", markup=False)
                with Vertical(id="failures", classes="box") as failures:
                    failures.border_title = "Not protected"
                    yield DataTable(id="failed", cursor_type="none", show_header=False)

    def make_job(self) -> Job[ProtectForecast | ProtectSummary]:
        """Return the job that protects."""
        return self._draft.protect()

    def write_command(self) -> str:
        """Return the equivalent command."""
        return self._draft.write_command()

    def write_resume_command(self) -> str:
        """Return the command that goes on from what is finished."""
        return format_command("protect", replace(self._draft.spec, existing="skip"))

    def prepare(self) -> None:
        """Clear what a former attempt painted."""
        self._failures = []
        self.query_one("#log", RichLog).clear()
        self.query_one("#failures").display = False
        table = self.query_one("#failed", DataTable)
        table.clear(columns=True)
        table.add_columns("picture", "reason")

    def show_event(self, event: AnyEvent) -> None:
        """Paint an event."""
        log = self.query_one("#log", RichLog)
        if isinstance(event, Started) and isinstance(event.plan, ProtectPlan):
            self.query_one("#facts", FittedText).update(_format_plan(event.plan))
        elif isinstance(event, Saved) and isinstance(event.copy, CopyRecord):
            copy = event.copy
            quality = (f"{copy.psnr:.1f} dB  ", "dim")
            log.write(_on_one_line(("✓ ", "green"), quality, escape(copy.path)))
        elif isinstance(event, Skipped):
            log.write(_on_one_line((f"· {shorten_path(event.path)}  {event.reason}", "dim")))
        elif isinstance(event, Failed):
            self._failures.append(event)
            reason = REASONS.get(event.reason, event.reason)
            log.write(_on_one_line(("✗ ", "red"), shorten_path(event.path), f"  {reason}"))
            self.query_one("#failures").display = True
            if len(self._failures) <= MOST_ROWS:
                row = (Text(escape(event.path.name)), Text(reason, "red"))
                self.query_one("#failed", DataTable).add_row(*row)
        elif isinstance(event, Note):
            log.write(Text(event.message))
        elif isinstance(event, Done) and isinstance(event.result, ProtectSummary):
            self.mark_finished()
            result = ResultScreen(self._draft, event.result, tuple(self._failures))
            self.app.switch_screen(result)


def _on_one_line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _format_plan(plan: ProtectPlan) -> Table:
    """Return what was decided, for people."""
    keys = [f"{escape(label)} → {escape(key)}" for label, key in plan.keys.items()]
    rows = {
        "output": shorten_path(plan.output),
        "weights": escape(plan.weights),
        "method": plan.method,
        "engine": escape(plan.engine),
        "radius": plan.radius,
        "codes": ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if keys[8:] else ""),
    }
    return tabulate({name: said for name, said in rows.items() if said})
