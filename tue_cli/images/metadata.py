"""What travels with a picture besides its pixels: EXIF, colour profile, XMP, IPTC, texts, density.

Everything is copied byte for byte where that is safe, and what a copy cannot have is named in a
note. PNG's chunks are here; JPEG's segments, the tags of TIFF and the boxes of AVIF are next door.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tue_cli.errors import ImageProblem
from tue_cli.images import avif, bmp, exif, jpeg, png, tiff
from tue_cli.images.xmp import CREDENTIALS, PREVIEW, clean_xmp, explain_lost, join_xmp


@dataclass(frozen=True)
class Metadata:
    """What is written beside the pixels; every preview has been taken out."""

    exif: bytes = b""
    """A TIFF structure, without the `Exif` prefix that JPEG puts before it."""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    segments: tuple[bytes, ...] = ()
    """The JPEG segments, PNG chunks, AVIF boxes or BMP colours of the source, for a copy in the
    same format."""
    photoshop: bytes = b""
    """Photoshop's resources, IPTC among them; for a copy in another format."""
    comments: tuple[bytes, ...] = ()
    """Those of a JPEG, PNG or GIF, for a copy in another format."""
    colours: tuple[int, int] = (2, 2)
    """Primaries and transfer by ITU-T H.273, where a PNG, an AVIF or a HEIC says them; 2 is
    unspecified."""


def refuse_tangled(kind: str, source: bytes) -> None:
    """Refuse what would take a decoder ages before the first pixel, or what it cannot decode.

    Raises:
        ImageProblem: `metadata` or `mode`.
    """
    if kind == "JPEG":
        jpeg.refuse_tangled(source)
    if kind == "PNG":
        png.refuse_tangled(source)
    if kind == "TIFF":
        tiff.refuse_tangled(source)
    if kind == "AVIF":
        avif.refuse_matrix(source)


def read_metadata(
    kind: str, source: bytes, info: dict[Any, Any]
) -> tuple[Metadata, tuple[str, ...]]:
    """Return what stands beside the pixels of a file, and notes on what a copy does not have.

    Args:
        kind: the format, in Pillow's word.
        source: the whole file.
        info: what Pillow knows of the file.

    Raises:
        ImageProblem: `metadata`: it is damaged or too large; unreadable.
    """
    lost: set[str] = set()
    dpi = info.get("dpi")
    beside = Metadata(
        icc=info.get("icc_profile") or b"",
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
    )
    if kind == "JPEG":
        return _read_jpeg(source, beside)
    if kind == "PNG":
        return _read_png(source, beside)
    if kind == "TIFF":
        tags, gone = tiff.read_tiff_exif(source)
        beside = replace(beside, exif=tags, xmp=tiff.read_tag(tags, tiff.XMP_TAG).rstrip(b"\0"))
        return replace(beside, photoshop=tiff.read_photoshop(tags)), explain_lost(gone)
    if kind == "AVIF":
        found = avif.read(source)
        exif_bytes, xmp, lost = found.exif, found.xmp, set(found.lost)
        beside = replace(beside, segments=found.boxes, colours=avif.read_cicp(found.boxes))
    else:
        exif_bytes = (info.get("exif") or b"").removeprefix(exif.EXIF_START)
        xmp, lost = info.get("xmp") or b"", lost
    if kind == "BMP":
        profile, header = bmp.read_colours(source)
        beside = replace(beside, icc=profile, segments=(header,) if header else ())
    if kind == "GIF":
        beside = replace(beside, comments=_read_gif_comments(source))
    if kind == "HEIF" and (cicp := info.get("nclx_profile")):
        said = cicp["color_primaries"], cicp["transfer_characteristics"]
        beside = replace(beside, colours=said)
    if kind == "WEBP" and _has_credentials(source):
        lost.add(CREDENTIALS)
    cleaned = exif.blank_exif_previews(exif_bytes)
    text, more = clean_xmp(xmp.encode() if isinstance(xmp, str) else xmp)
    lost |= more | ({PREVIEW} if cleaned != exif_bytes else set())
    return replace(beside, exif=cleaned, xmp=text), explain_lost(lost)


def _read_jpeg(source: bytes, beside: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    segments, notes = jpeg.select_segments(source)
    beside = replace(
        beside,
        exif=jpeg.join_exif(segments),
        xmp=join_xmp(segments)[0],
        segments=segments,
        photoshop=jpeg.join_photoshop(segments),
        comments=jpeg.read_comments(segments),
    )
    return beside, notes


def _read_png(source: bytes, beside: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    found = png.select_png_chunks(source)
    beside = replace(
        beside,
        exif=found.exif,
        xmp=found.xmp,
        segments=found.chunks,
        photoshop=found.photoshop,
        comments=png.read_comments(found.chunks),
        colours=png.read_cicp(found.chunks),
    )
    return beside, found.notes


def _read_gif_comments(source: bytes) -> tuple[bytes, ...]:
    """Return all comments of a GIF; Pillow knows only those before its first frame.

    Raises:
        ImageProblem: `metadata`: there are too many.
    """
    comments: list[bytes] = []
    at = 13 + _measure_palette(source, 10)
    while (block := source[at : at + 2]) and block[0] in b"!,":
        is_comment = block == b"!\xfe"
        at += 2 if block[0] == 0x21 else 11 + _measure_palette(source, at + 9)
        parts = []
        while size := int.from_bytes(source[at : at + 1], "big"):
            parts.append(source[at + 1 : at + 1 + size])
            at += 1 + size
        at += 1
        comments += [b"".join(parts)] if is_comment else []
    if len(comments) > png.MOST_CHUNKS or sum(map(len, comments)) > exif.MOST_BYTES:
        raise exif.explain_tangled()
    return tuple(filter(None, comments))


def _measure_palette(gif: bytes, at: int) -> int:
    """Return the bytes of the palette that the flags at a place tell of."""
    flags = int.from_bytes(gif[at : at + 1], "big")
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _has_credentials(webp: bytes) -> bool:
    at = 12
    while at + 8 <= len(webp):
        if webp[at : at + 4] == b"C2PA":
            return True
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def convert(beside: Metadata, source: str, target: str) -> tuple[Metadata, tuple[str, ...]]:
    """Return what a copy in another format can hold, and notes on what it cannot.

    Raises:
        ImageProblem: `colour` or `crop`: the copy would look otherwise.
    """
    lost: list[str] = []
    refuse_other_look(beside, source, target)
    if source == "AVIF":
        turn = avif.read_turn(beside.segments)
        if turn != 1 or tiff.read_tag(beside.exif, exif.ORIENTATION):
            beside = replace(beside, exif=tiff.set_orientation(beside.exif, turn))
    if source == "TIFF":
        elsewhere = frozenset({tiff.XMP_TAG, tiff.IPTC_TAG, tiff.PHOTOSHOP_TAG})
        beside = replace(beside, exif=tiff.drop_tags(beside.exif, elsewhere))
    if source == "PNG":
        names = ", ".join(png.list_texts(beside.segments))
        lost.extend([f"texts, which have no place in a {target}: {names}"] if names else [])
    if source == "JPEG" and not join_xmp(beside.segments)[1]:
        lost.append(f"a part of the XMP, which has no place in a {target}")
    if target == "WEBP":
        missing = "which WebP has no place for"
        lost.extend([f"IPTC and other data of Photoshop, {missing}"] if beside.photoshop else [])
        lost.extend([f"the comment, {missing}"] if beside.comments else [])
    return replace(beside, segments=()), explain_lost(lost)


def refuse_other_look(beside: Metadata, source: str, target: str) -> None:
    """Raise where a copy in another format would be cropped or coloured otherwise.

    Raises:
        ImageProblem: `colour` or `crop`.
    """
    if source == "AVIF" and avif.is_cropped(beside.segments):
        raise ImageProblem(
            "crop",
            f"This AVIF is cropped by its metadata, for which a {target} has no place; use "
            "--format keep, or crop the picture first.",
        )
    found = name_colours(beside, source)
    if not found or (target == "PNG" and source != "BMP"):
        return
    raise ImageProblem(
        "colour",
        f"The colours are not sRGB ({found}), which a {target} cannot record without a profile; "
        f"use {'--format keep' if source == 'BMP' else '--format keep or png'}.",
    )


def name_colours(beside: Metadata, source: str) -> str:
    """Return what says, without a profile, that colours are not sRGB; nothing where they are."""
    if beside.icc:
        return ""
    if source == "BMP" and not bmp.shows_srgb(b"".join(beside.segments)):
        return "primaries or a linked profile in the header of the BMP"
    if beside.colours not in avif.SRGB:
        return f"CICP {beside.colours[0]}/{beside.colours[1]}"
    if source == "PNG" and not png.shows_srgb(beside.segments):
        return "gAMA and cHRM of the PNG"
    return ""


def make_png_chunks(beside: Metadata) -> tuple[bytes, ...]:
    """Return chunks for a PNG made from a picture of another format, as `convert` leaves it."""
    named = not beside.icc and beside.colours not in avif.SRGB
    return png.make_png_chunks(
        beside.exif,
        beside.xmp,
        beside.icc,
        beside.photoshop,
        beside.comments,
        beside.dpi,
        beside.colours if named else None,
    )
