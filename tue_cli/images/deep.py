"""Pictures of 16 bits a channel in PNG and TIFF.

Pillow keeps 8 bits of each channel of a colour picture. Its decoders can be told which byte of the
two to take: they are asked twice, once for each. The encoders here lay the values out as bytes,
which PNG's compression, or Pillow's of a TIFF, then packs.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from tue_cli.images import png

Pixels = NDArray[np.unsignedinteger[Any]]
"""Levels of 8 bits, uint8, or of 16, uint16."""
LEVELS: Final = 257
"""Values of 16 bits in one level of 255."""
ROWS: Final = 64
"""Rows of a PNG that are filtered at a time."""
COMPRESSION: Final = 6
_NATIVE, _OTHER = (";16L", ";16B") if sys.byteorder == "little" else (";16B", ";16L")
_OTHER_BYTE: Final = {";16B": ";16L", ";16L": ";16B", ";16N": _OTHER}


def is_deep(image: Image.Image) -> bool:
    """Say whether an opened picture has 16 bits in a channel that can be read and written back."""
    if image.format not in ("PNG", "TIFF"):
        return False
    tags = getattr(image, "tag_v2", {})
    if any(bits != 16 for bits in tags.get(258, (16,))) or image.mode == "CMYK":
        return False
    if tags.get(284, 1) == 2 and tags.get(277, 1) > 1:
        return False
    return _get_raw_mode(image) in _READABLE


_READABLE: Final = frozenset(
    {"I;16", "I;16B", "I;16N", "I;16R", "LA;16B"}
    | {f"{form};16{order}" for form in ("RGB", "RGBA", "RGBa", "RGBX") for order in "BLN"}
)


def reduce_to_8_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """Return pixels of 16 bits as the nearest levels of 255; those of 8 bits as they are."""
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    reduced = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), ROWS):
        strip = pixels[top : top + ROWS].astype(np.uint32)
        reduced[top : top + ROWS] = (strip + LEVELS // 2) // LEVELS
    return reduced


def read_planes(
    image: ImageFile.ImageFile,
    reopen: Callable[[], ImageFile.ImageFile],
    turn: Image.Transpose | None,
) -> NDArray[np.uint16]:
    """Return the values (H, W, C) of a deep picture, alpha the last, in stored order.

    Args:
        image: opened and not loaded; it is loaded here.
        reopen: opens the same file again.
        turn: what undoes the orientation that Pillow applies as it loads.
    """
    raw = _get_raw_mode(image)
    if raw.startswith("I;16"):
        values = np.asarray(_load(image, turn)).astype(np.uint16)[..., None]
        inverted = getattr(image, "tag_v2", {}).get(262) == 0
        return np.uint16(65535) - values if inverted else values
    if raw == "LA;16B":
        # Four bytes a pixel, as those of RGBA, and so they are filtered alike.
        _set_raw_mode(image, "RGBA")
        pairs = np.asarray(_load(image, turn)).astype(np.uint16)
        return pairs[..., 0::2] << np.uint16(8) | pairs[..., 1::2]
    form, order = raw[:-4], raw[-4:]
    plain = form.replace("a", "A")
    _set_raw_mode(image, plain + order)
    values = np.asarray(_load(image, turn)).astype(np.uint16)
    if order == ";16N":
        order = _NATIVE
    again = reopen()
    _set_raw_mode(again, plain + (_OTHER_BYTE[order]))
    values <<= np.uint16(8)
    values |= np.asarray(_load(again, turn))
    if form == "RGBa":
        alpha = values[..., 3:].astype(np.float32)
        colours = values[..., :3] * (np.float32(65535) / np.maximum(alpha, 1))
        values[..., :3] = np.rint(np.minimum(colours, 65535))
    return values


def _load(image: ImageFile.ImageFile, turn: Image.Transpose | None) -> Image.Image:
    image.load()
    return image if turn is None else image.transpose(turn)


def _get_raw_mode(image: Image.Image) -> str:
    """Return Pillow's word for how the bytes of an opened picture are laid out."""
    tiles = getattr(image, "tile", ())
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile
    ]


def make_transparent(
    planes: NDArray[np.uint16], colour: int | tuple[int, ...]
) -> NDArray[np.uint16]:
    """Return the planes with an alpha channel that hides one colour."""
    shown = (planes != np.array(colour, np.uint16)).any(axis=2, keepdims=True)
    return np.concatenate((planes, shown * np.uint16(65535)), axis=2)


def encode_png(planes: NDArray[np.uint16]) -> bytes:
    """Return a PNG of values (H, W, C), C = 1 to 4, alpha the last of 2 or 4."""
    height, width, channels = planes.shape
    packer = zlib.compressobj(COMPRESSION, strategy=zlib.Z_FILTERED)
    packed = [packer.compress(_filter_rows(planes, top)) for top in range(0, height, ROWS)]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        *((b"IDAT", part) for part in (*packed, packer.flush()) if part),
        (b"IEND", b""),
    )
    return png.PNG_START + b"".join(png.make_png_chunk(*chunk) for chunk in chunks)


def _filter_rows(planes: NDArray[np.uint16], top: int) -> bytes:
    """Return some rows with the filter Paeth, and its number before each (PNG, 9.4)."""
    strip = planes[max(top - 1, 0) : top + ROWS].astype(">u2")
    values = strip.view(np.uint8).reshape(len(strip), -1)
    step = 2 * planes.shape[2]
    # A row above and a pixel to the left of the first are zeros.
    framed = np.zeros((len(strip) + (top == 0), step + values.shape[1]), np.uint8)
    framed[top == 0 :, step:] = values
    here, above = framed[1:, step:], framed[:-1, step:]
    left, corner = framed[1:, :-step], framed[:-1, :-step]
    # The nearest of left, above and corner to left + above - corner.
    far_left, far_above = (np.subtract(one, corner, dtype=np.int16) for one in (above, left))
    far_corner = np.abs(far_left + far_above)
    far_left, far_above = np.abs(far_left), np.abs(far_above)
    nearest = np.where(far_above <= far_corner, above, corner)
    nearest = np.where((far_left <= far_above) & (far_left <= far_corner), left, nearest)
    return np.column_stack((np.full(len(here), 4, np.uint8), here - nearest)).tobytes()


def pack_rows(planes: NDArray[np.uint16], *, predict: bool) -> Image.Image:
    """Return values (H, W, C) as the bytes that a TIFF has for them, a grayscale pixel each.

    `predict`: from each value the one to its left is subtracted (predictor 2), to pack better.
    """
    values = planes.astype("<u2")
    if predict:
        values[:, 1:] -= planes[:, :-1]
    return Image.fromarray(values.reshape(len(values), -1).view(np.uint8))


def relabel_tiff(data: bytes, shape: tuple[int, int, int], *, predict: bool) -> bytes:
    """Say in a TIFF that Pillow wrote of packed rows what they are: values of 16 bits.

    Args:
        data: a little-endian TIFF of one page.
        shape: height, width and channels; 2 or 4 are with an alpha that is not multiplied in.
        predict: as it was for `pack_rows`.
    """
    _, width, channels = shape
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    grown = data + bytes(len(data) % 2)
    entries = {
        entry[0]: entry[1]
        for at in range(first + 2, first + 2 + 12 * count, 12)
        for entry in [(struct.unpack_from("<H", data, at)[0], data[at : at + 12])]
    }
    bits = struct.pack("<4H", *[16] * channels, *[0] * (4 - channels))
    start = bits[:4] if channels <= 2 else struct.pack("<I", len(grown))
    grown += bits
    entries[256] = struct.pack("<HHII", 256, 4, 1, width)
    entries[258] = struct.pack("<HHI", 258, 3, channels) + start
    entries[262] = struct.pack("<HHIHH", 262, 3, 1, 2 if channels > 2 else 1, 0)
    entries[277] = struct.pack("<HHIHH", 277, 3, 1, channels, 0)
    if predict:
        entries[317] = struct.pack("<HHIHH", 317, 3, 1, 2, 0)
    if channels in (2, 4):
        entries[338] = struct.pack("<HHIHH", 338, 3, 1, 2, 0)
    packed = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    return grown[:4] + struct.pack("<I", len(grown)) + grown[8:] + packed + bytes(4)
