"""What every screen has: the steps at the top, the keys at the bottom, help, back, the command."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.visual import VisualType
from textual.widgets import Footer, Static

PROTECT = ("Folder", "Preview", "Strength", "Run", "Result")
VERIFY = ("Settings", "Run", "Result")
TRAIN = ("Settings", "Run", "Result")


class FittedText(Static):
    """Text as high as it is, however soon it changes again.

    Textual may keep the height that it worked out between two changes.
    """

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Write something else, and lay it out once that is done."""
        super().update(content, layout=layout)
        self.call_after_refresh(self.refresh, layout=True)


class Steps(Static):
    """Where one is: `tue  1 Folder  2 Preview …`."""

    def __init__(self, title: str, steps: tuple[str, ...], now: str) -> None:
        super().__init__(id="steps")
        self._title, self._steps, self._now = title, steps, now

    def on_mount(self) -> None:
        """Write the line."""
        self.go_to(self._now)

    def go_to(self, now: str) -> None:
        """Mark another step."""
        self._now = now
        place = self._steps.index(now)
        parts: list[Content | tuple[str, str]] = [(" tue ", "bold $background on $accent")]
        parts.append((f" {self._title}  ", "bold"))
        for number, step in enumerate(self._steps):
            mark = "✓" if number < place else f"{number + 1}"
            style = "bold $accent" if number == place else "$foreground-muted"
            parts += [(f" {mark} {step} ", style)]
            if number + 1 < len(self._steps):
                parts.append(("›", "$foreground-disabled"))
        self.update(Content.assemble(*parts))


class Step(Screen[None]):
    """A screen of the wizard."""

    TITLE_OF = "Protect"
    STEPS: tuple[str, ...] = PROTECT
    STEP = "Folder"
    HELP = ""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("ctrl+y", "copy", "Copy command", show=False, priority=True),
    ]

    def compose(self) -> ComposeResult:
        """Lay the screen out: the steps, the body, the keys."""
        yield Steps(self.TITLE_OF, self.STEPS, self.STEP)
        with Container(id="body"):
            yield from self.body()
        yield Footer(show_command_palette=False)

    def body(self) -> ComposeResult:
        """Yield what is between the steps and the keys."""
        yield from ()

    def write_command(self) -> str | None:
        """Return the command that does what this screen does."""
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to copy a command only where there is one."""
        return action != "copy" or self.write_command() is not None

    def action_back(self) -> None:
        """Go to the screen before."""
        self.app.pop_screen()

    def action_copy(self) -> None:
        """Copy the command, through the terminal (OSC 52)."""
        if (command := self.write_command()) is not None:
            self.app.copy_to_clipboard(command)
            self.notify(command, title="Copied to the clipboard", markup=False)
