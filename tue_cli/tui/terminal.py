"""The terminal that the app draws on, kept from everybody else, and given back whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs


def log_path() -> Path:
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
        with log_path().open("ab") as log:
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


def open_files(paths: list[Path]) -> bool:
    """Open files in the system's viewer and say whether there is one."""
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
        subprocess.Popen(
            [command, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return True
