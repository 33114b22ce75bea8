"""The app: themes, keys that work everywhere, a terminal that is given back whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.theme import Theme

from tue_cli.errors import ExitCode, TueError
from tue_cli.tui.folder import FolderScreen
from tue_cli.tui.panels import Choice, Help
from tue_cli.tui.pictures import View, load_sharp
from tue_cli.tui.running import explain_unexpected
from tue_cli.tui.steps import Step
from tue_cli.tui.terminal import detect_graphics, has_few_colours, is_light, own_terminal
from tue_cli.tui.watching import WatchScreen

BUTTONS = {"button-focus-text-style": "bold underline"}
DARK = Theme(
    name="tue-dark",
    primary="#d9a05b",
    secondary="#7fb0a8",
    accent="#e8b26a",
    foreground="#e6e1d8",
    background="#15171a",
    surface="#1c1f23",
    panel="#262a2f",
    success="#8fbf7f",
    warning="#e3b341",
    error="#e5736b",
    dark=True,
    variables=BUTTONS,
)
LIGHT = Theme(
    name="tue-light",
    primary="#8a5a16",
    secondary="#2f6f66",
    accent="#8a5a16",
    foreground="#26231e",
    background="#faf7f1",
    surface="#f2ede3",
    panel="#e6dfd1",
    success="#3f7a2f",
    warning="#8f6400",
    error="#b3352c",
    dark=False,
    variables=BUTTONS,
)


class TueApp(App[int]):
    """tue in a terminal."""

    TITLE = "tue"
    CSS_PATH = "tue.tcss"
    BINDINGS = [
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("f2", "shade", "Dark or light", show=False),
        Binding("ctrl+q,q", "leave", "Quit", show=False),
    ]

    def __init__(self, start: Path | None = None) -> None:
        super().__init__()
        self._start = start
        self.again: str | None = None
        """The command that goes on with what was under way when the app was left."""
        self.is_leaving = False
        self.failure: TueError | None = None
        """Why the app itself broke, if it did."""

    def on_mount(self) -> None:
        """Choose a theme that suits the terminal, and open the first step."""
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        if has_few_colours() and not self.no_color:  # grey needs more than 16
            self.theme = "ansi-light" if is_light() else "ansi-dark"
        else:
            self.theme = LIGHT.name if is_light() else DARK.name
        self.push_screen(FolderScreen(self._start or Path.cwd(), choose=self._start is not None))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer what can be done in the palette."""
        if isinstance(screen, FolderScreen):
            yield SystemCommand(
                "Verify copies", "Measure how well they are protected", screen.action_verify
            )
            yield SystemCommand(
                "Train weights", "Train them on your own pictures", screen.action_train
            )
        if isinstance(screen, Step) and screen.write_command() is not None:
            yield SystemCommand(
                "Copy the command", "It does the same as this screen", screen.action_copy
            )
        yield SystemCommand("Dark or light", "Change the colours (F2)", self.action_shade)
        yield SystemCommand("Help", "Explain this screen and its keys (?)", self.action_help)
        yield SystemCommand("Quit", "Ask first if something is running", self.action_leave)

    def get_key_display(self, binding: Binding) -> str:
        """Write ctrl+n, not ^n."""
        return super().get_key_display(binding).replace("^", "ctrl+")

    def action_shade(self) -> None:
        """Change between dark and light."""
        names = ("ansi-dark", "ansi-light") if self.current_theme.ansi else (DARK.name, LIGHT.name)
        self.theme = names[self.current_theme.dark]

    def action_help(self) -> None:
        """Say what the screen is for, and its keys."""
        if isinstance(self.screen, Step):
            keys: dict[str, list[str]] = {}
            for node, binding, *_ in self.screen.active_bindings.values():
                is_textuals = binding.action.startswith(("app.focus", "screen."))
                if node in (self, self.screen) and (binding.show or not is_textuals):
                    keys.setdefault(binding.description, []).append(self.get_key_display(binding))
            self.push_screen(Help(self.screen.HELP, keys))

    def action_help_quit(self) -> None:
        """Leave on ctrl+c, as everything in a terminal does."""
        self.action_leave()

    def action_leave(self) -> None:
        """Leave; while a job is under way, ask first."""
        working = self._find_working()
        if working is None:
            self.exit(ExitCode.OK)
            return

        def answer(leave: bool | None) -> None:
            if leave:
                self.leave_now(ExitCode.INTERRUPTED)

        question = Choice(
            f"{working.WORK} is still running", working.STOPPING, "Stop and quit", "Keep running"
        )
        if not isinstance(self.screen, Choice):
            self.push_screen(question, answer)

    async def action_quit(self) -> None:
        """Leave by the palette as by the key."""
        self.action_leave()

    def leave_now(self, code: int) -> None:
        """Stop what is under way and leave, without asking."""
        self.is_leaving = True
        if (working := self._find_working()) is not None:
            working.stop()
            self.again = working.write_resume_command()
        self.exit(code)

    def _find_working(self) -> WatchScreen | None:
        for screen in reversed(self.screen_stack):
            if isinstance(screen, WatchScreen) and screen.is_working:
                return screen
        return None

    def _fatal_error(self) -> None:
        """End with a sentence and a remedy; how it came about goes to the log."""
        self.failure = explain_unexpected(sys.exception() or RuntimeError("unknown"))
        if (working := self._find_working()) is not None:
            working.stop()
            self.again = working.write_resume_command()
        self._close_messages_no_wait()


def run(start: Path | None = None) -> int:
    """Run the app in this terminal and return the exit code.

    SIGINT, SIGTERM and a closed window stop what is under way between two pictures.
    """
    if (protocol := detect_graphics()) is not None:
        View.draw = load_sharp(protocol)
    app = TueApp(start)
    with own_terminal():
        code = asyncio.run(_run_session(app))
    return code


async def _run_session(app: TueApp) -> int:
    loop = asyncio.get_running_loop()

    def leave(number: int) -> None:
        if not app.is_leaving:
            app.leave_now(128 + number)
        elif number == signal.SIGINT:  # a second ctrl+c does not wait
            os._exit(128 + number)

    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, leave, number)
    await app.run_async()
    if app.failure is not None:
        _say(f"Error: {app.failure.message}\n{app.failure.remedy}")
    if app.again is not None:
        _say("Stopped. Finished work is kept. To continue:")
        _say(f"  {app.again}")
    return app.return_value if app.return_value is not None else (app.return_code or 0)


def _say(text: str) -> None:
    """Write to the terminal that was given back."""
    terminal = sys.__stderr__
    if terminal is not None:
        terminal.write(f"{text}\n")
        terminal.flush()
