"""Verification: choose copies and originals, watch models being trained, read what they learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, DataTable, Static

from tue_cli.attacks.registry import ATTACKS
from tue_cli.config import FEWEST_OF_CLASS
from tue_cli.errors import BadSetting
from tue_cli.events import AnyEvent, Done, Failed, Job, Metric, Note, Saved, Started, Table
from tue_cli.fields import format_command
from tue_cli.text import escape
from tue_cli.tui.forms import Form
from tue_cli.tui.line_chart import LineChart
from tue_cli.tui.steps import VERIFY, FittedText, Step, Steps
from tue_cli.tui.summary import Part, join_lines, shorten_path
from tue_cli.tui.terminal import open_files
from tue_cli.tui.watching import Progress, WatchScreen
from tue_cli.verify.request import VerifySpec
from tue_cli.verify.result import VerifyPlan, VerifyResult
from tue_cli.verify.trials import TrialProgress

ARMS = {"clean": "success", "random": "warning", "protected": "error"}
"""What victims are trained on, and the colour of its line."""
NAMES = {"clean": "originals", "random": "random noise", "protected": "copies"}


def make_quick_spec(protected: Path, original: Path) -> VerifySpec:
    """Return the verification that is offered after protecting; its page lies beside the copies."""
    report = protected.absolute().with_name(f"{protected.name}-report.html")
    return VerifySpec(protected, original, report=report, resume=True)


class VerifyScreen(Step):
    """Choose what is verified, and how thoroughly."""

    TITLE_OF = "Verify"
    STEPS = VERIFY
    STEP = "Settings"
    HELP = (
        "Small models (victims) are trained on the copies, on the originals, and on originals with "
        "random noise. All are tested on clean pictures that they never saw. Protection is how "
        "much of the accuracy above chance is lost on the copies. The result is the lowest "
        "protection among the attackers.\n\n"
        f"This needs at least two classes of {FEWEST_OF_CLASS} pictures or more. If you have only "
        "one, name a folder of other people's pictures as the background, one subfolder per class."
    )
    BINDINGS = [
        Binding("ctrl+n", "next", "Verify", priority=True),
        Binding("tab", "app.focus_next", "Next field", show=True),
        Binding("y", "copy", "Copy command"),
    ]

    def __init__(self, protected: Path, original: Path) -> None:
        """A path without a name stands for a folder that is to be chosen yet."""
        super().__init__()
        self._spec = VerifySpec(protected, original, resume=True)
        self._sound = True

    def body(self) -> ComposeResult:
        """Lay out the form and the command."""
        with Horizontal():
            with Vertical(id="settings", classes="box") as settings:
                settings.border_title = "What to verify"
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
                    yield Button("Verify", id="next", variant="primary")

    def on_mount(self) -> None:
        """Begin at the copies."""
        form = self.query_one(Form)
        for name in ("protected", "original"):
            if not getattr(self._spec, name).name:
                form.get_field(name).fill("")
        form.get_field("protected").query_one("Input").focus()
        self._paint()

    @on(Form.Changed)
    def _handle_change(self, message: Form.Changed) -> None:
        spec = message.form.read(self._spec)
        self._sound = spec is not None
        self._spec = spec or self._spec
        self._paint()

    def _paint(self) -> None:
        self.query_one("#command", FittedText).update(self.write_command() or "")
        self.query_one("#next", Button).disabled = not self._sound

    def write_command(self) -> str | None:
        """Return the equivalent command."""
        return format_command("verify", self._spec) if self._sound else None

    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        """Verify."""
        if self._sound:
            self.app.push_screen(VerifyRun(self._spec))


class VerifyRun(WatchScreen):
    """Watch victims being trained; read what they learned."""

    TITLE_OF = "Verify"
    STEPS = VERIFY
    STEP = "Run"
    WORK = "Verifying"
    STOPPING = "It stops at the next measurement. Finished victims are kept."
    HELP = (
        "Each line is the accuracy of a victim on clean pictures that it never saw. For the "
        "originals it should rise; for the copies it should stay low. Random noise of the same "
        "radius is the control: it shows that not just any noise protects."
    )
    BINDINGS = [Binding("o", "open", "Open report")]

    def __init__(self, spec: VerifySpec) -> None:
        super().__init__()
        self._spec = spec
        self._attack = ""
        self._plan: VerifyPlan | None = None

    def body(self) -> ComposeResult:
        """Lay out the headline, the chart and the attackers."""
        yield Progress()
        yield from self.compose_buttons()
        yield FittedText("", id="headline", markup=False)
        with Horizontal(id="training"):
            names = {NAMES[arm]: colour for arm, colour in ARMS.items()}
            yield LineChart("Accuracy on clean pictures", names, top=1.0, percent=True, id="chart")
            with Vertical(id="attackers", classes="box") as attackers:
                attackers.border_title = "Attackers"
                yield DataTable(id="rows", cursor_type="row", zebra_stripes=True)
        yield FittedText("", id="notes", markup=False)
        yield Static(VerifyScreen.HELP, id="explained", classes="box", markup=False)

    def make_job(self) -> Job[VerifyResult]:
        """Return the job that verifies."""
        from tue_cli.verify.run import verify

        if not self._spec.protected.name:
            raise BadSetting("The folder of copies is missing.", "Go back and name it.")
        return verify(replace(self._spec, command=self.write_command()))

    def write_command(self) -> str:
        """Return the equivalent command."""
        return format_command("verify", self._spec)

    def write_resume_command(self) -> str:
        """Return the command that goes on from what is finished."""
        return format_command("verify", replace(self._spec, resume=True))

    def prepare(self) -> None:
        """Clear what a former attempt painted."""
        self.query_one(Steps).go_to("Run")
        self.remove_class("-judged")
        self._attack = ""
        self.query_one("#headline").display = False
        self.query_one("#training").display = True
        self.query_one("#explained").display = False
        self.query_one("#notes", FittedText).update("")
        table = self.query_one("#rows", DataTable)
        table.clear(columns=True)
        table.add_column("attacker", key="trained")
        for arm, name in NAMES.items():
            table.add_column(name, key=arm)

    def show_event(self, event: AnyEvent) -> None:
        """Paint an event."""
        if isinstance(event, Started) and isinstance(event.plan, VerifyPlan):
            plan = self._plan = event.plan
            self.query_one("#notes", FittedText).update(
                f"{plan.training_pictures} pictures in {plan.classes} classes, tested on "
                f"{plan.held_out_pictures} others; {plan.victims} on {plan.device}"
            )
        elif isinstance(event, Metric) and isinstance(event.trial, TrialProgress):
            self._show_measurement(event, event.trial)
        elif isinstance(event, Note):
            self.notify(event.message, markup=False)
        elif isinstance(event, Failed):
            self.notify(f"{escape(event.path)}: {event.message}", severity="warning", markup=False)
        elif isinstance(event, Saved):
            self.notify(escape(event.path), title="Report written", markup=False)
        elif isinstance(event, Table):
            self._show_verdict(event)
        elif isinstance(event, Done) and isinstance(event.result, VerifyResult):
            self._show_result(event.result, event.said)

    def _show_measurement(self, event: Metric, trial: TrialProgress) -> None:
        """Add a point to the chart, and fill in the attacker's row."""
        arm, trained = trial.arm, self._title(trial)
        accuracy = event.values["accuracy"]
        chart, table = self.query_one(LineChart), self.query_one("#rows", DataTable)
        if trained != self._attack:
            self._attack = trained
            chart.begin(f"Accuracy on clean pictures: {trained}")
        chart.add(NAMES.get(arm, arm), event.step, accuracy, event.steps)
        if trained not in table.rows:
            table.add_row(Text(trained), *["–"] * len(NAMES), key=trained)
        if arm in NAMES:
            style = "bold" if event.step == event.steps else "dim"
            table.update_cell(trained, arm, Text(f"{accuracy:.0%}", style), update_width=True)

    def _title(self, trial: TrialProgress) -> str:
        """Return what the attacker is called; its seed and fold where there are several."""
        known = ATTACKS.get(trial.attack)
        title = known.title if known else trial.attack
        if self._plan is not None and self._plan.seeds > 1:
            title += f", seed {trial.seed}"
        return title if trial.fold is None else f"{title}, fold {trial.fold}"

    def _show_verdict(self, event: Table) -> None:
        table = self.query_one("#rows", DataTable)
        table.clear(columns=True)
        # The protection stands first: it is what one came for; the victim is often the same.
        order = [0, len(event.columns) - 1, *range(2, len(event.columns) - 1), 1]
        for place in order:
            cells = (event.columns[place], *(escape(row[place]) for row in event.rows))
            table.add_column(cells[0], width=max(map(cell_len, cells)))
        for row in event.rows:
            table.add_row(*(Text(escape(row[place])) for place in order))
        self.add_class("-judged")
        self.query_one("#attackers").border_title = "Protection"

    def _show_result(self, result: VerifyResult, said: tuple[str, ...]) -> None:
        """Show the headline, and what to mind about it."""
        self.mark_finished()
        self.query_one(Steps).go_to("Result")
        first, *others = said
        sound = result.status == "conclusive"
        rows: list[tuple[Part, ...]] = [((first, "bold $accent" if sound else "bold $warning"),)]
        rows += [((text, "$foreground-muted"),) for text in others]
        if self._has_report and self._spec.report is not None:
            rows.append((f"Next: press o to open the report, {shorten_path(self._spec.report)}.",))
        headline = self.query_one("#headline", FittedText)
        headline.display = True
        headline.update(join_lines(*rows))
        self.query_one("#training").display = bool(self._attack)
        self.query_one("#explained").display = not self._attack

    @property
    def _has_report(self) -> bool:
        report = self._spec.report
        return report is not None and self._finished and report.exists()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer the report once it is written."""
        return self._has_report if action == "open" else super().check_action(action, parameters)

    def action_open(self) -> None:
        """Open the report."""
        report = self._spec.report
        if report is not None and not open_files([report]):
            self.notify(escape(report), title="No viewer was found. The report is:", markup=False)
