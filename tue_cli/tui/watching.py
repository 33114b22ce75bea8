"""What all screens share that run a job which writes: progress, hold, stop, errors, going on."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Label, ProgressBar

from tue_cli.events import Advanced, AnyEvent, Job, Record, Started
from tue_cli.text import format_duration
from tue_cli.tui.panels import Choice, make_error_panel
from tue_cli.tui.running import JobEnded, JobEvent, Runner
from tue_cli.tui.steps import Step


class Progress(Vertical):
    """How far a job is, how fast, how long it still takes."""

    def __init__(self) -> None:
        super().__init__(id="progress")
        self._unit = ""

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield ProgressBar(show_eta=False, show_percentage=True)
        yield Label("Preparing …", id="state", markup=False)

    def start(self, event: Started) -> None:
        """Take the total."""
        self._unit = event.unit
        self.query_one(ProgressBar).update(total=event.total or None, progress=0)
        about = "" if event.seconds is None else f", about {format_duration(event.seconds)}"
        self.say(f"0 of {event.total:,} {event.unit}{about}")

    def advance(self, event: Advanced) -> None:
        """Take how far it is."""
        self.query_one(ProgressBar).update(total=event.total, progress=event.done)
        parts = [f"{event.done:,} of {event.total:,} {self._unit}"]
        if event.rate:
            parts.append(f"{event.rate:,.1f} pictures per second")
        if event.seconds_left is not None and event.done < event.total:
            parts.append(f"{format_duration(event.seconds_left)} left")
        self.say("   ·   ".join(parts))

    def say(self, text: str) -> None:
        """Write the line below the bar."""
        self.query_one("#state", Label).update(text)


class WatchScreen(Step):
    """Run a job, show what happens, hold it, stop it, go on with it."""

    BINDINGS = [
        Binding("p", "hold", "Pause"),
        Binding("c", "cancel", "Stop"),
        Binding("r", "resume", "Continue"),
        Binding("y", "copy", "Copy command"),
    ]
    WORK = "Protecting"
    """What is done, in a word."""
    STOPPING = "Pictures that are in progress are finished first. All finished copies are kept."
    STOPPED = "Stopped. Finished work is kept. Press r to continue."

    def __init__(self) -> None:
        super().__init__()
        self._runner: Runner | None = None
        self._finished = False

    def make_job(self) -> Job[Record]:
        """Return the job; called in its thread."""
        raise NotImplementedError

    def write_resume_command(self) -> str:
        """Return the command that goes on from what is finished."""
        raise NotImplementedError

    def show_event(self, event: AnyEvent) -> None:
        """Paint an event."""

    def prepare(self) -> None:
        """Clear what a former attempt painted."""

    def compose_buttons(self) -> ComposeResult:
        """Yield the buttons below the progress."""
        with Horizontal(classes="buttons"):
            yield Button("Pause", id="hold")
            yield Button("Stop", id="cancel")
            yield Button("Continue", id="resume", variant="success")

    @property
    def is_working(self) -> bool:
        """Whether the job is under way."""
        return self._runner is not None and not self._runner.is_over

    def on_mount(self) -> None:
        """Begin at once: this screen is only opened to run."""
        self.begin()

    def begin(self) -> None:
        """Run the job, or run it again."""
        self._finished = False
        self.prepare()
        self._runner = Runner(self, self.make_job)
        self._runner.start()
        self.query_one(Progress).say("Preparing …")
        self._offer()

    def stop(self) -> None:
        """Ask the job to stop."""
        if self._runner is not None:
            self._runner.stop()

    @on(JobEvent)
    def _handle_event(self, message: JobEvent) -> None:
        if message.runner is not self._runner:
            return
        if isinstance(message.event, Started):
            self.query_one(Progress).start(message.event)
        elif isinstance(message.event, Advanced):
            self.query_one(Progress).advance(message.event)
            self._remind()
        self.show_event(message.event)

    @on(JobEnded)
    def _handle_end(self, message: JobEnded) -> None:
        if message.runner is not self._runner:
            return
        if message.error is not None:
            self.query_one(Progress).say(message.error.message)
            self.app.push_screen(make_error_panel(message.error), self._handle_answer)
        elif not self._finished:
            self.query_one(Progress).say(self.STOPPED)
        self._offer()
        self.wrap_up()

    def _remind(self) -> None:
        """Say that it is held or stops; events that were under way may still come."""
        if self._runner is not None and self._runner.is_stopping:
            self.query_one(Progress).say(f"Stopping … {self.STOPPING}")
        elif self._runner is not None and self._runner.is_held:
            self.query_one(Progress).say("Paused. Press p to continue.")

    def wrap_up(self) -> None:
        """Do what is to be done when the job is over, however it ended."""

    def mark_finished(self) -> None:
        """Remember that the job has said its last word."""
        self._finished = True

    def _handle_answer(self, again: bool | None) -> None:
        if again:
            self.begin()
        else:
            self.app.pop_screen()

    def _offer(self) -> None:
        for name, action in (("#hold", "hold"), ("#cancel", "cancel"), ("#resume", "resume")):
            for button in self.query(name):
                button.display = bool(self.check_action(action, ()))
        held = self._runner is not None and self._runner.is_held
        for button in self.query("#hold").results(Button):
            button.label = "Continue" if held else "Pause"
        for row in self.query(".buttons"):
            row.display = any(button.display for button in row.query(Button))
        self.query_one(Progress).display = not self._finished
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done now."""
        if action in ("hold", "cancel"):
            return self.is_working and self._runner is not None and not self._runner.is_stopping
        if action == "resume":
            return not self.is_working and not self._finished
        return super().check_action(action, parameters)

    @on(Button.Pressed, "#hold")
    def action_hold(self) -> None:
        """Pause, or go on after a pause."""
        if self._runner is None:
            return
        if self._runner.is_held:
            self._runner.go_on()
            self.query_one(Progress).say(f"{self.WORK} …")
        else:
            self._runner.hold()
            self._remind()
        self._offer()

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        """Stop after what is under way."""
        self.stop()
        self._remind()
        self._offer()

    @on(Button.Pressed, "#resume")
    def action_resume(self) -> None:
        """Go on with a run that was stopped."""
        if not self.is_working:
            self.begin()

    def action_back(self) -> None:
        """Go back; while the job is under way, ask first."""
        if not self.is_working:
            self.app.pop_screen()
            return

        def handle_answer(stop: bool | None) -> None:
            if stop:
                self.stop()
                self.app.pop_screen()

        question = Choice(f"{self.WORK} is still running", self.STOPPING, "Stop", "Keep running")
        self.app.push_screen(question, handle_answer)

    def on_unmount(self) -> None:
        """Leave nothing running that nobody sees."""
        self.stop()
