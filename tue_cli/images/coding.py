"""How a file codes its pixels, so that a copy can be coded alike."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, Final

from PIL import Image, JpegImagePlugin

from tue_cli.errors import ImageProblem
from tue_cli.images import avif, extras, jpeg, sniff
from tue_cli.images.exif import ORIENTATION

FORMATS: Final = frozenset({"keep", "png", "jpeg", "webp"})
DEEP: Final = frozenset({"PNG", "TIFF"})
"""Formats that hold 16 bits a channel."""
INKED: Final = frozenset({"JPEG", "TIFF"})
"""Formats that hold CMYK."""
_HUFFMAN: Final = 0xC4
_LOSSLESS_TIFF: Final = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd"}
)
# Pillow applies a TIFF's orientation when it loads it; these undo that.
_TURNED_BACK: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Coding:
    """How the source was coded, so that a copy can be coded alike."""

    lossless: bool
    tables: tuple[tuple[int, ...], ...] = ()
    """JPEG quantisation tables, one for each component, equal last ones once."""
    subsampling: int = 0
    progressive: bool = False
    optimized: bool = False
    """Whether a JPEG has Huffman tables of its own, which make it smaller."""
    compression: str = "raw"
    predictor: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    """What else Pillow's encoder is told, for a copy in the same format."""
    adobe_marker: bool = True
    """False for a CMYK JPEG without it; programs tell by it whether the values are inverted."""


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a TIFF back that is opened and not loaded yet."""
    return _TURNED_BACK.get(getattr(image, "tag_v2", {}).get(ORIENTATION, 1))


def convert_mode(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the picture as L, LA, RGB, RGBA or CMYK."""
    if image.mode in ("P", "PA"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        notes.append(f"palette converted to {mode}")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}[image.mode]
        notes.append("transparent colour converted to an alpha channel")
    elif image.mode in ("RGBX", "YCbCr"):
        mode = "RGB"
        notes.append(f"{image.mode} converted to RGB")
    else:
        return image
    return image.convert(mode)


def read_coding(image: Image.Image, kind: str, source: bytes) -> Coding:
    """Return how a file codes the picture that Pillow opened."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        tables = [tuple(image.quantization[part[3]]) for part in image.layer]
        while len(tables) > 1 and tables[-1] == tables[-2]:
            tables.pop()
        # An arrangement that Pillow cannot write (4:4:0, 4:1:1) gets the finest instead.
        subsampling = max(JpegImagePlugin.get_sampling(image), 0)
        marker = image.mode != "CMYK" or "adobe" in image.info
        if image.mode == "CMYK":
            # Pillow writes no YCCK, whose brightness and black have the first table.
            tables, subsampling = tables[:1], 0
        return Coding(
            False,
            tuple(tables),
            subsampling,
            progressive="progressive" in image.info,
            optimized=not _read_huffman_tables(source) <= _read_usual_tables(),
            adobe_marker=marker,
        )
    if kind == "TIFF":
        compression = str(image.info.get("compression", "raw"))
        predictor = getattr(image, "tag_v2", {}).get(317, 1)
        return Coding(compression in _LOSSLESS_TIFF, compression=compression, predictor=predictor)
    if kind == "WEBP":
        return Coding(lossless=sniff.is_lossless_webp(source))
    if kind == "JXL":
        return Coding(lossless=extras.is_jxl_lossless(source))
    if kind == "AVIF":
        found = avif.read(source)
        gray = (("subsampling", "4:0:0"),) if found.is_gray else ()
        return Coding(lossless=found.is_lossless, options=gray)
    return Coding(lossless=kind != "HEIF", options=extras.make_options(kind, image.info))


def _read_huffman_tables(source: bytes) -> frozenset[bytes]:
    """Return the Huffman tables before the first scan, each without its number."""
    tables = set()
    for marker, data, _ in jpeg.read_segments(source):
        while marker == _HUFFMAN and len(data) >= 17:
            size = 17 + sum(data[1:17])
            tables.add(data[1:size])
            data = data[size:]
    return frozenset(tables)


@cache
def _read_usual_tables() -> frozenset[bytes]:
    """Return the Huffman tables that encoders take where they make none for the picture."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return _read_huffman_tables(file.getvalue())


def list_attempts(
    coding: Coding, kind: str, quality: int | None, *, same: bool, has_alpha: bool
) -> list[tuple[dict[str, Any], str]]:
    """Return Pillow's options for each try to write a copy, the preferred first, with a note.

    Args:
        coding: of the source.
        kind: the format of the copy, in Pillow's word.
        quality: 1..100, where it was asked for.
        same: the copy's format is the source's.
        has_alpha: the copy is transparent.
    """
    if kind == "JPEG":
        own: dict[str, Any] = {"subsampling": coding.subsampling}
        own |= {"progressive": True} if coding.progressive else {}
        own |= {"optimize": True} if coding.optimized else {}
        if quality is not None:
            return [({"quality": quality, **own}, "")]
        finer = [_refine(level, {**own, "subsampling": 0}, noted=same) for level in (95, 100)]
        tables = [list(table) for table in coding.tables]
        return [({"qtables": tables, **own}, ""), *finer] if same else finer
    if kind == "TIFF":
        if coding.lossless:
            return [({"compression": coding.compression}, "")]
        note = f"compression replaced by deflate: {coding.compression}"
        return [({"compression": "tiff_adobe_deflate"}, note)]
    if kind in ("PNG", "BMP"):
        # Finer levels of deflate take three times as long for noise, and save one percent.
        return [({}, "")]
    own = {"exact": True} if kind == "WEBP" else {}
    if kind == "AVIF":
        # Twice as fast as Pillow's 6 for files of the same size and quality.
        own = {"subsampling": "4:4:4", "speed": 8, **dict(coding.options)}
        if has_alpha:
            own["advanced"] = {"alpha:lossless": "1"}
    if kind == "HEIF":
        # Seven times as fast as the encoder's own choice, for files a tenth larger.
        fast = {"preset": "ultrafast"}
        own = {"subsampling": "4:4:4", "enc_params": fast, **dict(coding.options)}
        if has_alpha:
            note = "written losslessly so that the transparency stays as it was"
            return [({"quality": -1, **own}, note)]
    lossless: dict[str, Any] = {"lossless": True, **own}
    if kind == "JXL" and coding.lossless and quality is None:
        return [(lossless, "")]
    if quality is not None:
        return [({"quality": quality, **own}, "")]
    finer = [_refine(level, own, noted=level > 90) for level in (90, 95, 100)]
    if kind == "AVIF" and coding.lossless:
        # Pillow codes brightness and colours apart, which rounds them.
        note = "written at quality 100, not losslessly; use --format png for a lossless copy"
        return [({"quality": 100, **own}, note)]
    if kind != "WEBP":
        return finer
    # Lossy WebP halves the colour channels, whatever the quality.
    note = "written losslessly so that the noise survives"
    return [(lossless, "")] if coding.lossless else [*finer, (lossless, note)]


def _refine(level: int, own: dict[str, Any], *, noted: bool) -> tuple[dict[str, Any], str]:
    note = f"written at higher quality so that the noise survives: {level}" if noted else ""
    return {"quality": level, **own}, note


def choose_kind(source: str, format: str) -> str:
    """Return the format of a copy, in Pillow's word: the source's own with `keep`, but for GIF.

    Raises:
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"expected one of {sorted(FORMATS)}, found {format!r}")
    if format != "keep":
        return format.upper()
    return "PNG" if source == "GIF" else source


def refuse_unfit(
    source: str, kind: str, place: PurePath, *, has_ink: bool, has_alpha: bool
) -> None:
    """Raise for a picture that the format of its copy cannot hold.

    Args:
        source: its own format.
        kind: that of its copy.
        place: where the copy goes.
        has_ink: whether it is in CMYK.
        has_alpha: whether it has transparency.

    Raises:
        ImageProblem: `cmyk`, `alpha`, or `unsupported` for a GIF whose copy, a PNG, would not be
            named as one.
    """
    if source == "GIF" and kind == "PNG" and place.suffix.lower() != ".png":
        raise ImageProblem(
            "unsupported", "This is a GIF, whose copy is a PNG; rename it so that it ends in .gif."
        )
    if has_ink and kind not in INKED:
        raise ImageProblem(
            "cmyk", f"{kind} has no CMYK colours; use --format keep, or convert it to RGB first."
        )
    if has_alpha and kind == "JPEG":
        raise explain_alpha()


def explain_alpha() -> ImageProblem:
    """Return the problem of a transparent picture whose copy would be a JPEG."""
    return ImageProblem("alpha", "JPEG has no transparency; use --format png or webp.")
