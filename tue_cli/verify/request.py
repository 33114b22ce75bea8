"""What `tue verify` was asked for, and whether that can be done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tue_cli import __version__
from tue_cli.config import (
    DEVICES,
    METHODS,
    NoiseSettings,
    VerifySettings,
    VictimSettings,
    setting,
)
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.protect.request import refuse_seed
from tue_cli.report.write import refuse_report
from tue_cli.text import printable

WIDEST = 4
"""Times the published width: a victim has been mistyped that is wider."""


@dataclass(frozen=True)
class VerifySpec:
    """What `tue verify` was asked for."""

    protected: Path
    original: Path
    settings: VerifySettings
    seconds: float | None = None
    """Choose `seen` so that the victims take about so long on this machine."""
    holdout: Path | None = setting(
        None, "clean pictures to test on, a subfolder a class; empty: a fifth of the originals"
    )
    background: Path | None = setting(None, "other people's pictures, as one more class")
    report: Path | None = setting(None, "a page to show, FILE.html; empty: none")
    device: str = setting("auto", "where it is computed", choices=DEVICES)
    resume: bool = setting(False, "keep the victims that are finished")
    command: str = ""

    def validate(self) -> None:
        """Raise BadSetting for what cannot work, OutputProblem for a report that cannot be."""
        settings, size = self.settings, self.settings.size
        refuse_seed(settings.seed)
        refuse_unless(
            settings.seeds >= 1, f"{settings.seeds} seeds train no victim.", "Choose 1 or more."
        )
        refuse_unless(
            "std" in settings.attacks,
            "Standard training is what others are compared with.",
            "Add std.",
        )
        refuse_unless(
            settings.seen >= 1 and settings.adversary_steps >= 1,
            "A victim must see pictures, and an adversary take steps.",
            "Choose more.",
        )
        refuse_unless(
            0 < settings.held_out < 1,
            f"A held-out share of {settings.held_out:g} cannot be.",
            "Choose more than 0, less than 1.",
        )
        refuse_unless(
            size is None or (size >= 32 and size % 4 == 0),
            f"Victims cannot see pictures at {size} pixels.",
            "Choose a multiple of 4 from 32.",
        )
        if self.report is not None:
            refuse_report(self.report)
        refuse_unless(
            self.protected.is_dir(),
            f"{printable(self.protected)} is no folder.",
            "Name a folder that `tue protect` wrote.",
        )
        refuse_unless(
            self.original.is_dir(),
            f"{printable(self.original)} is no folder.",
            "Give --original the folder that was given to `tue protect`.",
        )


@dataclass(frozen=True)
class Provenance:
    """How copies were made, as their manifest tells, and by what they are judged."""

    method: str
    radius: str
    """What bounds a pixel's change, in words."""
    weights: str
    """Their name and sha256."""
    tue: str
    """The version that verifies."""


def victims_named(text: str) -> tuple[VictimSettings, ...]:
    """Return the victims that are asked for with commas between, as `format_victim` writes them.

    Raises:
        BadSetting: one of them has no width that can be.
    """
    victims = []
    for part in text.split(","):
        net, _, share = part.strip().partition(":")
        try:
            times = float(share or 0.25)
        except ValueError:
            times = 0.0
        if not 0 < times <= WIDEST:
            raise BadSetting(
                f"{part!r} is no victim.",
                f"Write resnet18:0.25, say: 1 is the width as published, {WIDEST} the most.",
            )
        victims.append(VictimSettings(net=net, width=round(64 * times)))
    return tuple(dict.fromkeys(victims))


def format_victim(victim: VictimSettings) -> str:
    """Return a victim as it is asked for: its net and its share of the published width."""
    return f"{victim.net}:{victim.width / 64:g}"


def read_provenance(protected: Path, manifest: dict[str, Any]) -> tuple[float, Provenance]:
    """Return the radius of the copies' noise and how they were made.

    Where nothing bounds it, it is the usual radius: random noise of any other would be no control.

    Raises:
        BadSetting: the manifest does not say it.
    """
    run = manifest["run"]
    try:
        settings, weights = run["settings"], run["weights"]
        radius, method = float(settings["noise"]["radius"]), METHODS[settings["method"]]
        if not 0 < radius <= 1:
            raise ValueError(radius)
        control = NoiseSettings().radius if method.bound == "none" else radius
        return control, Provenance(
            method=settings["method"],
            radius=method.promise(radius),
            weights=f"{weights['name']}, sha256 {weights['sha256']}",
            tue=__version__,
        )
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise BadSetting(
            f"The manifest in {printable(protected)} does not say how its copies were made.",
            "Use the one that `tue protect` wrote.",
        ) from None
