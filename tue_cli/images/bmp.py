"""BMP with what Pillow does not write: an alpha channel, and the colour space of its header.

A header of version 4 or 5 names primaries and gamma, sRGB, or a profile that follows the pixels.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

_FILE_HEADER: Final = 14
_COLOURS, _VERSION_4, _VERSION_5 = 56, 108, 124
"""Where a header says its colour space, and how long those of versions 4 and 5 are."""
_EMBEDDED, _LINKED, _SRGB = b"DEBM", b"KNIL", b"BGRs"


def read_colours(source: bytes) -> tuple[bytes, bytes]:
    """Return the embedded ICC profile, and all that the header says of colours, for `write`.

    Both are empty where there is nothing.
    """
    header = source[_FILE_HEADER : _FILE_HEADER + _VERSION_5]
    (length,) = struct.unpack_from("<I", header.ljust(4, b"\0"))
    if length not in (_VERSION_4, _VERSION_5) or len(header) < length:
        return b"", b""
    colours, profile = header[_COLOURS:_VERSION_4], b""
    if length == _VERSION_5:
        colours = header[_COLOURS : _VERSION_4 + 4]
        start, size = struct.unpack_from("<II", header, 112)
        if colours[:4] in (_EMBEDDED, _LINKED):
            profile = source[_FILE_HEADER + start :][:size]
    return (profile if colours[:4] == _EMBEDDED else b""), colours + profile


def shows_srgb(colours: bytes) -> bool:
    """Say whether colours that `read_colours` found are sRGB, or unsaid."""
    primaries = any(colours[4:52])
    return colours[:4] != _LINKED and not (colours[:4] == bytes(4) and primaries)


def write(planes: NDArray[np.uint8], dpi: tuple[float, float] | None, colours: bytes) -> bytes:
    """Return a BMP of pixels (H, W, C): grayscale, RGB or RGBA; `colours` as `read_colours` says.

    Without colours, an alpha channel makes a version 4 header that says sRGB.
    """
    height, width, channels = planes.shape
    rows = planes[::-1] if channels == 1 else planes[::-1, :, (2, 1, 0, 3)[:channels]]
    padded = np.zeros((height, -(-width * channels // 4) * 4), np.uint8)
    padded[:, : width * channels] = rows.reshape(height, -1)
    palette = b""
    if channels == 1:
        palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    colours = colours or _SRGB + bytes(48)
    profile = colours[56:]
    length = _VERSION_4 if len(colours) < 56 else _VERSION_5
    body = padded.tobytes()
    header = struct.pack("<IiiHH", length, width, height, 1, 8 * channels)
    x, y = (round(density / 0.0254) for density in dpi or (0.0, 0.0))
    header += struct.pack(
        "<IIiiII", 3 if channels == 4 else 0, len(body), x, y, len(palette) // 4, 0
    )
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000) if channels == 4 else (0, 0, 0, 0)
    header += struct.pack("<4I", *masks) + colours[:56]
    if length == _VERSION_5:
        place = length + len(palette) + len(body) if profile else 0
        header += struct.pack("<III", place, len(profile), 0)
    start = _FILE_HEADER + length + len(palette)
    data = header + palette + body + profile
    return struct.pack("<2sIHHI", b"BM", _FILE_HEADER + len(data), 0, 0, start) + data
