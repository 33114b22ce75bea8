"""Write pictures as cameras and phones write them, with all that stands beside the pixels.

    python -m benchmarks.camera DIR

Everything is drawn and packed here: what a kind of camera is known for, from descriptions of the
formats, with invented names. The notes of makers have offsets of each sort in use: from the start
of EXIF, from their own start, and from a header inside. No code is shared with `tue_cli`, so that
`benchmarks.metadata` compares what tue did not lay out.
Sources: EXIF 2.32, CIPA DC-007 (MPF), the XMP specification 3, IPTC-IIM 4.2, ISO 15076-1 (ICC),
and exiftool's pages of maker notes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tue_cli.errors import is_installed

SIDE = 96
"""Of the pictures, in pixels: square, so that 4:2:2 can be relabelled 4:4:0."""

Value = bytes | Callable[[int], bytes]
"""The bytes of a tag, or what makes them for a place counted from the start of EXIF."""
Tags = dict[int, "tuple[int, Value | Tags]"]
"""Tags with the kinds of their values, or the directories that they point to."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 13: 4}
EXIF, GPS, INTEROP, MAKER = 34665, 34853, 40965, 37500
ARTIST = "Zoë Brücké".encode()


def draw(seed: int, side: int = SIDE, mode: str = "RGB") -> Image.Image:
    """Return a picture with smooth and rough places."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    base = np.dstack((x * 2, y * 2, 255 - x - y)) * (96 / side)
    rough = random.integers(-25, 26, (side, side, 3)) * (x > side // 3)[..., None]
    return Image.fromarray((base + rough).clip(0, 255).astype(np.uint8)).convert(mode)


def encode(kind: str, seed: int = 0, *, side: int = SIDE, mode: str = "RGB", **more: Any) -> bytes:
    """Return a drawn picture as a file."""
    file = io.BytesIO()
    draw(seed, side, mode).save(file, kind, **more)
    return file.getvalue()


def make_view(seed: int = 9) -> bytes:
    """Return a small JPEG, such as a thumbnail."""
    return encode("JPEG", seed, side=32, quality=80)


# --- EXIF ------------------------------------------------------------------------------------


def pack_directory(order: str, tags: Tags, at: int, following: int = 0) -> bytes:
    """Return a directory at `at`, its values and inner directories behind it."""
    first = at + 2 + 12 * len(tags) + 4
    table, behind = struct.pack(order + "H", len(tags)), b""
    for tag in sorted(tags):
        kind, value = tags[tag]
        place = first + len(behind)
        if isinstance(value, dict):
            behind += pack_directory(order, value, place)
            count, field = 1, struct.pack(order + "I", place)
        else:
            value = value(place) if callable(value) else value
            count, field = len(value) // SIZES[kind], value.ljust(4, b"\0")
            if len(value) > 4:
                behind += value + bytes(len(value) % 2)
                field = struct.pack(order + "I", place)
        table += struct.pack(order + "HHI", tag, kind, count) + field
    return table + struct.pack(order + "I", following) + behind


def pack_exif(order: str, tags: Tags, thumbnail: bytes = b"") -> bytes:
    """Return an EXIF structure, with a thumbnail in its second directory where there is one."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    if not thumbnail:
        return head + pack_directory(order, tags, 8)
    start = 8 + len(pack_directory(order, tags, 8))
    start += start % 2
    view = start + 2 + 12 * 6 + 4
    second: Tags = {
        259: (3, struct.pack(order + "H", 6)),
        282: (5, lambda _: struct.pack(order + "II", 72, 1)),
        283: (5, lambda _: struct.pack(order + "II", 72, 1)),
        296: (3, struct.pack(order + "H", 2)),
        513: (4, struct.pack(order + "I", view + 16)),
        514: (4, struct.pack(order + "I", len(thumbnail))),
    }
    packed = (head + pack_directory(order, tags, 8, start)).ljust(start, b"\0")
    return packed + pack_directory(order, second, start) + thumbnail


def text(words: str) -> tuple[int, bytes]:
    """Return a value of ASCII, or of what cameras put there instead."""
    return 2, words.encode() + b"\0"


def make_tags(order: str, make: str, model: str, note: Value = b"", **beside: Any) -> Tags:
    """Return what every camera says; `inner` and `outer` add tags, `gps` a place."""

    def pack(code: str, *numbers: int) -> bytes:
        return struct.pack(order + code, *numbers)

    inner: Tags = {
        33434: (5, pack("II", 1, 250)),
        33437: (5, pack("II", 56, 10)),
        34855: (3, pack("H", 200)),
        36864: (7, b"0232"),
        36867: text("2024:05:06 07:08:09"),
        36881: text("+02:00"),
        37121: (7, b"\1\2\3\0"),
        37380: (10, pack("ii", -1, 3)),
        37521: text("47"),
        40961: (3, pack("H", 1)),
        40962: (4, pack("I", SIDE)),
        40963: (4, pack("I", SIDE)),
        42036: text("50 mm f/1.8"),
        **({MAKER: (7, note)} if note else {}),
        **beside.get("inner", {}),
    }
    place: Tags = {
        0: (1, b"\2\3\0\0"),
        1: text("N"),
        2: (5, pack("6I", 52, 1, 31, 1, 1234, 100)),
        3: text("E"),
        4: (5, pack("6I", 13, 1, 24, 1, 56, 1)),
        27: (7, b"ASCII\0\0\0GPS"),
        29: text("2024:05:06"),
    }
    return {
        271: text(make),
        272: text(model),
        274: (3, pack("H", beside.get("turn", 1))),
        282: (5, pack("II", 300, 1)),
        283: (5, pack("II", 300, 1)),
        296: (3, pack("H", 2)),
        305: text("Firmware 1.02"),
        306: text("2024:05:06 07:08:09"),
        315: (2, ARTIST + b"\0"),
        531: (3, pack("H", 2)),
        EXIF: (4, inner),
        **({GPS: (4, place)} if beside.get("gps") else {}),
        **beside.get("outer", {}),
    }


# --- notes of makers -------------------------------------------------------------------------


def make_canon(order: str) -> Value:
    """Return a note whose offsets count from the start of EXIF; its last bytes say where it lay."""

    def note(at: int) -> bytes:
        settings = struct.pack(order + "16H", 32, 2, 0, 3, *range(12))
        tags: Tags = {
            0x0001: (3, settings),
            0x0006: text("Canon EOS 80D"),
            0x0007: text("Firmware Version 1.0.2"),
            0x0009: text("Zoe B."),
            0x000C: (4, struct.pack(order + "I", 123456)),
            0x0095: text("EF50mm f/1.8 STM"),
        }
        head = {"<": b"II*\0", ">": b"MM\0*"}[order]
        return pack_directory(order, tags, at) + head + struct.pack(order + "I", at)

    return note


def make_nikon(order: str) -> Value:
    """Return a note that is an EXIF structure of its own, with a preview inside."""
    view = make_view(5)
    tags: Tags = {
        0x0001: (7, b"0210"),
        0x0002: (3, struct.pack(">2H", 0, 200)),
        0x0004: text("FINE   "),
        0x0005: text("AUTO        "),
        0x001D: text("3012345"),
        0x0084: (5, struct.pack(">8I", 50, 1, 50, 1, 18, 10, 18, 10)),
    }
    room = 8 + len(pack_directory(">", tags, 8)) + 2 + 3 * 12 + 4 + 12
    preview: Tags = {
        259: (3, struct.pack(">H", 6)),
        513: (4, struct.pack(">I", room)),
        514: (4, struct.pack(">I", len(view))),
    }
    body = b"MM\0*" + struct.pack(">I", 8) + pack_directory(">", {**tags, 0x11: (4, preview)}, 8)
    return b"Nikon\0\2\x11\0\0" + body.ljust(room, b"\0") + view


def make_sony(order: str) -> Value:
    """Return a note with a header, whose offsets count from the start of EXIF, and a preview."""
    view = make_view(6)  # without its JFIF header, behind 32 bytes of something else

    def note(at: int) -> bytes:
        tags: Tags = {
            0x0102: (4, struct.pack(order + "I", 2)),
            0x2001: (7, bytes(32) + view[:2] + view[20:]),
            0xB020: text("Standard"),
            0xB021: (4, struct.pack(order + "I", 5500)),
            0xB027: (4, struct.pack(order + "I", 65535)),
        }
        return b"SONY DSC \0\0\0" + pack_directory(order, tags, at + 12)

    return note


def make_fuji(order: str) -> Value:
    """Return a note whose offsets count from its own start, always little-endian."""
    tags: Tags = {
        0x0000: (7, b"0130"),
        0x0010: text("FFX20393734    592D31323334 2018:04:02"),
        0x1000: text("FINE   "),
        0x1001: (3, struct.pack("<H", 3)),
        0x1401: (3, struct.pack("<H", 0x500)),
        0x1438: (3, struct.pack("<H", 7)),
    }
    return b"FUJIFILM\x0c\0\0\0" + pack_directory("<", tags, 12)


def make_olympus(order: str) -> Value:
    """Return a note whose offsets count from its own start, with a directory inside."""
    equipment: Tags = {0x0000: (7, b"0100"), 0x0100: text("S0047"), 0x0101: text("BHP123456")}
    tags: Tags = {0x0104: text("D4322 "), 0x0207: text("1.0"), 0x2010: (13, equipment)}
    return b"OLYMPUS\0II\3\0" + pack_directory("<", tags, 12)


def make_panasonic(order: str) -> Value:
    """Return a note without the link at the end of its directory."""

    def note(at: int) -> bytes:
        tags: Tags = {
            0x0001: (3, struct.pack(order + "H", 2)),
            0x0002: (7, b"\0\1\0\2"),
            0x0025: (7, b"F541210120123\0\0\0"),
            0x0051: text("LUMIX G VARIO 12-60/F3.5-5.6"),
            0x0054: text("12345678901"),
        }
        return b"Panasonic\0\0\0" + pack_directory(order, tags, at + 12)

    return note


def make_pentax(order: str) -> Value:
    """Return a note with a byte order of its own, whose offsets count from the start of EXIF."""

    def note(at: int) -> bytes:
        tags: Tags = {
            0x0000: (1, b"\3\0\0\0"),
            0x0005: (4, struct.pack(">I", 0x12DFE)),
            0x0006: (7, b"\7\xe8\5\6"),
            0x003F: (1, b"\4\3"),
            0x0215: (4, struct.pack(">5I", 0x12DFE, 20240506, 1, 2, 3)),
        }
        return b"AOC\0MM" + pack_directory(">", tags, at + 6)

    return note


def make_apple(order: str) -> Value:
    """Return a note whose offsets count from its own start, with a property list."""
    runtime = b"bplist00\xd1\1\2Uflags\x10\1\x08\x0b\x11" + bytes(6) + b"\1\1" + bytes(7)
    runtime += b"\3" + bytes(15) + b"\x13"
    tags: Tags = {
        0x0001: (9, struct.pack(">i", 14)),
        0x0003: (7, runtime),
        0x0008: (10, struct.pack(">6i", -1, 3, 2, 7, 5, 9)),
        0x000A: (9, struct.pack(">i", 3)),
        0x0011: text("6F9619FF-8B86-D011-B42D-00CF4FC964FF"),
        0x0021: (10, struct.pack(">2i", 1, 2)),
        0x0030: (10, struct.pack(">2i", 5, 3)),
    }
    return b"Apple iOS\0\0\1MM" + pack_directory(">", tags, 14)


def make_opaque(order: str) -> Value:
    """Return a note that nobody can read."""
    return b"HDRP\3" + np.random.default_rng(4).bytes(300).replace(b"\xff", b"\xfe")


# --- beside EXIF -----------------------------------------------------------------------------


def make_profile(name: str = "Display P3") -> bytes:
    """Return an ICC profile of three primaries and a gamma, as phones embed one."""

    def numbers(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    words = name.encode("utf-16-be")
    named = b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", len(words), 28) + words
    parts = {
        b"desc": named,
        b"cprt": named,
        b"wtpt": b"XYZ \0\0\0\0" + numbers(0.9642, 1, 0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + numbers(0.5151, 0.2412, -0.0011),
        b"gXYZ": b"XYZ \0\0\0\0" + numbers(0.292, 0.6922, 0.0419),
        b"bXYZ": b"XYZ \0\0\0\0" + numbers(0.1571, 0.0666, 0.7841),
        **{kind: b"para\0\0\0\0\0\0\0\0" + numbers(2.2) for kind in (b"rTRC", b"gTRC", b"bTRC")},
    }
    at, table, body = 132 + 12 * len(parts), b"", b""
    for kind, data in parts.items():
        table += kind + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    when = struct.pack(">6H", 2024, 5, 6, 7, 8, 9)
    head = struct.pack(">I4sI", at + len(body), b"test", 0x4000000) + b"mntrRGB XYZ " + when
    head += b"acspAPPL" + bytes(4) + b"test" + bytes(16) + numbers(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def make_xmp(attributes: str = "", inside: str = "") -> bytes:
    """Return a packet with a title and a rating, and what else is given."""
    title = '<rdf:Alt><rdf:li xml:lang="x-default">Červený přístav</rdf:li></rdf:Alt>'
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" {DC} '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" {attributes}>'
        f"<dc:title>{title}</dc:title>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    ).encode()


def make_container(*items: tuple[str, str, int]) -> tuple[str, str]:
    """Return attributes and properties of Google's directory of what lies in a file."""
    spaces = "http://ns.google.com/photos/1.0/container/"
    listed = "".join(
        f'<rdf:li rdf:parseType="Resource"><Container:Item Item:Mime="{mime}" '
        f'Item:Semantic="{meaning}" Item:Length="{length}"/></rdf:li>'
        for mime, meaning, length in items
    )
    inside = f"<Container:Directory><rdf:Seq>{listed}</rdf:Seq></Container:Directory>"
    return f'xmlns:Container="{spaces}" xmlns:Item="{spaces}item/"', inside


def make_extended() -> list[tuple[int, bytes]]:
    """Return the segments of a packet that is too long for one."""
    story = ("a long story " * 8000).encode()
    more = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" '
    whole = more.encode() + DC.encode() + b"><dc:description><rdf:Alt>"
    whole += b'<rdf:li xml:lang="x-default">' + story + b"</rdf:li></rdf:Alt></dc:description>"
    whole += b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    name = hashlib.md5(whole, usedforsecurity=False).hexdigest().upper()
    note = f'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{name}"'
    parts = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + make_xmp(note))]
    for at in range(0, len(whole), 65000):
        head = b"http://ns.adobe.com/xmp/extension/\0" + name.encode()
        head += struct.pack(">II", len(whole), at)
        parts.append((0xE1, head + whole[at : at + 65000]))
    return parts


def make_iptc() -> bytes:
    """Return IPTC in UTF-8."""

    def pack(record: int, field: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, field, len(value)) + value

    words = {25: b"harbour", 80: ARTIST, 90: b"Kiel"}
    start = pack(1, 90, b"\x1b%G") + pack(2, 0, b"\0\4") + pack(2, 25, "röd".encode())
    return start + b"".join(pack(2, field, value) for field, value in words.items())


def make_resources() -> bytes:
    """Return Photoshop's resources: IPTC, its digest, the resolution, and a flag."""
    iptc = make_iptc()
    parts = {0x0404: iptc, 0x0425: hashlib.md5(iptc, usedforsecurity=False).digest()}
    parts |= {0x040A: b"\1", 0x03ED: struct.pack(">IHHIHH", 300 << 16, 1, 1, 300 << 16, 1, 1)}
    return b"".join(
        b"8BIM" + struct.pack(">H2xI", code, len(data)) + data + bytes(len(data) % 2)
        for code, data in parts.items()
    )


def make_credentials() -> tuple[int, bytes]:
    """Return a segment with content credentials."""
    label = bytes.fromhex("6332706100110010800000aa00389b71") + b"\3c2pa\0"
    inner = struct.pack(">I4s", len(label) + 8, b"jumd") + label
    return 0xEB, b"JP\0\1\0\0\0\1" + struct.pack(">I4s", len(inner) + 8, b"jumb") + inner


def make_index(sizes: list[int], kinds: list[int], at: int) -> bytes:
    """Return the directory of a file of several JPEGs, itself at `at` (CIPA DC-007)."""
    entries, start = b"", 0
    for size, kind in zip(sizes, kinds, strict=True):
        entries += struct.pack(">IIIHH", kind, size, start and start - at, 0, 0)
        start += size
    tags: Tags = {0xB000: (7, b"0100"), 0xB001: (4, struct.pack(">I", len(sizes)))}
    return b"MM\0*" + struct.pack(">I", 8) + pack_directory(">", {**tags, 0xB002: (7, entries)}, 8)


def make_samsung_trailer() -> bytes:
    """Return Samsung's blocks behind the end of a picture, in the form that ends with SEFT."""
    words = {b"Image_UTC_Data": b"1714972089000", b"MCC_Data": b"262"}
    body, table = b"", b""
    for number, (name, value) in enumerate(words.items(), start=0x0A01):
        block = struct.pack("<HHI", 0, number, len(name)) + name + value
        table += struct.pack("<HHII", 0, number, len(body) + len(block), len(block))
        body += block
    # Places count backwards from the head.
    fixed = b""
    for at in range(0, len(table), 12):
        zero, number, end, size = struct.unpack_from("<HHII", table, at)
        fixed += struct.pack("<HHII", zero, number, len(body) - end + size, size)
    head = b"SEFH" + struct.pack("<II", 106, len(words)) + fixed
    return body + head + struct.pack("<I", len(head)) + b"SEFT"


def make_film() -> bytes:
    """Return a film in outline."""
    head = struct.pack(">I4s", 24, b"ftyp") + b"mp42\0\0\0\0isommp42"
    return head + struct.pack(">I4s", 508, b"mdat") + bytes(500)


# --- files -----------------------------------------------------------------------------------


def make_segment(marker: int, data: bytes) -> bytes:
    """Return a whole segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def make_jpeg(
    exif: bytes = b"",
    *segments: tuple[int, bytes],
    plain: bytes = b"",
    icc: bytes = b"",
    jfif: bool = False,
    behind: bytes = b"",
) -> bytes:
    """Return a JPEG, without the JFIF header that cameras leave out, with what lies behind it."""
    data = plain or encode("JPEG", quality=94, subsampling=1)
    data = data if jfif else data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]
    head = 2 + (2 + int.from_bytes(data[4:6], "big")) * jfif
    parts = [(0xE1, b"Exif\0\0" + exif)] if exif else []
    parts += segments
    parts += [(0xE2, b"ICC_PROFILE\0\1\1" + icc)] if icc else []
    listed = b"".join(make_segment(marker, part) for marker, part in parts)
    return data[:head] + listed + data[head:] + behind


def make_camera(
    order: str,
    make: str,
    model: str,
    note: Callable[[str], Value],
    *segments: tuple[int, bytes],
    jpeg: dict[str, Any] | None = None,
    **beside: Any,
) -> bytes:
    """Return a JPEG with EXIF, a thumbnail and a note of the maker."""
    view = make_view() if beside.pop("thumbnail", True) else b""
    exif = pack_exif(order, make_tags(order, make, model, note(order), **beside), view)
    return make_jpeg(exif, *segments, **(jpeg or {}))


def make_frames(exif: bytes, further: bytes, kind: int, **jpeg: Any) -> bytes:
    """Return a JPEG with a directory of frames, behind which a further one lies."""

    def build(size: int, at: int) -> bytes:
        listed = make_index([size, len(further)], [0x30000, kind], at)
        return make_jpeg(exif, (0xE2, b"MPF\0" + listed), **jpeg)

    plain = build(0, 0)
    at = plain.index(b"MPF\0") + 4
    return build(len(plain), at) + further


def make_pixel() -> bytes:
    """Return a motion photo as Google's phones write it."""
    film = make_film()
    spaces, inside = make_container(
        ("image/jpeg", "Primary", 0), ("video/mp4", "MotionPhoto", len(film))
    )
    camera = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1" '
    camera += 'GCamera:MotionPhotoVersion="1" GCamera:MotionPhotoPresentationTimestampUs="500000"'
    xmp = make_xmp(f"{spaces} {camera}", inside)
    listed = ((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp),)
    more = {"icc": make_profile(), "behind": film}
    return make_camera(">", "Google", "Pixel 8", make_opaque, *listed, gps=True, jpeg=more)


def make_iphone() -> bytes:
    """Return a JPEG with the gain map of an iPhone, in a further frame that says so."""
    tags = make_tags(">", "Apple", "iPhone 15", make_apple(">"), gps=True, turn=6)
    hdr = 'xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/" '
    xmp = make_xmp(hdr + 'HDRGainMap:HDRGainMapVersion="65536"')
    told = (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    gain = make_jpeg(b"", told, plain=encode("JPEG", 7, side=48, mode="L"))
    return make_frames(pack_exif(">", tags, make_view()), gain, 0, icc=make_profile())


def make_ultra_hdr() -> bytes:
    """Return a JPEG with a gain map as Android writes it."""
    space = 'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    told = make_xmp(space + ' hdrgm:GainMapMax="2.3"')
    start = b"http://ns.adobe.com/xap/1.0/\0"
    gain = make_jpeg(b"", (0xE1, start + told), plain=encode("JPEG", 7, side=48, mode="L"))
    spaces, inside = make_container(
        ("image/jpeg", "Primary", 0), ("image/jpeg", "GainMap", len(gain))
    )
    exif = pack_exif("<", make_tags("<", "samsung", "SM-S921B", gps=True))
    xmp = (0xE1, start + make_xmp(f"{spaces} {space}", inside))
    return make_jpeg(exif, xmp, icc=make_profile(), behind=gain)


def make_preview_frames() -> bytes:
    """Return a JPEG behind which a large preview lies, as Sony's cameras write it."""
    tags = make_tags("<", "SONY", "ILCE-7M3", make_sony("<"))
    view = encode("JPEG", 8, side=80, quality=80)
    return make_frames(pack_exif("<", tags, make_view()), view, 0x10002)


def make_samsung() -> bytes:
    """Return a JPEG of a Samsung phone, with its trailer."""
    words = {"behind": make_samsung_trailer()}
    unknown: Tags = {0x9AAA: (4, struct.pack("<I", 1))}
    return make_camera(
        "<", "samsung", "SM-G991B", lambda _: b"", gps=True, inner=unknown, jpeg=words
    )


def make_adobe_rgb(order: str) -> bytes:
    """Return a JPEG in Adobe RGB, which only its interoperability directory says."""
    interop: Tags = {1: text("R03"), 2: (7, b"0100")}
    inner: Tags = {40961: (3, struct.pack(order + "H", 65535)), INTEROP: (4, interop)}
    return make_camera(order, "Canon", "Canon EOS 5D", make_canon, inner=inner)


def relabel_440(data: bytes) -> bytes:
    """Return a square 4:2:2 JPEG as one of 4:4:0; the pixels move, the blocks are as many."""
    at = data.index(b"\xff\xc0")
    assert data[at + 11] == 0x21
    return data[: at + 11] + b"\x12" + data[at + 12 :]


def make_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a whole chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_screenshot() -> bytes:
    """Return a PNG as phones save their screens."""
    exif = pack_exif(">", {274: (3, b"\0\1"), EXIF: (4, {40961: (3, b"\0\1")})})
    data, chunks = encode("PNG"), b""
    for kind, part in (
        (b"iCCP", b"kCGColorSpaceDisplayP3\0\0" + zlib.compress(make_profile())),
        (b"sBIT", b"\7\7\7"),
        (b"eXIf", exif),
        (b"pHYs", struct.pack(">IIB", 5669, 5669, 1)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + make_xmp()),
        (b"tEXt", b"Software\0Screens 1.2"),
        (b"tIME", struct.pack(">HBBBBB", 2024, 5, 6, 7, 8, 9)),
    ):
        chunks += make_chunk(kind, part)
    return data[:33] + chunks + data[33:]


def make_wide_png() -> bytes:
    """Return a PNG in Display P3, which only its chunk `cICP` says."""
    data = encode("PNG")
    return data[:33] + make_chunk(b"cICP", b"\x0c\x0d\0\1") + data[33:]


def make_tiff(order: str, note: Value, **beside: Any) -> bytes:
    """Return an uncompressed TIFF as cameras write it, of one strip behind its directory."""
    pixels = np.asarray(draw(2)).tobytes()
    tags = make_tags(order, "NIKON CORPORATION", "NIKON D850", note, gps=True, **beside)
    whole: Tags = {
        **tags,
        254: (4, bytes(4)),
        256: (4, struct.pack(order + "I", SIDE)),
        257: (4, struct.pack(order + "I", SIDE)),
        258: (3, struct.pack(order + "3H", 8, 8, 8)),
        259: (3, struct.pack(order + "H", 1)),
        262: (3, struct.pack(order + "H", 2)),
        273: (4, bytes(4)),
        277: (3, struct.pack(order + "H", 3)),
        278: (4, struct.pack(order + "I", SIDE)),
        279: (4, struct.pack(order + "I", len(pixels))),
        284: (3, struct.pack(order + "H", 1)),
        700: (1, make_xmp()),
        33723: (7, make_iptc()),
        34675: (7, make_profile("Adobe RGB like")),
    }
    del whole[531]
    start = len(pack_exif(order, whole))
    return pack_exif(order, {**whole, 273: (4, struct.pack(order + "I", start))}) + pixels


def make_phone_file(kind: str, **more: Any) -> bytes:
    """Return a picture of a phone in a newer format."""
    exif = pack_exif(">", make_tags(">", "Google", "Pixel 8", gps=True), make_view())
    more |= {"exif": b"Exif\0\0" + exif, "xmp": make_xmp(), "icc_profile": make_profile()}
    return encode(kind, **more)


def make_heic() -> bytes:
    """Return a HEIC of a phone."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return make_phone_file("HEIF", quality=90)


UNICODE = {37510: (7, b"UNICODE\0" + "Hafen, früh".encode("utf-16-le"))}
PHOTOSHOP = (0xED, b"Photoshop 3.0\0")
CAMERAS: dict[str, Callable[[], bytes]] = {
    "canon-little-endian.jpg": lambda: make_camera(
        "<", "Canon", "Canon EOS 80D", make_canon, inner=UNICODE
    ),
    "canon-big-endian.jpg": lambda: make_camera(">", "Canon", "Canon PowerShot", make_canon),
    "canon-adobe-rgb.jpg": lambda: make_adobe_rgb("<"),
    "nikon.jpg": lambda: make_camera(">", "NIKON CORPORATION", "NIKON D850", make_nikon),
    "sony.jpg": lambda: make_camera("<", "SONY", "ILCE-6400", make_sony),
    "sony-preview-frame.jpg": make_preview_frames,
    "fujifilm.jpg": lambda: make_camera("<", "FUJIFILM", "X-T4", make_fuji),
    "olympus.jpg": lambda: make_camera("<", "OLYMPUS CORPORATION", "E-M5", make_olympus),
    "panasonic.jpg": lambda: make_camera("<", "Panasonic", "DC-G9", make_panasonic),
    "pentax.jpg": lambda: make_camera(">", "PENTAX", "PENTAX K-70", make_pentax),
    "unknown-notes.jpg": lambda: make_camera("<", "Nobody", "One", make_opaque),
    "iphone-gain-map.jpg": make_iphone,
    "pixel-motion-photo.jpg": make_pixel,
    "ultra-hdr.jpg": make_ultra_hdr,
    "samsung-trailer.jpg": make_samsung,
    "display-p3.jpg": lambda: make_camera(
        ">", "Apple", "iPhone SE", make_apple, jpeg={"icc": make_profile()}
    ),
    "rotated.jpg": lambda: make_camera(">", "Apple", "iPhone SE", make_apple, turn=6, gps=True),
    "xmp-extended.jpg": lambda: make_jpeg(
        pack_exif("<", make_tags("<", "Google", "Pixel 3")), *make_extended()
    ),
    "iptc.jpg": lambda: make_camera(
        "<", "Canon", "Canon EOS 1D", make_canon, (PHOTOSHOP[0], PHOTOSHOP[1] + make_resources())
    ),
    "credentials.jpg": lambda: make_camera("<", "Leica", "M11", make_opaque, make_credentials()),
    "comment.jpg": lambda: make_camera(
        "<", "Agency", "Cam", make_opaque, (0xFE, "früh".encode("latin-1")), jpeg={"jfif": True}
    ),
    "private-segments.jpg": lambda: make_camera(
        "<", "GoPro", "HERO9", make_opaque, (0xE6, b"GoPro\0DEVC\0\1\0\0"), (0xE3, b"Meta\0\0II")
    ),
    "no-exif.jpg": lambda: make_jpeg(jfif=True, plain=encode("JPEG", quality=90, dpi=(96, 96))),
    "progressive.jpg": lambda: make_camera(
        "<", "Web", "App", make_opaque, jpeg={"plain": encode("JPEG", progressive=True, quality=92)}
    ),
    "subsampling-422.jpg": lambda: make_camera(
        "<", "A", "422", make_opaque, jpeg={"plain": encode("JPEG", subsampling=1, quality=96)}
    ),
    "subsampling-440.jpg": lambda: make_camera(
        "<",
        "A",
        "440",
        make_opaque,
        jpeg={"plain": relabel_440(encode("JPEG", subsampling=1, quality=96))},
    ),
    "subsampling-420.jpg": lambda: make_camera(
        "<", "A", "420", make_opaque, jpeg={"plain": encode("JPEG", subsampling=2, quality=96)}
    ),
    "grayscale.jpg": lambda: make_camera(
        "<", "A", "Mono", make_opaque, jpeg={"plain": encode("JPEG", mode="L", quality=92)}
    ),
    "nikon-big-endian.tif": lambda: make_tiff(">", make_nikon(">")),
    "nikon-little-endian.tif": lambda: make_tiff("<", make_nikon("<")),
    "canon-notes.tif": lambda: make_tiff("<", make_canon("<"), outer={271: text("Canon")}),
    "sony-notes.tif": lambda: make_tiff("<", make_sony("<"), outer={271: text("SONY")}),
    "screenshot.png": make_screenshot,
    "wide-colours.png": make_wide_png,
    "android.webp": lambda: make_phone_file("WEBP", quality=90),
    "pixel.avif": lambda: make_phone_file("AVIF", quality=90),
}
"""What makes each file."""
if is_installed("pillow_heif"):
    CAMERAS["iphone.heic"] = make_heic


def write(folder: Path) -> list[Path]:
    """Write every file into a folder, and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in CAMERAS.items():
        (folder / name).write_bytes(make())
    return [folder / name for name in CAMERAS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
