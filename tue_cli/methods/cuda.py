"""CUDA: Sadasivan et al. 2023, "CUDA: Convolution-based Unlearnable Datasets"; no relation of
NVIDIA's.

No net: each class has one small filter, and every picture goes through its class's.

- Nothing bounds how far a pixel moves. The filter's largest weight sits at a random place, which
  shifts the picture by up to a pixel; that is the method.
- The border is repeated outwards, where theirs is darkened by black; a black picture stays black,
  where theirs divides by 0.
- A class's filter comes from the run's seed and its key alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.core.batches import make_generator
from tue_cli.core.capture import Run, run_eagerly
from tue_cli.declare import fixed
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.noise import CudaNoise


@dataclass(frozen=True)
class FilterSettings:
    """The filters of cuda (Sadasivan et al. 2023)."""

    side: int = fixed(
        3, "width and height of a filter, in pixels", source="Sadasivan et al. 2023, CIFAR-10"
    )
    blur: float = fixed(0.3, "largest weight beside the one that is 1", source="same")


FILTER = FilterSettings()


def draw_filter(key: int, generator: torch.Generator) -> Tensor:
    """Draw a class's filter (side, side): small weights, and one of 1 at a random place."""
    own = make_generator(generator.initial_seed(), "cuda", key, torch.device("cpu"))
    weights = FILTER.blur * torch.rand(FILTER.side**2, generator=own)
    weights[torch.randint(0, FILTER.side**2, (), generator=own)] = 1
    return weights.reshape(FILTER.side, FILTER.side)


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: CudaNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W), by which each picture becomes its filtered self.

    The filtered picture is divided by its own maximum.
    """
    filters = torch.stack([draw_filter(key, generator) for key in labels.tolist()]).to(pixels)
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels, (FILTER.side // 2,) * 4, mode="replicate")
    filtered = F.conv2d(
        padded.reshape(1, count * channels, *padded.shape[2:]),
        filters.repeat_interleave(channels, 0)[:, None],
        groups=count * channels,
    ).reshape(pixels.shape)
    largest = filtered.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(pixels.dtype).tiny)
    return filtered / largest - pixels
