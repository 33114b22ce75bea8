"""Pictures in memory as one tensor, drawn in batches, shifted and flipped as tensors.

Everything random is a function of a seed and a step, so that a training goes on exactly where it
was stopped without keeping the state of any generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.numerics.draws import PADDING, seed_at

Transform = Callable[[Tensor], Tensor]
"""Pixels (N, 3, H, W) to pixels of the same shape; differentiable."""


def generator_at(seed: int, stream: str, step: int, device: torch.device) -> torch.Generator:
    """Return the generator of one step of one named stream of a run."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_at(seed, stream, step))
    return generator


@dataclass(frozen=True)
class Pictures:
    """A labelled set in memory."""

    pixels: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Pictures:
        """Return the same set on a device."""
        return Pictures(self.pixels.to(device), self.labels.to(device))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 pixels in [0, 1] and labels of the pictures at `indices`."""
        indices = indices.to(self.pixels.device)
        return self.pixels[indices].float().div_(255), self.labels[indices]


def batch_indices(count: int, size: int, *, seed: int, step: int) -> Tensor:
    """Return which pictures make batch `step`: shuffled anew each epoch, none dropped.

    An epoch is ceil(count / size) batches; the last one is filled from the epoch's beginning.
    """
    a_epoch = -(-count // size)
    epoch, place = divmod(step, a_epoch)
    order = torch.randperm(count, generator=generator_at(seed, "order", epoch, torch.device("cpu")))
    return order[torch.arange(place * size, (place + 1) * size) % count]


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each picture by up to 4 pixels over black and flip half of them; (N, C, H, W)."""
    count, _, height, width = pixels.shape
    device = pixels.device
    padded = F.pad(pixels, (PADDING,) * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator, device=device)
    flip = torch.rand((count, 1), generator=generator, device=device) < 0.5
    columns = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flip, columns.flip(0), columns)
    place = torch.arange(count, device=device)[:, None, None]
    # Channels last in the gather: one contiguous copy a pixel instead of three scattered ones.
    return padded.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue weigh in grey (ITU-R 601, as JPEG and Pillow have it)."""


def gray(pixels: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) without colours: their luma in all three channels."""
    luma = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    return (pixels * luma).sum(1, keepdim=True).expand_as(pixels)


def sample_shift_and_flip(generator: torch.Generator) -> Transform:
    """Draw one shift of up to 4 pixels over black and one flip, the same for a whole batch.

    The expectation over transformations of REM, one sample a step: a batch shares the draw, so that
    a picture's noise does not depend on its neighbours, and slices stay cheap to differentiate.
    """
    device = generator.device
    top, left = torch.randint(0, 2 * PADDING + 1, (2,), generator=generator, device=device).tolist()
    flip = bool(torch.rand((), generator=generator, device=device) < 0.5)

    def transform(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        moved = F.pad(pixels, (PADDING,) * 4)[..., top : top + height, left : left + width]
        return moved.flip(-1) if flip else moved

    return transform
