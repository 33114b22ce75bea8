"""EXIF structures and Photoshop's resources without what shows the unprotected picture.

Thumbnails and previews are blanked in their places, so that the offsets inside maker notes hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from tue_cli.errors import ImageProblem
from tue_cli.images.xmp import drop_location

EXIF_START: Final = b"Exif\0\0"
MOST_BYTES: Final = 1 << 24
"""Of all that stands beside the pixels; maps of depth, the largest seen, have ten megabytes."""
ORIENTATION: Final = 274
# Bytes of one value, by its kind.
SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES.update({16: 8, 17: 8, 18: 8})
# Where a thumbnail lies, and how long it is: as a JPEG, in strips, in tiles.
_PLACES: Final = ((513, 514), (273, 279), (324, 325))
IPTC: Final = b"8BIM\x04\x04"
"""How the resource of Photoshop begins that holds IPTC."""
# Thumbnail resources of Photoshop 4 and of Photoshop 5 and later.
_PHOTOSHOP_PREVIEWS: Final = frozenset({0x0409, 0x040C})
_IPTC_DIGEST: Final = 0x0425
_EXIF_POINTER, _GPS_POINTER = 34665, 34853
# GPS, XMP, IPTC and Photoshop's resources.
_PLACE_TAGS: Final = frozenset({_GPS_POINTER, 700, 33723, 34377})
# Codes and names of content locations, city, part of the city, province, code and name of country.
_IPTC_PLACES: Final = frozenset({26, 27, 90, 92, 95, 100, 101})


def explain_tangled() -> ImageProblem:
    """Return the problem of a picture whose metadata nobody could have written in earnest."""
    return ImageProblem(
        "metadata",
        "The metadata is damaged or too large; save the picture again without it.",
    )


def read_entries(
    data: bytes | bytearray | memoryview, order: str, directory: int, *, big: bool = False
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, kind, start and length of the values of each tag whose values are there."""
    head, entry, width = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + head, data, directory)
    at = directory + struct.calcsize(order + head)
    for _ in range(count):
        tag, kind, amount = struct.unpack_from(order + entry, data, at)
        start = at + struct.calcsize(order + entry)
        at = start + width
        length = SIZES.get(kind, 0) * amount
        if length > width:
            (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, start)
        if start + length <= len(data):
            yield tag, kind, start, length


def clean_photoshop(resources: bytes) -> bytes:
    """Return Photoshop's image resources, thumbnails dropped."""
    return blank_jpegs(_drop_thumbnails(resources))


def wrap_iptc(iptc: bytes) -> bytes:
    """Return IPTC as a resource of Photoshop."""
    if not iptc:
        return b""
    return IPTC + b"\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)


def _drop_thumbnails(resources: bytes) -> bytes:
    kept, at = [], 0
    for code, _, end in _read_resources(resources):
        if code not in _PHOTOSHOP_PREVIEWS:
            kept.append(resources[at:end])
        at = end
    kept.append(resources[at:])
    return b"".join(kept)


def _read_resources(resources: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each resource, where its content begins, and where it ends, padded."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        code = int.from_bytes(resources[at + 4 : at + 6], "big")
        start = at + 6 + (resources[at + 6] + 2) // 2 * 2 + 4
        size = int.from_bytes(resources[start - 4 : start], "big")
        at = start + (size + 1) // 2 * 2
        yield code, start, at


def drop_photoshop_location(resources: bytes) -> bytes:
    """Return Photoshop's image resources without the place that IPTC, EXIF or XMP in them name."""
    kept: list[bytes] = []
    digests, at = [], 0
    for code, start, end in _read_resources(resources):
        head = resources[at : start - 4]
        content = resources[start:end][: int.from_bytes(resources[start - 4 : start], "big")]
        at = end
        cleaned = _PLACES_IN_PHOTOSHOP.get(code, bytes)(content)
        if code == _IPTC_DIGEST:
            digests.append(len(kept))
        kept.append(head + struct.pack(">I", len(cleaned)) + cleaned + bytes(len(cleaned) % 2))
    if b"".join(kept) == resources[:at]:
        return resources
    # What the digest was made of has changed.
    return b"".join(part for number, part in enumerate(kept) if number not in digests)


def drop_iptc_location(iptc: bytes) -> bytes:
    """Return IPTC without city, country and the like; what follows its last field goes too."""
    kept, at = [], 0
    while iptc[at : at + 1] == b"\x1c" and at + 5 <= len(iptc):
        record, field = iptc[at + 1], iptc[at + 2]
        start, size = at + 5, int.from_bytes(iptc[at + 3 : at + 5], "big")
        if size & 0x8000:
            start += size & 0x7FFF
            size = int.from_bytes(iptc[at + 5 : start], "big")
        if record != 2 or field not in _IPTC_PLACES:
            kept.append(iptc[at : start + size])
        at = start + size
    return b"".join(kept)


def blank_location(exif: bytes) -> bytes:
    """Take the GPS directory out of an EXIF structure, and IPTC and XMP, which may name the place.

    The length and all other bytes stay, so that the offsets inside maker notes still hold. Nothing
    is left of a structure that cannot be read.

    Raises:
        ImageProblem: `metadata`: its parts lie over each other.
    """
    cleaned = bytearray(exif)
    try:
        order = {b"II": "<", b"MM": ">"}[bytes(exif[:2])]
        (first,) = struct.unpack_from(order + "I", exif, 4)
        inner = [
            struct.unpack_from(order + "I", exif, start)[0]
            for tag, _, start, length in read_entries(exif, order, first)
            if tag == _EXIF_POINTER and length == 4
        ]
        room = 2 * len(exif)
        for directory in (first, *inner[:1]):
            room = _cut_places(cleaned, order, directory, room)
    except (struct.error, KeyError, OverflowError):
        return b""
    return bytes(cleaned)


def _cut_places(exif: bytearray, order: str, directory: int, room: int) -> int:
    """Blank what names the place in a directory, and its tags there; return the room left.

    Raises:
        ImageProblem: `metadata`: the values take more than that room.
    """
    (count,) = struct.unpack_from(order + "H", exif, directory)
    end = directory + 2 + 12 * count + 4
    if end > len(exif):
        raise struct.error
    table, spans = bytearray(), []
    for at in range(directory + 2, end - 4, 12):
        (tag,) = struct.unpack_from(order + "H", exif, at)
        if tag in _PLACE_TAGS:
            spans += _find_values(exif, order, at)
        else:
            table += exif[at : at + 12]
    for start, stop in spans:
        room -= stop - start
        if room < 0:
            raise explain_tangled()
        # What lies over the directory itself is no value.
        if stop <= directory or start >= end:
            _blank(exif, max(start, 8), stop)
    link = bytes(exif[end - 4 : end])
    written = struct.pack(order + "H", len(table) // 12) + table + link
    exif[directory:end] = written.ljust(end - directory, b"\0")
    return room


def _find_values(exif: bytearray, order: str, at: int) -> list[tuple[int, int]]:
    """Return from where to where the value of the tag at `at` lies, or a directory and its own."""
    tag, kind, amount, start = struct.unpack_from(order + "HHII", exif, at)
    if tag != _GPS_POINTER:
        length = SIZES.get(kind, 0) * amount
        return [(start, start + length)] if length > 4 else []
    if start + 2 > len(exif):
        return []
    (count,) = struct.unpack_from(order + "H", exif, start)
    values = [(s, s + n) for _, _, s, n in read_entries(exif, order, start)]
    return [(start, start + 2 + 12 * count + 4), *values]


def blank_exif_previews(exif: bytes) -> bytes:
    """Blank the thumbnail and every other JPEG inside an EXIF structure.

    The length and all other bytes stay, so that the offsets inside maker notes still hold.

    Raises:
        ImageProblem: `metadata`: it is too large, or its parts lie over each other.
    """
    if len(exif) > MOST_BYTES:
        raise explain_tangled()
    cleaned = bytearray(exif)
    with suppress(struct.error, OverflowError):
        _cut_thumbnail_directories(cleaned)
    return blank_jpegs(bytes(cleaned))


def _cut_thumbnail_directories(exif: bytearray) -> None:
    """Unlink the directories after the first, then blank them and the strips they point to."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None:
        return
    (first,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, first)
    link = first + 2 + 12 * count
    (directory,) = struct.unpack_from(order + "I", exif, link)
    struct.pack_into(order + "I", exif, link, 0)
    # What is sound lies side by side; twice as much is for tags that share a value.
    room = 2 * len(exif)
    while directory:
        # A directory that points back into the first one is a loop, not a thumbnail.
        if directory < 8 or first <= directory < link + 4:
            return
        (count,) = struct.unpack_from(order + "H", exif, directory)
        (following,) = struct.unpack_from(order + "I", exif, directory + 2 + 12 * count)
        room -= 6 + 12 * count
        spans, room = _find_thumbnail_spans(exif, order, directory, room)
        reached = 0
        for start, end in spans:
            if start >= 8 and (end <= first or start >= link + 4):
                _blank(exif, max(start, reached), end)
                reached = max(reached, end)
        _blank(exif, directory, directory + 6 + 12 * count)
        directory = following


def _find_thumbnail_spans(
    exif: bytearray, order: str, directory: int, room: int
) -> tuple[list[tuple[int, int]], int]:
    """Return from where to where a directory's thumbnails lie, sorted, and the room that is left.

    Raises:
        ImageProblem: `metadata`: its values take more than that room.
    """
    numbers: dict[int, tuple[int, ...]] = {}
    for tag, kind, start, length in read_entries(exif, order, directory):
        room -= length
        if room < 0:
            raise explain_tangled()
        if kind in (3, 4) and any(tag in pair for pair in _PLACES):
            code = "H" if kind == 3 else "I"
            numbers[tag] = struct.unpack_from(f"{order}{length // SIZES[kind]}{code}", exif, start)
    spans = [
        (start, start + length)
        for starts, lengths in _PLACES
        for start, length in zip(numbers.get(starts, ()), numbers.get(lengths, ()), strict=False)
    ]
    return sorted(spans), room


def _blank(data: bytearray, start: int, end: int) -> None:
    end = min(end, len(data))
    if start < end:
        data[start:end] = bytes(end - start)


def blank_jpegs(data: bytes) -> bytes:
    """Blank every JPEG stream inside; the length stays.

    Raises:
        ImageProblem: `metadata`: so many begin in each other that nobody could tell them apart.
    """
    cleaned = bytearray(data)
    start = 0
    # As many segments as there is room for, side by side.
    left = len(data) // 4 + 1
    while (start := data.find(b"\xff\xd8\xff", start)) >= 0:
        end, steps = _find_jpeg_end(data, start)
        left -= steps
        if left < 0:
            raise explain_tangled()
        if end:
            _blank(cleaned, start, end)
        start = end or start + 1
    return bytes(cleaned)


def _find_jpeg_end(data: bytes, start: int) -> tuple[int, int]:
    """Return where the JPEG at `start` ends, 0 if its header makes no sense, and its segments."""
    at, steps = start + 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] >= 0xC0:
        steps += 1
        if data[at + 1] == 0xDA:
            end = data.find(b"\xff\xd9", at)
            return (end + 2 if end >= 0 else len(data)), steps
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, steps


_PLACES_IN_PHOTOSHOP: Final = {
    0x0404: drop_iptc_location,
    0x0422: blank_location,
    0x0423: blank_location,
    0x0424: drop_location,
}
"""What takes the place out of a resource."""
