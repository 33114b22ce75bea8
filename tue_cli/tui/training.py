"""Training: weights of one's own, from a folder with one subfolder a class."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, RichLog, Static

from tue_cli.events import AnyEvent, Done, Failed, Job, Metric, Note, Saved, Started, make_plain
from tue_cli.fields import format_command
from tue_cli.text import escape, format_count, format_duration
from tue_cli.train.result import TrainPlan, TrainSummary
from tue_cli.train.run import TrainSpec
from tue_cli.tui.forms import Form
from tue_cli.tui.line_chart import LineChart
from tue_cli.tui.steps import TRAIN, FittedText, Step, Steps
from tue_cli.tui.summary import Part, join_lines
from tue_cli.tui.watching import Progress, WatchScreen

NETS = {"score": "score network"}
"""What a net is called, where its own name does not tell."""


class TrainScreen(Step):
    """Choose pictures, a file for the weights, and how they are trained."""

    TITLE_OF = "Train"
    STEPS = TRAIN
    STEP = "Settings"
    HELP = (
        "The weights decide what the noise looks like. The packaged ones work at once; weights "
        "trained on pictures like yours may protect better. The data is a folder with one "
        "subfolder per class.\n\nThe preset paper needs a GPU; packaged takes about 45 minutes on "
        "one CPU core. A checkpoint beside the weights lets a stopped training continue exactly."
    )
    BINDINGS = [
        Binding("ctrl+n", "next", "Train", priority=True),
        Binding("tab", "app.focus_next", "Next field", show=True),
        Binding("y", "copy", "Copy command"),
    ]

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        output = Path("mine.safetensors")
        self._spec = TrainSpec(folder or Path(), output, resume=_has_checkpoint(output))
        self._sound = True

    def body(self) -> ComposeResult:
        """Lay out the form and the command."""
        with Horizontal():
            with Vertical(id="settings", classes="box") as settings:
                settings.border_title = "What to train"
                yield Form(self._spec)
            with Vertical(id="beside"):
                with VerticalScroll(id="about", classes="box") as about:
                    about.border_title = "What happens"
                    yield Static(self.HELP, id="explained", markup=False)
                with Vertical(id="same", classes="box") as same:
                    same.border_title = "Equivalent command"
                    same.border_subtitle = "ctrl+y copies it"
                    yield FittedText("", id="command", markup=False)
                with Horizontal(classes="buttons"):
                    yield Button("Train", id="next", variant="primary")

    def on_mount(self) -> None:
        """Begin at the data."""
        form = self.query_one(Form)
        if not self._spec.data.name:
            form.get_field("data").fill("")
        form.get_field("data").query_one("Input").focus()
        self._paint()

    @on(Form.Changed)
    def _handle_change(self, message: Form.Changed) -> None:
        spec = message.form.read(self._spec)
        self._sound = spec is not None
        if spec is not None:
            if spec.output != self._spec.output:
                left = _has_checkpoint(spec.output)
                message.form.get_field("resume").fill("yes" if left else "no")
                spec = replace(spec, resume=left)
            self._spec = spec
        self._paint()

    def _paint(self) -> None:
        self.query_one("#command", FittedText).update(self.write_command() or "")
        self.query_one("#next", Button).disabled = not self._sound

    def write_command(self) -> str | None:
        """Return the equivalent command."""
        return format_command("train", self._spec) if self._sound else None

    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        """Train."""
        if self._sound:
            self.app.push_screen(TrainRun(self._spec))


def _has_checkpoint(output: Path) -> bool:
    """Say whether a training was stopped here; what is typed may be no file, such as a dot."""
    return bool(output.name) and os.path.exists(output.with_suffix(".checkpoint"))  # noqa: PTH110


class TrainRun(WatchScreen):
    """Watch the nets being trained; read what came of it."""

    TITLE_OF = "Train"
    STEPS = TRAIN
    STEP = "Run"
    WORK = "Training"
    STOPPING = "The current step is finished first. Then a checkpoint is written."
    STOPPED = "Stopped. A checkpoint is written. Press r to continue from it."
    HELP = (
        "First the score network is trained, then the surrogate, on pictures that it protects. "
        "The charts show the loss of each, on a scale of its own."
    )

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__()
        self._spec = spec
        self._begun = False

    def body(self) -> ComposeResult:
        """Lay out the charts and what is said."""
        yield Progress()
        yield from self.compose_buttons()
        yield FittedText("", id="headline", markup=False)
        with Horizontal(id="training"):
            yield LineChart("Loss of the score network", {"score": "accent"}, id="score")
            yield LineChart("Loss of the surrogate", {"surrogate": "success"}, id="surrogate")
        with Vertical(id="said", classes="box") as said:
            said.border_title = "Messages"
            yield RichLog(id="log", max_lines=500, wrap=True)

    def make_job(self) -> Job[TrainSummary]:
        """Return the job that trains; a second attempt goes on from the checkpoint."""
        from tue_cli.train.run import train

        again = self._spec.resume or self._begun
        self._begun = True
        lasting = format_command("train", replace(self._spec, resume=False, max_seconds=None))
        return train(replace(self._spec, resume=again, command=lasting))

    def write_command(self) -> str:
        """Return the equivalent command."""
        return format_command("train", self._spec)

    def write_resume_command(self) -> str:
        """Return the command that goes on from what is finished."""
        return format_command("train", replace(self._spec, resume=True))

    def prepare(self) -> None:
        """Clear what a former attempt painted."""
        self.query_one(Steps).go_to("Run")
        self.query_one("#headline").display = False
        self.query_one("#log", RichLog).clear()

    def show_event(self, event: AnyEvent) -> None:
        """Paint an event."""
        log = self.query_one("#log", RichLog)
        if isinstance(event, Started) and isinstance(event.plan, TrainPlan):
            for name, value in make_plain(event.plan).items():
                log.write(Text.assemble((f"{name}  ", "dim"), escape(str(value))))
        elif isinstance(event, Metric):
            for value in event.values.values():
                chart = self.query_one(f"#{event.phase}", LineChart)
                chart.add(event.phase, event.step, value, event.steps)
        elif isinstance(event, Note):
            log.write(Text(event.message))
        elif isinstance(event, Failed):
            log.write(Text.assemble(("✗ ", "red"), f"{escape(event.path)}: {event.message}"))
        elif isinstance(event, Saved):
            log.write(Text.assemble(("✓ ", "green"), escape(event.path)))
        elif isinstance(event, Done) and isinstance(event.result, TrainSummary):
            self._show_result(event.result)

    def _show_result(self, result: TrainSummary) -> None:
        if not self._spec.output.with_suffix(".checkpoint").exists():
            self.mark_finished()
        self.query_one(Steps).go_to("Result")
        steps = ", ".join(
            f"{format_count(count, 'step')} of the {NETS.get(name, name)}"
            for name, count in result.steps.items()
        )
        rows: list[tuple[Part, ...]] = []
        if result.weights is not None:
            rows.append((("The weights are in ", "bold $accent"), escape(result.weights)))
            rows.append(
                ("Next: protect a folder, and enter this file as weights in step 3, Strength.",)
            )
        else:
            rows.append((("There are no weights yet. Press r to continue.", "bold $warning"),))
        took = f"Trained for {format_duration(result.seconds)}: {steps}."
        rows.append(((took, "$foreground-muted"),))
        headline = self.query_one("#headline", FittedText)
        headline.display = True
        headline.update(join_lines(*rows))
