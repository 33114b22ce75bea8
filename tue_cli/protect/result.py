"""What `tue protect` tells: its plan, each copy's record, and what came of the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tue_cli.config import FEWEST_PICTURES
from tue_cli.errors import REASONS
from tue_cli.events import AMONG
from tue_cli.images.residual import CopyFacts
from tue_cli.text import escape, format_count, format_duration


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
    small_rms: float
    """Root of the mean squared change at 32 x 32 pixels, in levels."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ProtectForecast:
    """What a run would do; nothing was written."""

    dry_run: bool
    pictures: int
    """Without a copy so far."""
    already_done: int
    estimated_seconds: float | None
    """None where no picture could be tried."""


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


def describe_forecast(result: ProtectForecast) -> Iterator[str]:
    """Yield what a run would do, in sentences."""
    if not result.pictures:
        yield _all_done(result.already_done)
        return
    yield f"{format_count(result.pictures, 'picture')} to protect."
    if result.already_done:
        yield f"Already done: {format_count(result.already_done, 'picture')}."
    yield "Nothing was written. Next: the same command without --dry-run."


def describe(
    result: ProtectSummary, paths: Sequence[Path], report: Path | None = None
) -> Iterator[str]:
    """Yield what came of a run over `paths`, in sentences, and what to do next."""
    done, output = result.already_done, shlex.quote(escape(result.output))
    if result.protected:
        took = format_duration(result.seconds)
        yield f"Protected {format_count(result.protected, 'picture')} in {took}."
        if done:
            yield f"Already done: {format_count(done, 'picture')}."
    elif done and not result.failed:
        yield _all_done(done)
    elif done:
        yield f"Nothing new: {format_count(done, 'copy')} already up to date."
    if result.failed:
        reasons = ", ".join(
            f"{REASONS.get(reason, reason)} ({count:,})" for reason, count in result.reasons.items()
        )
        yield f"Not protected: {format_count(result.failed, 'picture')}. Why: {reasons}."
    if result.protected or done:
        yield f"Copies: {escape(result.output)}"
    if report is not None:
        yield f"Report: {escape(report)}"
    yield from result.scope[:1] if result.protected else ()
    if result.protected:
        is_folder = len(paths) == 1 and paths[0].is_dir()
        originals = shlex.quote(escape(paths[0])) if is_folder else "FOLDER"
        yield f"Next: tue check {output}  (are the copies still intact?)"
        if result.protected + done >= FEWEST_PICTURES:
            yield f"      tue verify {output} --original {originals}  (how well do they protect?)"


def _all_done(count: int) -> str:
    if count == 1:
        return "Nothing to do: the copy is up to date."
    return f"Nothing to do: all {count:,} copies are up to date."


@dataclass(frozen=True)
class PreviewSummary:
    """What the whole run would take, judged by the few pictures that were made to look at."""

    pictures: int
    already_done: int
    seconds: float
    psnr: float | None
    """Mean of those pictures; None where none could be protected."""
    engine: str
