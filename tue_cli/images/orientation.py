"""Pixels to and from Pillow's images, and turned as the orientation tag asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.images import avif
from tue_cli.images.codec import DecodedImage
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.exif import ORIENTATION

_TURNS: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def read_orientation(picture: DecodedImage) -> int:
    """Return the orientation tag where it asks for a turn, else 1; a damaged tag asks for none.

    An AVIF is turned by its boxes alone, whatever its EXIF says; the number is of the same kind.
    """
    if picture.format == "AVIF":
        return avif.read_turn(picture.metadata.segments)
    tags = Image.Exif()
    with suppress(Exception):
        tags.load(picture.metadata.exif)
        turn = tags.get(ORIENTATION, 1)
        return turn if turn in _TURNS else 1
    return 1


def apply_orientation(pixels: Pixels, turn: int) -> Pixels:
    """Return pixels (H, W, C) turned as an orientation tag asks, which may swap H and W."""
    return pixels if turn == 1 else np.ascontiguousarray(_TURNS[turn](pixels))


def make_image(pixels: Pixels) -> Image.Image:
    """Return an image of 8 bits of pixels (H, W, C), grayscale where C is 1."""
    pixels = reduce_to_8_bits(pixels)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def extract_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of an image, C = 1 where it is grayscale."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
