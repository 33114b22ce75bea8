"""How much a picture changed: largest and mean difference, PSNR and SSIM.

Numpy alone; nothing here knows a file or a format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.images.deep import LEVELS, Pixels, reduce_to_8_bits

WINDOW: Final = 7
STRIP: Final = 32
"""Rows of windows worked on at a time: small enough to stay in the cache at any width."""
PSNR_CAP: Final = 100.0


@dataclass(frozen=True)
class Quality:
    """The distance between two pictures; levels are of 0..255."""

    largest: int
    """The largest difference, in levels, rounded up: the L-infinity distance."""
    mean: float
    """The mean absolute difference, in levels."""
    psnr: float
    """Peak signal-to-noise ratio in dB, at most 100, which is also that of equal pictures."""
    ssim: float
    """Structural similarity of the luma, 1 for equal pictures."""


def compare(before: Pixels, after: Pixels) -> Quality:
    """Measure the distance between two pictures of shape (H, W, 3) or (H, W, 1).

    Levels are of 255 for pictures of 16 bits, too: 257 of their values are one.

    Raises:
        ValueError: the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"expected one shape, found {before.shape} and {after.shape}")
    if before.dtype != after.dtype:
        before, after = (reduce_to_8_bits(pixels) for pixels in (before, after))
    scale, wide = (1, np.uint16) if before.dtype == np.uint8 else (LEVELS, np.uint32)
    largest = total = squares = 0
    for top in range(0, len(before), STRIP):
        one, other = before[top : top + STRIP], after[top : top + STRIP]
        distance = np.maximum(one, other) - np.minimum(one, other)
        largest = max(largest, int(distance.max()))
        total += int(distance.sum(dtype=np.int64))
        squares += int(np.square(distance, dtype=wide).sum(dtype=np.int64))
    squared = squares / before.size / scale**2
    psnr = 10 * math.log10(255**2 / squared) if squared else PSNR_CAP
    return Quality(
        largest=math.ceil(largest / scale),
        mean=total / before.size / scale,
        psnr=min(psnr, PSNR_CAP),
        ssim=_ssim(reduce_to_8_bits(before), reduce_to_8_bits(after)),
    )


def measure_survival(
    original: Pixels, protected: Pixels, strips: Iterable[tuple[slice, Pixels]]
) -> float:
    """Return <d', d> / <d, d>: d is the protection, d' what is left of it in the file.

    Pixels under alpha 0 have d = 0, so they count for nothing.

    Args:
        original: (H, W, C).
        protected: of the same shape.
        strips: places and pixels of the file, all its rows; further channels count for nothing.
    """
    left, whole = 0.0, 0.0
    channels = original.shape[2]
    wide = np.int16 if original.dtype == np.uint8 else np.int32
    for rows, found in strips:
        decoded = found[..., 1:2] if channels == 1 and found.shape[2] > 2 else found[..., :channels]
        start = original[rows]
        delta, kept = (
            np.subtract(pixels, start, dtype=wide).astype(np.float32).ravel()
            for pixels in (protected[rows], decoded)
        )
        left += float(kept @ delta)
        whole += float(delta @ delta)
    return left / whole if whole else 1.0


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the Rec. 601 luma (H, W) of a colour picture, or the one plane of a grayscale one."""
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _ssim(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Mean SSIM of the luma over every whole 7x7 window (Wang et al. 2004, sample covariance)."""
    height, width = before.shape[:2]
    rows, columns = min(WINDOW, height), min(WINDOW, width)
    area = rows * columns
    first = (0.01 * 255) ** 2 * area**2
    second = (0.03 * 255) ** 2 * area * max(area - 1, 1)
    total, windows = 0.0, 0
    for top in range(0, height - rows + 1, STRIP):
        strip = slice(top, top + STRIP + rows - 1)
        x, y = luma(before[strip]).astype(np.int32), luma(after[strip]).astype(np.int32)
        sum_x, sum_y, sum_xy, sum_squares = (
            _sum_windows(plane, rows, columns) for plane in (x, y, x * y, x * x + y * y)
        )
        # Whole numbers up to 49 * 49 * 2 * 255**2 < 2**31: nothing cancels inexactly.
        product = sum_x * sum_y
        squares = sum_x * sum_x + sum_y * sum_y
        covariance = 2 * (area * sum_xy - product)
        variance = area * sum_squares - squares
        ratio = _divide(2 * product, squares, first)
        ratio *= _divide(covariance, variance, second)
        total += float(ratio.sum(dtype=np.float64))
        windows += ratio.size
    return total / windows


def _divide(above: NDArray[np.int32], below: NDArray[np.int32], constant: float) -> NDArray[Any]:
    """Return (above + constant) / (below + constant) in single precision."""
    return (above.astype(np.float32) + np.float32(constant)) / (
        below.astype(np.float32) + np.float32(constant)
    )


def _sum_windows(plane: NDArray[np.int32], rows: int, columns: int) -> NDArray[np.int32]:
    """Return the sum of every whole window of `rows` by `columns`."""
    height, width = plane.shape[0] - rows + 1, plane.shape[1] - columns + 1
    down = plane[:height].copy()
    for shift in range(1, rows):
        down += plane[shift : shift + height]
    across = down[:, :width].copy()
    for shift in range(1, columns):
        across += down[:, shift : shift + width]
    return across
