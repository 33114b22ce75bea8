"""What `tue verify` was asked for, and whether that can be done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tue_cli import __version__
from tue_cli.config import (
    BUDGETS,
    DEVICE,
    DEVICES,
    METHODS,
    PRETRAINED,
    PROBE,
    VerifySettings,
    VictimSettings,
)
from tue_cli.declare import ADVANCED, argument, fixed, part, setting
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.protect.request import refuse_seed
from tue_cli.report.write import refuse_report
from tue_cli.text import escape, read_duration

WIDEST = 4
"""Times the published width: a victim has been mistyped that is wider."""
_PRETRAINED = {"pretrained": PRETRAINED, "probe": PROBE}
_TITLES = {
    "efficientnet-lite0": "EfficientNet-Lite0",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "densenet121": "DenseNet-121",
    "wrn34-10": "WRN-34-10",
}


@dataclass(frozen=True)
class VerifySpec:
    """What `tue verify` was asked for."""

    protected: Path = argument("A folder of copies that `tue protect` wrote.")
    original: Path | None = setting(
        None,
        "The folder that was given to `tue protect`. Default: where it found the originals.",
    )
    settings: VerifySettings = part(BUDGETS["quick"], by="budget", among=BUDGETS, has_others=True)
    budget: str = setting(
        "quick",
        "quick, standard, full, or a time such as 30m or 2h.",
        choices=tuple(BUDGETS),
    )
    holdout: Path | None = setting(
        None,
        "Clean pictures to test on, one subfolder per class. Default: a fifth of the originals.",
    )
    background: Path | None = setting(
        None,
        "Other people's pictures, one subfolder per class. Required if you have one class; then "
        "tue measures how well models recognize it.",
    )
    report: Path | None = setting(None, "Also write a page with the result: FILE.html.")
    device: str = setting("auto", DEVICE, choices=DEVICES, panel=ADVANCED)
    resume: bool = setting(False, "Continue a run that was stopped.")
    command: str = fixed("", "the command as it was typed")

    @property
    def seconds(self) -> float | None:
        """How long the victims may take on this machine, which then decides `seen`.

        Raises:
            BadSetting: the budget is neither the name of one nor a length of time.
        """
        return None if self.budget in BUDGETS else read_duration(self.budget)

    def validate(self) -> None:
        """Raise BadSetting for what cannot work, OutputProblem for a report that cannot be."""
        settings, size = self.settings, self.settings.size
        refuse_seed(settings.seed)
        refuse_unless(
            settings.seeds is None or settings.seeds >= 1,
            f"--seeds must be 1 or more, not {settings.seeds}.",
            "It is the number of victims of each kind.",
        )
        if self.budget not in BUDGETS:
            try:
                read_duration(self.budget)
            except BadSetting as error:
                names = ", ".join(BUDGETS)
                raise BadSetting(
                    f"--budget {self.budget!r} is not a time, and none of {names}.", error.remedy
                ) from None
        refuse_unless(
            "std" in settings.attacks,
            "--attacks lacks std, standard training, with which the others are compared.",
            "Write --attacks std,…",
        )
        refuse_unless(
            settings.seen >= 1 and settings.adversary_steps >= 1,
            "A victim needs pictures, and an adversary needs steps.",
            "Choose 1 or more.",
        )
        refuse_unless(
            0 < settings.held_out < 1,
            f"The held-out share must be between 0 and 1, not {settings.held_out:g}.",
            "The default is 0.2.",
        )
        refuse_unless(
            size is None or (size >= 32 and size % 4 == 0),
            f"--size must be 32, 36, 40 or a larger multiple of 4, not {size}.",
            "Without the option, 32, 64 or 128 is chosen.",
        )
        if self.report is not None:
            refuse_report(self.report)
        refuse_unless(
            self.protected.is_dir(),
            f"{escape(self.protected)} is not a folder.",
            "Name a folder of copies that `tue protect` wrote.",
        )
        refuse_unless(
            self.original is None or self.original.is_dir(),
            f"--original {escape(self.original or '')} is not a folder.",
            "Name the folder that was given to `tue protect`.",
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


def parse_victims(text: str) -> tuple[VictimSettings, ...]:
    """Return the victims that are asked for with commas between, as `format_victim` writes them.

    Raises:
        BadSetting: one of them has no width that can be.
    """
    victims = []
    for named in text.split(","):
        name = named.strip()
        if name in _PRETRAINED or name.lower().endswith(".safetensors"):
            own = replace(PRETRAINED, net="", weights=name)
            victims.append(_PRETRAINED.get(name, own))
            continue
        net, _, share = name.partition(":")
        try:
            times = float(share or 0.25)
        except ValueError:
            times = 0.0
        if not 0 < times <= WIDEST:
            raise BadSetting(
                f"--victim {named!r} is not an architecture with a width.",
                f"Write resnet18:0.25, for example; 1 is the published width, {WIDEST} the most.",
            )
        victims.append(VictimSettings(net=net, width=round(64 * times)))
    return tuple(dict.fromkeys(victims))


def format_victim(victim: VictimSettings) -> str:
    """Return a victim as it is asked for: its net and its share of the published width, what it
    begins from, or its file.
    """
    return victim.weights or victim.start or f"{victim.net}:{victim.width / 64:g}"


def describe_victim(victim: VictimSettings) -> str:
    """Return what a victim is, for people; a victim from fresh weights as it is asked for."""
    if not victim.start:
        return format_victim(victim)
    net = _TITLES.get(victim.net, victim.net)
    own = f"weights from {escape(Path(victim.weights).name)}"
    how = "fine-tuned" if victim.start == "pretrained" else "frozen, linear probe"
    return f"{net}, {own if victim.weights else 'pretrained on ImageNet'}, {how}"


def read_provenance(protected: Path, manifest: dict[str, Any]) -> tuple[float, Provenance]:
    """Return the radius of the copies' noise and how they were made.

    Where nothing bounds it, it is the usual radius: random noise of any other would be no control.

    Raises:
        BadSetting: the manifest does not say it.
    """
    run = manifest["run"]
    try:
        settings, weights = run["settings"], run["weights"]
        method = METHODS[settings["method"]]
        # A filter's noise has no radius to tell.
        found = settings["noise"]["radius"] if method.bound != "none" else method.noise.radius
        radius = float(found)
        if not 0 < radius <= 1:
            raise ValueError(radius)
        control = METHODS["tue"].noise.radius if method.bound == "none" else radius
        return control, Provenance(
            method=settings["method"],
            radius=method.describe_bound(radius),
            weights=f"{weights['name']}, sha256 {weights['sha256']}",
            tue=__version__,
        )
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise BadSetting(
            f"The manifest in {escape(protected)} does not say how the copies were made.",
            "Use the manifest that `tue protect` wrote.",
        ) from None
