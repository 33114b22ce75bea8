"""Training a surrogate through filters: grayscale, half size and back, JPEG.

Each quarter of a batch gets one of four views, the first being the identity; the views rotate at
each noise step, so that each picture's noise meets all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Images, convert_to_grayscale, crop_and_flip
from tue_cli.core.capture import Captured, Tensors
from tue_cli.core.loop import Training, fit
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import draw_uniform_start
from tue_cli.methods.surrogate import FrozenNets, ascend_loss, make_training_loss, quantize
from tue_cli.methods.tue import perturb
from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.noise import TueNoise

View = Callable[[Tensor], Tensor]
QUALITY = 30
"""Of the JPEG that the surrogate is trained through."""
# Annex K of the JPEG standard (ITU-T T.81), tables K.1 and K.2.
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 "
    "62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 "
    "98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 "
    "99" + " 99" * 32
)
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def halve_and_enlarge(pixels: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) at half their size and enlarged again."""
    return F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")


def apply_jpeg(pixels: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) as a JPEG of `QUALITY`, 4:2:0, leaves them.

    Rounding is passed through backwards, as if it were not there. H and W are multiples of 16.
    """
    colours, back, basis, tables = _make_tables(pixels.dtype, pixels.device)
    planes = torch.einsum("dc,nchw->ndhw", colours, 255 * pixels)
    luma = planes[:, :1] - 128
    chroma = F.avg_pool2d(planes[:, 1:], 2)
    luma, chroma = _quantize(luma, basis, tables[0]), _quantize(chroma, basis, tables[1])
    chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
    whole = torch.cat([luma + 128, chroma], 1)
    return (torch.einsum("cd,ndhw->nchw", back, whole) / 255).clamp(0, 1)


@cache
def _make_tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the colours' matrix, its inverse, the cosines (8, 8) and both tables at `QUALITY`."""
    colours = torch.tensor(_YCC, dtype=torch.float64)
    place = torch.arange(8, dtype=torch.float64)
    basis = 0.5 * torch.cos((2 * place + 1) * place[:, None] * math.pi / 16)
    basis[0] /= math.sqrt(2)
    scale = 5000 / QUALITY if QUALITY < 50 else 200 - 2 * QUALITY
    tables = torch.tensor([[float(v) for v in text.split()] for text in (_LUMA, _CHROMA)])
    tables = ((tables * scale + 50) / 100).floor().clamp(1, 255).reshape(2, 8, 8)
    parts = (colours, torch.linalg.inv(colours), basis, tables)
    return tuple(part.to(dtype=dtype, device=device) for part in parts)  # type: ignore[return-value]


def _quantize(planes: Tensor, basis: Tensor, table: Tensor) -> Tensor:
    """Round the cosines of 8 x 8 blocks to multiples of a table."""
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    cosines = basis @ blocks @ basis.T / table
    cosines = cosines + (cosines.round() - cosines).detach()
    blocks = basis.T @ (cosines * table) @ basis
    return blocks.transpose(3, 4).reshape(planes.shape)


VIEWS: tuple[View, ...] = (
    lambda pixels: pixels,
    convert_to_grayscale,
    halve_and_enlarge,
    apply_jpeg,
)


def apply_views(pixels: Tensor, turn: int = 0) -> Tensor:
    """Return pictures (N, 3, H, W), each quarter of them through a view; `turn` moves them on."""
    parts = torch.tensor_split(pixels, len(VIEWS))
    views = [VIEWS[(place + turn) % len(VIEWS)] for place in range(len(parts))]
    return torch.cat([view(part) for view, part in zip(views, parts, strict=True)])


class Viewing(FrozenClassifier):
    """A surrogate that takes pictures through views, which rotate at every call."""

    def __init__(self, net: Classifier, dtype: torch.dtype, *, calls: int) -> None:
        """After so many calls, those of one noise, the views begin anew."""
        super().__init__(net, dtype)
        self._turns = itertools.cycle(range(calls))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits (N, K) of pixels (N, 3, H, W) in [0, 1]."""
        return super().__call__(apply_views(pixels, next(self._turns)))


def fit_through_views(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train a surrogate as `fit_on_own_noise` does, with every input through the views."""
    net, device = training.net, pictures.pixels.device
    noise, adversary = settings.noise, settings.adversary
    assert isinstance(net, Classifier) and isinstance(noise, TueNoise)
    calls = noise.steps * noise.samples * (1 + bool(noise.gray_ratio))
    for_noise, for_attack = Viewing(net, dtype, calls=calls), Viewing(net, dtype, calls=1)
    nets = {**nets, "surrogate": for_noise}
    run_noise, run_adversary = Captured(device), Captured(device)

    def attack(pixels: Tensor, labels: Tensor, start: Tensor) -> Tensors:
        moved = pixels + ascend_loss(cross_entropy(for_attack, labels), pixels, adversary, start)
        return (apply_views(moved),)

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensors:
        for_noise.follow(net)
        for_attack.follow(net)
        start = draw_uniform_start(pixels, noise.radius, generator)
        delta = perturb(
            nets, pixels, labels, noise, start=start, generator=generator, run=run_noise
        )
        pixels = crop_and_flip(pixels + quantize(delta), generator)
        start = draw_uniform_start(pixels, adversary.radius, generator)
        return run_adversary(attack, pixels, labels, start)[0], labels

    yield from fit(training, pictures, loss=make_training_loss(net, dtype), prepare=prepare)
