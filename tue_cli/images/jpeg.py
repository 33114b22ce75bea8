"""The segments of a JPEG: which are copied to the protected file, and how.

Segments are copied byte for byte from a list of those known to be harmless. Others (maker
previews, FlashPix, content credentials) and what follows the picture's end (films, gain maps,
further frames) can show the unprotected picture, or hold only for it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Final

from PIL import Image

from tue_cli.errors import ImageProblem
from tue_cli.images.exif import (
    EXIF_START,
    MOST_BYTES,
    blank_exif_previews,
    clean_photoshop,
    explain_tangled,
)
from tue_cli.images.xmp import (
    CREDENTIALS,
    GAIN_MAP,
    PREVIEW,
    VIDEO,
    clean_segments,
    clean_xmp,
    explain_lost,
)
from tue_cli.images.xmp import LONGEST as LONGEST
from tue_cli.images.xmp import MORE_XMP as MORE_XMP
from tue_cli.images.xmp import XMP as XMP

APP0, APP1, APP2, APP11, APP12, APP13, APP14 = 0xE0, 0xE1, 0xE2, 0xEB, 0xEC, 0xED, 0xEE
COMMENT: Final = 0xFE
START_OF_SCAN: Final = 0xDA
_END: Final = b"\xff\xd9"

JFIF: Final = b"JFIF\0"
PROFILE: Final = b"ICC_PROFILE\0"
PHOTOSHOP: Final = b"Photoshop 3.0\0"
MOST_MARKERS: Final = 10_000
"""Markers after the first scan; a progressive picture has a few dozen."""
MOST_EXIF: Final = 64
"""Segments that EXIF may take: four megabytes of it."""

# Of the markers in coded pixels, 0xFF 0x00 is a byte, and those from 0xD0 only begin an interval.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_GAIN_MAP_SIGNS: Final = (b"hdrgm:", b"HDRGainMap", b"urn:iso:std:iso:ts:21496")
_LEFT_OUT: Final = (
    (APP0, b"JFXX\0", PREVIEW),
    (APP2, b"FPXR\0", PREVIEW),
    (APP2, b"urn:iso:std:iso:ts:21496", GAIN_MAP),
    (APP2, b"MPF\0", ""),
    (APP14, b"Adobe", ""),
    (APP1, b"FLIR\0", "the thermal data of FLIR"),
)
"""Segments that a copy cannot have, with what is lost: of MPF the frames, and Adobe's says how the
pixels are coded."""
FEWEST: Final = 16
"""Bytes after the end of a picture from which they are worth a word."""


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


def find_end(source: bytes) -> int:
    """Return where the picture ends, past its end marker; the length where that is missing."""
    at = next((end for mark, _, end in read_segments(source) if mark == START_OF_SCAN), 0)
    for _ in range(MOST_MARKERS if at else 0):
        found = _AFTER_SCAN.search(source, at)
        if found is None:
            break
        at = found.end()
        if source[at - 1] == 0xD9:
            return at
        at += int.from_bytes(source[at : at + 2], "big")
    return len(source)


def select_segments(source: bytes) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return the segments that a copy should have, previews taken out, and notes."""
    found = [
        (marker, data)
        for marker, data, _ in read_segments(source)
        if APP0 <= marker <= 0xEF or marker == COMMENT
    ]
    rest = source[find_end(source) :].rstrip(b"\0")
    cleaned = clean_exif(found, blank_exif_previews)
    cleaned |= clean_resources(found, clean_photoshop)
    lost = {PREVIEW for index, data in cleaned.items() if data != found[index][1]}
    texts, more = clean_segments(found, partial(clean_xmp, appended=len(rest) >= FEWEST))
    cleaned |= texts
    lost |= more
    for index, (marker, data) in enumerate(found):
        if index not in cleaned:
            cleaned[index], part = _clean(marker, data)
            lost.add(part)
    several = any(marker == APP2 and data.startswith(b"MPF\0") for marker, data in found)
    if len(rest) >= FEWEST:
        lost.add(_name_rest(rest, lost, several=several))
    lost.discard("")
    kept = ((marker, cleaned[index]) for index, (marker, _) in enumerate(found))
    segments = tuple(make_segment(marker, data) for marker, data in kept if data is not None)
    return segments, explain_lost(lost)


def _name_rest(rest: bytes, lost: set[str], *, several: bool) -> str:
    """Return what follows the picture's end, in words; nothing where that is said elsewhere."""
    if b"ftyp" in rest:
        return VIDEO
    if any(sign in rest for sign in _GAIN_MAP_SIGNS):
        return GAIN_MAP
    if several or lost & {VIDEO, GAIN_MAP}:
        return ""
    return PREVIEW if b"\xff\xd8\xff" in rest else "data after the end of the picture"


def _clean(marker: int, data: bytes) -> tuple[bytes | None, str]:
    """Return the payload that a copy of one segment should have, None for none, and the loss."""
    if marker == COMMENT or (marker == APP2 and data.startswith(PROFILE)):
        return data, ""
    if marker == APP12 and data.startswith(b"Ducky"):
        return data, ""
    if marker == APP0 and data.startswith(JFIF) and len(data) >= 14:
        return data[:12] + b"\0\0", PREVIEW if data[12:14] != b"\0\0" else ""
    if marker == APP11 and b"c2pa" in data:
        return None, CREDENTIALS
    for known, start, part in _LEFT_OUT:
        if marker == known and data.startswith(start):
            return None, part
    return None, f"private segments that may hold the original picture: APP{marker - APP0}"


def clean_exif(
    found: Sequence[tuple[int, bytes]], clean: Callable[[bytes], bytes]
) -> dict[int, bytes | None]:
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
        rest = clean(b"".join(found[index][1][6:] for index in run))
        at = 0
        for index in run:
            end = at + len(found[index][1]) - 6
            cleaned[index], at = (EXIF_START + rest[at:end] if rest else None), end
    return cleaned


def clean_resources(
    found: Sequence[tuple[int, bytes]], clean: Callable[[bytes], bytes]
) -> dict[int, bytes | None]:
    """Return the payloads of Photoshop's resources by index, cleaned.

    Where there was nothing to clean, they come back as they are; else the last ones may be None.
    """
    places = [
        index
        for index, (marker, data) in enumerate(found)
        if marker == APP13 and data.startswith(PHOTOSHOP)
    ]
    whole = b"".join(found[index][1][len(PHOTOSHOP) :] for index in places)
    cleaned = clean(whole)
    if cleaned == whole:
        return {index: found[index][1] for index in places}
    room = LONGEST - len(PHOTOSHOP)
    parts = [PHOTOSHOP + cleaned[at : at + room] for at in range(0, len(cleaned), room)]
    return dict(zip_longest(places, parts[: len(places)]))


def join_exif(segments: Sequence[bytes]) -> bytes:
    """Return the EXIF structure in whole segments."""
    return b"".join(segment[10:] for segment in segments if segment[4:10] == EXIF_START)


def join_photoshop(segments: Sequence[bytes]) -> bytes:
    """Return Photoshop's resources, IPTC among them, in whole segments."""
    start = 4 + len(PHOTOSHOP)
    return b"".join(part[start:] for part in segments if part[4:start] == PHOTOSHOP)


def read_comments(segments: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the comments in whole segments."""
    return tuple(part[4:] for part in segments if part[1] == COMMENT)


def make_segments(
    exif: bytes, xmp: bytes, icc: bytes, photoshop: bytes, comments: Sequence[bytes]
) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return segments for a JPEG made from a picture of another format, and notes."""
    segments, notes = [], []
    for name, marker, start, content in (
        ("EXIF", APP1, EXIF_START, exif),
        ("XMP", APP1, XMP, xmp),
        *(("comment", COMMENT, b"", comment) for comment in comments),
    ):
        if not content:
            continue
        if len(start + content) > LONGEST:
            notes.append(f"{name} is too long for a JPEG and was left out")
        else:
            segments.append(make_segment(marker, start + content))
    room = LONGEST - len(PHOTOSHOP)
    for at in range(0, len(photoshop), room):
        segments.append(make_segment(APP13, PHOTOSHOP + photoshop[at : at + room]))
    room = LONGEST - len(PROFILE) - 2
    parts = [icc[at : at + room] for at in range(0, len(icc), room)]
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
