"""Attackers: ways to learn from protected pictures all the same.

Each changes how a victim is trained and nothing else: it is tested on clean pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tue_cli.errors import BadSetting


@dataclass(frozen=True)
class Attack:
    """One attacker: standard training, changed by what is named."""

    title: str
    filter: str = ""
    """What every training picture goes through: a key of `FILTERS` or `CLASS_FILTERS`, or
    `LEARNED`."""
    own_size: bool = False
    """Filter each picture at its own size, before it is resized for the victim."""
    augmentation: str = ""
    """What is done to each batch, a key of `AUGMENTATIONS`."""
    package: str = ""
    """What it needs besides tue's own packages."""
    radius: float = 0.0
    """Of the adversary in adversarial training, in the pixels' unit."""
    part: float = 1.0
    """Share of the training pictures that is protected; the others are clean."""
    other_labels: bool = False
    """Train on labels made from the pictures' coarse colours instead of their classes."""
    best_epoch: bool = False
    """Stop at the best epoch, as one could who has clean pictures to test on."""
    times: int = 1
    """Train for so many times the epochs: strong augmentation takes longer to learn by."""


_RESIZED = {
    **{f"jpeg{quality}": f"JPEG {quality}" for quality in (10, 30, 50, 75)},
    "resize": "half size and back",
    "blur": "Gaussian blur",
    "median": "median of 3 × 3 pixels",
    "denoise": "total-variation denoising",
}
"""Filters that depend on the size of a picture."""

ATTACKS: dict[str, Attack] = {
    "std": Attack("standard training"),
    "early": Attack("early stopping", best_epoch=True),
    **{f"at{r}": Attack(f"adversarial training {r}/255", radius=r / 255) for r in (1, 2, 3, 4)},
    "gray": Attack("grayscale", filter="gray"),
    **{name: Attack(f"{title} after resizing", filter=name) for name, title in _RESIZED.items()},
    **{
        f"own-{name}": Attack(f"{title} at the picture's own size", filter=name, own_size=True)
        for name, title in _RESIZED.items()
    },
    "spectrum": Attack("mean and spectrum of each class removed", filter="spectrum"),
    "pairs": Attack("restoration learned from pairs", filter="pairs"),
    "bits": Attack("two bits per channel", filter="bits"),
    "cutout": Attack("cutout", augmentation="cutout"),
    "cutmix": Attack("cutmix", augmentation="cutmix"),
    "mixup": Attack("mixup", augmentation="mixup"),
    "ueraser": Attack("UEraser-lite", augmentation="ueraser", package="kornia", times=4),
    "randaugment": Attack("RandAugment", augmentation="randaugment", package="kornia", times=2),
    "labels": Attack("other labels", other_labels=True),
    **{f"part{p}": Attack(f"{p} % protected", part=p / 100) for p in (20, 40, 50, 60, 80)},
}

WAYS = {
    "pretrained": "fine-tuning of a pretrained network",
    "probe": "a linear probe of a pretrained network",
}
"""What standard training is where it begins from pretrained weights."""
SHORT = {"at": "at4", "jpeg": "jpeg10"}


def parse_attacks(names: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of `ATTACKS` that were asked for, each once; standard training comes first.

    Raises:
        BadSetting: there is no such attacker.
    """
    wanted = [SHORT.get(name, name) for name in names]
    if unknown := [name for name in wanted if name not in ATTACKS]:
        raise BadSetting(
            f"--attacks {unknown[0]!r} is unknown.",
            f"Choose from {', '.join([*SHORT, *ATTACKS])}, separated by commas.",
        )
    return tuple(dict.fromkeys(["std", *wanted]))
