"""HEIC and JPEG XL, which need a package that not everybody has: found, loaded and looked into.

Nothing is imported before the first such picture.
"""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

from tue_cli.errors import ImageProblem, is_installed
from tue_cli.images.boxes import read_boxes
from tue_cli.images.xmp import CREDENTIALS, DEPTH, GAIN_MAP, explain_lost


@dataclass(frozen=True)
class _Plugin:
    package: str
    install: str
    extra: str
    name: str
    suffixes: tuple[str, ...]


_PLUGINS: Final = {
    "HEIF": _Plugin("pillow_heif", "pillow-heif", "heic", "HEIC", (".heic", ".heif", ".hif")),
    "JXL": _Plugin("pillow_jxl", "pillow-jxl-plugin", "jxl", "JPEG XL", (".jxl",)),
}
MISSING_SUFFIXES: Final = frozenset(
    suffix
    for plugin in _PLUGINS.values()
    if not is_installed(plugin.package)
    for suffix in plugin.suffixes
)
"""Endings of pictures that nothing installed here can read."""
_guard = threading.Lock()


def load_plugin(kind: str) -> None:
    """Make Pillow know a format that needs a package of its own; others need nothing.

    Raises:
        ImageProblem: `unsupported`: the package is not installed.
    """
    plugin = _PLUGINS.get(kind)
    if plugin is None:
        return
    try:
        with _guard:
            module = importlib.import_module(plugin.package)
            if kind == "HEIF" and kind not in Image.OPEN:
                module.register_heif_opener(thumbnails=False)
    except ImportError as error:
        raise ImageProblem(
            "unsupported",
            f"This is a {plugin.name} picture. To protect it, install tue's extra {plugin.extra} "
            f"(pip install {plugin.install}), or export it as PNG, TIFF or JPEG.",
        ) from error


def describe_left_out(image: Image.Image, source: bytes) -> list[str]:
    """Return notes on what a HEIC or GIF holds besides its picture, and a copy does not."""
    notes: list[str] = []
    if image.format == "GIF":
        parts = {b"ICCRGBG1012": "colour profile", b"XMP DataXMP": "XMP"}
        there = [name for start, name in parts.items() if start in source]
        return list(explain_lost(f"the {name}" for name in there))
    beside = [str(name) for name in image.info.get("aux") or ()]
    if any("hdrgainmap" in name.lower() for name in beside):
        notes += explain_lost([GAIN_MAP])
    if image.info.get("depth_images"):
        notes += explain_lost([DEPTH])
    if any("hdrgainmap" not in name.lower() for name in beside):
        notes += explain_lost(["further images, such as masks"])
    if getattr(image, "n_frames", 1) > 1:
        notes.append("only the main picture of several was kept")
    return notes


@dataclass(frozen=True)
class JxlHeader:
    """What the first bits of a JPEG XL say of it."""

    width: int
    height: int
    bits: int
    """A channel."""
    is_float: bool
    is_animated: bool
    is_original: bool
    """The colours were not converted, as in a file coded without loss."""


class _Bits:
    """Reads numbers from bytes, the lowest bit first; past the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value

    def choose(self, *ways: tuple[int, int]) -> int:
        """Return one of four numbers: an offset, and bits that are added to it."""
        offset, count = ways[self.read(2)]
        return offset + self.read(count)


_SIDE: Final = ((1, 9), (1, 13), (1, 18), (1, 30))
_RATIOS: Final = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


def read_jxl_header(source: bytes) -> JxlHeader:
    """Return what the header of a JPEG XL says (ISO/IEC 18181-1, annexes D and E).

    Raises:
        ImageProblem: `unreadable`.
    """
    start = _find_codestream(source)
    if start < 0:
        raise ImageProblem("unreadable", "The header of the JPEG XL file is damaged.")
    bits = _Bits(source[start + 2 : start + 66])
    width, height = _read_jxl_size(bits)
    depth, is_float, is_animated = 8, False, False
    if bits.read(1):
        return JxlHeader(width, height, depth, is_float, is_animated, is_original=False)
    if bits.read(1):
        bits.read(3)  # orientation, which the decoder applies
        if bits.read(1):
            _read_jxl_size(bits)
        if bits.read(1):
            raise ImageProblem("unsupported", "The JPEG XL holds a preview, which tue cannot read.")
        is_animated = bool(bits.read(1))
        if is_animated:
            return JxlHeader(width, height, depth, is_float, is_animated, is_original=False)
    is_float = bool(bits.read(1))
    ways = ((32, 0), (16, 0), (24, 0), (1, 6)) if is_float else ((8, 0), (10, 0), (12, 0), (1, 6))
    depth = bits.choose(*ways)
    if is_float:
        bits.read(4)
    bits.read(1)
    further = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    plain = further == 0 or (further == 1 and bool(bits.read(1)))
    is_original = plain and not bits.read(1)
    return JxlHeader(width, height, depth, is_float, is_animated, is_original)


def _read_jxl_size(bits: _Bits) -> tuple[int, int]:
    small = bits.read(1)
    height = (bits.read(5) + 1) * 8 if small else bits.choose(*_SIDE)
    ratio = bits.read(3)
    if ratio:
        across, down = _RATIOS[ratio]
        return height * across // down, height
    return (bits.read(5) + 1) * 8 if small else bits.choose(*_SIDE), height


def refuse_jxl(source: bytes) -> JxlHeader:
    """Raise for a JPEG XL that cannot be protected, before its decoder unpacks all of it.

    Raises:
        ImageProblem: animated, 16-bit, mode or unreadable.
    """
    header = read_jxl_header(source)
    if header.is_animated:
        raise ImageProblem(
            "animated", "This picture is animated; tue protects only still pictures."
        )
    if header.is_float:
        raise ImageProblem(
            "mode", "The picture has floating-point pixels; convert it to RGB or grayscale first."
        )
    if header.bits > 8:
        raise ImageProblem(
            "16-bit",
            f"The picture has {header.bits} bits per channel, which tue cannot write as JPEG XL; "
            "save it as a PNG or TIFF with 8 or 16 bits first.",
        )
    return header


def _find_codestream(source: bytes) -> int:
    """Return where the codestream of a JPEG XL begins, -1 where there is none."""
    if source.startswith(b"\xff\x0a"):
        return 0
    for kind, _, start, _ in read_boxes(source, 0, len(source), cut=True):
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")
            return start if source[start : start + 2] == b"\xff\x0a" else -1
    return -1


def read_jxl_boxes(source: bytes) -> tuple[bytes, list[str]]:
    """Return the XMP of a JPEG XL, which its decoder does not hand over, and notes."""
    xmp = b""
    notes: list[str] = []
    if source.startswith(b"\xff\x0a"):
        return xmp, notes
    for kind, _, start, end in read_boxes(source, 0, len(source), cut=True):
        if kind == b"xml ":
            xmp = source[start:end]
        elif kind == b"brob" and source[start : start + 4] != b"Exif":
            notes += explain_lost(["compressed metadata"])
        elif kind == b"jumb":
            notes += explain_lost([CREDENTIALS])
    return xmp, notes


def is_jxl_lossless(source: bytes) -> bool:
    """Say whether a JPEG XL was coded without loss, and is not a JPEG packed smaller."""
    boxes = read_boxes(source, 0, len(source), cut=True)
    packs_jpeg = any(kind == b"jbrd" for kind, *_ in boxes)
    return read_jxl_header(source).is_original and not packs_jpeg


def has_same_colours(one: bytes, other: bytes) -> bool:
    """Say whether two profiles mean the same colours, to a level of 255.

    The encoder of JPEG XL stores no profile; its decoder makes one up from what was stored.
    """
    if one == other:
        return True
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = levels[None]
    if one[16:20] != b"GRAY":
        grid = np.stack(np.meshgrid(levels, levels, levels), 3).reshape(1, -1, 3)
    seen = []
    try:
        for profile in (one, other):
            seen.append(
                ImageCms.profileToProfile(
                    Image.fromarray(grid),
                    ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                    ImageCms.createProfile("sRGB"),
                    outputMode="RGB",
                )
            )
    except (ImageCms.PyCMSError, OSError):
        return False
    first, second = (np.asarray(view, dtype=np.int16) for view in seen)
    return bool(np.abs(first - second).max() <= 1)


def make_options(kind: str, info: Mapping[Any, Any]) -> tuple[tuple[str, Any], ...]:
    """Return what an encoder of a copy should be told of the source's colours."""
    profile = info.get("nclx_profile")
    return (("nclx_profile", profile),) if kind == "HEIF" and profile else ()
