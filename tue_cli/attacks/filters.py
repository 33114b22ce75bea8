"""Filters that an attacker applies to pictures before training, to remove their noise.

They are Pillow's own, applied once, to the training pictures alone, at the victim's input size.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

Filter = Callable[[Image.Image], Image.Image]
"""An RGB picture to an RGB picture of the same size."""


def _compress(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as compressed:
        return compressed.convert("RGB")


def _halve_and_enlarge(image: Image.Image) -> Image.Image:
    width, height = image.size
    half = image.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BILINEAR)
    return half.resize((width, height), Image.Resampling.BILINEAR)


FILTERS: dict[str, Filter] = {
    # Quality 10 is ISS's (Liu et al. 2023); 50 and 75 are what sites and cameras use.
    "jpeg10": partial(_compress, quality=10),
    "jpeg50": partial(_compress, quality=50),
    "jpeg75": partial(_compress, quality=75),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "resize": _halve_and_enlarge,
    # A standard deviation of 1 pixel; the 0.1 of public benchmarks leaves every pixel as it is.
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "bits": lambda image: ImageOps.posterize(image, 2),
}


def apply_filter(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Return pictures (N, 3, S, S) after the filter of that name, a key of `FILTERS`."""
    filter_image = FILTERS[name]

    def filter_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        return np.asarray(filter_image(image)).transpose(2, 0, 1)

    result = np.empty_like(pixels)
    with ThreadPoolExecutor() as pool:
        for place, planes in enumerate(pool.map(filter_planes, pixels)):
            result[place] = planes
    return result
