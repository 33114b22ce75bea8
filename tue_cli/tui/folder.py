"""The first step: a folder, what is in it, and what a class is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, DirectoryTree, Input, RadioButton, RadioSet, Static
from textual.widgets.tree import TreeNode

from tue_cli.events import Advanced, Done, Note
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.scan import ScanSpec, ScanSummary, count_images, scan_folder
from tue_cli.text import format_count
from tue_cli.tui.draft import LABELS, Draft
from tue_cli.tui.look import LookScreen
from tue_cli.tui.run import RunScreen
from tue_cli.tui.running import JobEnded, JobEvent, Runner
from tue_cli.tui.steps import FittedText, Step
from tue_cli.tui.summary import format_problem, format_scan, shorten_path
from tue_cli.tui.training import TrainScreen
from tue_cli.tui.verifying import VerifyScreen

WELCOME = """\
Choose a folder of pictures in the tree, or type its path.

tue copies the pictures. They look almost the same, but teach a model much less. The originals are \
only read, and nothing is written before step 4.

v  Verify how well copies are protected
t  Train weights on your own pictures
?  Help, on every screen"""


class Folders(DirectoryTree):
    """A tree of folders, each with the number of pictures in it."""

    ICON_NODE = "▶ "
    ICON_NODE_EXPANDED = "▼ "
    BINDINGS = [
        Binding("right", "toggle_node", "Open", show=False),
        Binding("left", "cursor_parent", "Close", show=False),
    ]

    def __init__(self, path: Path) -> None:
        super().__init__(path, id="tree")
        self._counts: dict[Path, int] = {}

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Keep folders that are not hidden, and count their pictures; called in a thread."""
        kept = [p for p in paths if not p.name.startswith(".") and self._safe_is_dir(p)]
        self._counts |= {path: count_images(path) for path in kept}
        return kept

    def render_label(self, node: TreeNode[Any], base_style: Style, style: Style) -> Text:
        """Write a folder's name and how many pictures lie in it."""
        label = super().render_label(node, base_style, style)
        count = self._counts.get(node.data.path, 0) if node.data else 0
        return label.append(f"  {count}", Style(dim=True)) if count else label


class FolderScreen(Step):
    """Choose a folder and what a class is; see what would be protected."""

    HELP = (
        "Choose the folder to protect. Only file names and a few headers are read; nothing is "
        "written yet.\n\nThe noise that protects is alike for all pictures of a class and differs "
        "between classes. So tell tue what a class is. Usually each subfolder is one, such as a "
        "person, a product or a style."
    )
    BINDINGS = [
        Binding("ctrl+n", "next", "Next", priority=True),
        Binding("r", "resume", "Continue"),
        Binding("u", "up", "Folder above"),
        Binding("v", "verify", "Verify"),
        Binding("t", "train", "Train"),
        Binding("escape", "leave", "Quit"),
    ]

    def __init__(self, start: Path, *, choose: bool = False) -> None:
        super().__init__()
        self._start = start
        self._choose = choose
        self._spec: ProtectSpec | None = None
        self._found: ScanSummary | None = None
        self._runner: Runner | None = None

    def body(self) -> ComposeResult:
        """Lay out the tree, the summary and the classes."""
        with Horizontal():
            with Vertical(id="where", classes="box") as where:
                where.border_title = "Which pictures?"
                yield Input(placeholder="Path of a folder", compact=True, id="path")
                yield Folders(self._start)
            with Vertical():
                with VerticalScroll(id="what", classes="box") as what:
                    what.border_title = "Welcome"
                    yield FittedText(WELCOME, id="summary", markup=False)
                with Vertical(id="classes", classes="box") as classes:
                    classes.border_title = "What is a class?"
                    with RadioSet(id="labels", compact=True):
                        for mode, name, _ in LABELS:
                            yield RadioButton(name, mode == "auto", id=mode, compact=True)
                    yield Static(LABELS[0][2], id="meaning", markup=False)
                    yield Input(placeholder="FILE.csv", compact=True, id="table")
                with Horizontal(classes="buttons"):
                    yield Button("Continue the run", id="resume", variant="success")
                    yield Button("Next: preview", id="next", variant="primary", disabled=True)

    def on_mount(self) -> None:
        """Begin in the tree."""
        self.query_one(Folders).focus()
        if self._choose:
            self._take(self._start)

    @on(DirectoryTree.DirectorySelected)
    def _take_selected(self, event: DirectoryTree.DirectorySelected) -> None:
        self._take(event.path)

    @on(Input.Submitted, "#path")
    def _take_typed(self, event: Input.Submitted) -> None:
        path = Path(os.path.expanduser(event.value))  # noqa: PTH111 - never raises
        if os.path.isdir(path):  # noqa: PTH112 - nor does this
            self.query_one(Folders).path = path
            self.query_one(Folders).focus()
        self._take(path)

    @on(RadioSet.Changed)
    def _take_labels(self, event: RadioSet.Changed) -> None:
        mode, _, meaning = LABELS[event.index]
        self.query_one("#meaning", Static).update(meaning)
        self.query_one("#table").display = mode == "csv"
        if self._spec is not None and mode != "csv":
            self._scan(replace(self._spec, labels=mode))

    @on(Input.Submitted, "#table")
    def _take_table(self, event: Input.Submitted) -> None:
        if self._spec is not None and event.value:
            self._scan(replace(self._spec, labels=os.path.expanduser(event.value)))  # noqa: PTH111

    def _take(self, folder: Path) -> None:
        pressed = self.query_one(RadioSet).pressed_index
        mode = LABELS[max(0, pressed)][0]
        if mode == "csv":
            mode = self.query_one("#table", Input).value or "auto"
        self._scan(ProtectSpec((folder,), labels=mode))

    def _scan(self, spec: ProtectSpec) -> None:
        """Scan the folder; stop the scan under way."""
        if self._runner is not None:
            self._runner.stop()
        self._spec, self._found = spec, None
        self._say("Reading the folder …", shorten_path(spec.paths[0]))
        self._offer()
        wanted = ScanSpec(spec.paths[0], spec.output, spec.labels)
        self._runner = Runner(self, partial(scan_folder, wanted))
        self._runner.start()

    @on(JobEvent)
    def _handle_event(self, message: JobEvent) -> None:
        event = message.event
        if message.runner is not self._runner or self._spec is None:
            return
        if isinstance(event, Advanced):
            self._say(f"Reading the folder … {format_count(event.done, 'picture')} so far")
        elif isinstance(event, Note):
            self.notify(event.message, markup=False)
        elif isinstance(event, Done) and isinstance(event.result, ScanSummary):
            self._found = event.result
            self._say(format_scan(event.result))
            self._offer()

    @on(JobEnded)
    def _handle_end(self, message: JobEnded) -> None:
        if message.runner is self._runner and message.error is not None:
            self._say(format_problem(message.error))

    def _say(self, text: Any, folder: str | None = None) -> None:
        self.query_one("#summary", FittedText).update(text)
        if folder is not None:
            self.query_one("#what").border_title = folder

    def _offer(self) -> None:
        """Show the ways on that there are."""
        self.query_one("#next", Button).disabled = self._found is None
        self.query_one("#resume").display = self._is_unfinished
        self.refresh_bindings()

    @property
    def _is_unfinished(self) -> bool:
        """Whether a run was stopped here."""
        former = None if self._found is None else self._found.former
        return former is not None and not former.is_finished

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to go on only where there is something to go on with."""
        if action == "resume":
            return self._is_unfinished
        return super().check_action(action, parameters)

    @on(Button.Pressed, "#next")
    def action_next(self) -> None:
        """Go and look at a few of the pictures."""
        if self._found is None:
            self.notify("Choose a folder with pictures first.")
            return
        self.app.push_screen(LookScreen(self._make_draft()))

    @on(Button.Pressed, "#resume")
    def action_resume(self) -> None:
        """Go on with the run that was stopped, with its own settings."""
        if self._is_unfinished:
            self.app.push_screen(RunScreen(self._make_draft()))

    def _make_draft(self) -> Draft:
        assert self._spec is not None and self._found is not None
        former = self._found.former
        spec = self._spec if former is None else former.resume(self._spec)
        return Draft(spec, self._found.output)

    def on_screen_resume(self) -> None:
        """Look again where a run may have changed the output."""
        if self._spec is not None:
            self._scan(self._spec)

    def action_up(self) -> None:
        """Show the folder above."""
        tree = self.query_one(Folders)
        tree.path = Path(tree.path).absolute().parent

    def action_verify(self) -> None:
        """Open the verification."""
        copies = originals = Path()
        if (found := self._found) is not None:
            originals = found.folder
            if found.former is not None and found.former.is_finished:
                copies = found.output
        self.app.push_screen(VerifyScreen(copies, originals))

    def action_train(self) -> None:
        """Open the training."""
        self.app.push_screen(TrainScreen(self._spec.paths[0] if self._spec else None))

    async def action_leave(self) -> None:
        """Quit."""
        await self.app.run_action("app.leave")

    def on_unmount(self) -> None:
        """Stop the scan."""
        if self._runner is not None:
            self._runner.stop()
