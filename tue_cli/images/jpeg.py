"""The segments of a JPEG: which are copied to the protected file, and how.

Segments are copied byte for byte from a list of those known to be harmless; others (maker
previews, FlashPix, content credentials, further frames) can show the unprotected picture.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Final

from PIL import Image

from tue_cli.errors import ImageProblem
from tue_cli.images.metadata import (
    EXIF_START,
    MOST_BYTES,
    Metadata,
    blank_exif_previews,
    blank_jpegs,
    blank_text_images,
    explain_tangled,
)

APP0, APP1, APP2, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
START_OF_SCAN: Final = 0xDA
_END: Final = b"\xff\xd9"

JFIF: Final = b"JFIF\0"
XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
MORE_XMP: Final = b"http://ns.adobe.com/xmp/extension/\0"
PROFILE: Final = b"ICC_PROFILE\0"
PHOTOSHOP: Final = b"Photoshop 3.0\0"
LONGEST: Final = 65_533
"""The most bytes that one segment carries."""
MOST_EXIF: Final = 64
"""Segments that EXIF may take: four megabytes of it."""

# Thumbnail resources of Photoshop 4 and of Photoshop 5 and later.
_PHOTOSHOP_PREVIEWS = frozenset({0x0409, 0x040C})


def read_segments(source: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, payload, end) of the segments before the first scan, its header included.

    Stray bytes between segments are stepped over, as decoders do.
    """
    at = 2
    while 0 <= at <= len(source) - 4:
        marker = source[at + 1]
        if source[at] != 0xFF:
            at = source.find(b"\xff", at)
            continue
        if marker == 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            at += 1
            continue
        end = at + 2 + int.from_bytes(source[at + 2 : at + 4], "big")
        if end > len(source):
            return
        yield marker, source[at + 4 : end], end
        if marker == START_OF_SCAN:
            return
        at = end


def refuse_tangled(source: bytes) -> None:
    """Refuse a head that would take a decoder ages before the first scan.

    Raises:
        ImageProblem: `metadata`.
    """
    runs = 0
    for marker, data, _ in read_segments(source[:MOST_BYTES]):
        if marker == START_OF_SCAN:
            return
        # Pillow joins the parts of an EXIF one by one, and copies all before each time.
        runs += marker == APP1 and data.startswith(EXIF_START)
        if runs > MOST_EXIF:
            raise explain_tangled()
    if len(source) > MOST_BYTES:
        raise explain_tangled()


def is_truncated(source: bytes) -> bool:
    """Say whether the picture's own end marker, not a thumbnail's, is missing."""
    scans = [end for marker, _, end in read_segments(source) if marker == START_OF_SCAN]
    return not scans or source.find(b"\xff\xd9", scans[0]) < 0


def read_precision(source: bytes) -> int:
    """Return the bits of a channel, 0 where no header of a frame says so."""
    frame = _read_frame(source)
    return frame[0] if frame else 0


def _read_frame(source: bytes) -> bytes:
    """Return precision, height, width, components and what follows; b"" without a frame."""
    for marker, data, _ in read_segments(source):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data
    return b""


def complete(source: bytes) -> bytes:
    """Return a JPEG of one scan with the end marker that it lacks.

    What a decoder makes of the bytes after the last pixel tells whether more is missing: nothing,
    where all pixels are there.

    Raises:
        ImageProblem: `truncated`: more than the marker is missing.
    """
    whole = _trim_end(source)
    views = set()
    for more in (b"", b"\x55" * 64, b"\xaa" * 64):
        with Image.open(io.BytesIO(whole + more + _END), formats=["JPEG"]) as image:
            views.add(hashlib.sha256(image.tobytes()).digest())
    if len(views) > 1:
        raise ImageProblem("truncated", "The JPEG file is incomplete: its end is missing.")
    return whole + _END


def is_one_scan(source: bytes) -> bool:
    """Say whether all of the picture is in its first scan, as it is unless it is progressive."""
    frame, scan, sequential = _read_frame(source), b"", False
    for marker, data, _ in read_segments(source):
        sequential |= marker in (0xC0, 0xC1)
        scan = data if marker == START_OF_SCAN else scan
    return sequential and scan[:1] == frame[5:6] != b""


def _trim_end(source: bytes) -> bytes:
    """Return a JPEG without the zeros after its last byte, or half a marker."""
    trimmed = source.rstrip(b"\0")
    if trimmed.endswith(b"\xff") and len(trimmed) < len(source):
        return trimmed + b"\0"
    return trimmed.rstrip(b"\xff")


def make_segment(marker: int, payload: bytes) -> bytes:
    """Return a whole segment."""
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload


def select_segments(source: bytes) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return the segments that a copy should have, previews taken out, and notes."""
    found = [
        (marker, data)
        for marker, data, _ in read_segments(source)
        if APP0 <= marker <= 0xEF or marker == COMMENT
    ]
    several = _clean_exif(found) | _clean_photoshop(found)
    more_xmp = b"".join(data[75:] for _, data in found if data.startswith(MORE_XMP))
    keeps_more_xmp = blank_text_images(more_xmp) == more_xmp
    kept: list[bytes] = []
    left_out: set[str] = set()
    for index, (marker, data) in enumerate(found):
        if index in several:
            cleaned = several[index]
        else:
            cleaned = _clean(marker, data, keeps_more_xmp=keeps_more_xmp)
            # Adobe's APP14 speaks of the coding, which is the encoder's; it is no loss.
            if cleaned is None and marker != APP14:
                left_out.add(f"APP{marker - APP0}")
        if cleaned is not None:
            kept.append(make_segment(marker, cleaned))
    names = ", ".join(sorted(left_out))
    notes = (f"left out {names}, which may contain the original picture",) if names else ()
    return tuple(kept), notes


def _clean(marker: int, data: bytes, *, keeps_more_xmp: bool) -> bytes | None:
    """Return the payload that a copy of one segment should have; None where it is left out."""
    if marker == COMMENT or (marker == APP2 and data.startswith(PROFILE)):
        return data
    if marker == APP0 and data.startswith(JFIF) and len(data) >= 14:
        return data[:12] + b"\0\0"  # no thumbnail
    if marker == APP1 and data.startswith(XMP):
        return blank_text_images(data)
    if marker == APP1 and data.startswith(MORE_XMP) and keeps_more_xmp:
        return data
    return None


def _clean_exif(found: Sequence[tuple[int, bytes]]) -> dict[int, bytes | None]:
    """Return the cleaned EXIF payloads by index; a long structure runs over several segments."""
    runs: list[list[int]] = []
    for index, (marker, data) in enumerate(found):
        if marker == APP1 and data.startswith(EXIF_START):
            if runs and data[6:8] not in (b"II", b"MM"):
                runs[-1].append(index)
            else:
                runs.append([index])
    cleaned: dict[int, bytes | None] = {}
    for run in runs:
        rest = blank_exif_previews(b"".join(found[index][1][6:] for index in run))
        at = 0
        for index in run:
            end = at + len(found[index][1]) - 6
            cleaned[index], at = EXIF_START + rest[at:end], end
    return cleaned


def _clean_photoshop(found: Sequence[tuple[int, bytes]]) -> dict[int, bytes | None]:
    """Return the payloads of Photoshop's resources by index, thumbnails dropped.

    Those without a preview come back as they are; else the last ones may be None.
    """
    places = [
        index
        for index, (marker, data) in enumerate(found)
        if marker == APP13 and data.startswith(PHOTOSHOP)
    ]
    whole = b"".join(found[index][1][len(PHOTOSHOP) :] for index in places)
    cleaned = blank_jpegs(_drop_thumbnails(whole))
    if cleaned == whole:
        return {index: found[index][1] for index in places}
    room = LONGEST - len(PHOTOSHOP)
    parts = [PHOTOSHOP + cleaned[at : at + room] for at in range(0, len(cleaned), room)]
    return dict(zip_longest(places, parts[: len(places)]))


def _drop_thumbnails(resources: bytes) -> bytes:
    kept = []
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        code = int.from_bytes(resources[at + 4 : at + 6], "big")
        size_at = at + 6 + (resources[at + 6] + 2) // 2 * 2
        size = int.from_bytes(resources[size_at : size_at + 4], "big")
        end = size_at + 4 + (size + 1) // 2 * 2
        if code not in _PHOTOSHOP_PREVIEWS:
            kept.append(resources[at:end])
        at = end
    kept.append(resources[at:])
    return b"".join(kept)


def join_exif(segments: Sequence[bytes]) -> bytes:
    """Return the EXIF structure in whole segments."""
    return b"".join(segment[10:] for segment in segments if segment[4:10] == EXIF_START)


def make_segments(metadata: Metadata) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return segments for a JPEG made from a picture of another format, and notes."""
    segments, notes = [], []
    for name, payload in (("EXIF", EXIF_START + metadata.exif), ("XMP", XMP + metadata.xmp)):
        if payload in (EXIF_START, XMP):
            continue
        if len(payload) > LONGEST:
            notes.append(f"{name} is too long for a JPEG and was left out")
        else:
            segments.append(make_segment(APP1, payload))
    room = LONGEST - len(PROFILE) - 2
    parts = [metadata.icc[at : at + room] for at in range(0, len(metadata.icc), room)]
    if len(parts) <= 255:
        for number, part in enumerate(parts, start=1):
            segments.append(make_segment(APP2, PROFILE + bytes((number, len(parts))) + part))
    return tuple(segments), tuple(notes)


def drop_adobe_marker(data: bytes) -> bytes:
    """Return a fresh JPEG without the segment by which programs tell that CMYK is inverted."""
    at = data.find(make_segment(APP14, b"Adobe")[4:])
    return (
        data
        if at < 0
        else data[: at - 4] + data[at - 2 + int.from_bytes(data[at - 2 : at], "big") :]
    )


def splice_jpeg(data: bytes, segments: tuple[bytes, ...], *, keep_jfif: bool) -> bytes:
    """Put segments at the head of a fresh JPEG, after its JFIF header or in its place."""
    header = 2
    if data[2:4] == bytes((0xFF, APP0)):
        header += 2 + int.from_bytes(data[4:6], "big")
    return b"".join((data[: header if keep_jfif else 2], *segments, data[header:]))
