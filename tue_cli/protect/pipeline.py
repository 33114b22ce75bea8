"""What `tue protect` does with each picture: load, perturb, write, a few batches in memory at most.

Threads decode and encode beside the engine; outcomes come in the order of the tasks.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.match import MARKED
from tue_cli.engine.torch import Floats
from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.events import Advanced, Failed, Saved, Skipped, make_plain
from tue_cli.images import codec, encode, mark
from tue_cli.protect.context import ALGORITHM, BATCH, LARGE, RunContext
from tue_cli.protect.copier import Copier, Prepared, describe_copy
from tue_cli.protect.plan import Task, explain_taken, find_obstacle
from tue_cli.protect.result import CopyRecord, NoteCounter
from tue_cli.storage.attributes import read_attributes
from tue_cli.text import escape, format_count

BATCH_PIXELS = LARGE
"""A batch is closed at this many pixels; a picture that has them by itself is worked on alone."""
_WITHOUT = {
    "attributes": "extended attributes were not kept",
    "permissions": "permissions were not kept",
    "times": "modification times were not kept",
    "locks": "a second run at the same time is not prevented",
    "syncing": "a power cut may lose the last copies",
}
"""What follows where the output's file system cannot do such a thing."""


@dataclass(frozen=True)
class LoadedTask:
    """A decoded picture on its way to the engine and back."""

    task: Task
    ready: Prepared
    status: os.stat_result
    seconds: float
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    """The extended ones of the file."""


@dataclass(frozen=True)
class Large:
    """A picture that is too large to be worked on beside others."""

    task: Task


Outcome = Saved[CopyRecord] | Skipped | Failed


class Pipeline:
    """The pipeline of one run: load, perturb, write; at most a few batches in memory."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._places: dict[Path, str] = {}
        self._copier = Copier(context.spec, context.weights, context.engine, context.secret)
        self.counts: Counter[str] = Counter()  # by kind, of those skipped by reason
        self.failures: list[dict[str, str]] = []
        self.notes = NoteCounter()
        self.engine_seconds = 0.0
        self._weak = 0

    def run(self, tasks: Sequence[Task], total: int) -> Iterator[Outcome | Advanced]:
        """Yield an outcome for every task, and how far the run is on its way to `total`."""
        began = time.monotonic()
        self._places = {
            task.item.source: (task.relative if task.has_place else task.item.relative).as_posix()
            for task in tasks
        }
        writing: list[Future[Outcome]] = []
        batch: list[LoadedTask] = []

        def count_each(results: Iterator[Outcome]) -> Iterator[Outcome | Advanced]:
            for outcome in results:
                self.count(outcome)
                yield outcome
                done = sum(self.counts.values())
                made = self.counts["Saved"]
                rate = made / (time.monotonic() - began)
                yield Advanced(done, total, rate, (total - done) / rate if made else None)

        def flush() -> Iterator[Outcome | Advanced]:
            """Write what is loaded, beside the loading of what comes next."""
            nonlocal batch, writing
            submitted = self._submit(batch) if batch else []
            batch = []
            yield from count_each(future.result() for future in writing)
            writing = submitted

        for result in load_ahead(tasks, self._load, self._context.pool, self._context.threads):
            if isinstance(result, Large):
                # One at a time: all before it is on the disk, and nothing else is taken up.
                yield from flush()
                yield from flush()
                yield from count_each(iter([self._process_alone(result.task)]))
                continue
            if not isinstance(result, LoadedTask):
                yield from count_each(iter([result]))
                continue
            batch.append(result)
            if (
                len(batch) == self._context.engine.batch
                or sum(map(_count_pixels, batch)) >= BATCH_PIXELS
            ):
                yield from flush()
        yield from flush()
        yield from flush()

    def count(self, outcome: Outcome) -> None:
        """Remember an outcome for the summary."""
        kind = outcome.reason if isinstance(outcome, Skipped) else type(outcome).__name__
        self.counts[kind] += 1
        if isinstance(outcome, Failed):
            self.failures.append(
                {
                    "path": self._places.get(outcome.path, outcome.path.as_posix()),
                    "reason": outcome.reason,
                    "message": outcome.message,
                }
            )
        elif isinstance(outcome, Saved):
            self._weak += outcome.copy.survival < encode.SURVIVAL_FLOOR
            self.notes.add(outcome.copy)

    def list_warnings(self) -> Iterator[str]:
        """Yield what a person should know about the copies."""
        if self._context.journal.refused:
            lacking = "; ".join(_WITHOUT[what] for what in sorted(self._context.journal.refused))
            yield f"The file system of the output lacks some features: {lacking}."
        records = self._context.journal.records.values()
        if older := sum(record.get("algorithm") != ALGORITHM for record in records):
            yield (
                f"{format_count(older, 'copy')} of another version of tue {_was(older)} kept. "
                "--existing overwrite replaces all copies."
            )
        if self._weak:
            yield (
                f"{format_count(self._weak, 'copy')} {_was(self._weak)} weakened by the file "
                f"format: less than {encode.SURVIVAL_FLOOR:.0%} of the noise is left. Leave out "
                "--quality, or use --format png."
            )

    def _process_alone(self, task: Task) -> Outcome:
        """Do all that is to be done with one picture, beside no other.

        In this thread: another would keep what it freed for itself, and take as much once more.
        """
        loaded = self._load(task, alone=True)
        if not isinstance(loaded, LoadedTask):
            assert not isinstance(loaded, Large)
            return loaded
        (delta,), seconds = self._perturb([loaded])
        return self._write(loaded, delta, seconds)

    def _load(self, task: Task, *, alone: bool = False) -> LoadedTask | Large | Skipped | Failed:
        began = time.monotonic()
        source = task.item.source
        try:
            data = codec.read(source)
            digest = sha256(data)
            blocked = self._find_obstacle(task, digest)
            if blocked is not None:
                return blocked
            if not alone and math.prod(codec.read_dimensions(data)) >= BATCH_PIXELS:
                return Large(task)
            status = source.stat()
            attributes, private = read_attributes(source)
            picture = codec.decode(data)
            del data
            if mark.has_mark(picture.metadata.xmp):
                return Skipped(source, *MARKED)
            if not task.has_place:
                raise explain_taken()
            if self._context.spec.strip == "metadata":
                attributes = {}
            ready = self._copier.prepare(picture, digest, task.relative, private)
        except (ImageProblem, MemoryError) as error:
            return _describe_failure(source, error)
        except OSError as error:
            return Failed(source, "unreadable", f"The file cannot be read: {error}.")
        seconds = time.monotonic() - began
        return LoadedTask(task, ready, status, seconds, attributes)

    def _find_obstacle(self, task: Task, digest: str) -> Skipped | Failed | None:
        """Return why this picture cannot be worked on, or None."""
        if known := self._context.copies.explain(task.item.source, digest):
            return Skipped(task.item.source, *known)
        if self._context.spec.existing == "overwrite" or not task.has_place:
            return None
        place = self._context.output / task.relative
        if self._context.journal.is_done(
            task.relative, source_sha256=digest, label=task.item.label, key=task.key
        ):
            return Skipped(place, "done", "The copy is up to date.")
        return find_obstacle(self._context, task)

    def _perturb(self, batch: list[LoadedTask]) -> tuple[Floats, float]:
        """Return the noise of a batch, and how many seconds of it each picture took."""
        self._context.journal.refuse_loss()
        began = time.monotonic()
        deltas = self._copier.perturb(
            [loaded.ready for loaded in batch], [loaded.task.key for loaded in batch]
        )
        spent = time.monotonic() - began
        self.engine_seconds += spent
        return deltas, spent / len(batch)

    def _submit(self, batch: list[LoadedTask]) -> list[Future[Outcome]]:
        deltas, seconds = self._perturb(batch)
        return [
            self._context.pool.submit(self._write, loaded, delta, seconds)
            for loaded, delta in zip(batch, deltas, strict=True)
        ]

    def _write(self, loaded: LoadedTask, delta: Floats, engine_seconds: float) -> Outcome:
        began = time.monotonic()
        task = loaded.task
        place = self._context.output / task.relative
        try:
            copy = self._copier.finish(loaded.ready, delta)
            record = describe_copy(
                loaded.ready,
                copy,
                path=task.relative.as_posix(),
                source=task.item.relative.as_posix(),
                label=task.item.label,
                key=task.key,
            )
            seconds = loaded.seconds + engine_seconds + time.monotonic() - began
            timed = {**make_plain(record), "seconds": round(seconds, 4)}
            self._context.journal.save(timed, copy.encoded.data, loaded.status, loaded.attributes)
        except (ImageProblem, MemoryError) as error:
            return _describe_failure(task.item.source, error)
        except OSError as error:
            message = f"{escape(place)} cannot be written: {error.strerror or error}."
            return Failed(task.item.source, "not-written", message)
        return Saved(task.item.source, place, record.bytes, record)


def load_ahead(
    tasks: Sequence[Task],
    load: Callable[[Task], LoadedTask | Large | Skipped | Failed],
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[LoadedTask | Large | Skipped | Failed]:
    """Yield each task's result in order, loading ahead as many as `BATCH_PIXELS` has room for.

    The size of the next pictures is guessed from the largest so far; before the first is loaded,
    each thread loads one.
    """
    coming: deque[Future[LoadedTask | Large | Skipped | Failed]] = deque()
    largest = place = 0
    while place < len(tasks) or coming:
        room = min(2 * BATCH, max(threads, BATCH_PIXELS // largest if largest else 0))
        while place < len(tasks) and len(coming) < room:
            coming.append(pool.submit(load, tasks[place]))
            place += 1
        result = coming.popleft().result()
        if isinstance(result, LoadedTask):
            largest = max(largest, _count_pixels(result))
        yield result


def _describe_failure(source: Path, error: ImageProblem | MemoryError) -> Failed:
    problem = error if isinstance(error, ImageProblem) else OutOfMemory()
    return Failed(source, problem.reason, problem.message)


def _count_pixels(loaded: LoadedTask) -> int:
    """Return how many pixels of 8 bits take the room of a picture's."""
    return loaded.ready.picture.pixels[..., 0].nbytes


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
