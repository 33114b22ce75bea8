"""Directories of tags, in EXIF structures and in TIFFs, read and written as bytes.

Values are copied as they are, whatever their type or text encoding.
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import suppress
from typing import Final

from tue_cli.images.exif import (
    IPTC,
    MOST_BYTES,
    ORIENTATION,
    SIZES,
    blank_exif_previews,
    clean_photoshop,
    drop_iptc_location,
    drop_photoshop_location,
    explain_tangled,
    read_entries,
    wrap_iptc,
)
from tue_cli.images.xmp import CREDENTIALS, PREVIEW, blank_text_images, clean_xmp
from tue_cli.images.xmp import drop_location as drop_xmp_location

MOST_PRIVATE: Final = 1 << 16
"""Of one private tag that nobody knows: larger ones may hold the picture."""
_PRIVATE: Final = 32768
XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG, PROFILE_TAG = 700, 33723, 34377, 34675
_EXIF, _GPS, _INTEROPERABILITY = 34665, 34853, 40965
_GEOTIFF: Final = (33550, 33922, 34264, 34735, 34736, 34737)
_POINTERS: Final = (_EXIF, _GPS, _INTEROPERABILITY)

# Where the pixels are and how they are coded, which the encoder of a copy says itself.
_STRUCTURE: Final = frozenset(
    tag
    for first, last in (
        *((254, 259), (262, 266), (273, 273), (277, 281), (284, 284), (288, 293), (317, 317)),
        *((320, 320), (322, 327), (330, 330), (332, 334), (336, 343), (347, 347), (400, 400)),
        *((512, 521), (529, 532), (559, 559), (PROFILE_TAG, PROFILE_TAG), (50706, 50706)),
    )
    for tag in range(first, last + 1)
)
# Tags of any size: XMP, IPTC, Photoshop's, GeoTIFF, GDAL, EXIF and what its directories hold.
_LARGE: Final = frozenset((XMP_TAG, IPTC_TAG, PHOTOSHOP_TAG, *_GEOTIFF, 42112, 42113))
# What says how pixels are shown, by directory: orientation, resolution, and colour where no profile
# says it, as the name of Adobe RGB in the interoperability directory.
_SHOWN: Final = {
    0: frozenset({ORIENTATION, 282, 283, 296, 301, 318, 319, _EXIF}),
    _EXIF: frozenset({40961, 42240, _INTEROPERABILITY}),
    _INTEROPERABILITY: frozenset({1, 2}),
}
# Parts that show the picture, or that hold only for the original.
_LEFT_OUT: Final = {
    330: PREVIEW,
    37724: "the layers of a Photoshop document",
    52545: CREDENTIALS,
}
_WRITABLE: Final = frozenset(range(1, 13))
"""Kinds of a TIFF of 32 bits; 13 and 18 are places of directories, and those move."""
# How many bytes turn round with the byte order.
_WORDS: Final = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
Directory = dict[int, "tuple[int, bytes | memoryview | Directory]"]
"""Tags with the kind and bytes of their values, or the directory that they point to."""


def refuse_tangled(source: bytes) -> None:
    """Refuse a TIFF whose tags about the picture claim more bytes than a copy may carry.

    Raises:
        ImageProblem: `metadata`.
    """
    with suppress(struct.error, OverflowError, KeyError):
        _select_tags(_read_tags(source)[1])


def read_tiff_exif(source: bytes) -> tuple[bytes, frozenset[str]]:
    """Return what a TIFF says about its picture as an EXIF structure, and what was left out.

    The structure is in the byte order of the TIFF, and holds its XMP, IPTC and Photoshop tags too.

    Raises:
        ImageProblem: `metadata`: it is too large.
    """
    try:
        order, tags = _read_tags(source)
    except (struct.error, OverflowError, KeyError):
        return b"", frozenset()
    lost = {_LEFT_OUT[tag] for tag in tags.keys() & _LEFT_OUT.keys()}
    kept, strange = _select_tags(tags)
    if strange:
        lost.add(f"private TIFF tags that may hold the picture: {', '.join(map(str, strange))}")
    if twice := _list_repeated(source, kept):
        lost.add(f"further values of TIFF tags: {', '.join(map(str, twice))}")
    if found := get_value(kept, XMP_TAG):
        xmp, more = clean_xmp(found)
        kept[XMP_TAG], lost = (kept[XMP_TAG][0], xmp), lost | more
    if found := get_value(kept, PHOTOSHOP_TAG):
        cleaned = clean_photoshop(found)
        kept[PHOTOSHOP_TAG] = kept[PHOTOSHOP_TAG][0], cleaned
        lost |= {PREVIEW} if cleaned != found else set()
    packed = pack_exif(order, kept)
    cleaned = blank_text_images(blank_exif_previews(packed))
    return cleaned, frozenset(lost | ({PREVIEW} if cleaned != packed else set()))


def get_value(tags: Directory, tag: int) -> bytes:
    """Return the bytes of a tag, none where it is missing or a directory."""
    value = tags.get(tag, (0, b""))[1]
    return b"" if isinstance(value, dict) else bytes(value)


def _select_tags(tags: Directory) -> tuple[Directory, list[int]]:
    """Return what a copy keeps, and private tags that are too large for that.

    Raises:
        ImageProblem: `metadata`: what a copy would keep is too large.
    """
    kept: Directory = {}
    strange = []
    for tag, (kind, value) in tags.items():
        if tag in _STRUCTURE or tag in _LEFT_OUT:
            continue
        private = tag >= _PRIVATE and tag not in _LARGE
        if private and len(value) > MOST_PRIVATE and not isinstance(value, dict):
            strange.append(tag)
        else:
            kept[tag] = kind, value
    if _count_bytes(kept) > MOST_BYTES:
        raise explain_tangled()
    return kept, strange


def _count_bytes(tags: Directory) -> int:
    values = (value for _, value in tags.values())
    return sum(_count_bytes(value) if isinstance(value, dict) else len(value) for value in values)


def _read_tags(source: bytes) -> tuple[str, Directory]:
    """Return the byte order and the tags of a file, those of its inner directories inside.

    Raises:
        struct.error, KeyError: it is damaged.
    """
    order, first, big = _read_head(source)
    return order, _read_directory(memoryview(source), order, first, big=big)


def _read_head(source: bytes) -> tuple[str, int, bool]:
    """Return the byte order, where the first directory lies, and whether this is a BigTIFF."""
    order = {b"II": "<", b"MM": ">"}[source[:2]]
    big = source[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + ("8xQ" if big else "4xI"), source)
    return order, first, big


def _list_repeated(source: bytes, kept: Directory) -> list[int]:
    """Return tags that a copy keeps and the first directory has several times; the first counts."""
    order, first, big = _read_head(source)
    counts: Counter[int] = Counter()
    with suppress(struct.error):
        counts.update(tag for tag, *_ in read_entries(source, order, first, big=big))
    return sorted(tag for tag in kept if counts[tag] > 1)


def _read_directory(
    source: memoryview, order: str, at: int, *, big: bool = False, depth: int = 0
) -> Directory:
    """Return the tags of a directory as far as it is sound; nothing is copied."""
    tags: Directory = {}
    with suppress(struct.error):
        for tag, kind, start, length in read_entries(source, order, at, big=big):
            if tag in tags or not length:
                continue
            if tag in _POINTERS and length in (4, 8) and depth < 2:
                (inner,) = struct.unpack_from(order + {4: "I", 8: "Q"}[length], source, start)
                tags[tag] = 4, _read_directory(source, order, inner, big=big, depth=depth + 1)
            elif kind in _WRITABLE or tag in _LEFT_OUT:
                tags[tag] = kind, source[start : start + length]
    return tags


def pack_exif(order: str, tags: Directory) -> bytes:
    """Return an EXIF structure that has these tags, without the `Exif` prefix of JPEG."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + _pack_directory(order, tags, 8)


def _pack_directory(order: str, tags: Directory, at: int) -> bytes:
    """Return a directory that begins at `at`, its values and inner directories behind it."""
    table = struct.pack(order + "H", len(tags))
    behind = bytearray()
    first = at + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        kind, value = tags[tag]
        if isinstance(value, dict):
            value, count, place = _pack_directory(order, value, first + len(behind)), 1, b""
        else:
            value, count = bytes(value), len(value) // SIZES[kind]
            place = value.ljust(4, b"\0") if len(value) <= 4 else b""
        if not place:
            place = struct.pack(order + "I", first + len(behind))
            behind += value + bytes(len(value) % 2)
        table += struct.pack(order + "HHI", tag, kind, count) + place
    return table + bytes(4) + bytes(behind)


def graft_tags(data: bytes, exif: bytes) -> bytes:
    """Return a fresh TIFF with the tags about the picture from an EXIF structure.

    What the encoder wrote of coding and colour profile stays. The first directory is written anew
    at the end, in the byte order of the structure unless samples of two bytes forbid it.

    Raises:
        struct.error, KeyError: one of them is damaged.
    """
    order, own = _read_tags(data)
    other, tags = _read_tags(exif)
    own = {tag: entry for tag, entry in own.items() if tag in _STRUCTURE}
    if get_value(own, 258)[:2] != struct.pack(order + "H", 8):
        tags, target = _turn(tags, other, order), order
    else:
        own, target = _turn(own, order, other), other
    tags = {tag: entry for tag, entry in tags.items() if tag not in _STRUCTURE}
    start = len(data) + len(data) % 2
    mark = {"<": b"II*\0", ">": b"MM\0*"}[target] + struct.pack(target + "I", start)
    body = mark + data[8:] + bytes(len(data) % 2)
    return body + _pack_directory(target, {**tags, **own}, start)


def _turn(tags: Directory, order: str, target: str) -> Directory:
    """Return tags in another byte order."""
    if order == target:
        return tags
    turned: Directory = {}
    for tag, (kind, value) in tags.items():
        width = _WORDS.get(kind, 1)
        if isinstance(value, dict):
            turned[tag] = kind, _turn(value, order, target)
        elif width == 1 or tag == IPTC_TAG:
            # IPTC is bytes, also where it is declared to be numbers.
            turned[tag] = kind, value
        else:
            words = (value[at : at + width][::-1] for at in range(0, len(value), width))
            turned[tag] = kind, b"".join(map(bytes, words))
    return turned


def drop_tags(exif: bytes, unwanted: frozenset[int]) -> bytes:
    """Return a structure that `pack_exif` made without some tags; empty where none is left."""
    if not exif:
        return b""
    order, tags = _read_tags(exif)
    kept = {tag: entry for tag, entry in tags.items() if tag not in unwanted}
    return pack_exif(order, kept) if kept else b""


def drop_location(exif: bytes) -> bytes:
    """Return the structure of a TIFF without what names the place: GPS, GeoTIFF, IPTC, XMP."""
    if not exif:
        return b""
    order, tags = _read_tags(exif)
    kept = {tag: entry for tag, entry in tags.items() if tag not in (_GPS, *_GEOTIFF)}
    for tag, clean in (
        (XMP_TAG, drop_xmp_location),
        (IPTC_TAG, drop_iptc_location),
        (PHOTOSHOP_TAG, drop_photoshop_location),
    ):
        if found := get_value(kept, tag):
            kind, _ = kept.pop(tag)
            # IPTC may be declared to be numbers of four bytes.
            if cleaned := clean(found):
                kept[tag] = kind, cleaned + bytes(-len(cleaned) % SIZES[kind])
    return pack_exif(order, kept)


def keep_coding(exif: bytes) -> bytes:
    """Return an EXIF structure with only those tags that say how the pixels are shown."""
    with suppress(struct.error, OverflowError, KeyError):
        order, tags = _read_tags(exif)
        kept = _keep_shown(tags, 0)
        return pack_exif(order, kept) if kept else b""
    return b""


def _keep_shown(tags: Directory, directory: int) -> Directory:
    kept: Directory = {}
    for tag in tags.keys() & _SHOWN[directory]:
        kind, value = tags[tag]
        if isinstance(value, dict):
            value = _keep_shown(value, tag)
        if value:
            kept[tag] = kind, value
    return kept


def set_xmp(exif: bytes, xmp: bytes) -> bytes:
    """Return a structure that `pack_exif` made with other XMP; a new one for none."""
    order, tags = _read_tags(exif) if exif else ("<", Directory())
    return pack_exif(order, {**tags, XMP_TAG: (1, xmp)})


def read_tag(exif: bytes, tag: int) -> bytes:
    """Return the bytes of a tag of the first directory, none where it is missing."""
    with suppress(struct.error, OverflowError, KeyError):
        return get_value(_read_tags(exif)[1], tag)
    return b""


def read_photoshop(exif: bytes) -> bytes:
    """Return Photoshop's resources in the tags of a TIFF; IPTC in a tag of its own joins them."""
    resources = read_tag(exif, PHOTOSHOP_TAG)
    if IPTC in resources:
        return resources
    return resources + wrap_iptc(read_tag(exif, IPTC_TAG))


def set_orientation(exif: bytes, turn: int) -> bytes:
    """Return an EXIF structure with this orientation; all other bytes stay in their places."""
    order, tags = "<", Directory()
    with suppress(struct.error, OverflowError, KeyError):
        order, tags = _read_tags(exif)
    value = struct.pack(order + "H", turn)
    if not tags:
        return pack_exif(order, {ORIENTATION: (3, value)})
    (first,) = struct.unpack_from(order + "I", exif, 4)
    for tag, kind, start, length in read_entries(exif, order, first):
        if (tag, kind, length) == (ORIENTATION, 3, 2):
            return exif[:start] + value + exif[start + 2 :]
    (count,) = struct.unpack_from(order + "H", exif, first)
    table = exif[first + 2 : first + 2 + 12 * count]
    entries = [table[at : at + 12] for at in range(0, len(table), 12)]
    entries.append(struct.pack(order + "HHI", ORIENTATION, 3, 1) + value + bytes(2))
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    grown = exif + bytes(len(exif) % 2)
    grown = grown[:4] + struct.pack(order + "I", len(grown)) + grown[8:]
    return grown + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
