"""What `tue protect` was asked for, and whether that can be done."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from tue_cli.config import DEVICES, METHODS, NoiseSettings, ProtectSettings, setting
from tue_cli.dataset.manifest import EXISTING
from tue_cli.engine.select import BACKENDS, refuse_unknown
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.images import codec
from tue_cli.report.write import refuse_report


@dataclass(frozen=True)
class ProtectSpec:
    """What `tue protect` was asked for."""

    paths: tuple[Path, ...]
    output: Path | None = setting(None, "where the copies go; empty: beside the folder")
    labels: str = "auto"
    key: str | None = None
    """The key of a run's only class; None for an automatic choice."""
    settings: ProtectSettings = field(default_factory=ProtectSettings)
    weights: str | None = setting(None, "name of packaged weights, or a file; empty: packaged")
    device: str = setting("auto", "where it is computed", choices=DEVICES)
    backend: str = setting("auto", "what computes it", choices=BACKENDS)
    format: str = setting(
        "keep", "file format; png keeps more of the noise", choices=("keep", "png", "jpeg", "webp")
    )
    quality: int | None = setting(
        None, "of JPEG, WebP and AVIF, 1 to 100; empty: the source's, or better"
    )
    existing: str = setting(
        "skip", "where a copy exists: skip what is done, overwrite, or stop", choices=EXISTING
    )
    dry_run: bool = False
    report: Path | None = None
    """A page with some of the pictures, before and after."""
    command: str = ""
    jobs: int = 0
    """Threads that decode and encode; 0 for one a processor."""

    def validate(self) -> None:
        """Raise BadSetting for what cannot work, OutputProblem for a report that cannot be."""
        method, smooth = self.settings.method, self.settings.smooth
        refuse_unless(
            method in METHODS,
            f"There is no method {method!r}.",
            f"Choose one of {', '.join(METHODS)}.",
        )
        refuse_noise(self.settings.noise)
        refuse_unless(0 <= smooth <= 1, f"A smooth of {smooth} cannot be.", "Choose 0 to 1.")
        refuse_seed(self.settings.seed)
        refuse_unless(
            self.format in codec.FORMATS,
            f"There is no format {self.format!r}.",
            f"Choose {', '.join(sorted(codec.FORMATS))}.",
        )
        refuse_unless(
            self.quality is None or 1 <= self.quality <= 100,
            f"A quality of {self.quality} cannot be.",
            "Choose 1 to 100.",
        )
        refuse_unless(
            self.existing in EXISTING,
            f"--existing {self.existing} is unknown.",
            f"Choose one of {', '.join(EXISTING)}.",
        )
        refuse_unknown(self.backend)
        _refuse_unknown_labels(self.labels)
        if self.report is not None:
            refuse_report(self.report)
        refuse_unless(self.jobs >= 0, f"{self.jobs} jobs cannot be.", "Choose 1 or more.")


def refuse_noise(noise: NoiseSettings) -> None:
    """Raise BadSetting for noise that cannot be made."""
    refuse_unless(
        0 < noise.radius <= 1,
        f"A radius of {noise.radius * 255:g} levels cannot be.",
        "Choose more than 0 and at most 255; 8 is the usual.",
    )
    refuse_unless(
        noise.radius * 255 >= 1,
        f"A radius of {noise.radius * 255:g} is less than one level of an 8-bit picture.",
        "Choose 1 or more.",
    )
    refuse_unless(noise.steps >= 1, f"{noise.steps} steps make no noise.", "Choose 1 or more.")
    refuse_unless(
        noise.score_mode in ("norm", "ascent"),
        f"There is no score mode {noise.score_mode!r}.",
        "Choose norm or ascent.",
    )
    refuse_unless(
        0 <= noise.score_ratio < math.inf,
        f"A score of {noise.score_ratio} cannot be.",
        "Choose 0 or more.",
    )
    refuse_unless(
        0 <= noise.gray_ratio < math.inf,
        f"A gray of {noise.gray_ratio} cannot be.",
        "Choose 0 or more.",
    )
    refuse_unless(
        noise.samples >= 1, f"{noise.samples} samples a step make no noise.", "Choose 1 or more."
    )
    refuse_unless(
        0 <= noise.inner_radius <= 1 and noise.inner_steps >= 0,
        f"An inner adversary of {noise.inner_steps} steps and {noise.inner_radius * 255:g} "
        "levels cannot be.",
        "Give 0 steps or more and a radius of 0 to 255.",
    )


def refuse_size(size: int) -> None:
    """Raise BadSetting for a working size that nets cannot take."""
    refuse_unless(
        size >= 16 and size % 4 == 0,
        f"A working size of {size} pixels cannot be.",
        "Choose a multiple of 4 from 16.",
    )


def refuse_seed(seed: int) -> None:
    """Raise BadSetting for a seed that a random generator does not take."""
    refuse_unless(
        0 <= seed < 2**63, f"A seed of {seed} cannot be.", "Choose a whole number from 0."
    )


def count_clusters(labels: str) -> int | None:
    """Return how many clusters `cluster[:N]` asks for, 0 for no number; None for another mode."""
    kind, _, number = labels.partition(":")
    if kind != "cluster":
        return None
    if not number:
        return 0
    if not number.isdecimal() or int(number) < 1:
        raise BadSetting(f"--labels {labels} names no number.", "Write cluster:N with N from 1.")
    return int(number)


def _refuse_unknown_labels(labels: str) -> None:
    known = count_clusters(labels) is not None or labels in ("auto", "folders", "single")
    if not known and not os.path.isfile(labels):  # noqa: PTH113 - False for a name too long
        raise BadSetting(
            f"--labels {labels!r} is neither a mode nor a file.",
            "Choose auto, folders, single, cluster, cluster:N or a CSV file.",
        )
