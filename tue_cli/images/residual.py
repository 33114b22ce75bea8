"""What is left of a copy that somebody else has handled: facts to know it by, and its noise.

Pixels and metadata of decoded pictures; which file is which copy is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.images.avif import is_cropped
from tue_cli.images.codec import DecodedImage
from tue_cli.images.deep import LEVELS, Pixels
from tue_cli.images.exif import IPTC
from tue_cli.images.metadata import name_colours
from tue_cli.images.orientation import (
    apply_orientation,
    extract_pixels,
    make_image,
    read_orientation,
)
from tue_cli.images.quality import PSNR_CAP
from tue_cli.images.resize import resize_to_square

ROWS: Final = 128
"""Rows worked on at a time."""
SMALL: Final = 32
LIKE: Final = 25.0
"""Two views of one picture differ by less, on average: levels of 255 at `SMALL` pixels."""

# Every TIFF has a density, and so its EXIF says nothing of the picture if that is all it holds.
_DENSITY: Final = frozenset({282, 283, 296})


@dataclass(frozen=True)
class CopyFacts:
    """What a record keeps of a copy, to tell later what became of it."""

    size: tuple[int, int]
    """Width and height, in stored order."""
    metadata: tuple[str, ...]
    """Which of the kinds in `collect_facts` it has; a record of an older version has fewer."""
    pixels_sha256: str
    """Of what a viewer shows: equal for grayscale and RGB, and for an alpha that hides nothing."""


@dataclass(frozen=True)
class NoiseResidual:
    """The change that a file still carries: d', the file less the original."""

    turned: bool
    """The original's orientation tag was applied to the file's pixels."""
    mean: float
    """Mean |d'|, in levels; where the original is transparent, d' is 0."""
    psnr: float
    """Of d', in dB."""
    small_rms: float
    """Of d', as `measure_small_rms` returns it."""
    survival: float | None
    """<d', d> / <d, d>, where the intact copy, and with it d, is known."""


def get_size(pixels: Pixels) -> tuple[int, int]:
    """Return the width and height of pixels (H, W, C)."""
    return pixels.shape[1], pixels.shape[0]


def collect_facts(picture: DecodedImage) -> CopyFacts:
    """Return what a record keeps of a picture."""
    beside = picture.metadata
    kinds = {
        "colours": bool(name_colours(beside, picture.format)),
        "comments": bool(beside.comments),
        "crop": picture.format == "AVIF" and is_cropped(beside.segments),
        "exif": _has_exif(beside.exif),
        "icc": bool(beside.icc),
        "iptc": IPTC in beside.photoshop,
        "transparency": _is_transparent(picture),
        "xmp": bool(beside.xmp),
    }
    found = tuple(kind for kind, there in kinds.items() if there)
    return CopyFacts(get_size(picture.shown), found, _hash_pixels(picture))


def measure_small_rms(original: DecodedImage, copy: DecodedImage) -> float:
    """Return the root mean square of what a copy changed, in levels, at 32 x 32 pixels.

    The noise is made at about that size and keeps its strength there, but the error of
    recompression, which is as strong at full size, averages out.
    """
    return _compare_small(original, copy, 1)[1]


def _hash_pixels(picture: DecodedImage) -> str:
    height, width = picture.shown.shape[:2]
    state = hashlib.sha256(f"{width}x{height}".encode())
    alpha = picture.alpha if _is_transparent(picture) else None
    for top in range(0, height, ROWS):
        rows = slice(top, top + ROWS)
        pixels = _expand_to_rgb(picture.shown[rows])
        if alpha is not None:
            # Programs that save a picture again drop the colours of transparent pixels.
            pixels = np.where(alpha[rows, :, None] > 0, pixels, pixels.dtype.type(0))
            state.update(np.ascontiguousarray(alpha[rows]).data)
        state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()


def measure_residual(
    original: DecodedImage, found: DecodedImage, copy: DecodedImage | None
) -> NoiseResidual | None:
    """Measure what a file still holds of the change from `original` to its intact `copy`.

    A file that was resized is compared at the smaller size, to which the larger pictures are
    brought by Lanczos. None where it shows something else: cropped, redrawn, another picture.
    """
    turn, small_rms = _find_orientation(original, found)
    if turn is None:
        return None
    before, after = apply_orientation(original.shown, turn), found.shown
    size = min(get_size(before), get_size(after), key=math.prod)
    before, after = _resize(before, size), _resize(after, size)
    whole = None
    if copy is not None and copy.shown.shape[:2] == original.shown.shape[:2]:
        whole = _resize(apply_orientation(copy.shown, turn), size)
    visible = None
    if original.alpha is not None:
        visible = _resize(apply_orientation(original.alpha[..., None], turn), size) > 0
    change = squares = left = total = 0.0
    for top in range(0, size[1], ROWS):
        rows = slice(top, top + ROWS)
        start = _expand_to_rgb(before[rows])
        kept = _subtract(_expand_to_rgb(after[rows]), start)
        if visible is not None:
            kept *= visible[rows]
        change += float(np.abs(kept).sum(dtype=np.float64))
        squares += float(np.vdot(kept, kept))
        if whole is not None:
            delta = _subtract(_expand_to_rgb(whole[rows]), start)
            left += float(np.vdot(kept, delta))
            total += float(np.vdot(delta, delta))
    count = 3 * size[0] * size[1]
    psnr = 10 * math.log10(255**2 * count / squares) if squares else PSNR_CAP
    return NoiseResidual(
        turned=turn != 1,
        mean=change / count,
        psnr=min(psnr, PSNR_CAP),
        small_rms=small_rms,
        survival=left / total if total else None,
    )


def _find_orientation(original: DecodedImage, found: DecodedImage) -> tuple[int | None, float]:
    """Return how the original must be turned to lie as the file does, and the small difference.

    None if the file shows something else.
    """
    best, nearest, rms = None, LIKE, 0.0
    for turn in dict.fromkeys((1, read_orientation(original))):
        if _has_same_shape(
            get_size(apply_orientation(original.shown, turn)), get_size(found.shown)
        ):
            mean, these = _compare_small(original, found, turn)
            if mean < nearest:
                best, nearest, rms = turn, mean, these
    return best, rms


def _compare_small(original: DecodedImage, found: DecodedImage, turn: int) -> tuple[float, float]:
    """Return the mean and the root mean square of the difference at `SMALL` pixels, in levels."""
    before = resize_to_square(apply_orientation(original.shown, turn), SMALL)
    distance = np.abs(resize_to_square(found.shown, SMALL) - before) * 255
    weight = np.ones_like(distance)
    if original.alpha is not None:
        # What was transparent may have any colour by now.
        weight = resize_to_square(apply_orientation(original.alpha[..., None], turn), SMALL)
    total = max(float(weight.sum()), 1e-6)
    mean = float((weight * distance).sum()) / total
    return mean, math.sqrt(float((weight * distance * distance).sum()) / total)


def _has_same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two sizes have one aspect ratio, give or take the rounding to whole pixels."""
    (width, height), (smaller, lower) = sorted((one, other), reverse=True)
    return (
        abs(width * lower / height - smaller) < 1.5 or abs(height * smaller / width - lower) < 1.5
    )


def _has_exif(exif: bytes) -> bool:
    tags = Image.Exif()
    try:
        tags.load(exif)
        return bool(set(tags) - _DENSITY)
    except Exception:
        return bool(exif)


def _is_transparent(picture: DecodedImage) -> bool:
    return picture.alpha is not None and bool(
        (picture.alpha < np.iinfo(picture.alpha.dtype).max).any()
    )


def _subtract(after: Pixels, before: Pixels) -> NDArray[np.float32]:
    """Return how much higher levels are, of 255 for 16 bits too."""
    return _get_levels(after) - _get_levels(before)


def _get_levels(pixels: Pixels) -> NDArray[np.float32]:
    levels = pixels.astype(np.float32)
    return levels if pixels.dtype == np.uint8 else levels / np.float32(LEVELS)


def _expand_to_rgb(pixels: Pixels) -> Pixels:
    """Return grayscale as three equal planes, without copying."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if get_size(pixels) == size:
        return pixels
    if pixels.dtype == np.uint8:
        return extract_pixels(make_image(pixels).resize(size, Image.Resampling.LANCZOS))
    planes = [
        np.asarray(
            Image.fromarray(pixels[..., channel].astype(np.float32)).resize(
                size, Image.Resampling.LANCZOS
            )
        )
        for channel in range(pixels.shape[2])
    ]
    whole: Pixels = np.rint(np.stack(planes, axis=2)).clip(0, 65535).astype(np.uint16)
    return whole
