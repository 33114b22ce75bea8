"""EXIF structures and Photoshop's resources without what shows the unprotected picture.

Thumbnails and previews are blanked in their places, so that the offsets inside maker notes hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from tue_cli.errors import ImageProblem

EXIF_START: Final = b"Exif\0\0"
MOST_BYTES: Final = 1 << 24
"""Of all that stands beside the pixels; maps of depth, the largest seen, have ten megabytes."""
ORIENTATION: Final = 274
# Bytes of one value, by its kind.
SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES.update({16: 8, 17: 8, 18: 8})
# Where a thumbnail lies, and how long it is: as a JPEG, in strips, in tiles.
_PLACES: Final = ((513, 514), (273, 279), (324, 325))
# Thumbnail resources of Photoshop 4 and of Photoshop 5 and later.
_PHOTOSHOP_PREVIEWS: Final = frozenset({0x0409, 0x040C})


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
    return b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)


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
