"""What a file is, by its content, and why some files cannot be protected.

The signatures of formats, the refusals that need no pixels, and the tests of a file's own
structure: cut short, lossless, deep. `codec` asks here before and after Pillow decodes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from PIL import Image, TiffImagePlugin

from tue_cli.errors import ImageProblem
from tue_cli.images import deep, jpeg, metadata, png

_RAW: Final = (
    ".3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .erf .fff .gpr .iiq .k25 .kdc .mdc "
    ".mef .mos .mrw .nef .nrw .orf .ori .pef .ptx .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f"
)
RAW_SUFFIXES: Final = frozenset(_RAW.split())
"""Endings of camera raw files; most of them begin as a TIFF does."""

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (png.PNG_START, "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cJXL ", "JXL"),
    (b"\xff\x0a", "JXL"),
)
_UNSUPPORTED: Final = (
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"icns", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
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
    *(
        (start, "a camera raw file")
        for start in (
            *(b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM"),
            b"II\x1a\0\0\0HEAPCCDR",
        )
    ),
)
_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)


def sniff_format(source: bytes) -> str:
    """Return Pillow's word for the format that the first bytes speak of.

    Raises:
        ImageProblem: empty, not-a-picture or unsupported.
    """
    if not source:
        raise ImageProblem("empty", "The file is empty.")
    if source[:4] == b"RIFF" and source[8:12] == b"WEBP":
        return "WEBP"
    if source[4:8] == b"ftyp":
        return _sniff_boxes(source)
    for start, kind in _SIGNATURES:
        if source.startswith(start):
            # Canon's CR2, and Phase One's IIQ.
            if kind == "TIFF" and (source[8:10] == b"CR" or source[8:12] in (b"IIII", b"MMMM")):
                _refuse_kind("a camera raw file")
            return kind
    for start, name in _UNSUPPORTED:
        # The header of a TGA may begin as a cursor does, which names how many pictures it holds.
        if source.startswith(start) and not (start == b"\0\0\2\0" and source[4:6] == b"\0\0"):
            _refuse_kind(name)
    if len(source) >= 18 and _is_tga(source):
        _refuse_kind("a TGA picture")
    if source[0] == 10 and source[1:2] in b"\0\2\3\4\5" and source[2:4] in _PCX:
        _refuse_kind("a PCX picture")
    raise ImageProblem("not-a-picture", "The content of the file is not a picture.")


_PCX: Final = (b"\1\1", b"\1\2", b"\1\4", b"\1\x08")
"""Coding and bits a pixel of a PCX."""


def _sniff_boxes(source: bytes) -> str:
    """Return the format of a file of boxes, which HEIC, AVIF and films share."""
    length = int.from_bytes(source[:4], "big")
    brands = {source[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if b"crx " in brands:
        _refuse_kind("a camera raw file")
    if not brands & _HEIF_BRANDS:
        _refuse_kind("a video")
    return "HEIF"


def _is_tga(source: bytes) -> bool:
    """Say whether the header is that of a TGA, which has no signature."""
    mapped, coding = source[1], source[2]
    width, height = (int.from_bytes(source[at : at + 2], "little") for at in (12, 14))
    return (
        (mapped, coding) in {(1, 1), (1, 9), (0, 2), (0, 10), (0, 3), (0, 11)}
        and (bool(mapped) or not any(source[3:8]))
        and width > 0 < height
        and source[16] in (8, 15, 16, 24, 32)
        and source[17] < 64
    )


def _refuse_kind(name: str) -> NoReturn:
    remedy = "export it as PNG, TIFF or JPEG first"
    if "raw" in name:
        remedy = "export it as TIFF or JPEG from your raw converter first"
    raise ImageProblem("unsupported", f"This is {name}, which tue cannot write; {remedy}.")


def refuse_raw(suffix: str, source: bytes) -> None:
    """Raise for a file of a TIFF's structure whose name says that it is a camera raw file.

    What can be read of such a file as a TIFF is often only its thumbnail.
    """
    if suffix.lower() in RAW_SUFFIXES and source[:4] in (b"II*\0", b"MM\0*"):
        _refuse_kind("a camera raw file")


MOST_PREVIEWS: Final = 8
"""Further pages of a TIFF that may be smaller versions of the first."""


def refuse_tangled(kind: str, source: bytes) -> None:
    """Raise for metadata that would hold up or choke a decoder, before it reads them."""
    metadata.refuse_tangled(kind, source)


def refuse(image: Image.Image, source: bytes) -> None:
    """Raise for what is sound but cannot be protected, before any pixel is decoded."""
    tags = getattr(image, "tag_v2", {})
    if 50706 in tags or tags.get(254, 0) == 1:
        _refuse_kind("a camera raw file")
    _refuse_several(image, source)
    bits = max(tags.get(258, (8,)))
    if image.mode == "CMYK":
        _refuse_cmyk(tags, bits)
    if image.format == "HEIF":
        bits = int(image.info.get("bit_depth") or 8)
    deep_mode = image.mode.startswith("I") or (bits > 8 and image.mode != "F")
    if deep_mode and not deep.is_deep(image):
        raise ImageProblem(
            "16-bit",
            f"The picture has {bits} bits per channel in a form that tue cannot write; save it as "
            "a PNG or TIFF with 8 or 16 bits first.",
        )
    known = ("L", "LA", "RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", "CMYK", "I;16", "I;16B")
    if image.mode not in known:
        name = {"1": "black-and-white", "F": "floating-point"}.get(image.mode, image.mode)
        raise ImageProblem(
            "mode", f"The picture has {name} pixels; convert it to RGB or grayscale first."
        )


def _refuse_several(image: Image.Image, source: bytes) -> None:
    """Raise for several frames or pages, unless the further ones are only previews."""
    # A JPEG's further frames are previews and depth maps: left out, not refused; so are those of
    # a HEIC. To count the pages of a TIFF would be to walk through all of them.
    if image.format in ("JPEG", "MPO", "HEIF"):
        return
    tags: TiffImagePlugin.ImageFileDirectory_v2 | None = getattr(image, "tag_v2", None)
    if image.format in ("TIFF", "GIF"):
        several = getattr(image, "is_animated", False)
    else:
        several = getattr(image, "n_frames", 1) > 1
    if not several or (tags is not None and has_only_previews(tags, source)):
        return
    if image.format == "TIFF":
        raise ImageProblem(
            "multi-page", "This file has several pages; save each page as a file of its own first."
        )
    raise ImageProblem("animated", "This picture is animated; tue protects only still pictures.")


def has_only_previews(tags: TiffImagePlugin.ImageFileDirectory_v2, source: bytes) -> bool:
    """Say whether the pages of a TIFF after the first are a few smaller versions of it."""
    file = io.BytesIO(source)
    page = read_tiff_directory(file, tags.next)
    for _ in range(MOST_PREVIEWS):
        reduced, kind = page.get(254, 0), page.get(255)
        if not (reduced == 1 or kind == 2):
            return False
        if not page.next:
            return True
        page = read_tiff_directory(file, page.next)
    return False


def read_tiff_directory(file: io.BytesIO, start: int = 0) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return the tags of the directory at `start`, by default the first, of a TIFF."""
    file.seek(0)
    head = file.read(16)
    big = head[2:4] in (b"+\0", b"\0+")
    directory = TiffImagePlugin.ImageFileDirectory_v2(head if big else head[:8])
    file.seek(start or directory.next)
    directory.load(file)
    return directory


def _refuse_cmyk(tags: Mapping[int, Any], bits: int) -> None:
    """Raise for CMYK whose ink tue could not write back."""
    if bits > 8:
        found = f"{bits} bits per channel"
    elif tags.get(277, 4) > 4:
        found = "further channels, such as spot colours or transparency"
    elif tags.get(332, 1) != 1:
        found = "inks that are not CMYK"
    else:
        return
    raise ImageProblem(
        "cmyk", f"The picture has CMYK colours with {found}; convert it to RGB first."
    )


def explain_header(kind: str, source: bytes) -> ImageProblem:
    """Return why a decoder would not open a file: what it holds, or that it is damaged."""
    if kind == "JPEG":
        bits = jpeg.read_precision(source)
        if bits > 8:
            return ImageProblem(
                "16-bit", f"The JPEG has {bits} bits per channel; save it with 8 first."
            )
    if kind == "BMP" and len(source) > 30:
        at = 24 if source[14] == 12 else 28
        bits = int.from_bytes(source[at : at + 2], "little")
        if bits not in (0, 1, 4, 8, 16, 24, 32):
            return ImageProblem(
                "mode", f"The BMP has {bits} bits per pixel; convert it to RGB or grayscale first."
            )
    if kind == "HEIF":
        return ImageProblem(
            "unsupported",
            "This is a HEIC picture that pillow-heif cannot read; export it as PNG, TIFF or JPEG.",
        )
    if kind == "TIFF":
        with suppress(Exception):
            return _explain_tiff(read_tiff_directory(io.BytesIO(source)))
    return ImageProblem("unreadable", f"The header of the {kind} file is damaged.")


def _explain_tiff(tags: Mapping[int, Any]) -> ImageProblem:
    """Return why a TIFF of a sound first directory cannot be read."""
    bits, count = max(tags.get(258, (1,))), tags.get(277, 1)
    sample = max(tags.get(339, (1,)))
    names = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
    if tags[256] < 1 or tags[257] < 1:
        raise ValueError
    return ImageProblem(
        "mode",
        f"The TIFF has {names.get(sample, '')}pixels of {count} x {bits} bits, which tue cannot "
        "read; convert it to RGB or grayscale, with 8 or 16 bits, first.",
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
    if kind == "GIF":
        return not source.rstrip(b"\0").endswith(b";")
    if kind == "JXL":
        return False
    if kind in ("AVIF", "HEIF"):
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
