"""The last step: what was protected and what was not, the proof, and the command for next time."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Digits, Label, Static

from tue_cli.config import FEWEST_OF_CLASS
from tue_cli.events import Failed
from tue_cli.protect.result import ProtectSummary, describe_notes
from tue_cli.text import escape, format_duration
from tue_cli.tui.draft import Draft
from tue_cli.tui.steps import Step
from tue_cli.tui.summary import Part, format_row, join_lines, shorten_path
from tue_cli.tui.terminal import open_files
from tue_cli.tui.verifying import VerifyRun, make_quick_spec

WIDTH = 8
MOST = 500
"""Failures that are listed."""
NEXT = (
    "Next: press v to measure how well the copies protect. "
    f"This needs two classes of at least {FEWEST_OF_CLASS} pictures."
)


class ResultScreen(Step):
    """Read what came of it; go on to the proof."""

    STEP = "Result"
    HELP = (
        "The output folder holds the copies and tue-manifest.json, which records what was done to "
        "each, measured on the file that was written. Keep it: checking and verifying need it."
        "\n\nv trains small models on the copies and on the originals, and measures how much less "
        "the copies teach."
    )
    BINDINGS = [
        Binding("v", "verify", "Verify now"),
        Binding("y", "copy", "Copy command"),
        Binding("o", "open", "Open folder"),
        Binding("n,escape", "again", "Another folder"),
    ]

    def __init__(self, draft: Draft, summary: ProtectSummary, failures: tuple[Failed, ...]) -> None:
        super().__init__()
        self._draft = draft
        self._summary = summary
        self._failures = failures

    def body(self) -> ComposeResult:
        """Lay out the counts, what failed and why, and the command."""
        summary = self._summary
        with Horizontal(id="counts"):
            for count, name, kind in (
                (summary.protected, "protected", "success"),
                (
                    summary.already_done + summary.already_protected,
                    "already protected",
                    "plain",
                ),
                (summary.failed, "not protected", "failure" if summary.failed else "plain"),
            ):
                with Vertical(classes=f"count {kind}"):
                    yield Digits(f"{count:,}")
                    yield Label(name)
        with VerticalScroll(id="outcome", classes="box", can_focus=False) as outcome:
            outcome.border_title = "Result"
            yield Static(self._format_outcome(), markup=False)
        with Vertical(id="same", classes="box") as same:
            same.border_title = "Equivalent command"
            same.border_subtitle = "y copies it"
            yield Static(self._draft.write_command(), id="command", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Another folder", id="again")
            yield Button("Open folder", id="open")
            yield Button("Verify now", id="verify", variant="primary")

    def on_mount(self) -> None:
        """Begin where enter goes on."""
        self.query_one("#verify").focus()

    def _format_outcome(self) -> Content:
        summary = self._summary
        rows: list[tuple[Part, ...]] = []
        for failure in self._failures[:MOST]:
            name, message = escape(failure.path.name), escape(failure.message)
            rows.append(((name, "bold $error"), f"  {message}"))
        if len(self._failures) > MOST:
            more = f"and {len(self._failures) - MOST:,} more, in the manifest"
            rows.append(((more, "$warning"),))
        if rows:
            rows.append(())
        rows.append(format_row("copies", shorten_path(summary.output), WIDTH))
        rows.append(format_row("manifest", shorten_path(summary.manifest), WIDTH))
        rows.append(format_row("time", format_duration(summary.seconds), WIDTH))
        if summary.notes:
            rows.append(())
            rows += [((line, "$foreground-muted"),) for line in describe_notes(summary.notes)]
        for line in summary.scope:
            rows += [(), ((line, "$warning"),)]
        if not summary.protected and not summary.failed:
            are = "has its copy" if summary.already_done else "is a protected copy already"
            rows += [(), ((f"There was nothing to do: every picture {are}.", "$success"),)]
        rows += [(), ((NEXT, "$foreground-muted"),)]
        return join_lines(*rows)

    def write_command(self) -> str:
        """Return the equivalent command."""
        return self._draft.write_command()

    @on(Button.Pressed, "#verify")
    def action_verify(self) -> None:
        """Verify these copies, in place."""
        spec = make_quick_spec(self._summary.output, self._draft.spec.paths[0])
        self.app.push_screen(VerifyRun(spec))

    @on(Button.Pressed, "#open")
    def action_open(self) -> None:
        """Open the folder of the copies."""
        if not open_files([self._summary.output]):
            self.notify(
                escape(self._summary.output),
                title="No viewer was found. The copies are in:",
                markup=False,
            )

    @on(Button.Pressed, "#again")
    def action_again(self) -> None:
        """Go back to the first step."""
        while len(self.app.screen_stack) > 2:
            self.app.pop_screen()
