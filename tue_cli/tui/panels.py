"""What lies over a screen: an error with its remedy, a question, the help."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Label, Static

from tue_cli.errors import TueError
from tue_cli.text import escape


class Choice(ModalScreen[bool]):
    """A question with two answers; escape is the second."""

    BINDINGS = [
        Binding("escape,n", "answer(False)", "No", show=False),
        Binding("y", "answer(True)", "Yes", show=False),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, text: str, yes: str, no: str, *, kind: str = "question") -> None:
        super().__init__()
        self._title, self._text, self._yes, self._no, self._kind = title, text, yes, no, kind

    def compose(self) -> ComposeResult:
        """Lay the panel out."""
        with Vertical(classes=f"panel {self._kind}") as panel:
            panel.border_title = self._title
            with VerticalScroll(can_focus=False):
                yield Static(self._text, markup=False)
            with Horizontal(classes="buttons"):
                yield Button(self._yes, id="yes", variant="primary")
                yield Button(self._no, id="no")

    @on(Button.Pressed)
    def _handle_press(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answer by a key."""
        self.dismiss(answer)


def make_error_panel(error: TueError) -> Choice:
    """Return the panel for a job's error: what was found, what to do, try again or go back."""
    text = escape(error.message)
    if error.remedy:
        text += f"\n\n{escape(error.remedy)}"
    return Choice("This did not work", text, "Try again", "Back", kind="error")


class Help(ModalScreen[None]):
    """What a screen is for, and its keys."""

    BINDINGS = [Binding("escape,question_mark,f1,enter,q", "dismiss", "Close")]

    def __init__(self, text: str, keys: dict[str, list[str]]) -> None:
        super().__init__()
        self._text = text
        self._keys = keys

    def compose(self) -> ComposeResult:
        """Lay the panel out."""
        with Vertical(classes="panel help") as panel:
            panel.border_title = "Help"
            panel.border_subtitle = "esc closes"
            with VerticalScroll():
                yield Static(self._text, markup=False)
                yield Static("")
                for what, keys in self._keys.items():
                    with Horizontal(classes="key"):
                        yield Label(" ".join(dict.fromkeys(keys)), classes="key-name", markup=False)
                        yield Label(what.capitalize(), markup=False)
