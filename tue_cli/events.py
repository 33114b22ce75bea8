"""What a job can say: frozen records, yielded one by one, printed or painted by an interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Started:
    """The work is planned and begins."""

    title: str
    total: int
    """How many units of work: pictures, or steps."""
    unit: str
    seconds: float | None = None
    """Estimated time, where it is known."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was decided: device, weights, output folder, keys."""


@dataclass(frozen=True)
class Advanced:
    """`done` of `total` units are finished."""

    done: int
    total: int
    rate: float
    """Pictures a second."""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Metric:
    """Figures of a training at one step."""

    phase: str
    step: int
    steps: int
    values: dict[str, float]


@dataclass(frozen=True)
class Saved:
    """One file was written, whole."""

    source: Path | None
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """One file was left alone, for a reason that is no failure."""

    path: Path
    reason: str
    message: str


@dataclass(frozen=True)
class Failed:
    """One picture could not be protected; the run goes on."""

    path: Path
    reason: str
    message: str


@dataclass(frozen=True)
class Checked:
    """One copy was held against what the manifest says of it."""

    path: Path
    """Where it lies, or should lie."""
    state: str
    """`intact`, or what became of it."""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """One picture beside the copy that was made to look at, in small views that can be drawn."""

    source: Path
    path: Path
    """The copy, at full size."""
    before: bytes
    after: bytes
    difference: bytes
    """The views are PNG or JPEG; the difference is ten times the change around mid-grey."""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A sentence that a person should read."""

    message: str


@dataclass(frozen=True)
class Table:
    """Results for a person to read; the same figures are in the facts of `Done`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    """How many columns, from the left, hold words; the others hold figures."""


@dataclass(frozen=True)
class Done:
    """The job is over; `facts` is its result."""

    facts: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    """The result in sentences, for people; without any, the facts are listed."""


Event = (
    Started | Advanced | Metric | Saved | Skipped | Failed | Checked | Looked | Note | Table | Done
)
