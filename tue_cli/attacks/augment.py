"""Augmentations of a victim's batches beside crops and flips: tensors in, tensors out.

Labels become targets, (N, K): the weight of each class in a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

Augmentation = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Pixels (N, 3, H, W) in [0, 1], targets (N, K) and a generator to the same, changed."""


def cutout(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Black out a square of half the side at a random place (DeVries and Taylor 2017: 16 of 32)."""
    size = pixels.shape[-1] // 2
    return pixels.masked_fill(_draw_squares(pixels, size, generator), 0.0), targets


def cutmix(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another picture into half of the batches (Yun et al. 2019; beta 1)."""
    share, other, applied = _draw_partners(pixels, generator)
    if not applied:
        return pixels, targets
    mask = _draw_squares(pixels[:1], round(pixels.shape[-1] * (1 - share) ** 0.5), generator)
    pasted = float(mask.float().mean())
    return (
        torch.where(mask, pixels[other], pixels),
        targets * (1 - pasted) + targets[other] * pasted,
    )


def mixup(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend half of the batches with other pictures (Zhang et al. 2018; beta 1)."""
    share, other, applied = _draw_partners(pixels, generator)
    if not applied:
        return pixels, targets
    return (
        pixels * share + pixels[other] * (1 - share),
        targets * share + targets[other] * (1 - share),
    )


def ueraser(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change brightness and contrast by fractal noise, shuffle channels, then TrivialAugment.

    UEraser's lite form (Qin et al. 2023): one draw a picture, no search for the worst of five.
    Strengths are of its public code; the last operation is drawn for eight pictures at a time.
    """
    plasma, trivial = _build_ueraser()
    return _apply_kornia(trivial, pixels, generator, first=plasma), targets


def randaugment(
    pixels: Tensor, targets: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Apply two random operations of strength 10 of 30 (Cubuk et al. 2020: N 2, M 9 to 15).

    They are drawn for eight pictures at a time.
    """
    return _apply_kornia(_build_randaugment(), pixels, generator), targets


AUGMENTATIONS: dict[str, Augmentation] = {
    "cutout": cutout,
    "cutmix": cutmix,
    "mixup": mixup,
    "ueraser": ueraser,
    "randaugment": randaugment,
}


@cache
def _build_ueraser() -> tuple[nn.Module, nn.Module]:
    import kornia.augmentation as aug
    from kornia.augmentation.auto import TrivialAugment

    plasma = nn.Sequential(
        aug.RandomPlasmaBrightness(roughness=(0.3, 0.7), intensity=(0.5, 1.0), p=1.0),
        aug.RandomPlasmaContrast(roughness=(0.3, 0.7), p=1.0),
        aug.RandomChannelShuffle(p=0.5),
    )
    return plasma, TrivialAugment()


@cache
def _build_randaugment() -> nn.Module:
    from kornia.augmentation.auto import RandAugment

    return RandAugment(n=2, m=10)


def _apply_kornia(
    operation: nn.Module,
    pixels: Tensor,
    generator: torch.Generator,
    first: nn.Module | None = None,
) -> Tensor:
    """Return pixels after `first`, all at once, and `operation`, eight pictures at a time."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # Kornia draws from torch's own generator.
    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        torch.manual_seed(seed)
        if first is not None:
            pixels = first(pixels)
        return torch.cat([operation(few) for few in torch.split(pixels, 8)]).clamp(0, 1)


def _draw_partners(pixels: Tensor, generator: torch.Generator) -> tuple[float, Tensor, bool]:
    """Draw a share uniformly (beta 1), a partner for every picture, and whether to mix at all."""
    device = generator.device
    share, chance = torch.rand(2, generator=generator, device=device).tolist()
    other = torch.randperm(len(pixels), generator=generator, device=device)
    return share, other, chance < 0.5


def _draw_squares(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return a mask (N, 1, H, W): a square around a random centre in each picture, cut at edges."""
    count, _, height, width = pixels.shape
    device = pixels.device
    place = torch.rand((2, count, 1), generator=generator, device=device)
    down = torch.arange(height, device=device) - (place[0] * height).floor() + size // 2
    right = torch.arange(width, device=device) - (place[1] * width).floor() + size // 2
    rows, columns = (down >= 0) & (down < size), (right >= 0) & (right < size)
    return rows[:, None, :, None] & columns[:, None, None, :]
