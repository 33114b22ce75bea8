"""Filters that an attacker applies to pictures before training, to remove their noise.

They are applied once, to the training pictures alone: at each picture's own size or after resizing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

Filter = Callable[[Image.Image], Image.Image]
"""An RGB picture to an RGB picture of the same size."""
Levels = NDArray[np.uint8]
"""Pictures (N, 3, S, S)."""
ClassFilter = Callable[[Levels, NDArray[np.int64]], Levels]
"""Pictures (N, 3, S, S) and their labels (N,) to the same pictures, changed."""

VARIATION: Final = 0.1
"""Weight of the total variation, for pixels in [0, 1]; that of scikit-image."""
ROUNDS: Final = 30
"""Of Chambolle's projection: 15 ms for 224 x 224 pixels on one core."""
TILE: Final = 256
"""Width and height of the parts of a picture that are denoised one by one."""
OPPONENT: Final = (
    np.array([[2, 2, 2], [6**0.5, -(6**0.5), 0], [2**0.5, 2**0.5, -(8**0.5)]]) / 12**0.5
)
"""Orthonormal: RGB to brightness and two differences. A gray texture is in brightness alone."""
PASSES: Final = 3
"""Of making the classes alike."""


def _compress(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as compressed:
        return compressed.convert("RGB")


def _halve_and_enlarge(image: Image.Image) -> Image.Image:
    width, height = image.size
    half = image.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BILINEAR)
    return half.resize((width, height), Image.Resampling.BILINEAR)


def _reduce_variation(image: Image.Image) -> Image.Image:
    """Minimize each channel's total variation (Rudin et al. 1992; Chambolle 2004, section 3).

    A pixel depends on those that are `ROUNDS` away at most, so tiles with such a margin give the
    same as the whole picture, and fit in the processor's cache.
    """
    levels = np.asarray(image)
    result = np.empty_like(levels)
    for top in range(0, levels.shape[0], TILE):
        for left in range(0, levels.shape[1], TILE):
            first, start = max(0, top - ROUNDS), max(0, left - ROUNDS)
            part = levels[first : top + TILE + ROUNDS, start : left + TILE + ROUNDS]
            own = slice(top - first, top - first + TILE), slice(left - start, left - start + TILE)
            for channel in range(3):
                plane = part[..., channel].astype(np.float32) / np.float32(255)
                reduced = _reduce_variation_of_plane(plane)[own].clip(0, 1)
                result[top : top + TILE, left : left + TILE, channel] = np.rint(reduced * 255)
    return Image.fromarray(result)


def _reduce_variation_of_plane(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a plane (H, W) after `ROUNDS` of Chambolle's projection; arrays are reused."""
    down, right, slope_down, slope_right, bound = np.zeros((5, *plane.shape), np.float32)
    out = plane.copy()
    for _ in range(ROUNDS):
        np.subtract(out[1:], out[:-1], out=slope_down[:-1])
        np.subtract(out[:, 1:], out[:, :-1], out=slope_right[:, :-1])
        np.multiply(slope_down, slope_down, out=bound)
        np.multiply(slope_right, slope_right, out=out)
        bound += out
        np.sqrt(bound, out=bound)
        # Chambolle proves that a step of 1/8 converges; he and scikit-image take 1/4.
        bound *= 1 / (4 * VARIATION)
        bound += 1
        for dual, slope in ((down, slope_down), (right, slope_right)):
            slope *= 1 / 4
            dual -= slope
            dual /= bound
        np.subtract(plane, down, out=out)
        out -= right
        out[1:] += down[:-1]
        out[:, 1:] += right[:, :-1]
    return out


def _remove_class_patterns(pixels: Levels, labels: NDArray[np.int64]) -> Levels:
    """Give all classes the same mean picture, and the same spectrum of what differs from it.

    A pattern that is added to each picture of a class is gone with the mean. A texture that lies
    elsewhere in each picture is gone with the spectrum: at each frequency, the logarithms of the
    amplitudes get the same mean and deviation in every class. Phases stay as they are.
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # Pixels end at 0 and 255, so that a part of a pattern is left the first time.
    for _ in range(PASSES):
        means = [pixels[few].mean(0, dtype=np.float64).astype(np.float32) for few in places]
        spectra = [
            _measure_spectrum(pixels, few, mean) for few, mean in zip(places, means, strict=True)
        ]
        common, (centre, spread) = np.mean(means, axis=0), np.mean(spectra, axis=0)
        result = np.empty_like(pixels)
        for few, mean, (its_centre, its_spread) in zip(places, means, spectra, strict=True):
            for place in few:
                waves, sizes = _transform(pixels[place] - mean)
                wanted = centre + (sizes - its_centre) * spread / its_spread
                left = np.fft.irfft2(waves * np.exp(wanted - sizes), s=mean.shape[1:])
                flat = common + np.tensordot(OPPONENT.T, left, 1)
                result[place] = np.rint(flat.clip(0, 255)).astype(np.uint8)
        pixels = result
    return pixels


def _measure_spectrum(
    pixels: Levels, places: NDArray[np.int64], mean: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of log-amplitudes, (3, S, S / 2 + 1), over a class."""
    shape = (*mean.shape[:2], mean.shape[2] // 2 + 1)
    total, squares = np.zeros(shape), np.zeros(shape)
    for place in places:
        _, sizes = _transform(pixels[place] - mean)
        total += sizes
        squares += sizes**2
    centre = total / len(places)
    return centre, np.sqrt((squares / len(places) - centre**2).clip(1e-6))


def _transform(planes: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the waves, (3, S, S / 2 + 1), of a picture's brightness and of its two colour
    differences, and the logarithms of their amplitudes.
    """
    waves = np.fft.rfft2(np.tensordot(OPPONENT, planes, 1))
    # What is added is about the amplitude of what rounding to whole levels leaves.
    return waves, np.log(np.abs(waves) + 0.3 * planes.shape[-1])


FILTERS: dict[str, Filter] = {
    # Quality 10 is ISS's (Liu et al. 2023); 50 and 75 are what sites and cameras use.
    **{f"jpeg{quality}": partial(_compress, quality=quality) for quality in (10, 30, 50, 75)},
    "gray": lambda image: image.convert("L").convert("RGB"),
    "resize": _halve_and_enlarge,
    # A standard deviation of 1 pixel; the 0.1 of public benchmarks leaves every pixel as it is.
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "bits": lambda image: ImageOps.posterize(image, 2),
    "median": lambda image: image.filter(ImageFilter.MedianFilter(3)),
    "denoise": _reduce_variation,
}

CLASS_FILTERS: dict[str, ClassFilter] = {"spectrum": _remove_class_patterns}
"""Filters that compare the classes, so that they need every picture."""

LEARNED: Final = "pairs"
"""The filter that is a net, which learns it (`restore.py`)."""


def filter_picture(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Return a picture (H, W, 1 or 3) after a filter, a key of `FILTERS`, as (H, W, 3)."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(FILTERS[name](image.convert("RGB")))


def apply_filter(pixels: Levels, name: str) -> Levels:
    """Return pictures (N, 3, S, S) after the filter of that name, a key of `FILTERS`."""

    def filter_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        whole = np.ascontiguousarray(planes.transpose(1, 2, 0))
        return filter_picture(whole, name).transpose(2, 0, 1)

    result = np.empty_like(pixels)
    with ThreadPoolExecutor() as pool:
        for place, planes in enumerate(pool.map(filter_planes, pixels)):
            result[place] = planes
    return result
