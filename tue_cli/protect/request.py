"""What `tue protect` was asked for, and whether that can be done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tue_cli.config import DEVICE, DEVICES, METHODS, STRENGTHS, ProtectSettings
from tue_cli.dataset.journal import EXISTING
from tue_cli.dataset.selection import Selection
from tue_cli.dataset.shards import FIELD
from tue_cli.declare import ADVANCED, argument, fixed, part, setting
from tue_cli.engine.select import BACKENDS, refuse_unknown
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.images import coding
from tue_cli.images.strip import STRIP
from tue_cli.noise import Noise
from tue_cli.report.write import refuse_report

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class ProtectSpec:
    """What `tue protect` was asked for."""

    paths: tuple[Path, ...] = argument(
        "Folders, with their subfolders, and files. - reads a list from stdin, one path per line.",
        typed="paths",
        metavar="PATHS",
        in_form=False,
    )
    output: Path | None = setting(
        None,
        "Folder for the copies. Default: FOLDER-protected, beside FOLDER.",
        "-o",
        "--output",
        typed="folder",
        metavar="<path>",
    )
    include: tuple[str, ...] = setting(
        (),
        "Protect only pictures that this pattern matches: *.jpg, or cats/*.jpg. Can be repeated.",
        typed="patterns",
        metavar="<glob>",
        in_form=False,
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Leave out pictures that this pattern matches, or a folder: drafts/. Can be repeated.",
        typed="patterns",
        metavar="<glob>",
        in_form=False,
    )
    no_recursive: bool = setting(False, "Leave out subfolders.", in_form=False)
    labels: str = setting(
        "auto",
        "What a class is: folders (each subfolder), single (all pictures), cluster:N (N groups of "
        "similar pictures), FILE.csv (path,class); auto: folders, if there are several.",
        in_form=False,
    )
    key: str | None = setting(
        None,
        "Code of the class, if there is only one: the class of the weights that its pictures are "
        "made to look like. Default: chosen by your secret and the name of the class.",
        panel=ADVANCED,
    )
    strength: str = setting(
        "normal",
        "How strong the noise is. Photographs: subtle (PSNR 35 dB, protection 22 %), normal (PSNR "
        "33 dB, protection 30 %) or strong (PSNR 31 dB, protection 38 %).",
        choices=tuple(STRENGTHS),
    )
    settings: ProtectSettings = part(ProtectSettings(), by="strength", among=STRENGTHS)
    weights: str | None = setting(
        None, "Weights, by name or file. Default: the packaged weights.", panel=ADVANCED
    )
    device: str = setting("auto", DEVICE, choices=DEVICES, panel=ADVANCED)
    backend: str = setting(
        "auto",
        "torch, onnx (ONNX Runtime), or auto: the faster one, or the one that began the folder.",
        choices=BACKENDS,
        panel=ADVANCED,
    )
    format: str = setting(
        "keep",
        "Format of the copies: keep, png, jpeg or webp.",
        choices=("keep", "png", "jpeg", "webp"),
    )
    quality: int | None = setting(
        None,
        "Quality of JPEG, WebP and AVIF, 1 to 100. Default: the original's, or better.",
        panel=ADVANCED,
    )
    strip: str = setting(
        "none",
        "What to remove from copies: gps or metadata.",
        choices=STRIP,
    )
    existing: str = setting(
        "skip",
        "What to do if copies exist: skip them, overwrite them, or error (refuse to start).",
        choices=EXISTING,
    )
    retry_failed: bool = setting(
        False, "Protect only the pictures that failed in the last run.", in_form=False
    )
    mark: bool = setting(
        False, "Write into the metadata (XMP) of each copy that it is protected.", in_form=False
    )
    dry_run: bool = setting(
        False,
        "Write nothing; show the plan, what cannot be protected, and the estimated size and time.",
        "-n",
        "--dry-run",
        in_form=False,
    )
    watch: bool = setting(
        False,
        "Then wait, and protect what is added or changed, until Ctrl-C.",
        in_form=False,
    )
    report: Path | None = setting(
        None, "Also write a page that shows some of the pictures: FILE.html."
    )
    command: str = fixed("", "the command as it was typed")
    jobs: int = setting(
        0,
        "Threads that read and write pictures, or workers for shards. 0: one per processor.",
        panel=ADVANCED,
    )
    engine: str = setting(
        "local",
        "Where data sets by URL are protected: local (on this machine), or ray (on many).",
        choices=ENGINES,
        panel=ADVANCED,
        in_form=False,
    )
    address: str | None = setting(
        None,
        "Address of a Ray cluster, such as auto. Default: Ray is started on this machine.",
        panel=ADVANCED,
        in_form=False,
    )

    @property
    def selection(self) -> Selection:
        """Which of the pictures are taken."""
        return Selection(self.include, self.exclude, not self.no_recursive)

    def validate(self) -> None:
        """Raise BadSetting for what cannot work, OutputProblem for a report that cannot be."""
        method, smooth = self.settings.method, self.settings.smooth
        refuse_unless(
            method in METHODS,
            f"There is no method {method!r}.",
            f"Choose one of: {', '.join(METHODS)}.",
        )
        refuse_noise(self.settings.noise, METHODS[method].noise)
        refuse_unless(
            0 <= smooth <= 1, f"--smooth must be 0 to 1, not {smooth:g}.", "The default is 0.25."
        )
        refuse_seed(self.settings.seed)
        refuse_unless(
            self.format in coding.FORMATS,
            f"--format {self.format!r} is unknown.",
            f"Choose one of: {', '.join(sorted(coding.FORMATS))}.",
        )
        refuse_unless(
            self.quality is None or 1 <= self.quality <= 100,
            f"--quality must be 1 to 100, not {self.quality}.",
            "Without the option, the quality of the original is kept.",
        )
        refuse_unless(
            self.strip in STRIP,
            f"--strip {self.strip} is unknown.",
            f"Choose one of: {', '.join(STRIP)}.",
        )
        refuse_unless(
            self.existing in EXISTING,
            f"--existing {self.existing} is unknown.",
            f"Choose one of: {', '.join(EXISTING)}.",
        )
        refuse_unknown(self.backend)
        refuse_unless(
            self.engine in ENGINES,
            f"--engine {self.engine!r} is unknown.",
            f"Choose one of: {', '.join(ENGINES)}.",
        )
        _refuse_unknown_labels(self.labels)
        if self.report is not None:
            refuse_report(self.report)
        refuse_unless(
            self.jobs >= 0,
            f"--jobs must be 0 or more, not {self.jobs}.",
            "0 means one thread per processor.",
        )


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
        f"--size must be 16, 20, 24 or a larger multiple of 4, not {size}.",
        "The usual size is 32.",
    )


def refuse_seed(seed: int) -> None:
    """Raise BadSetting for a seed that a random generator does not take."""
    refuse_unless(
        0 <= seed < 2**63,
        f"--seed must be 0 to 2^63 - 1, not {seed}.",
        "The default is 0.",
    )


def count_clusters(labels: str) -> int | None:
    """Return how many clusters `cluster[:N]` asks for, 0 for no number; None for another mode."""
    kind, _, number = labels.partition(":")
    if kind != "cluster":
        return None
    if not number:
        return 0
    if not number.isdecimal() or int(number) < 1:
        raise BadSetting(
            f"--labels {labels}: the number of groups must be 1 or more.",
            "Write cluster:10, for example.",
        )
    return int(number)


def _refuse_unknown_labels(labels: str) -> None:
    known = count_clusters(labels) is not None or labels in ("auto", "folders", "single")
    known = known or labels.startswith(FIELD)
    if not known and not os.path.isfile(labels):  # noqa: PTH113 - False for a name too long
        raise BadSetting(
            f"--labels {labels!r} is neither a way to make classes nor a file that exists.",
            "Choose auto, folders, single, cluster:N or a CSV file with the columns path,class.",
        )
