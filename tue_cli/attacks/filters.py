"""Filters that an attacker applies to pictures before training, to remove their noise.

They are applied once, to the training pictures alone: at each picture's own size or after resizing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

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
"""Of Chambolle's projection: 45 ms for 224 x 224 pixels on one core."""


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
    """Minimize each channel's total variation (Rudin et al. 1992; Chambolle 2004, section 3)."""
    planes = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    down, right, out = np.zeros_like(planes), np.zeros_like(planes), planes
    for _ in range(ROUNDS):
        slope_down, slope_right = np.zeros_like(planes), np.zeros_like(planes)
        slope_down[:, :-1] = np.diff(out, axis=1)
        slope_right[:, :, :-1] = np.diff(out, axis=2)
        # Chambolle proves that a step of 1/8 converges; he and scikit-image take 1/4.
        bound = 1 + np.hypot(slope_down, slope_right) / (4 * VARIATION)
        down, right = (down - slope_down / 4) / bound, (right - slope_right / 4) / bound
        divergence = -down - right
        divergence[:, 1:] += down[:, :-1]
        divergence[:, :, 1:] += right[:, :, :-1]
        out = planes + divergence
    return Image.fromarray(np.rint(out.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def _remove_class_patterns(pixels: Levels, labels: NDArray[np.int64]) -> Levels:
    """Give all classes the same mean picture, then the same mean log-amplitude spectrum.

    A pattern that is added to each picture of a class is gone from its mean, and a texture whose
    place changes from picture to picture from its spectrum. Phases stay as they are, and what a
    picture has more or less than the mean of its class.
    """
    result = pixels.copy()
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    size = pixels.shape[-1]

    def compute_amplitude(few: NDArray[np.float32]) -> NDArray[np.float32]:
        # Levels are whole: less than a hundredth of a level at every pixel is rounding.
        logarithm: NDArray[np.float32] = np.log(np.abs(np.fft.rfft2(few)) + 0.01 * size)
        return logarithm

    means = np.stack([pixels[places].mean(0, dtype=np.float64) for places in classes])
    shifts = (means - means.mean(0)).astype(np.float32)
    spectra = []
    for places, shift in zip(classes, shifts, strict=True):
        total = np.zeros((*pixels.shape[1:3], size // 2 + 1))
        for place in places:
            total += compute_amplitude(pixels[place] - shift)
        spectra.append(total / len(places))
    common = np.mean(spectra, axis=0)
    for places, shift, spectrum in zip(classes, shifts, spectra, strict=True):
        factor = np.exp(common - spectrum)
        # The brightness of a class is in its mean picture, which is the same for all by now.
        factor[:, 0, 0] = 1
        for place in places:
            flat = np.fft.irfft2(np.fft.rfft2(pixels[place] - shift) * factor, s=(size, size))
            result[place] = np.rint(flat.clip(0, 255)).astype(np.uint8)
    return result


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
