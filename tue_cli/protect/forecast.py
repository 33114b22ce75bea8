"""What a run would do: every header read, a few pictures really made, and nothing written."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from tue_cli.dataset.journal import Journal
from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.events import Event, Failed, Note, Saved, Skipped, Started
from tue_cli.images.header import Header, read_header
from tue_cli.protect.context import BATCH, LARGE, RunContext
from tue_cli.protect.pipeline import Pipeline
from tue_cli.protect.plan import (
    TOGETHER,
    Task,
    describe_plan,
    explain_taken,
    find_obstacle,
    select_pending,
)
from tue_cli.protect.result import ProtectForecast
from tue_cli.text import escape, format_size

TOLD = 5000
"""From so many headers on, a person is told that they are being read."""
SAMPLED, SAMPLED_PIXELS = 12, 30_000_000
"""Pictures that are made to estimate by, and their pixels, at most; one of each format is."""
OVERHEAD = 10_000
"""Pixels that take as long as what every picture takes, whatever its size."""
GROWTH = 20
"""Where the disk has room for so many times the originals, the copies' size is not estimated."""
_PLACES = tuple(place / 16 for place in (8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3))
"""Where in a sorted list pictures are taken: the first few are already well apart."""


@dataclass(frozen=True)
class Ready:
    """A picture whose header says nothing against protecting it."""

    task: Task
    header: Header

    @property
    def pixels(self) -> int:
        """How many it has."""
        return math.prod(self.header.size)

    @property
    def work(self) -> int:
        """How long it takes to decode and encode it, in pixels."""
        return self.pixels + OVERHEAD


@dataclass(frozen=True)
class Made:
    """What became of a picture that was made to estimate by."""

    picture: Ready
    bytes: int
    seconds: float
    """Of one thread, without the engine."""


@dataclass(frozen=True)
class Sample:
    """What came of the pictures that were made to estimate by."""

    made: tuple[Made, ...]
    failed: tuple[Failed, ...]
    copies: frozenset[Path]
    """Those that are protected copies themselves, by their mark."""
    batch_seconds: float
    """Of the engine, for a batch."""


class _Unwritten(Journal):
    """Takes copies that are made to be measured, and writes none of them."""

    def __init__(self, output: Path) -> None:
        super().__init__(output, {}, "overwrite")
        self.seconds: dict[str, float] = {}

    def save(self, record: dict[str, Any], *_: object) -> None:
        """Remember how long a copy took."""
        self.seconds[record["path"]] = record["seconds"]

    def refuse_loss(self) -> None:
        """Do nothing: no folder is held."""


def forecast(run: RunContext, tasks: Sequence[Task]) -> Generator[Event, None, ProtectForecast]:
    """Tell what will fail, and the plan; return how much there is to do, its size and its time."""
    left = select_pending(run, tasks)
    if len(left) >= TOLD:
        yield Note(f"Reading the headers of {len(left):,} pictures.")
    ready: list[Ready] = []
    failed: list[Failed] = []
    for found in inspect(run, left):
        if isinstance(found, Failed):
            failed.append(found)
            yield found
        elif isinstance(found, Ready):
            ready.append(found)
    sample = make_sample(run, ready)
    yield from sample.failed
    failed += sample.failed
    others = {failure.path for failure in sample.failed} | sample.copies
    ready = [picture for picture in ready if picture.task.item.source not in others]
    size, seconds = estimate_size(ready, sample), estimate_seconds(ready, sample, run.threads)
    yield Started("To protect", len(ready), "pictures", seconds, describe_plan(run, tasks))
    room = measure_room(run, left)
    yield from _warn_of_space(run, size, room)
    reasons = Counter(reason for _, reason, _ in run.found.refused)
    reasons.update(failure.reason for failure in failed)
    return ProtectForecast(
        dry_run=True,
        pictures=len(ready),
        already_done=len(tasks) - len(left),
        failed=reasons.total(),
        reasons=reasons,
        estimated_bytes=size,
        free_bytes=room,
        estimated_seconds=seconds,
        already_protected=len(left) - len(failed) - len(ready),
        original_bytes=sum(picture.header.bytes for picture in ready),
    )


def check_space(run: RunContext, tasks: Sequence[Task]) -> Iterator[Note]:
    """Say so where the copies may not fit on the disk; estimate only where that is in doubt."""
    left = select_pending(run, tasks)
    room = measure_room(run, left)
    if room is None or GROWTH * sum(_count_bytes(task.item.source) for task in left) <= room:
        return
    ready = [found for found in inspect(run, left) if isinstance(found, Ready)]
    yield from _warn_of_space(run, estimate_size(ready, make_sample(run, ready)), room)


def _warn_of_space(run: RunContext, size: int | None, room: int | None) -> Iterator[Note]:
    if size is not None and room is not None and size > room:
        yield Note(
            f"The copies need about {format_size(size)}, but only {format_size(room)} are free on "
            f"the disk of {escape(run.output)}. Free some space, or choose another disk with -o."
        )


def inspect(run: RunContext, tasks: Sequence[Task]) -> Iterator[Ready | Failed | None]:
    """Yield for every picture, in order, what its header tells; None where it is a copy itself."""

    def inspect_part(start: int) -> list[Ready | Failed | None]:
        return [_inspect(run, task) for task in tasks[start : start + TOGETHER]]

    return chain.from_iterable(run.pool.map(inspect_part, range(0, len(tasks), TOGETHER)))


def _inspect(run: RunContext, task: Task) -> Ready | Failed | None:
    source = task.item.source
    if run.copies.is_likely(source):
        return None
    if (obstacle := find_obstacle(run, task)) is not None:
        return obstacle
    try:
        header = read_header(source, run.spec.format, task.relative)
        if not task.has_place:
            raise explain_taken()
    except (ImageProblem, MemoryError) as error:
        problem = error if isinstance(error, ImageProblem) else OutOfMemory()
        return Failed(source, problem.reason, problem.message)
    return Ready(task, header)


def make_sample(run: RunContext, pictures: Sequence[Ready]) -> Sample:
    """Make a few of the pictures, to see how large their copies are and how long they take."""
    few = _choose_few(pictures)
    if not few:
        return Sample((), (), frozenset(), 0.0)
    journal = _Unwritten(run.output)
    aside = replace(run, journal=journal, spec=replace(run.spec, existing="overwrite"))
    # The first picture and the first batch of a process are slow; of a large one that is little.
    smallest = min(few, key=lambda picture: picture.pixels)
    if smallest.pixels < LARGE:
        list(Pipeline(aside).run([smallest.task], 1))
    work = Pipeline(aside)
    events = list(work.run([picture.task for picture in few], len(few)))
    copies = {event.source: event.copy for event in events if isinstance(event, Saved)}
    share = work.engine_seconds / max(1, len(copies))
    made = []
    for picture in few:
        if (copy := copies.get(picture.task.item.source)) is not None:
            seconds = max(0.0, journal.seconds[copy.path] - share)
            made.append(Made(picture, copy.bytes, seconds))
    failed = tuple(event for event in events if isinstance(event, Failed))
    marked = frozenset(event.path for event in events if isinstance(event, Skipped))
    return Sample(tuple(made), failed, marked, work.engine_seconds)


def _choose_few(pictures: Sequence[Ready]) -> list[Ready]:
    """Return a few pictures of every format and of all sizes."""
    usual = [picture for picture in pictures if picture.pixels < LARGE]
    if not usual:  # each is worked on alone: one is enough to wait for
        return [min(pictures, key=lambda picture: picture.pixels)] if pictures else []
    groups: dict[str, list[Ready]] = {}
    for picture in usual:
        groups.setdefault(picture.header.format, []).append(picture)
    rows = []
    for group in groups.values():
        group.sort(key=lambda picture: picture.pixels)
        places = dict.fromkeys(int(place * len(group)) for place in _PLACES)
        rows.append([group[place] for place in places])
    few = [row[0] for row in rows]
    for picture in chain.from_iterable(zip_longest(*(row[1:] for row in rows))):
        room = SAMPLED_PIXELS - sum(other.pixels for other in few)
        if picture is not None and len(few) < SAMPLED and picture.pixels <= room:
            few.append(picture)
    return few


def estimate_size(pictures: Sequence[Ready], sample: Sample) -> int | None:
    """Return about how many bytes the copies will have; None where no picture could be made.

    By their pixels or by the originals' bytes: by that which the sample's copies follow better.
    """

    def count_source(picture: Ready) -> int:
        return picture.header.bytes

    def count_pixels(picture: Ready) -> int:
        return picture.pixels

    def find_spread(made: Sequence[Made], measure: Callable[[Ready], int]) -> float:
        ratios = [one.bytes / max(1, measure(one.picture)) for one in made]
        return max(ratios) / min(ratios)

    def choose(made: Sequence[Made]) -> Callable[[Ready], int]:
        return min((count_source, count_pixels), key=lambda measure: find_spread(made, measure))

    size = _scale_up(pictures, sample, choose, lambda one: one.bytes)
    return None if size is None else round(size)


def estimate_seconds(pictures: Sequence[Ready], sample: Sample, threads: int) -> float | None:
    """Return about how long a run takes; None where no picture could be made."""
    beside = _scale_up(
        pictures, sample, lambda _: lambda picture: picture.work, lambda one: one.seconds
    )
    if beside is None:
        return None
    batches = -(-len(pictures) // BATCH)
    return round(batches * sample.batch_seconds + beside / threads, 1)


def _scale_up(
    pictures: Sequence[Ready],
    sample: Sample,
    choose: Callable[[Sequence[Made]], Callable[[Ready], int]],
    value: Callable[[Made], float],
) -> float | None:
    """Return the sum of a value over all pictures, format by format, of those that were made."""
    if not sample.made:
        return None
    total = 0.0
    for kind in {picture.header.format for picture in pictures}:
        made = [m for m in sample.made if m.picture.header.format == kind] or list(sample.made)
        measure = choose(made)
        rate = sum(map(value, made)) / max(1, sum(measure(one.picture) for one in made))
        total += rate * sum(measure(p) for p in pictures if p.header.format == kind)
    return total


def measure_room(run: RunContext, tasks: Sequence[Task]) -> int | None:
    """Return the bytes that the output's disk has for these copies; None where it does not say."""
    folder = run.output.absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        room = shutil.disk_usage(folder).free
    except OSError:
        return None
    if run.spec.existing == "overwrite":
        room += sum(_count_bytes(run.output / task.relative) for task in tasks)
    return room


def _count_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
