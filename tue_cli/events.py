"""What a job can say: frozen records, yielded one by one, printed or painted by an interface.

Whatever a job tells programs is such a record. `make_plain` returns its JSON form, `docs/json.md`
what its fields mean.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

SCHEMA: Final = 1
"""Of the events as JSON: another number where a field goes, or changes its type or meaning."""
AMONG: Final = {"json": "among"}
"""Marks a field whose own fields stand among its owner's."""
OPTIONAL: Final = {"json": "optional"}
"""Marks a field that is left out where it holds nothing."""
UNSAID: Final = {"json": "unsaid"}
"""Marks a field that is for people alone."""


class Record(Protocol):
    """A frozen dataclass of plain values, paths and other records."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)
C_co = TypeVar("C_co", bound=Record | None, covariant=True)


def make_plain(record: Record) -> dict[str, Any]:
    """Return a record as JSON has it; where two names meet, the first field's value stays."""
    said: dict[str, Any] = {}
    for part in fields(record):
        value, mark = getattr(record, part.name), part.metadata.get("json")
        if mark == "among":
            for name, inner in (make_plain(value) if value is not None else {}).items():
                said.setdefault(name, inner)
        elif mark != "unsaid" and not (mark == "optional" and value in (None, ())):
            said.setdefault(part.metadata.get("name", part.name), _make_plain(value))
    return said


def _make_plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return make_plain(value)
    if isinstance(value, Mapping):
        return {str(name): _make_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Started:
    """The work is planned and begins."""

    title: str
    total: int
    """How many units of work: pictures, or steps."""
    unit: str
    seconds: float | None = None
    """Estimated time, where it is known."""
    plan: Record | None = field(default=None, metadata=AMONG)
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
    """Which training, in words."""
    step: int
    steps: int
    values: Mapping[str, float]
    trial: Record | None = field(default=None, metadata=UNSAID)
    """Which training, where a job has several at once."""


@dataclass(frozen=True)
class Saved(Generic[C_co]):
    """One file was written, whole."""

    source: Path | None
    """The original, where it is a copy."""
    path: Path
    bytes: int
    copy: C_co = field(metadata=AMONG)
    """What was done to a copy; None for another file."""


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
    picture: str
    """Its path in the manifest."""
    reason: str | None = field(default=None, metadata=OPTIONAL)
    """Why it is unreadable."""
    lost: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    """Kinds of metadata that it had and no longer has."""
    original: str | None = field(default=None, metadata=OPTIONAL)
    """Where originals were named: `unchanged`, `changed` or `missing`."""
    mean: float | None = field(default=None, metadata=OPTIONAL)
    """Mean change of the original's pixels, in levels."""
    psnr: float | None = field(default=None, metadata=OPTIONAL)
    survival: float | None = field(default=None, metadata=OPTIONAL)
    """The part of the noise that is left."""
    recorded_mean: float | None = field(default=None, metadata=OPTIONAL)
    """`mean` of the intact copy, where only its record is known."""
    recorded_psnr: float | None = field(default=None, metadata=OPTIONAL)
    at_most: float | None = field(default=None, metadata=OPTIONAL)
    """An upper bound of `survival`, where only its record is known."""
    notes: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    """What else was found, for people."""


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
    full_difference: Path
    """The difference at full size."""
    note: str
    """What was measured."""


@dataclass(frozen=True)
class Note:
    """A sentence that a person should read."""

    message: str
    names: tuple[str, ...] = field(default=(), metadata=UNSAID)
    """The files that it counts."""


@dataclass(frozen=True)
class Table:
    """Results for a person to read; the same figures are in the result of `Done`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    """How many columns, from the left, hold words; the others hold figures."""


@dataclass(frozen=True)
class Done(Generic[R_co]):
    """The job is over; its last event."""

    result: R_co = field(metadata=AMONG)
    said: tuple[str, ...] = field(default=(), metadata=UNSAID)
    """The result in sentences, for people; without any, its fields are listed."""


Event = (
    Started
    | Advanced
    | Metric
    | Saved[Record | None]
    | Skipped
    | Failed
    | Checked
    | Looked
    | Note
    | Table
)
"""What a job says on its way."""
AnyEvent = Event | Done[Record]
Job = Generator[Event | Done[R], None, None]
"""What yields events, and at the end a result of its own kind."""
