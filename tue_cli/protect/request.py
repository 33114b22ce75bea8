"""What `tue protect` was asked for, and whether that can be done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tue_cli.config import DEVICE, DEVICES, METHODS, ProtectSettings
from tue_cli.dataset.journal import EXISTING
from tue_cli.declare import argument, fixed, part, setting
from tue_cli.engine.select import BACKENDS, refuse_unknown
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.images import codec
from tue_cli.noise import Noise
from tue_cli.report.write import refuse_report


@dataclass(frozen=True)
class ProtectSpec:
    """What `tue protect` was asked for."""

    paths: tuple[Path, ...] = argument(
        "Folders (with all they hold) and files; - reads a list from stdin, one path a line or "
        "separated by NUL.",
        typed="paths",
        metavar="PATHS",
        in_form=False,
    )
    output: Path | None = setting(
        None,
        "Where the copies go; default <folder>-protected.",
        "-o",
        "--output",
        typed="folder",
        metavar="<path>",
    )
    labels: str = setting(
        "auto",
        "What a class is: folders (a subfolder each), single (all pictures), cluster or cluster:N "
        "(pictures that look alike), FILE.csv (columns path,class); auto takes folders where there "
        "are several, else single.",
        in_form=False,
    )
    key: str | None = setting(None, "Key of the weights for a run with one class.")
    settings: ProtectSettings = part(ProtectSettings())
    weights: str | None = setting(None, "Name of packaged weights, or a file.")
    device: str = setting("auto", DEVICE, choices=DEVICES)
    backend: str = setting(
        "auto",
        "What computes: torch, onnx (ONNX Runtime, which has --device directml too), or auto: what "
        "is faster here, and in a folder that was begun what began it.",
        choices=BACKENDS,
    )
    format: str = setting(
        "keep", "keep, png, jpeg or webp.", choices=("keep", "png", "jpeg", "webp")
    )
    quality: int | None = setting(
        None, "1 to 100 for JPEG, WebP and AVIF; default: the source's, or better."
    )
    existing: str = setting(
        "skip", "Where a copy exists: skip what is done, overwrite, or error.", choices=EXISTING
    )
    dry_run: bool = setting(
        False, "Write nothing; tell the plan and the time.", "-n", "--dry-run", in_form=False
    )
    report: Path | None = setting(None, "Write a page with some of the pictures: FILE.html.")
    command: str = fixed("", "the command as it was typed")
    jobs: int = setting(0, "Threads that decode and encode; 0: one a processor.")

    def validate(self) -> None:
        """Raise BadSetting for what cannot work, OutputProblem for a report that cannot be."""
        method, smooth = self.settings.method, self.settings.smooth
        refuse_unless(
            method in METHODS,
            f"There is no method {method!r}.",
            f"Choose one of {', '.join(METHODS)}.",
        )
        refuse_noise(self.settings.noise, METHODS[method].noise)
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


def refuse_noise(noise: Noise, published: Noise) -> None:
    """Raise BadSetting for noise that cannot be made, or is not of the published one's method."""
    refuse_unless(
        type(noise) is type(published),
        f"{type(noise).__name__} is not the noise of this method.",
        f"Give {type(published).__name__}.",
    )
    noise.refuse()


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
