"""Text for people: durations, sizes, counts, and names that a terminal can show."""

from __future__ import annotations

import math
from pathlib import Path

from tue_cli.errors import BadSetting


def format_duration(seconds: float) -> str:
    """Return a time as people say it: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def read_duration(text: str) -> float:
    """Read a length of time, in seconds, as people write it: 90s, 30m or 2h.

    Raises:
        BadSetting: it is none.
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        value = float(text[:-1]) * (unit or 0)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise BadSetting(f"{text!r} is not a time.", "Write 90s, 30m or 2h, for example.")
    return value


def format_size(count: float) -> str:
    """Return a number of bytes: `812 bytes`, `4.2 kB`, `31 MB`."""
    if count < 1000:
        return f"{count:.0f} bytes"
    units = ["TB", "GB", "MB", "kB"]
    while count >= 999.5 and units:
        count, unit = count / 1000, units.pop()
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:,.0f} {unit}"


def format_count(count: int, thing: str) -> str:
    """Return how many there are of something: `1 picture`, `1,200 pictures`, `3 classes`."""
    if count == 1:
        return f"1 {thing}"
    if thing.endswith("y"):
        return f"{count:,} {thing[:-1]}ies"
    return f"{count:,} {thing}{'es' if thing.endswith('s') else 's'}"


def format_ignored(count: int, reason: str) -> str:
    """Return how many files were ignored, and why; `folder: ` before a reason is for folders."""
    thing, _, why = reason.rpartition(": ")
    return f"{format_count(count, thing or 'file')} ignored ({why})"


def escape(path: Path | str) -> str:
    """Return a name on one line: line breaks, escapes and undecodable bytes are spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
