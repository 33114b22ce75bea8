"""Where noise would be seen, and where it is: judged on the picture's own pixels.

What varies hides noise, smooth areas do not (contrast masking): most of all if it varies at the
scale of the noise. Near black and white the eye tells levels apart best. Stains of colour show
most, so chroma gets noise only as far as there is colour, and texture finer than the noise does not
count for it. An outline hides nothing: the area beside it is flat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d, uniform_filter, uniform_filter1d

from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.quality import luma
from tue_cli.mask import LUMA

Floats = NDArray[np.float32]
Mask = NDArray[np.uint8]
"""Shares of the noise in luma and in chroma, (2, h, w): 255 for all of it."""
LARGEST: Final = 1024
"""Pixels of the shorter side at which a picture is judged: a larger one is reduced, as a screen
does. The grain of its sensor, which hides no stain, is averaged away."""
CELL: Final = 8
"""Pixels of a cell, one pixel of the square that noise is made for, when contrast is judged at the
scale of the noise."""
CELLS: Final = 2
"""Cells a side of the windows at that scale."""
NEAR, WIDE = 3, 7
"""Pixels a side of the windows for texture and for grain, odd."""
BY_CONTRAST, IN_CHROMA = 0.8, 0.7
"""Levels of noise, in luma and in chroma, for each level of contrast at the scale of the noise."""
BY_TEXTURE, FLAT = 2.0, 0.7
"""Levels of noise for each level of contrast of the texture, beyond what compression leaves."""
NEUTRAL, TINTED = 0.5, 2.5
"""Levels between the largest and the smallest channel of a pixel that gets no noise in chroma, and
of one that gets all."""
GRAY, COLOURED = 8.0, 24.0
"""The same of a picture, of which nine pixels in ten differ by less: of a black-and-white one, and
of one with colours."""
GRAIN: Final = 0.5
"""Contrast of a wide window from which a smooth area is one of a photograph, and not drawn."""
DRAWN: Final = 0.2
"""Share of the pixels that are neither black nor white: if more of them lie in areas of one level,
a picture is drawn, and its outlines hide nothing."""
ENDS, RISE = 4.0, 24.0
"""Levels from black or from white that get no noise, and so many more until they get all."""
STRIP: Final = 256
"""Rows worked on at a time."""
LITTLE: Final = 0.15
"""A share of the noise below which a picture is weakly protected: drawings get less, photographs
more."""
SEEN: Final = 256
"""Pixels of the shorter side at which a change is looked for; a cell of the noise has eight."""
TILE: Final = 24
"""Pixels a side of the tiles that are compared, at that size."""
BLUR, AROUND = 3, 17
"""Pixels a side of the windows that the eye averages over, and in which contrast hides a change."""
HALVING: Final = 2.0
"""Contrast, in hundredths of the way from black to white, that hides half of a change."""


@dataclass(frozen=True)
class Tile:
    """The part of a picture where a change is seen most."""

    delta_e: float
    """Mean of CIEDE2000 over the tile, less where contrast hides it; below 1 hardly visible."""
    left: int
    top: int
    side: int
    """In pixels of the picture as it is stored."""

    def surround(self, shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
        """Return the rows and columns of a square around it, within a picture (H, W, ...)."""
        parts = []
        for start, most in ((self.top, shape[0]), (self.left, shape[1])):
            first = min(max(0, start + (self.side - side) // 2), max(0, most - side))
            parts.append(slice(first, min(first + side, most)))
        return parts[0], parts[1]


def compute_mask(pixels: Pixels, size: int, smooth: float, levels: float) -> Mask:
    """Return the share of the noise that each pixel gets.

    As many levels as contrast hides, and at least `smooth` of all; none in areas of one level and
    near black and white, and none in chroma where there is no colour. A drawing gets no more than
    `smooth`, and none in chroma. A large picture is judged, and its mask returned, at a smaller
    size.

    Args:
        pixels: (H, W, C), as shown.
        size: the side of the square that the noise is made for.
        smooth: the share that smooth areas get, in [0, 1].
        levels: how far the noise moves a pixel, of 255.
    """
    judged = _reduce(reduce_to_8_bits(pixels), LARGEST)
    height, width = judged.shape[:2]
    contrast = _measure_contrast_of_cells(judged, size)
    mask = np.zeros((2, height, width), np.uint8)
    beyond, flat, middle = 2 * WIDE, 0, 0
    for top in range(0, height, STRIP):
        first, last = max(0, top - beyond), min(height, top + STRIP + beyond)
        rows = slice(top - first, min(top + STRIP, height) - first)
        hidden = _enlarge(contrast, (width, height), first, last)
        strip = judged[first:last].astype(np.float32)
        light = strip @ np.array(LUMA, np.float32) if strip.shape[2] == 3 else strip[..., 0]
        grain = _measure_contrast(light, WIDE)
        shares = _compute_shares(light, hidden, grain, smooth, levels)
        shares[1] *= _rise(_measure_depth(strip), NEUTRAL, TINTED - NEUTRAL)
        mask[:, top : top + STRIP] = np.rint(255 * shares[:, rows])
        seen = np.minimum(light, 255 - light)[rows] > ENDS + RISE / 2
        flat += int((seen & (grain[rows] < GRAIN / 2)).sum())
        middle += int(seen.sum())
    if flat > DRAWN * middle:
        np.minimum(mask[0], np.uint8(255 * smooth), out=mask[0])
        mask[1] = 0
    mask[1] = np.rint(np.float32(_measure_colour(judged)) * mask[1])
    return mask


def reduce_mask(mask: Mask, size: int) -> Floats:
    """Return the shares of each pixel of a square, (2, size, size) in [0, 1]: the mean of those
    that it covers.
    """
    planes = (Image.fromarray(plane) for plane in mask)
    small = [np.asarray(p.resize((size, size), Image.Resampling.BOX)) for p in planes]
    return np.stack(small).astype(np.float32) / np.float32(255)


def measure_share(mask: Mask | None) -> float:
    """Return the share of the noise that a picture gets, in luma: 0 to 1."""
    return 1.0 if mask is None else float(mask[0].mean()) / 255


def describe_share(share: float, added: bool) -> Iterator[str]:
    """Yield a note where a picture gets little of the noise, as drawings do, or `added` none."""
    if not share:
        yield (
            "not protected, because no area hides noise: all is flat, black or white. --smooth 1 "
            "adds noise that can be seen"
        )
    elif not added:
        yield (
            "not protected, because its noise is less than half a level everywhere, and no pixel "
            "changes. A larger --radius adds more"
        )
    elif share < LITTLE:
        yield (
            "weakly protected, because flat areas, black and white get no noise: "
            f"{'less than 1%' if share < 0.01 else f'only {share:.0%}'} of it is added"
        )


def find_worst_tile(before: Pixels, after: Pixels) -> Tile:
    """Return the tile of a picture (H, W, C) in which its copy differs most to the eye.

    Grain that the eye averages out is forgiven, stains of colour are not: both are blurred before
    they are compared.
    """
    # Not before it is needed: the import takes as long as a picture.
    from skimage.color import deltaE_ciede2000, rgb2lab

    factor = math.ceil(min(before.shape[:2]) / SEEN)
    small = [_reduce(reduce_to_8_bits(pixels), SEEN) for pixels in (before, after)]
    small = [np.broadcast_to(pixels, (*pixels.shape[:2], 3)) for pixels in small]
    blurred = [uniform_filter(pixels.astype(np.float32), (BLUR, BLUR, 1)) for pixels in small]
    labs = [rgb2lab(levels / np.float32(255)) for levels in blurred]
    light = luma(small[0]).astype(np.float32) / np.float32(2.55)
    contrast = _measure_contrast(light, AROUND)
    difference = deltaE_ciede2000(*labs)  # type: ignore[no-untyped-call]
    seen = difference / (1 + contrast / HALVING)
    height, width = seen.shape
    side = min(TILE, height, width)
    first = side // 2
    means = uniform_filter(seen, side)[first : first + height - side + 1]
    means = means[:, first : first + width - side + 1]
    top, left = np.unravel_index(means.argmax(), means.shape)
    worst, whole = float(means[top, left]), side * factor
    # The last pixels of what was reduced stand for fewer of the picture's.
    below, beside = (length - whole for length in before.shape[:2])
    return Tile(worst, min(int(left) * factor, beside), min(int(top) * factor, below), whole)


def _reduce(pixels: NDArray[np.uint8], largest: int) -> NDArray[np.uint8]:
    """Reduce a picture by a whole factor, until its shorter side has `largest` pixels at most."""
    factor = math.ceil(min(pixels.shape[:2]) / largest)
    if factor == 1:
        return pixels
    planes = [Image.fromarray(pixels[..., c]).reduce(factor) for c in range(pixels.shape[2])]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _measure_contrast_of_cells(pixels: NDArray[np.uint8], size: int) -> Image.Image:
    """Return the contrast at the scale of the noise, for a picture of `CELL` pixels a cell."""
    height, width = pixels.shape[:2]
    scale = min(1.0, CELL * size / min(height, width))
    small = Image.fromarray(luma(pixels)).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    side = max(NEAR, CELLS * min(small.size) // size // 2 * 2 + 1)
    return Image.fromarray(_measure_contrast(np.asarray(small, np.float32), side))


def _enlarge(plane: Image.Image, size: tuple[int, int], first: int, last: int) -> Floats:
    """Return rows `first` to `last` of a plane that is brought to a size."""
    scale = plane.height / size[1]
    box = (0.0, first * scale, float(plane.width), last * scale)
    return np.asarray(plane.resize((size[0], last - first), Image.Resampling.BILINEAR, box))


def _compute_shares(
    light: Floats, hidden: Floats, grain: Floats, smooth: float, levels: float
) -> Floats:
    """Return the shares of luma and chroma that each pixel gets, (2, h, w), by its luma in 0..255.

    Texture finer than the noise hides its luma, but not its chroma.
    """
    texture = uniform_filter(_measure_contrast(light, NEAR), NEAR)
    luma = np.maximum(BY_CONTRAST * hidden, BY_TEXTURE * (texture - FLAT))
    amounts = np.stack([luma, IN_CHROMA * hidden])
    shares: Floats = np.clip(amounts / np.float32(levels), np.float32(smooth), 1)
    shares *= _rise(grain, 0, GRAIN)
    shares *= _rise(light, ENDS, RISE) * _rise(255 - light, ENDS, RISE)
    return shares


def _measure_depth(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return by how much the channels of each pixel (h, w, C) differ."""
    planes = [pixels[..., channel] for channel in range(pixels.shape[2])]
    depth: NDArray[Any] = np.maximum.reduce(planes) - np.minimum.reduce(planes)
    return depth


def _measure_colour(pixels: NDArray[np.uint8]) -> float:
    """Return 0 for a black-and-white picture, 1 for one with colours, and between."""
    depth = np.percentile(_measure_depth(pixels[:: CELL // 2, :: CELL // 2]), 90)
    return float(_rise(depth, GRAY, COLOURED - GRAY))


def _measure_contrast(luma: Floats, side: int) -> Floats:
    """Return the least contrast of four windows that have a pixel as their corner.

    It is the standard deviation from the plane that fits the window best, for a gradient hides
    nothing. The least of the four, for a pixel beside an outline is flat if its other side is.
    """
    # About the middle of the range, so that float32 squares lose nothing.
    centred = (luma - np.float32(128)).astype(np.float32)
    places = np.arange(side, dtype=np.float32) - side // 2
    spread = (side * side - 1) / 12
    mean = uniform_filter(centred, side)
    variance = uniform_filter(centred * centred, side) - mean * mean
    for axis in (0, 1):
        along = correlate1d(centred, places / side, axis)
        slope = uniform_filter1d(along, side, 1 - axis) / np.float32(spread)
        variance -= np.float32(spread) * slope * slope
    deviation = np.sqrt(np.maximum(variance, 0))
    step, (height, width) = side // 2, luma.shape
    framed = np.pad(deviation, step, mode="edge")
    corners = [
        framed[top : top + height, left : left + width]
        for top in (0, 2 * step)
        for left in (0, 2 * step)
    ]
    least: Floats = np.minimum.reduce(corners)
    return least


def _rise(values: Any, start: float, width: float) -> Floats:
    """Return 0 up to `start`, 1 from `width` more, and a line between."""
    risen: Floats = np.clip((values - np.float32(start)) / np.float32(width), 0, 1)
    return risen
