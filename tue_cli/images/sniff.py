"""What a file is, by its content, and why some files cannot be protected.

The signatures of formats, the refusals that need no pixels, and the tests of a file's own
structure: cut short, lossless, deep. `codec` asks here before and after Pillow decodes.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Final

from PIL import Image

from tue_cli.errors import ImageProblem
from tue_cli.images import jpeg, metadata, png

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (png.PNG_START, "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_UNSUPPORTED: Final = (
    (b"GIF8", "a GIF"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"icns", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"gimp xcf", "a GIMP document"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI picture"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"P4", "a Netpbm picture"),
    (b"P5", "a Netpbm picture"),
    (b"P6", "a Netpbm picture"),
    (b"P7", "a Netpbm picture"),
    (b"\x01\xda", "an SGI picture"),
    (b"BLP", "a BLP texture"),
    (b"FUJIFILMCCD-RAW", "a camera raw file"),
    (b"IIRO", "a camera raw file"),
    (b"IIU\0", "a camera raw file"),
)


def sniff_format(source: bytes) -> str:
    """Return Pillow's word for the format that the first bytes speak of."""
    if not source:
        raise ImageProblem("empty", "The file is empty.")
    if source[:4] == b"RIFF" and source[8:12] == b"WEBP":
        return "WEBP"
    if source[4:8] == b"ftyp":
        length = int.from_bytes(source[:4], "big")
        brands = {source[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        _refuse_kind("a camera raw file" if b"crx " in brands else "a HEIC picture or a video")
    for start, kind in _SIGNATURES:
        if source.startswith(start):
            if kind == "TIFF" and source[8:10] == b"CR":
                _refuse_kind("a camera raw file")
            return kind
    for start, name in _UNSUPPORTED:
        if source.startswith(start):
            if name == "a GIF":
                _refuse_moving_gif(source)
            _refuse_kind(name)
    raise ImageProblem("not-a-picture", "The content of the file is not a picture.")


def _refuse_kind(name: str) -> None:
    raise ImageProblem(
        "unsupported",
        f"This is {name}, which tue cannot write; export it as PNG, TIFF or JPEG first.",
    )


def _refuse_moving_gif(source: bytes) -> None:
    moves = False
    with suppress(Exception), Image.open(io.BytesIO(source), formats=["GIF"]) as image:
        moves = bool(getattr(image, "is_animated", False))
    if moves:
        raise ImageProblem(
            "animated", "This picture is animated; tue protects only still pictures."
        )


def refuse_tangled(kind: str, source: bytes) -> None:
    """Raise for metadata that would hold up or choke a decoder, before it reads them."""
    metadata.refuse_tangled(kind, source)


def refuse(image: Image.Image, source: bytes) -> None:
    """Raise for what is sound but cannot be protected, before any pixel is decoded."""
    tags = getattr(image, "tag_v2", {})
    if 50706 in tags or tags.get(254, 0) == 1:
        _refuse_kind("a camera raw file")
    # A JPEG's further frames are previews and depth maps: left out, not refused. To count the
    # pages of a TIFF would be to walk through all of them.
    is_tiff = image.format == "TIFF"
    several = getattr(image, "is_animated", False) if is_tiff else getattr(image, "n_frames", 1) > 1
    if image.format not in ("JPEG", "MPO") and several:
        if is_tiff:
            raise ImageProblem(
                "multi-page",
                "This file has several pages; save each page as a file of its own first.",
            )
        raise ImageProblem(
            "animated", "This picture is animated; tue protects only still pictures."
        )
    if image.mode == "CMYK":
        raise ImageProblem("cmyk", "The picture has CMYK colours; convert it to RGB first.")
    deep = source[24] == 16 if image.format == "PNG" else max(tags.get(258, (8,))) > 8
    if image.mode.startswith("I") or (deep and image.mode != "F"):
        raise ImageProblem(
            "16-bit",
            "The picture has more than 8 bits per channel; save it with 8 first.",
        )
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "P", "PA", "YCbCr"):
        name = {"1": "black-and-white", "F": "floating-point"}.get(image.mode, image.mode)
        raise ImageProblem(
            "mode", f"The picture has {name} pixels; convert it to RGB or grayscale first."
        )


def is_lossless_webp(source: bytes) -> bool:
    """Say whether the first frame of a WebP is coded without loss."""
    at = 12
    while at + 8 <= len(source):
        kind = source[at : at + 4]
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        # A frame's own chunks follow its 16 bytes of header.
        size = 16 if kind == b"ANMF" else int.from_bytes(source[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def is_deep_avif(source: bytes) -> bool:
    """Say whether an AVIF has more than 8 bits a channel."""
    at = source.find(b"av1C")
    return at >= 0 and len(source) > at + 6 and bool(source[at + 6] & 0x40)


def is_truncated(kind: str, source: bytes) -> bool:
    """Say whether the file ends before its own structure says so."""
    if kind == "JPEG":
        return jpeg.is_truncated(source)
    if kind == "PNG":
        return all(chunk != b"IEND" for chunk, _ in png.read_png_chunks(source))
    if kind == "WEBP":
        return len(source) < 8 + int.from_bytes(source[4:8], "little")
    if kind == "BMP":
        return len(source) < int.from_bytes(source[2:6], "little")
    if kind == "AVIF":
        at = 0
        while (size := int.from_bytes(source[at : at + 4], "big")) > 0 and at < len(source):
            at += size
        return at > len(source)
    return _is_tiff_truncated(source)


def _is_tiff_truncated(source: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(source), formats=["TIFF"]) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            pairs = [(tags.get(a, ()), tags.get(b, ())) for a, b in ((273, 279), (324, 325))]
    except Exception:
        return int.from_bytes(source[4:8], "little" if source[:1] == b"I" else "big") >= len(source)
    return any(
        start + length > len(source)
        for starts, lengths in pairs
        for start, length in zip(starts, lengths, strict=False)
    )
