"""The third step: how strong, how visible, how long; with what was measured just now beside it."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Button

from tue_cli.errors import BadSetting, TueError
from tue_cli.events import Done, Looked
from tue_cli.protect.result import PreviewSummary
from tue_cli.text import format_count, format_duration
from tue_cli.tui.draft import Draft
from tue_cli.tui.forms import Form
from tue_cli.tui.pictures import Triptych
from tue_cli.tui.run import RunScreen
from tue_cli.tui.running import JobEnded, JobEvent, Runner
from tue_cli.tui.steps import FittedText, Step
from tue_cli.tui.summary import Part, format_problem, format_row, join_lines, shorten_path

WIDTH = 10
PAUSE = 0.5
"""Seconds without a change after which it is measured again."""


class StrengthScreen(Step):
    """Choose strength, format and the rest; see time and visibility."""

    STEP = "Strength"
    HELP = (
        "The strength decides how well the copies protect, and how visible the noise is. It sets "
        "the radius and the noise in smooth areas, which you can also choose. The other settings "
        "can stay as they are.\n\nTime and visibility are measured on three of your "
        "pictures, again after every change."
    )
    BINDINGS = [
        Binding("ctrl+n", "next", "Protect", priority=True),
        Binding("tab", "app.focus_next", "Next field", show=True),
        Binding("y", "copy", "Copy command"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._runner: Runner | None = None
        self._timer: Timer | None = None
        self._fault: TueError | None = None
        self._can_retry = False
        """Whether measuring failed, rather than what is filled in."""

    def body(self) -> ComposeResult:
        """Lay out the form, what it would take, and the pictures."""
        with Horizontal():
            with Vertical(id="settings", classes="box") as settings:
                settings.border_title = "How strong?"
                yield Form(self._draft.spec, first=("strength", "settings."))
            with Vertical(id="beside"):
                with Vertical(id="estimate", classes="box") as estimate:
                    estimate.border_title = "Time and visibility"
                    yield FittedText("", id="figures", markup=False)
                with Vertical(id="sample", classes="box") as sample:
                    sample.border_title = "Preview"
                with Vertical(id="same", classes="box") as same:
                    same.border_title = "Equivalent command"
                    same.border_subtitle = "ctrl+y copies it"
                    yield FittedText("", id="command", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Protect", id="next", variant="primary")

    def on_mount(self) -> None:
        """Begin with what is known."""
        self._paint()
        if self._draft.is_fresh:
            for looked in self._draft.looked[:1]:
                self._show(looked)
        else:
            self._begin()

    @on(Form.Changed)
    def _handle_change(self, message: Form.Changed) -> None:
        spec = message.form.read(self._draft.spec)
        self._fault, self._can_retry = None, False
        if spec is None:
            self._fault = BadSetting("A setting is not valid.", "It is marked on the left.")
        else:
            try:
                spec.validate()
            except TueError as error:
                self._fault = error
        if self._fault is not None:
            self._halt()
        elif spec != self._draft.spec or (self._runner is None and not self._draft.is_fresh):
            self._draft.spec = spec
            self._halt()
            self._timer = self.set_timer(PAUSE, self._begin)
        self._paint()

    def _halt(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        if self._runner is not None:
            self._runner.stop()
            self._runner = None

    def _begin(self) -> None:
        self._halt()
        self._fault, self._can_retry = None, False
        self._draft.looked, self._draft.looked_at = [], None
        self._runner = Runner(self, self._draft.preview)
        self._runner.start()
        self._paint()

    @on(JobEvent)
    def _handle_event(self, message: JobEvent) -> None:
        if message.runner is not self._runner:
            return
        if isinstance(message.event, Looked):
            self._draft.looked.append(message.event)
            if len(self._draft.looked) == 1:
                self._show(message.event)
        elif isinstance(message.event, Done) and isinstance(message.event.result, PreviewSummary):
            self._draft.estimate = message.event.result
            self._draft.looked_at = self._draft.spec
        self._paint()

    @on(JobEnded)
    def _handle_end(self, message: JobEnded) -> None:
        if message.runner is self._runner and message.error is not None:
            self._runner, self._fault, self._can_retry = None, message.error, True
            self._paint()

    def _show(self, looked: Looked) -> None:
        sample = self.query_one("#sample")
        sample.remove_children(Triptych)
        sample.mount(Triptych(looked, few=True))

    def _paint(self) -> None:
        """Write the figures and the command."""
        draft = self._draft
        self.query_one("#command", FittedText).update(draft.write_command())
        figures = self.query_one("#figures", FittedText)
        button = self.query_one("#next", Button)
        button.label = "Try again" if self._can_retry else "Protect"
        button.disabled = self._fault is not None and not self._can_retry
        if self._fault is not None:
            figures.update(format_problem(self._fault))
            return
        if not draft.is_fresh or draft.estimate is None:
            figures.update("Measuring on your pictures …")
            return
        estimate = draft.estimate
        rows: list[tuple[Part, ...]] = [
            format_row("time", (f"about {format_duration(estimate.seconds)}", "bold"), WIDTH),
            format_row("", f"for {format_count(estimate.pictures, 'picture')}", WIDTH),
        ]
        if estimate.psnr is not None:
            rows.append(format_row("visibility", (f"PSNR {estimate.psnr} dB", "bold"), WIDTH))
            rows.append(format_row("", ("higher is less visible", "$foreground-muted"), WIDTH))
        rows.append(((estimate.engine, "$foreground-muted"),))
        rows.append((("Copies go to ", "$foreground-muted"), shorten_path(draft.output)))
        figures.update(join_lines(*rows))

    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        """Protect; measure again where that did not work."""
        if self._can_retry:
            self._begin()
        elif self._fault is None:
            self._halt()
            self.app.push_screen(RunScreen(self._draft))

    def on_screen_resume(self) -> None:
        """Measure where that was left off."""
        if self._runner is None and not self._draft.is_fresh:
            self._begin()

    def write_command(self) -> str:
        """Return the command that protects with these settings."""
        return self._draft.write_command()

    def on_unmount(self) -> None:
        """Leave what is being measured."""
        self._halt()
