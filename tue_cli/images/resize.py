"""Between a picture's own size and the square that the nets take.

`resize_to_square` makes the square, and `crop_to_square` cuts one out; `add_upsampled` brings the
noise made for it back to full size and adds it, within the radius and under the mask.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.images.deep import Pixels
from tue_cli.mask import apply_mask

STRIP: Final = 128
"""Rows that `add_upsampled` works on at a time."""


def resize_to_square(pixels: Pixels, size: int) -> NDArray[np.float32]:
    """Resize a picture (H, W, C) to a square (3, size, size) in [0, 1], antialiased."""
    if pixels.dtype == np.uint16:
        return _resize_deep(pixels, size)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    planes = np.asarray(small, dtype=np.float32) / np.float32(255)
    if planes.ndim == 2:
        return np.repeat(planes[None], 3, axis=0)
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


def _resize_deep(pixels: Pixels, size: int) -> NDArray[np.float32]:
    planes = np.empty((3, size, size), np.float32)
    for channel in range(3):
        plane = pixels[..., min(channel, pixels.shape[2] - 1)].astype(np.float32)
        small = Image.fromarray(plane).resize(
            (size, size), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
        planes[channel] = np.asarray(small) / np.float32(65535)
    return planes


def crop_to_square(pixels: Pixels) -> Pixels:
    """Return the largest square in the middle of a picture (H, W, C), not copied."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def add_upsampled(
    delta: NDArray[np.float32],
    pixels: Pixels,
    radius: float,
    mask: NDArray[np.uint8] | None = None,
) -> Pixels:
    """Add `delta` (3, s, s), in units of [0, 1], to a picture (H, W, C) of any size.

    Bicubic, and then the share of it that the mask gives each pixel; no level moves by more than
    floor(radius * 255), and none leaves 0..255; with 16 bits a channel, 65535 stands for 255.

    Args:
        delta: the noise.
        pixels: of the picture.
        radius: in the pixels' unit.
        mask: (2, h, w) of any size, as `visibility.compute_mask` returns it; None for all.
    """
    height, width, channels = pixels.shape
    most = np.float32(np.iinfo(pixels.dtype).max)
    bound = np.float32(math.floor(radius * float(most) + 1e-6))
    noise = [Image.fromarray(np.asarray(plane, np.float32) * most) for plane in delta]
    shares = [Image.fromarray(plane) for plane in mask] if mask is not None else []
    lifted = np.empty_like(pixels)
    # A strip at a time stays in the cache, which is three times faster at 100 megapixels.
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height))
        levels = np.stack([_enlarge(p, rows, pixels, Image.Resampling.BICUBIC) for p in noise])
        if shares:
            kept = np.stack([_enlarge(p, rows, pixels, Image.Resampling.BILINEAR) for p in shares])
            # The mask may be a smaller one; black and white stay so in any case, and gray does.
            low, high = pixels[rows].min(axis=2), pixels[rows].max(axis=2)
            kept *= (low < most) & (high > 0)
            if channels == 3:
                kept[1] *= low < high
            levels = apply_mask(levels[None], kept[None] / np.float32(255))[0]
        if channels == 1:
            levels = levels.mean(axis=0, keepdims=True)
        np.rint(levels, out=levels)
        np.clip(levels, -bound, bound, out=levels)
        levels += pixels[rows].transpose(2, 0, 1)
        np.clip(levels, 0, most, out=levels)
        lifted[rows] = levels.transpose(1, 2, 0)
    return lifted


def _enlarge(
    plane: Image.Image, rows: slice, pixels: Pixels, filter: Image.Resampling
) -> NDArray[Any]:
    """Return the rows of a plane that is brought to the size of a picture."""
    height, width = pixels.shape[:2]
    if plane.size == (width, height):
        return np.asarray(plane)[rows]
    scale = plane.size[1] / height
    box = (0, rows.start * scale, plane.size[0], rows.stop * scale)
    return np.asarray(plane.resize((width, rows.stop - rows.start), filter, box))
