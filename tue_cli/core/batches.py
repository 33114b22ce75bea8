"""Images in memory as one tensor: their batches, crops and flips, and EoT samples.

Everything random is a function of a seed and a step, so that a training goes on exactly where it
was stopped without keeping the state of any generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.core.sampling import PADDING, derive_seed
from tue_cli.mask import LUMA


def make_generator(seed: int, stream: str, step: int, device: torch.device) -> torch.Generator:
    """Return the generator of one step of one named stream of a run."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, stream, step))
    return generator


@dataclass(frozen=True)
class Images:
    """A labelled set in memory."""

    pixels: Tensor
    """(N, 3, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        """Return the same set on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def take_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 pixels in [0, 1] and labels of the pictures at `indices`."""
        indices = indices.to(self.pixels.device)
        return self.pixels[indices].float().div_(255), self.labels[indices]


CPU = torch.device("cpu")


def draw_batch(
    count: int, size: int, *, seed: int, step: int, device: torch.device = CPU
) -> Tensor:
    """Return which pictures make batch `step`, (size,): shuffled anew each epoch, none dropped.

    An epoch is ceil(count / size) batches; the last one is filled from the epoch's beginning. The
    order is the same on every device.
    """
    a_epoch = -(-count // size)
    epoch, place = divmod(step, a_epoch)
    order = _shuffle(count, seed, epoch, device)
    return order[torch.arange(place * size, (place + 1) * size, device=device) % count]


@lru_cache(maxsize=4)
def _shuffle(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Return an epoch's order, (count,): drawn once on the CPU, kept where it is used."""
    return torch.randperm(count, generator=make_generator(seed, "order", epoch, CPU)).to(device)


Crops = tuple[Tensor, ...]
"""For each picture how far down and right it is cropped, 0 to 8, and whether it is flipped; each
(N, 1)."""


def sample_crops(count: int, generator: torch.Generator) -> Crops:
    """Draw a crop and a flip for each of `count` pictures, on the generator's device."""
    device = generator.device
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator, device=device)
    return top, left, torch.rand((count, 1), generator=generator, device=device) < 0.5


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each picture at random from 4 pixels of black padding, and flip half; (N, C, H, W)."""
    return apply_crops(pixels, sample_crops(len(pixels), generator))


SMALLEST_CROP = 0.35
"""Share of a picture's area that a random resized crop has at least."""
ASPECT = 4 / 3
"""Of a random resized crop's sides, at most."""


def crop_and_resize(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a random part of each picture, resize it to `size` x `size`, and flip half.

    The random resized crop of ImageNet's learners, bilinear: all sizes are equally likely.

    Args:
        pixels: (N, C, H, W); H and W are about `size`, for nothing is antialiased.
        size: of the result, (N, C, size, size).
        generator: on the pixels' device.
    """
    count, channels = pixels.shape[:2]
    draws = torch.rand((5, count), generator=generator, device=pixels.device)
    area = SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]
    aspect = ASPECT ** (2 * draws[1] - 1)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    # Of the coordinates that a crop has in its picture, which go from -1 to 1.
    affine = torch.zeros((count, 2, 3), device=pixels.device)
    affine[:, 0, 0] = torch.where(draws[4] < 0.5, -width, width)
    affine[:, 0, 2] = (2 * draws[2] - 1) * (1 - width)
    affine[:, 1, 1] = height
    affine[:, 1, 2] = (2 * draws[3] - 1) * (1 - height)
    grid = F.affine_grid(affine, [count, channels, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def crop_middle(pictures: Images, size: int) -> Images:
    """Return the middle of each picture, `size` x `size`; the pixels are not copied."""
    height, width = pictures.pixels.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    middle = pictures.pixels[..., top : top + size, left : left + size]
    return Images(middle, pictures.labels)


def apply_crops(pixels: Tensor, crops: Crops) -> Tensor:
    """Return pictures (N, C, H, W), each cropped from its black padding and flipped as drawn."""
    count, _, height, width = pixels.shape
    device = pixels.device
    padded = F.pad(pixels, (PADDING,) * 4)
    top, left, flip = crops
    columns = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(flip, columns.flip(0), columns)
    place = torch.arange(count, device=device)[:, None, None]
    # Channels last in the gather: one contiguous copy a pixel instead of three scattered ones.
    return padded.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def convert_to_grayscale(pixels: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) in grayscale: their luma in all three channels."""
    return (pixels * _get_luma(pixels.dtype, pixels.device)).sum(1, keepdim=True).expand_as(pixels)


@cache
def _get_luma(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `LUMA` on a device, kept there: a capture cannot copy it from the host."""
    return torch.tensor(LUMA, dtype=dtype, device=device)[:, None, None]


def sample_moves(count: int, generator: torch.Generator) -> Tensor:
    """Draw EoT samples, (count, 3) int64, on the generator's device: moves, a crop and a flip each.

    The expectation over transformations of REM, one sample a step: a batch shares a move, so that
    a picture's noise does not depend on its neighbours. A row says how far down and right a
    picture is cropped, 0 to 8, and whether it is flipped.
    """
    device = generator.device
    rows = []
    for _ in range(count):
        shift = torch.randint(0, 2 * PADDING + 1, (2,), generator=generator, device=device)
        flip = torch.rand((1,), generator=generator, device=device) < 0.5
        rows.append(torch.cat([shift, flip.long()]))
    return torch.stack(rows) if rows else torch.empty((0, 3), dtype=torch.int64, device=device)


def shift_and_flip(pixels: Tensor, move: Tensor) -> Tensor:
    """Crop a whole batch from black padding and flip it, as a move (3,) says; differentiable.

    Args:
        pixels: (N, C, H, W).
        move: a row of `sample_moves`, on the CPU or on the pixels' device.
    """
    padded = F.pad(pixels, (PADDING,) * 4)
    if move.device.type != "cpu":
        return shift_and_flip_by_index(padded, move)
    # Slices are cheap to differentiate, and on the CPU their numbers are at hand.
    top, left, flip = move.tolist()
    height, width = pixels.shape[-2:]
    moved = padded[..., top : top + height, left : left + width]
    return moved.flip(-1) if flip else moved


def shift_and_flip_by_index(padded: Tensor, move: Tensor) -> Tensor:
    """Return what `shift_and_flip` does, of padded pixels, without reading the move on the host."""
    height, width = (side - 2 * PADDING for side in padded.shape[-2:])
    columns = torch.arange(width, device=padded.device)
    columns = torch.where(move[2].bool(), columns.flip(0), columns) + move[1]
    rows = torch.arange(height, device=padded.device) + move[0]
    return padded.index_select(-2, rows).index_select(-1, columns)
