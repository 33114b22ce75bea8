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
    gray_ratio: float = setting(
        1.0,
        "alpha_g / alpha_u, the step of the surrogate's term in grey over that in colour; 0 in the "
        "paper, and where nets are trained",
        source="benchmarks/README.md",
    )
    samples: int = setting(1, "random shifts and flips a step", source="REM takes 5")
    inner_radius: float = setting(
        4 / 255, "radius of rem's inner adversary", unit="1", source="REM, Fu et al. 2022"
    )
    inner_steps: int = setting(
        10, "steps of rem's inner adversary; 0 leaves its random start, which is sem", source="REM"
    )

    @property
    def step(self) -> float:
        """alpha_u, in the pixels' unit."""
        return self.travel * self.radius / max(self.steps, 1)

    @property
    def inner(self) -> AdversarySettings:
        """The inner adversary of rem."""
        return AdversarySettings(radius=self.inner_radius, steps=self.inner_steps)


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


RECIPES: dict[str, tuple[str, ...]] = {
    "tue": ("score", "surrogate"),
    "em": ("surrogate",),
    "rem": ("surrogate",),
    "clean": ("surrogate",),
    "ntga": ("block",),
    "uc": ("surrogate", "patterns"),
}
"""What `tue train` makes: by recipe the nets, in the order in which they are trained."""


@dataclass(frozen=True)
class Method:
    """What is known of a protection method before anything is loaded."""

    paper: str
    recipes: tuple[str, ...]
    """Recipes whose weights serve it, its own first; none where it needs no net."""
    bound: str
    """What holds a pixel: `linf`, `l2` (the mean square over the picture), or `none`."""
    noise: NoiseSettings
    """The published defaults; of tue with its term in grey, which is ours."""
    shows_key: bool = False
    """Whether its noise makes the surrogate see a picture's key: one that is near, or is far."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The nets it needs."""
        return RECIPES[self.recipes[0]] if self.recipes else ()

    def largest(self, noise: NoiseSettings) -> float:
        """Return how far one pixel may move, in the pixels' unit."""
        return noise.radius if self.bound == "linf" else 1.0

    def promise(self, radius: float) -> str:
        """Say, for people, how far pixels may move at a radius."""
        levels = f"{radius * 255:g}/255"
        return {
            "linf": levels,
            "l2": f"{levels} in the root mean square (L2); single pixels may move further",
            "none": "none: a filter, which moves a pixel by any amount",
        }[self.bound]


METHODS: dict[str, Method] = {
    "tue": Method("Fang et al. 2023", ("tue", "em", "rem"), "linf", NoiseSettings(), True),
    "em": Method("Huang et al. 2021", ("em", "tue", "rem"), "linf", NoiseSettings(), True),
    # Fu et al.: 10 steps of radius / 5, 5 shifts and flips, an adversary of 4/255.
    "rem": Method("Fu et al. 2022", ("rem",), "linf", NoiseSettings(samples=5), True),
    # Fowl et al.: 250 steps of radius / 20.
    "tap": Method("Fowl et al. 2021", ("clean",), "linf", NoiseSettings(steps=250, travel=12.5)),
    # Yuan and Wu: 10 steps of 1.1 radius / 10.
    "ntga": Method("Yuan and Wu 2021", ("ntga",), "linf", NoiseSettings(travel=1.1)),
    # Yu et al.: 6/255 times the root of the dimension.
    "lsp": Method("Yu et al. 2022", (), "l2", NoiseSettings(radius=6 / 255, steps=1)),
    "cuda": Method("Sadasivan et al. 2023", (), "none", NoiseSettings(radius=1.0, steps=1)),
    "uc": Method("Zhang et al. 2023", ("uc",), "linf", NoiseSettings(radius=16 / 255, steps=1)),
}
"""The protection methods, by name, with their defaults."""


@dataclass(frozen=True)
class PatchSettings:
    """The pattern of lsp (Yu et al. 2022; sklearn's make_classification as they call it)."""

    side: int = setting(8, "pixels a side of a patch", source="Yu et al. 2022, CIFAR-10")
    separation: float = setting(
        10.0, "distance of the classes' centres from the middle, in each coordinate", source="same"
    )


@dataclass(frozen=True)
class FilterSettings:
    """The filters of cuda (Sadasivan et al. 2023)."""

    side: int = setting(3, "pixels a side of a filter", source="Sadasivan et al. 2023, CIFAR-10")
    blur: float = setting(0.3, "largest weight beside the one that is 1", source="same")


@dataclass(frozen=True)
class KernelSettings:
    """The kernel regression of ntga (Yuan and Wu 2021; their fully connected net)."""

    layers: int = setting(5, "hidden layers, of error functions", source="Yuan and Wu 2021")
    weight_variance: float = setting(1.76, "of the weights, times the inputs", source="same")
    bias_variance: float = setting(0.18, "of the biases", source="same")
    time: int = setting(64, "steps of gradient descent that the learner takes", source="same")
    block: int = setting(512, "pictures that the learner has", source="same")
    held_out: int = setting(256, "pictures that it is to get wrong", source="theirs come 30 a time")


@dataclass(frozen=True)
class TrainSettings:
    """`tue train`: the nets of a recipe, one after the other."""

    # As of protecting, and where the nets are those that a form can show.
    method: str = setting(
        "tue", "what the weights are for; clean serves tap", choices=("tue", "em", "clean")
    )
    net: str = setting("resnet18", "surrogate", source="Fang et al., section 4.1", choices=NETS)
    width: int = setting(64, "channels of the surrogate's first stage; 64 is the published net")
    size: int = setting(32, "pictures are squashed to this many pixels a side", unit="px")
    score_width: int = setting(64, "channels of the score network's fine level")
    sigma: float = setting(0.1, "noise of score matching", unit="1")
    score_steps: int = setting(
        20_000, "training steps of the score network, or of the noises of uc"
    )
    score_rate: float = setting(1e-3, "peak learning rate of the same (Adam)")
    steps: int = setting(5000, "training steps of the surrogate", source="REM, Fu et al. 2022")
    rate: float = setting(0.1, "peak learning rate of the surrogate (SGD)", source="REM")
    batch: int = setting(128, "pictures a step", source="REM")
    noise: NoiseSettings = field(default_factory=lambda: NoiseSettings(gray_ratio=0.0))
    adversary: AdversarySettings = field(default_factory=AdversarySettings)
    seed: int = setting(0, "seed of everything random")


TRAININGS: dict[str, TrainSettings] = {
    "paper": TrainSettings(),
    # How the packaged weights were made: what one core of a processor does in 45 minutes. Narrow
    # and short, for that is what there was; on one data set, for 60 classes at this budget held no
    # better; in colour alone, for a surrogate that must read its noise in grey too puts all of it
    # into the luma, and colours teach a victim again. The noise pulls in grey when protecting. The
    # trials are told in benchmarks/README.md.
    "packaged": TrainSettings(width=16, score_width=32, steps=500, score_steps=1000),
}
"""Presets of `tue train`: the paper's, which wants a GPU, and that of the packaged weights."""


@dataclass(frozen=True)
class ProtectSettings:
    """`tue protect`."""

    # A form that offers a method must offer its noise: these share the default one.
    method: str = setting(
        "tue",
        "protection method",
        choices=tuple(name for name in METHODS if METHODS[name].noise == NoiseSettings()),
    )
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    smooth: float = setting(
        0.25,
        "share of the noise where a picture is smooth, as skies are, and noise is seen; 1 in the "
        "papers",
        source="benchmarks/README.md",
    )
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
