"""What `tue protect` tells: its plan, each copy's record, and what came of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tue_cli.events import AMONG
from tue_cli.images.residual import CopyFacts


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


@dataclass(frozen=True)
class PreviewSummary:
    """What the whole run would take, judged by the few pictures that were made to look at."""

    pictures: int
    already_done: int
    seconds: float
    psnr: float | None
    """Mean of those pictures; None where none could be protected."""
    engine: str
