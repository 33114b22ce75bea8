"""What travels with a picture besides its pixels: EXIF, colour profile, XMP, density, PNG chunks.

Everything is copied byte for byte where that is safe. What could show the unprotected picture
(thumbnails, previews) is blanked or left out. JPEG segments are next door, in `jpeg.py`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from PIL import Image

from tue_cli.errors import ImageProblem

PNG_START: Final = b"\x89PNG\r\n\x1a\n"
EXIF_START: Final = b"Exif\0\0"
TEXT_LIMIT: Final = 4_000_000
ORIENTATION: Final = 274
# The first directory of a TIFF also says where the pixels are; only these are about the picture.
_TIFF_KEPT: Final = (
    *(270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 33432, 33723, 34665, 34853, 700),
    *(18246, 18249, 40091, 40092, 40093, 40094, 40095),
)
TIFF_DIRECTORIES: Final = (34665, 34853)

# Chunks that mean the same whatever the colour type; bKGD, sBIT, hIST and PLTE do not, and a
# private chunk can hold anything, such as the layers of a Fireworks file.
_PNG_COLOUR = frozenset({b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI", b"pHYs"})
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_KEPT = _PNG_COLOUR | _PNG_TEXT | {b"eXIf", b"tIME"}

# Possessive: what could be gone back to would take a hundred bytes for each of the text's.
_BASE64_PICTURE = re.compile(
    rb"(?:/9j/|iVBORw0KGgo|UklGR)(?:[A-Za-z0-9+/=\s]|&#x?[0-9A-Fa-f]+;){64,}+"
)

MOST_BYTES: Final = 1 << 24
"""Of all that stands beside the pixels; maps of depth, the largest seen, have ten megabytes."""
MOST_CHUNKS: Final = 10_000
"""Of a PNG, those of the pixels not counted."""
# Bytes of one value, by its kind.
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
# Where a thumbnail lies, and how long it is: as a JPEG, in strips, in tiles.
_PLACES: Final = ((513, 514), (273, 279), (324, 325))


@dataclass(frozen=True)
class Metadata:
    """What is written beside the pixels; every preview has been taken out."""

    exif: bytes = b""
    """A TIFF structure, without the `Exif` prefix that JPEG puts before it."""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    segments: tuple[bytes, ...] = ()
    """The JPEG segments or PNG chunks of the source, whole, for a copy in the same format."""


def explain_tangled() -> ImageProblem:
    """Return the problem of a picture whose metadata nobody could have written in earnest."""
    return ImageProblem(
        "metadata",
        "The metadata is damaged or too large; save the picture again without it.",
    )


def refuse_tangled(kind: str, source: bytes) -> None:
    """Refuse what would take a decoder ages before the first pixel.

    Raises:
        ImageProblem: `metadata`.
    """
    if kind == "PNG":
        beside = [len(data) for chunk, data in read_png_chunks(source) if chunk != b"IDAT"]
        if len(beside) > MOST_CHUNKS or sum(beside) > MOST_BYTES:
            raise explain_tangled()
    if kind == "TIFF":
        with suppress(struct.error, OverflowError):
            _refuse_tangled_tiff(source)


def _refuse_tangled_tiff(source: bytes) -> None:
    order = {b"II": "<", b"MM": ">"}[source[:2]]
    big = source[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + ("8xQ" if big else "4xI"), source)
    kept = 0
    for tag, _, start, length in _read_entries(source, order, first, big=big):
        if tag in _TIFF_KEPT:
            kept += length
        if tag in TIFF_DIRECTORIES:
            (inner,) = struct.unpack_from(order + "I", source, start)
            kept += sum(length for _, _, _, length in _read_entries(source, order, inner, big=big))
        if kept > MOST_BYTES:
            raise explain_tangled()


def _read_entries(
    data: bytes | bytearray, order: str, directory: int, *, big: bool = False
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, kind, start and length of the values of each tag whose values are there."""
    head, entry, width = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (count,) = struct.unpack_from(order + head, data, directory)
    at = directory + struct.calcsize(order + head)
    for _ in range(count):
        tag, kind, amount = struct.unpack_from(order + entry, data, at)
        start = at + struct.calcsize(order + entry)
        at = start + width
        length = _SIZES.get(kind, 0) * amount
        if length > width:
            (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, start)
        if start + length <= len(data):
            yield tag, kind, start, length


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
    for tag, kind, start, length in _read_entries(exif, order, directory):
        room -= length
        if room < 0:
            raise explain_tangled()
        if kind in (3, 4) and any(tag in pair for pair in _PLACES):
            code = "H" if kind == 3 else "I"
            numbers[tag] = struct.unpack_from(f"{order}{length // _SIZES[kind]}{code}", exif, start)
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


def blank_text_images(text: bytes) -> bytes:
    """Blank every base64 JPEG, PNG or WebP inside a text such as XMP; the length stays."""
    return _BASE64_PICTURE.sub(lambda found: b" " * len(found[0]), text)


def read_png_chunks(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, data) of each whole chunk of a PNG."""
    at = len(PNG_START)
    while at + 12 <= len(source):
        length = int.from_bytes(source[at : at + 4], "big")
        if at + 12 + length > len(source):
            return
        yield source[at + 4 : at + 8], source[at + 8 : at + 8 + length]
        at += 12 + length


def make_png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a whole chunk, with its length and checksum."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def select_png_chunks(source: bytes) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return the chunks that a copy should have, previews taken out, and notes."""
    chunks, notes = [], []
    for kind, data in read_png_chunks(source):
        if kind not in _PNG_KEPT:
            continue
        if kind == b"eXIf":
            data = blank_exif_previews(data)
        if kind == b"iTXt":
            data = blank_text_images(data)
        if kind in _PNG_TEXT and _holds_image(kind, data):
            notes.append("left out a text that contained a picture")
            continue
        chunks.append(make_png_chunk(kind, data))
    return tuple(chunks), tuple(notes)


def _holds_image(kind: bytes, data: bytes) -> bool:
    """Say whether a text chunk hides a picture, in base64 or (ImageMagick's way) in hex."""
    keyword, _, text = data.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        text = text[1:]
    if packed:
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(text, TEXT_LIMIT)
        except zlib.error:
            return True
        if unpacker.unconsumed_tail:
            return True
    if keyword.startswith(b"Raw profile type"):
        return b"ffd8ff" in re.sub(rb"\s", b"", text).lower()
    return blank_text_images(text) != text


def make_png_chunks(metadata: Metadata) -> tuple[bytes, ...]:
    """Return chunks for a PNG made from a picture of another format."""
    chunks = []
    if metadata.icc:
        chunks.append(make_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        x, y = (round(density / 0.0254) for density in metadata.dpi)
        with suppress(struct.error):
            chunks.append(make_png_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    if metadata.exif:
        chunks.append(make_png_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(make_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    return tuple(chunks)


def splice_png(data: bytes, chunks: tuple[bytes, ...]) -> bytes:
    """Put chunks right after the header of a PNG."""
    header = len(PNG_START) + 25
    return b"".join((data[:header], *chunks, data[header:]))


def read_tiff_exif(image: Image.Image) -> bytes:
    """Return what the first directory of a TIFF says about the picture, as an EXIF structure."""
    found = image.getexif()
    kept = Image.Exif()
    for tag in _TIFF_KEPT:
        if tag in found:
            kept[tag] = found.get_ifd(tag) if tag in TIFF_DIRECTORIES else found[tag]
    try:
        exif = kept.tobytes()
    except Exception:
        # A tag whose value is of the wrong type: the orientation is the one that matters.
        kept = Image.Exif()
        kept[ORIENTATION] = found.get(ORIENTATION, 1)
        exif = kept.tobytes()
    return blank_text_images(blank_exif_previews(exif.removeprefix(EXIF_START)))
