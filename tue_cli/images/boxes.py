"""Boxes of ISO media files such as AVIF: items, their places, properties and references.

Source: ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tue_cli.images.exif import MOST_BYTES, explain_tangled


@dataclass
class Meta:
    """The `meta` box, taken apart."""

    start: int = 0
    end: int = 0
    children: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Kind and content of each box inside."""
    primary: int = 0
    kinds: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """Kind of each item, and what follows it in its entry."""
    places: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """Of each item: 0 for the file or 1 for the box `idat`, start, length."""
    properties: list[bytes] = field(default_factory=list)
    """Whole boxes."""
    uses: dict[int, list[tuple[int, bool]]] = field(default_factory=dict)
    """Of each item: properties by number, from 1, and whether they are essential."""
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)


def make_box(kind: bytes, content: bytes) -> bytes:
    """Return a whole box."""
    return struct.pack(">I", len(content) + 8) + kind + content


def read_boxes(
    data: bytes, at: int, end: int, *, cut: bool = False
) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield kind, start, start of the content and end of each box.

    With `cut`, the last one may go on beyond the end, as where only a file's beginning was read.
    """
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        inside = at + 8
        if length == 1:
            if inside + 8 > end:
                return
            (length,) = struct.unpack_from(">Q", data, inside)
            inside += 8
        close = at + length if length else end
        if close < inside or (close > end and not cut):
            return
        yield kind, at, inside, min(close, end)
        at = close


def read_meta(source: bytes) -> Meta:
    """Take the first `meta` box apart.

    Raises:
        struct.error, IndexError, ValueError: it is damaged or missing.
    """
    meta = Meta()
    for kind, start, inside, end in read_boxes(source, 0, len(source)):
        if kind == b"meta":
            meta.start, meta.end = start, end
            boxes = read_boxes(source, inside + 4, end)
            meta.children = [(kind, source[at:close]) for kind, _, at, close in boxes]
            break
    for kind, content in meta.children:
        if kind == b"pitm":
            (meta.primary,) = struct.unpack_from(">I" if content[0] else ">H", content, 4)
        elif kind == b"iinf":
            _read_kinds(meta, content)
        elif kind == b"iloc":
            _read_places(meta, content)
        elif kind == b"iprp":
            for inner, _, at, close in read_boxes(content, 0, len(content)):
                if inner == b"ipco":
                    listed = read_boxes(content, at, close)
                    meta.properties = [content[start:end] for _, start, _, end in listed]
                elif inner == b"ipma":
                    _read_uses(meta, content[at:close])
        elif kind == b"iref":
            _read_references(meta, content)
    if meta.primary not in meta.kinds:
        raise ValueError("no primary item")
    return meta


def _read_kinds(meta: Meta, content: bytes) -> None:
    for kind, _, at, close in read_boxes(content, 8 if content[0] else 6, len(content)):
        if kind == b"infe" and content[at] >= 2:
            wide = content[at] > 2
            (item,) = struct.unpack_from(">I" if wide else ">H", content, at + 4)
            rest = content[at + (8 if wide else 6) : close]
            meta.kinds[item] = rest[2:6], rest


def _read_places(meta: Meta, content: bytes) -> None:
    version = content[0]
    sizes = content[4] >> 4, content[4] & 15, content[5] >> 4, content[5] & 15
    at = 6
    (count,) = struct.unpack_from(">I" if version == 2 else ">H", content, at)
    at += 4 if version == 2 else 2

    def take(size: int) -> int:
        nonlocal at
        if at + size > len(content):
            raise ValueError("iloc ends early")
        at += size
        return int.from_bytes(content[at - size : at], "big")

    for _ in range(count):
        item = take(4 if version == 2 else 2)
        method = take(2) & 15 if version else 0
        take(2)
        base = take(sizes[2])
        extents = []
        for _ in range(take(2)):
            if version:
                take(sizes[3])
            start = base + take(sizes[0])
            extents.append((method, start, take(sizes[1])))
        meta.places[item] = extents


def _read_uses(meta: Meta, content: bytes) -> None:
    wide = content[3] & 1
    (count,) = struct.unpack_from(">I", content, 4)
    at = 8
    for _ in range(count):
        (item,) = struct.unpack_from(">I" if content[0] else ">H", content, at)
        at += 4 if content[0] else 2
        uses = []
        number = content[at]
        at += 1
        for _ in range(number):
            (use,) = struct.unpack_from(">H" if wide else ">B", content, at)
            at += 2 if wide else 1
            top = 0x8000 if wide else 0x80
            uses.append((use & (top - 1), bool(use & top)))
        meta.uses[item] = uses


def _read_references(meta: Meta, content: bytes) -> None:
    code = ">I" if content[0] else ">H"
    size = struct.calcsize(code)
    for kind, _, at, _close in read_boxes(content, 4, len(content)):
        (item,) = struct.unpack_from(code, content, at)
        (count,) = struct.unpack_from(">H", content, at + size)
        first = at + size + 2
        targets = [
            struct.unpack_from(code, content, first + size * index)[0] for index in range(count)
        ]
        meta.references.append((kind, item, targets))


def read_item(source: bytes, meta: Meta, item: int) -> bytes:
    """Return the bytes of an item.

    Raises:
        ImageProblem: `metadata`: there are too many.
    """
    inside = next((content for kind, content in meta.children if kind == b"idat"), b"")
    parts, room = [], MOST_BYTES
    for method, start, length in meta.places.get(item, ()):
        store = inside if method else source
        parts.append(store[start : start + (length or len(store))])
        room -= len(parts[-1])
        if room < 0:
            raise explain_tangled()
    return b"".join(parts)


def pack_meta(meta: Meta, shift: int, added: list[tuple[int, bytes]], behind: int) -> bytes:
    """Return a `meta` box for items that lie `shift` later; those added begin at `behind`."""
    places = []
    for item, extents in meta.places.items():
        if len(extents) != 1 or extents[0][0]:
            raise ValueError("Pillow wrote an item in several parts")
        places.append((item, extents[0][1] + shift, extents[0][2]))
    for item, content in added:
        places.append((item, behind, len(content)))
        behind += len(content)
    listed = b"".join(struct.pack(">HHHII", item, 0, 1, at, size) for item, at, size in places)
    uses = b"".join(
        struct.pack(">HB", item, len(uses)) + bytes(number | must << 7 for number, must in uses)
        for item, uses in meta.uses.items()
    )
    references = b"".join(
        make_box(kind, struct.pack(f">HH{len(to)}H", item, len(to), *to))
        for kind, item, to in meta.references
    )
    properties = make_box(b"ipco", b"".join(meta.properties))
    properties += make_box(b"ipma", bytes(4) + struct.pack(">I", len(meta.uses)) + uses)
    written = {
        b"iloc": bytes(4) + b"\x44\0" + struct.pack(">H", len(places)) + listed,
        b"iprp": properties,
        b"iref": bytes(4) + references if references else b"",
    }
    packed = b""
    for kind, content in meta.children:
        if kind == b"iinf":
            content = content[:4] + struct.pack(">H", len(meta.kinds)) + content[6:]
            for item, _ in added:
                entry = struct.pack(">IH", 2 << 24, item) + meta.kinds[item][1]
                content += make_box(b"infe", entry)
        packed += make_box(kind, written.pop(kind, content))
    packed += b"".join(make_box(kind, content) for kind, content in written.items() if content)
    return make_box(b"meta", bytes(4) + packed)
