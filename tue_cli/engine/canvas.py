"""What a picture's noise is made for: a square of the weights' size, and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tue_cli.config import METHODS, ProtectSettings
from tue_cli.engine.torch import Engine, Floats
from tue_cli.images import resize, visibility
from tue_cli.images.deep import Pixels

USUAL = 8.0
"""Levels of the noise of methods that bound no pixel."""


@dataclass(frozen=True)
class Canvas:
    """What the noise of a picture is made for."""

    small: Floats
    """(3, S, S) in [0, 1], at the weights' working size."""
    mask: visibility.Mask | None
    """None where every pixel gets all of the noise."""


def make_canvas(pixels: Pixels, size: int, settings: ProtectSettings) -> Canvas:
    """Return what noise is made for, of a picture (H, W, C) as shown."""
    mask = None
    if settings.smooth < 1:
        bounded = METHODS[settings.method].bound == "linf"
        levels = settings.noise.radius * 255 if bounded else USUAL
        mask = visibility.compute_mask(pixels, size, settings.smooth, levels)
    return Canvas(resize.resize_to_square(pixels, size), mask)


def perturb_canvases(
    engine: Engine, canvases: Sequence[Canvas], keys: Sequence[int], seeds: Sequence[int]
) -> Floats:
    """Return each picture's delta, (N, 3, S, S), by the number of its code and its seed.

    Either all canvases have a mask, or none.
    """
    small = np.stack([canvas.small for canvas in canvases])
    masks = [canvas.mask for canvas in canvases if canvas.mask is not None]
    shares = [visibility.reduce_mask(mask, small.shape[-1]) for mask in masks]
    return engine.perturb(small, np.array(keys), list(seeds), np.stack(shares) if shares else None)
