"""What an AVIF says of its picture in boxes: colour, crop, shape of pixels, turn, EXIF and XMP.

Pillow reads and writes these by its own lights: it labels every picture sRGB, and turns an EXIF
orientation into a box. So a copy's boxes are written here, as the original has them.
Sources: ISO/IEC 23008-12 and 23000-22; the AV1 specification, 5.5 (sequence header).
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tue_cli.errors import ImageProblem
from tue_cli.images.boxes import Meta, make_box, pack_meta, read_boxes, read_item, read_meta
from tue_cli.images.xmp import CREDENTIALS, DEPTH, GAIN_MAP, PREVIEW

# Properties that say how the pixels are to be shown; those that crop and turn are essential.
_SHOWN: Final = (b"colr", b"pasp", b"clap", b"irot", b"imir", b"clli", b"mdcv", b"cclv", b"amve")
_TRANSFORMS: Final = (b"clap", b"irot", b"imir")
_XMP_TYPE: Final = b"application/rdf+xml\0"
_UNSPECIFIED: Final = 2
_SEQUENCE_HEADER: Final = 1
# Constant luminance, ICtCp and others that libavif does not know.
_UNREADABLE_MATRICES: Final = frozenset({3, 10, 11, 13, 14, 16, 17})
SRGB: Final = ((1, 13), (1, 6), (1, 1), (2, 2))
"""Primaries and transfer that readers show as sRGB, where nothing else is said."""


@dataclass(frozen=True)
class Beside:
    """What stands beside the pixels of an AVIF."""

    boxes: tuple[bytes, ...]
    """Whole boxes of `_SHOWN`, in the order in which they apply; a `colr` of CICP among them."""
    exif: bytes
    xmp: bytes
    is_gray: bool
    is_lossless: bool
    """Whether it is coded as RGB, which only lossless files are."""
    lost: frozenset[str]
    """What a copy does not have, in words."""


def refuse_matrix(source: bytes) -> None:
    """Refuse colours that no decoder here can turn into RGB, as far as the file has been read.

    Raises:
        ImageProblem: `mode`.
    """
    with suppress(struct.error, IndexError, ValueError):
        for box in read_meta(source).properties:
            matrix = int.from_bytes(box[16:18], "big")
            if box[4:12] == b"colrnclx" and matrix in _UNREADABLE_MATRICES:
                raise ImageProblem(
                    "mode",
                    f"The AVIF codes its colours with matrix {matrix} of ITU-T H.273, which tue "
                    "cannot decode; save it as PNG first.",
                )


def read(source: bytes) -> Beside:
    """Return what stands beside the pixels.

    Raises:
        ImageProblem: unreadable, or `metadata`: it is too large.
    """
    try:
        meta = read_meta(source)
        exif = _read_exif(source, meta)
        xmp = b"".join(
            read_item(source, meta, item)
            for item, (kind, rest) in meta.kinds.items()
            if kind == b"mime" and _XMP_TYPE in rest
        )
        header = _find_sequence(source, meta)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageProblem("unreadable", "The boxes of the AVIF file are damaged.") from error
    shown = [meta.properties[n - 1] for n, _ in meta.uses.get(meta.primary, ()) if n]
    boxes = [box for box in shown if box[4:8] in _SHOWN]
    cicp = next((box for box in boxes if box[8:12] == b"nclx"), b"")
    coded = _read_colours(header)
    if not cicp:
        # Readers take what the coded picture says.
        cicp = make_box(b"colr", b"nclx" + struct.pack(">3HB", *coded, 0x80))
        boxes.append(cicp)
    config = next((box for box in shown if box[4:8] == b"av1C"), bytes(12))
    (matrix,) = struct.unpack_from(">H", cicp, 16)
    return Beside(
        boxes=tuple(boxes),
        exif=exif,
        xmp=xmp,
        is_gray=bool(config[10] & 0x10),
        is_lossless=matrix == 0 and not config[10] & 0x10,
        lost=_list_lost(source, meta),
    )


def read_cicp(boxes: tuple[bytes, ...]) -> tuple[int, int]:
    """Return primaries and transfer, 2 where unspecified."""
    for box in boxes:
        if box[4:12] == b"colrnclx":
            primaries, transfer = struct.unpack_from(">HH", box, 12)
            return primaries, transfer
    return _UNSPECIFIED, _UNSPECIFIED


def read_turn(boxes: tuple[bytes, ...]) -> int:
    """Return the EXIF orientation that says the same as `irot` and `imir`."""
    # irot turns anticlockwise; imir then flips top and bottom (0) or left and right (1).
    turn = next((box[8] & 3 for box in boxes if box[4:8] == b"irot"), 0)
    flip = next((box[8] & 1 for box in boxes if box[4:8] == b"imir"), None)
    return {None: (1, 8, 3, 6), 0: (4, 5, 2, 7), 1: (2, 7, 4, 5)}[flip][turn]


def is_cropped(boxes: tuple[bytes, ...]) -> bool:
    """Say whether only a part of the pixels is shown."""
    return any(box[4:8] == b"clap" for box in boxes)


def write(data: bytes, boxes: tuple[bytes, ...], exif: bytes, xmp: bytes) -> bytes:
    """Return a fresh AVIF that Pillow wrote without metadata, with what an original has beside it.

    Raises:
        ImageProblem: unwritable: the file does not come back so.
    """
    meta = read_meta(data)
    matrix = next((box[16:] for box in meta.properties if box[4:12] == b"colrnclx"), b"")
    # Pillow's matrix and range stay: they say how it coded the pixels.
    boxes = tuple(
        box[:16] + matrix if box[4:12] == b"colrnclx" and matrix else box for box in boxes
    )
    header = _find_sequence(data, meta)
    patched = bytearray(data)
    _patch_colours(patched, header, read_cicp(boxes))
    items = []
    if exif:
        items.append((b"Exif", b"Exif\0", bytes(4) + exif))
    if xmp:
        items.append((b"mime", b"XMP\0" + _XMP_TYPE, xmp))
    _replace_properties(meta, boxes)
    added = []
    for number, (kind, rest, content) in enumerate(items, start=max(meta.kinds) + 1):
        meta.kinds[number] = kind, b"\0\0" + kind + rest
        meta.references.append((b"cdsc", number, [meta.primary]))
        added.append((number, content))
    shift = len(pack_meta(meta, 0, added, 0)) - (meta.end - meta.start)
    packed = pack_meta(meta, shift, added, len(data) + shift + 8)
    written = bytes(patched[: meta.start]) + packed + bytes(patched[meta.end :])
    if added:
        written += make_box(b"mdat", b"".join(content for _, content in added))
    back = read(written)
    if (back.boxes, back.exif, back.xmp) != (boxes, exif, xmp):
        raise ImageProblem("unwritable", "The colour and metadata of the AVIF cannot be kept.")
    return written


def _read_exif(source: bytes, meta: Meta) -> bytes:
    """Return the EXIF structure, which begins as many bytes later as its first four say."""
    for item, (kind, _) in meta.kinds.items():
        if kind == b"Exif":
            data = read_item(source, meta, item)
            return data[4 + int.from_bytes(data[:4], "big") :]
    return b""


def _list_lost(source: bytes, meta: Meta) -> frozenset[str]:
    lost = {GAIN_MAP for kind, _ in meta.kinds.values() if kind == b"tmap"}
    lost |= {PREVIEW for kind, _, _ in meta.references if kind == b"thmb"}
    for box in meta.properties:
        if box[4:8] == b"auxC":
            lost |= {DEPTH} if b"auxiliary:depth" in box or b"auxid:2" in box else set()
            lost |= {GAIN_MAP} if b"gainmap" in box.lower() else set()
    for kind, _, inside, _ in read_boxes(source, 0, len(source)):
        if kind == b"uuid" and source[inside : inside + 4] == b"\xd8\xfe\xc3\xd6":
            lost.add(CREDENTIALS)
    return frozenset(lost)


def _replace_properties(meta: Meta, boxes: tuple[bytes, ...]) -> None:
    """Give the primary item other properties of `_SHOWN`; its alpha is cropped and turned alike."""
    kept = [box for box in meta.properties if box[4:8] not in _SHOWN]
    for item, uses in meta.uses.items():
        stay = [(meta.properties[number - 1], must) for number, must in uses if number]
        meta.uses[item] = [
            (kept.index(box) + 1, must) for box, must in stay if box[4:8] not in _SHOWN
        ]
        for number, box in enumerate(boxes, start=len(kept) + 1):
            turns = box[4:8] in _TRANSFORMS
            if turns or item == meta.primary:
                meta.uses[item].append((number, turns))
    meta.properties = [*kept, *boxes]


def _find_sequence(source: bytes, meta: Meta) -> tuple[int, bytes]:
    """Return where the AV1 sequence header of the primary item lies, and its bytes."""
    item = meta.primary
    for kind, whole, parts in meta.references:
        if kind == b"dimg" and whole == item and parts:
            item = parts[0]
    for method, at, length in meta.places.get(item, ())[:1]:
        end = min(at + length, len(source)) if length else len(source)
        while not method and at + 2 < end:
            head = source[at]
            at += 1 + (head >> 2 & 1)
            size = end - at
            if head & 2:
                size, at = _read_leb128(source, at)
            if head >> 3 & 15 == _SEQUENCE_HEADER:
                return at, source[at : at + min(size, 256)]
            at += size
    return 0, b""


def _read_leb128(source: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    number = 0
    for index in range(8):
        number |= (source[at + index] & 127) << 7 * index
        if source[at + index] < 128:
            break
    return number, at + index + 1


def _locate_colours(header: bytes) -> int | None:
    """Return at which bit of a sequence header primaries, transfer and matrix begin."""
    at = 0

    def take(bits: int) -> int:
        nonlocal at
        at += bits
        if at > 8 * len(header):
            raise ValueError("the sequence header ends early")
        return int.from_bytes(header, "big") >> (8 * len(header) - at) & ((1 << bits) - 1)

    profile, _, reduced = take(3), take(1), take(1)
    if reduced:
        take(5)
    else:
        if take(1):
            return None  # timing, which stills do not have
        delayed = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delayed and take(1):
                take(4)
    width, height = take(4) + 1, take(4) + 1
    take(width + height)
    if not reduced and take(1):
        take(7)
    take(3)
    if not reduced:
        take(4)
        ordered = take(1)
        take(2 * ordered)
        forced = 2 if take(1) else take(1)
        if forced and not take(1):
            take(1)
        take(3 * ordered)
    take(3)
    if take(1) and profile == 2:
        take(1)
    if profile != 1:
        take(1)
    return at if take(1) else None


def _read_colours(header: tuple[int, bytes]) -> tuple[int, int, int]:
    """Return primaries, transfer and matrix of a sequence header, 2 where unspecified."""
    with suppress(ValueError):
        data = header[1]
        at = _locate_colours(data) if data else None
        if at is not None and at + 24 <= 8 * len(data):
            found = int.from_bytes(data, "big") >> (8 * len(data) - at - 24)
            return found >> 16 & 255, found >> 8 & 255, found & 255
    return _UNSPECIFIED, _UNSPECIFIED, _UNSPECIFIED


def _patch_colours(source: bytearray, header: tuple[int, bytes], cicp: tuple[int, int]) -> None:
    """Write primaries and transfer into the sequence header too, for readers that look there."""
    start, data = header
    bit = _locate_colours(data) if data else None
    if bit is None:
        return
    low = 8 * len(data) - bit - 16
    number = int.from_bytes(data, "big") & ~(0xFFFF << low) | (cicp[0] << 8 | cicp[1]) << low
    source[start : start + len(data)] = number.to_bytes(len(data), "big")
