"""Every default, once: frozen records whose fields carry their help, unit and source.

Radii are in the pixels' unit, [0, 1]; only interfaces speak of levels of 255.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any, text: str, *, unit: str = "", source: str = "", choices: tuple[str, ...] = ()
) -> Any:
    """Declare a field: its default, help, unit, where the value comes from, and what it may be."""
    metadata = {"help": text, "unit": unit, "source": source, "choices": choices}
    return field(default=default, metadata=metadata)


METHODS = ("tue", "em")
NETS = ("resnet18", "resnet50", "vgg16", "densenet121", "wrn34-10")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class NoiseSettings:
    """The protective noise delta-u (Fang et al., Eq. 6; Algorithm 1, lines 6 to 11)."""

    radius: float = setting(
        8 / 255, "largest change of a pixel", unit="1", source="Fang et al., section 4.2.1"
    )
    steps: int = setting(10, "steps of gradient descent", source="REM, Fu et al. 2022")
    travel: float = setting(
        2.0, "total way of the surrogate's term", unit="radii", source="REM: 10 steps of radius / 5"
    )
    score_ratio: float = setting(
        0.25, "alpha_s / alpha_u, the score's step over the surrogate's; 0 is the control"
    )
    score_mode: str = setting(
        "norm",
        "descend the score's norm (Algorithm 1, line 9) or ascend the score itself",
        choices=("norm", "ascent"),
    )
    samples: int = setting(1, "random shifts and flips a step", source="REM takes 5")

    @property
    def step(self) -> float:
        """alpha_u, in the pixels' unit."""
        return self.travel * self.radius / max(self.steps, 1)


@dataclass(frozen=True)
class AdversarySettings:
    """The adversarial noise delta-a (Fang et al., Eq. 7; Algorithm 1, lines 12 to 15)."""

    radius: float = setting(
        4 / 255, "radius of the adversary", unit="1", source="Fang et al., section 4.2.1"
    )
    steps: int = setting(10, "steps of gradient ascent", source="REM, Fu et al. 2022")
    travel: float = setting(2.0, "total way", unit="radii", source="REM: 10 steps of radius / 5")

    @property
    def step(self) -> float:
        """alpha_a, in the pixels' unit."""
        return self.travel * self.radius / max(self.steps, 1)


@dataclass(frozen=True)
class TrainSettings:
    """`tue train`: the score network, then the surrogate."""

    method: str = setting("tue", "protection method that the weights are for", choices=METHODS)
    net: str = setting("resnet18", "surrogate", source="Fang et al., section 4.1", choices=NETS)
    width: int = setting(64, "channels of the surrogate's first stage; 64 is the published net")
    size: int = setting(32, "pictures are squashed to this many pixels a side", unit="px")
    score_width: int = setting(64, "channels of the score network's fine level")
    sigma: float = setting(0.1, "noise of score matching", unit="1")
    score_steps: int = setting(20_000, "training steps of the score network")
    score_rate: float = setting(1e-3, "peak learning rate of the score network (Adam)")
    steps: int = setting(5000, "training steps of the surrogate", source="REM, Fu et al. 2022")
    rate: float = setting(0.1, "peak learning rate of the surrogate (SGD)", source="REM")
    batch: int = setting(128, "pictures a step", source="REM")
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    seed: int = setting(0, "seed of everything random")


@dataclass(frozen=True)
class ProtectSettings:
    """`tue protect`."""

    method: str = setting("tue", "protection method", choices=METHODS)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    seed: int = setting(0, "seed of everything random")


@dataclass(frozen=True)
class VictimSettings:
    """A victim of `tue verify`, and how it is trained."""

    net: str = setting("resnet18", "architecture", source="Fang et al., section 4.1")
    width: int = setting(16, "channels of its first stage; 64 is the published net")
    batch: int = setting(64, "pictures a step")
    rate: float = setting(0.1, "peak learning rate (SGD)", source="REM, Fu et al. 2022")


@dataclass(frozen=True)
class VerifySettings:
    """`tue verify`."""

    victims: tuple[VictimSettings, ...] = setting(
        (VictimSettings(),), "kinds of victims, each with its share of the published width"
    )
    attacks: tuple[str, ...] = setting(
        ("std", "at4", "gray", "jpeg10"), "attackers, with commas between"
    )
    seen: int = setting(30_000, "pictures that a victim is shown, each as often as it comes up")
    adversary_steps: int = setting(5, "steps of the adversary in adversarial training")
    held_out: float = setting(0.2, "share of the pictures that victims are tested on", unit="1")
    size: int | None = setting(None, "pixels a side at which victims see pictures", unit="px")
    seeds: int = setting(1, "victims of each kind, which differ by their seed")
    seed: int = setting(0, "seed of everything random")


_FEW = VerifySettings().attacks
_MORE = ("early", "at2", "jpeg50", "jpeg75", "resize", "blur", "bits", "cutmix", "ueraser")
_MOST = ("at1", "at3", "cutout", "mixup", "labels", "part20", "part40", "part60", "part80")

BUDGETS: dict[str, VerifySettings] = {
    "quick": VerifySettings(),
    "standard": VerifySettings(attacks=_FEW + _MORE, seen=200_000, seeds=3),
    # REM's victim sees 40,000 batches of 128; this is a fifth of it.
    "full": VerifySettings(
        attacks=_FEW + _MORE + _MOST, seen=1_000_000, adversary_steps=10, seeds=3
    ),
}
