"""The terminal that the app draws on, kept from everybody else, and given back whatever happens."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import platformdirs


def prepare_log() -> Path:
    """Return the file that takes what nobody may see on the screen; its folder exists."""
    folder = platformdirs.user_log_path("tue")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "ui.log"


@contextmanager
def own_terminal() -> Iterator[None]:
    """Let Textual alone draw on stderr; what libraries print there goes to the log meanwhile."""
    kept = sys.__stderr__
    if sys.platform == "win32" or kept is None or not kept.isatty():
        yield
        return
    kept.flush()
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    try:
        with prepare_log().open("ab") as log:
            os.dup2(log.fileno(), 2)
        sys.__stderr__ = terminal  # type: ignore[misc]
        yield
    finally:
        sys.__stderr__ = kept  # type: ignore[misc]
        with suppress(OSError):  # the window may be closed
            terminal.flush()
        os.dup2(terminal.fileno(), 2)
        with suppress(OSError):
            terminal.close()


def is_light() -> bool:
    """Say whether the terminal's background is light, where it tells (COLORFGBG)."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background in ("7", "15")


def has_few_colours() -> bool:
    """Say whether the terminal promises no more than 16 colours."""
    if os.environ.get("COLORTERM") or sys.platform == "win32":
        return False
    term = os.environ.get("TERM", "")
    return "256" not in term and term in ("linux", "xterm", "screen", "vt220", "ansi", "rxvt")


PATIENCE = 1.0
"""Seconds within which a terminal answers, however far away; later, it would be read as keys."""
QUICK = 0.1
"""A terminal that answers later is too far away for pictures made of pixels."""


def detect_graphics() -> Literal["kitty", "sixel"] | None:
    """Ask the terminal how it draws pictures of pixels; None where half blocks are the way.

    To be asked before Textual reads what the terminal says. tmux and screen hand no pictures on.
    """
    term = os.environ.get("TERM", "")
    if "TMUX" in os.environ or term.startswith(("tmux", "screen")) or os.environ.get("NO_COLOR"):
        return None
    began = time.monotonic()
    answer = _ask(b"\x1b[>q\x1b[c")  # its name, and what it can do: all answer the latter
    if time.monotonic() - began > QUICK:
        return None
    # Kitty shows pictures as text since 0.28, by colours that must not be rounded.
    if re.search(rb"kitty\(0\.(2[89]|[3-9]\d)|ghostty", answer) and os.environ.get("COLORTERM"):
        return "kitty"
    return "sixel" if re.search(rb"\x1b\[\?[\d;]*;4[;c]", answer) else None


def _ask(question: bytes) -> bytes:
    """Return the terminal's answer; empty where there is no terminal to ask."""
    answer = b""
    if sys.platform == "win32":
        return answer
    import termios
    import tty

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return answer
    kept = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSANOW)
        os.write(terminal, question)
        while not re.search(rb"\x1b\[\?[\d;]*c", answer):
            if not select.select([terminal], [], [], PATIENCE)[0]:
                break
            answer += os.read(terminal, 1)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, kept)
        os.close(terminal)
    return answer


def open_files(paths: list[Path]) -> bool:
    """Open files in the system's viewer and say whether there is one."""
    # Not by `typer.launch`: what its viewers print would land on the app, it says that a file was
    # opened where nothing is there to open it, and on Windows it opens none.
    if sys.platform == "win32":
        for path in paths:
            os.startfile(path)
        return True
    command = "open" if sys.platform == "darwin" else "xdg-open"
    has_windows = sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not has_windows or shutil.which(command) is None:
        return False
    for path in paths:
        viewer = subprocess.Popen(
            [command, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=viewer.wait, daemon=True).start()
    return True
