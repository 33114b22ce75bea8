"""What `tue protect` tells: its plan, each copy's record, and what came of the run."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tue_cli.config import FEWEST_OF_CLASS
from tue_cli.dataset.match import CHANGED, PROTECTED
from tue_cli.errors import REASONS
from tue_cli.events import AMONG, Note
from tue_cli.images.residual import CopyFacts
from tue_cli.text import escape, format_count, format_duration, format_size

GROWN = 1.25
"""How many times the originals copies must take before a plan says so."""


@dataclass(frozen=True)
class ClassPlan:
    """What was decided about one class."""

    name: str
    pictures: int
    key: str
    provisional: bool
    """Whether its code is recorded nowhere yet, because nothing of it was protected so far."""


@dataclass(frozen=True)
class ProtectPlan:
    """What was decided before the first picture."""

    output: Path
    weights: str
    method: str
    engine: str
    radius: str
    """What bounds a pixel's change, in words."""
    keys: Mapping[str, str]
    """Class -> key."""
    labels: str
    """What a class is, in words."""
    classes: tuple[ClassPlan, ...]


@dataclass(frozen=True)
class CopyRecord:
    """What was done to one picture, measured on the copy as it was written; the manifest's entry.

    Of equal pictures, settings and weights, equal in every run.
    """

    path: str
    """Below the output."""
    source: str
    """Below the folder that was given."""
    source_sha256: str
    sha256: str
    label: str
    key: str
    algorithm: int
    format: str
    bytes: int
    known: CopyFacts = field(metadata=AMONG)
    """By what it is known again after others have handled it."""
    largest: int
    """Largest change of a channel, in levels."""
    mean: float
    psnr: float
    ssim: float
    survival: float
    """The part of the noise that outlived the file format."""
    delta_e: float
    """Of the tile where the change is seen most, as `visibility.find_worst_tile` measures it."""
    worst_tile: tuple[int, int, int]
    """Where that is: left, top and side, in pixels, as stored."""
    small_rms: float
    """Root of the mean squared change at 32 x 32 pixels, in levels."""
    notes: tuple[str, ...]
    """What a copy could not keep. Details follow a colon; what stands before it is the kind."""


@dataclass(frozen=True)
class ProtectForecast:
    """What a run would do; nothing was written."""

    dry_run: bool
    pictures: int
    """Those that can be protected and have no copy so far."""
    already_done: int
    failed: int
    reasons: Mapping[str, int]
    """Why pictures would fail, as far as their headers tell, and how many."""
    estimated_bytes: int | None
    """Of the copies; None where no picture could be made."""
    free_bytes: int | None
    """On the output's disk; None where it does not say."""
    estimated_seconds: float | None
    already_protected: int = 0
    """Left alone, since they are copies themselves."""
    original_bytes: int = 0
    """Of the originals of those copies."""


@dataclass(frozen=True)
class ProtectSummary:
    """What came of a run."""

    protected: int
    already_done: int
    failed: int
    reasons: Mapping[str, int]
    """Why pictures failed, and how many."""
    output: Path
    manifest: Path
    seconds: float
    engine_seconds: float
    scope: tuple[str, ...] = ()
    """Whom the copies hinder, and what helps, in sentences; empty if there are true classes."""
    already_protected: int = 0
    """Left alone, since they are copies themselves, changed or not."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Kinds of notes on the copies that were written, the most frequent first, and how many."""


@dataclass(frozen=True)
class WatchSummary:
    """What came of all runs until the watch was stopped."""

    runs: int
    protected: int
    failed: int
    seconds: float


def describe_forecast(result: ProtectForecast) -> Iterator[str]:
    """Yield what a run would do, in sentences."""
    if result.pictures:
        yield f"{format_count(result.pictures, 'picture')} to protect."
        if result.estimated_bytes is not None and result.estimated_seconds is not None:
            size = format_size(result.estimated_bytes)
            duration = format_duration(result.estimated_seconds)
            times = result.estimated_bytes / max(1, result.original_bytes)
            grown = f", {times:.1f} times the originals" if times >= GROWN else ""
            yield f"Estimated: about {size} of copies{grown}, in about {duration}."
            if grown:
                yield "Noise compresses badly, above all in lossless formats such as PNG."
        if result.already_done:
            yield f"Already done: {format_count(result.already_done, 'picture')}."
    elif not result.failed:
        yield from _tell_nothing(result.already_done, result.already_protected)
        return
    elif result.already_done:
        yield f"Nothing new: {format_count(result.already_done, 'copy')} already up to date."
    if result.already_protected:
        yield f"Protected copies, left alone: {format_count(result.already_protected, 'picture')}."
    if result.failed:
        yield f"Cannot be protected: {_count_reasons(result.failed, result.reasons)}"
    again = " Next: the same command without --dry-run." if result.pictures else ""
    yield f"Nothing was written.{again}"


def describe(
    result: ProtectSummary,
    paths: Sequence[Path],
    report: Path | None = None,
    *,
    again: bool = False,
) -> Iterator[str]:
    """Yield what came of a run over `paths`, in sentences, and what to do next.

    That is left out where it was said before, and the command runs `again` by itself.
    """
    done, output = result.already_done, shlex.quote(escape(result.output))
    if result.protected:
        took = format_duration(result.seconds)
        yield f"Protected {format_count(result.protected, 'picture')} in {took}."
        if done:
            yield f"Already done: {format_count(done, 'picture')}."
    elif again and not (result.failed or done or result.already_protected):
        yield "Nothing to do."
    elif not result.failed:
        yield from _tell_nothing(done, result.already_protected)
    elif done:
        yield f"Nothing new: {format_count(done, 'copy')} already up to date."
    if result.failed:
        yield f"Not protected: {_count_reasons(result.failed, result.reasons)}"
    if again:
        return
    if result.protected or done:
        yield f"Copies: {escape(result.output)}"
    if report is not None:
        yield f"Report: {escape(report)}"
    yield from result.scope[:1] if result.protected else ()
    if result.protected:
        is_folder = len(paths) == 1 and paths[0].is_dir()
        originals = shlex.quote(escape(paths[0])) if is_folder else "FOLDER"
        yield f"Next: tue check {output}  (are the copies still intact?)"
        if result.protected + done >= 2 * FEWEST_OF_CLASS:
            yield f"      tue verify {output} --original {originals}  (how well do they protect?)"


def _count_reasons(failed: int, reasons: Mapping[str, int]) -> str:
    why = ", ".join(f"{REASONS.get(name, name)} ({count:,})" for name, count in reasons.items())
    return f"{format_count(failed, 'picture')}. Why: {why}."


def _tell_nothing(done: int, already_protected: int) -> Iterator[str]:
    """Yield why there is nothing to do."""
    if done:
        copies = "the copy is" if done == 1 else f"all {done:,} copies are"
        yield f"Nothing to do: {copies} up to date."
    elif already_protected:
        one = already_protected == 1
        them = "the picture is a protected copy" if one else "all pictures are protected copies"
        yield f"Nothing to do: {them} already."
        yield "To protect pictures, name the folder of the originals."
    else:
        yield "Nothing to do: none of the pictures that failed in the last run was found."


def count_left_alone(outcomes: Mapping[str, int]) -> int:
    """Return how many pictures are copies themselves, by outcome as `Pipeline.counts` has them."""
    return sum(outcomes.get(reason, 0) for reason, _ in (PROTECTED, CHANGED))


def tell_left_alone(outcomes: Mapping[str, int]) -> Iterator[str]:
    """Yield how many pictures are copies themselves, in sentences."""
    if count := outcomes.get(PROTECTED[0], 0):
        yield (
            "1 picture is a protected copy already and was left alone."
            if count == 1
            else f"{count:,} pictures are protected copies already and were left alone."
        )
    if count := outcomes.get(CHANGED[0], 0):
        yield (
            "1 picture is a protected copy that was changed, and was left alone. "
            "Protect its original instead."
            if count == 1
            else f"{count:,} pictures are protected copies that were changed, and were left alone. "
            "Protect their originals instead."
        )


class NoteCounter:
    """Groups the notes on copies by their kind."""

    def __init__(self) -> None:
        self._named: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def add(self, copy: CopyRecord) -> None:
        """Take up the notes on a copy."""
        for note in copy.notes:
            kind, _, detail = note.partition(": ")
            self._named[kind][escape(copy.path)] += [detail] if detail else []

    def count(self) -> dict[str, int]:
        """Return how many copies have a note of each kind, the most frequent first."""
        counts = {kind: len(self._named[kind]) for kind in sorted(self._named)}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def tell(self) -> Iterator[Note]:
        """Yield a sentence for each kind, with the names of the copies and the details."""
        for line, kind in zip(describe_notes(self.count()), self.count(), strict=True):
            named = self._named[kind].items()
            names = (f"{path}: {', '.join(more)}" if more else path for path, more in named)
            yield Note(line, tuple(names))


def describe_notes(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each kind of note; `counts` is what `NoteCounter.count` returns."""
    for kind, count in counts.items():
        yield f"{kind[0].upper()}{kind[1:]}: {format_count(count, 'picture')}."


@dataclass(frozen=True)
class PreviewSummary:
    """What the whole run would take, judged by the few pictures that were made to look at."""

    pictures: int
    already_done: int
    seconds: float
    psnr: float | None
    """Mean of those pictures; None where none could be protected."""
    engine: str
