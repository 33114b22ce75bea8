"""The second step: three of the person's own pictures, before, after, and what was changed."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.events import Resize
from textual.widgets import Button, LoadingIndicator, Static

from tue_cli.events import Done, Failed, Looked, Note
from tue_cli.protect.result import PreviewSummary
from tue_cli.text import escape
from tue_cli.tui.draft import Draft
from tue_cli.tui.panels import make_error_panel
from tue_cli.tui.pictures import Triptych, View
from tue_cli.tui.running import JobEnded, JobEvent, Runner
from tue_cli.tui.steps import Step
from tue_cli.tui.strength import StrengthScreen
from tue_cli.tui.terminal import open_files

ROWS = 15
"""A picture gets at least so many rows of cells where there are as many."""
FRAME = 3
"""Rows around its views: what it is, what they are, and a gap."""


class LookScreen(Step):
    """Compare three of the pictures with their copies."""

    STEP = "Preview"
    HELP = (
        "Three of your own pictures, protected just now by the engine that will protect them all. "
        "The difference is multiplied by ten; mid-gray means no change.\n\nA terminal shows little "
        "detail: press o to open the files at full size. (JPEG rounds when it is written, so "
        "single pixels of a JPEG may change by more than the radius.)"
    )
    BINDINGS = [
        Binding("ctrl+n", "next", "Next", priority=True),
        Binding("right,pagedown", "turn(1)", "Next picture"),
        Binding("left,pageup", "turn(-1)", "Previous", show=False),
        Binding("o", "open", "Open full size"),
        Binding("y", "copy", "Copy command"),
    ]

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        self._runner: Runner | None = None
        self._place = 0

    def body(self) -> ComposeResult:
        """Lay out the pictures, and what was measured on them."""
        with VerticalScroll(id="looks", can_focus=False):
            yield LoadingIndicator()
        yield Static("", id="status", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Open full size", id="open")
            yield Button("Next: strength", id="next", variant="primary")

    def on_mount(self) -> None:
        """Begin where enter goes on."""
        self.query_one("#next").focus()

    async def on_screen_resume(self) -> None:
        """Make the pictures, unless they are still what is chosen."""
        if not self._draft.is_fresh:
            self._begin()
        elif not self.query(Triptych):
            await self._show_all()

    def _begin(self) -> None:
        if self._runner is not None:
            self._runner.stop()
        self._draft.looked, self._draft.looked_at = [], None
        self._place = 0
        self.query_one("#looks").remove_children(Triptych)
        self.query_one(LoadingIndicator).display = True
        self._say("Protecting three of your pictures for the preview …")
        self._runner = Runner(self, self._draft.preview)
        self._runner.start()

    @on(JobEvent)
    async def _handle_event(self, message: JobEvent) -> None:
        event = message.event
        if message.runner is not self._runner:
            return
        if isinstance(event, Looked):
            self._draft.looked.append(event)
            await self._show(event)
        elif isinstance(event, Failed):
            self.notify(f"{escape(event.path)}: {event.message}", severity="warning", markup=False)
        elif isinstance(event, Note):
            self._say(event.message)
        elif isinstance(event, Done) and isinstance(event.result, PreviewSummary):
            self._draft.estimate, self._draft.looked_at = event.result, self._draft.spec
            self.query_one(LoadingIndicator).display = False
            if event.result.psnr is not None:
                average = f"PSNR {event.result.psnr} dB on average"
                self._say(f"{average}. A view shows the part whose change is easiest to see.")

    @on(JobEnded)
    async def _handle_end(self, message: JobEnded) -> None:
        if message.runner is not self._runner or message.error is None:
            return
        self.query_one(LoadingIndicator).display = False

        def handle_answer(again: bool | None) -> None:
            if again:
                self._begin()
            else:
                self.action_back()

        self.app.push_screen(make_error_panel(message.error), handle_answer)

    async def _show_all(self) -> None:
        self.query_one(LoadingIndicator).display = False
        for looked in self._draft.looked:
            await self._show(looked)

    async def _show(self, looked: Looked) -> None:
        self.query_one(LoadingIndicator).display = False
        await self.query_one("#looks").mount(Triptych(looked))
        self._fit()

    def on_resize(self, _: Resize) -> None:
        """Give every picture its share of the room."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        looks, views = self.query_one("#looks").size, list(self.query(View))
        if not views:
            return
        needed = max(view.count_rows(looks.width // 3) for view in views)
        fitting = max(looks.height // (needed + FRAME), looks.height // ROWS)
        rows = looks.height // max(1, min(3, fitting)) - FRAME
        for view in views:
            view.styles.max_height = max(3, rows)
        for triptych in self.query(Triptych):
            triptych.styles.min_height = rows + FRAME - 1

    def _say(self, text: str) -> None:
        self.query_one("#status", Static).update(text)

    def action_turn(self, way: int) -> None:
        """Go to another of the pictures."""
        shown_ones = list(self.query(Triptych))
        if shown_ones:
            self._place = max(0, min(len(shown_ones) - 1, self._place + way))
            self.query_one("#looks", VerticalScroll).scroll_to_widget(
                shown_ones[self._place], top=True
            )

    @on(Button.Pressed, "#open")
    def action_open(self) -> None:
        """Open a picture, its copy and the difference in the system's viewer."""
        if not self._draft.looked:
            return
        looked = self._draft.looked[min(self._place, len(self._draft.looked) - 1)]
        paths = [looked.source.absolute(), looked.path, looked.full_difference]
        if not open_files(paths):
            listed = "\n".join(escape(path) for path in paths)
            self.notify(
                listed, title="No viewer was found. The files are:", timeout=20, markup=False
            )

    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        """Go on to the strength."""
        self.app.push_screen(StrengthScreen(self._draft))

    def write_command(self) -> str:
        """Return the command that protects as it was shown."""
        return self._draft.write_command()

    def on_unmount(self) -> None:
        """Leave what is being made."""
        if self._runner is not None:
            self._runner.stop()
