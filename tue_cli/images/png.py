"""The chunks of a PNG: which are copied to the protected file, and how.

Texts may hold whole profiles of other programs in hexadecimal digits (ImageMagick's and GIMP's
`Raw profile type`); these are unpacked, cleaned and packed again.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tue_cli.images.exif import (
    EXIF_START,
    MOST_BYTES,
    blank_exif_previews,
    blank_jpegs,
    blank_location,
    clean_photoshop,
    drop_iptc_location,
    drop_photoshop_location,
    explain_tangled,
    wrap_iptc,
)
from tue_cli.images.xmp import CREDENTIALS, PREVIEW, blank_text_images, clean_xmp, explain_lost
from tue_cli.images.xmp import drop_location as drop_xmp_location

PNG_START: Final = b"\x89PNG\r\n\x1a\n"
TEXT_LIMIT: Final = 4_000_000
MOST_CHUNKS: Final = 10_000
"""Those of the pixels not counted."""
XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
COMMENT: Final = b"Comment"

# A private chunk can hold anything, such as the layers of a Fireworks file.
_KEPT = frozenset(
    (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI", b"pHYs", b"eXIf", b"tIME")
) | frozenset((b"oFFs", b"sCAL", b"pCAL", b"sTER"))
_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# They hold for the colour type, and the number of bits, that the file had.
_OF_SAMPLES = frozenset({b"sBIT", b"bKGD"})
_OF_CODING = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"hIST", *_OF_SAMPLES})
_RAW_PROFILE: Final = b"Raw profile type "
_RAW_TEXT = re.compile(rb"\s*+(\S++)\s++\d++\s++([0-9A-Fa-f\s]*+)\Z")
_PLACE_WORDS: Final = re.compile(rb"gps|latitude|longitude|location", re.IGNORECASE)
_SRGB_GAMMA: Final = 45_455
_SRGB_PRIMARIES: Final = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)


@dataclass(frozen=True)
class Selected:
    """What stands beside the pixels of a PNG, cleaned."""

    chunks: tuple[bytes, ...]
    """Whole chunks, for another PNG."""
    notes: tuple[str, ...]
    exif: bytes
    xmp: bytes
    photoshop: bytes


@dataclass
class _Text:
    """A chunk of text, unpacked."""

    keyword: bytes
    text: bytes
    head: bytes
    """What stands between the keyword and the text."""
    is_packed: bool


def refuse_tangled(source: bytes) -> None:
    """Refuse more chunks than a decoder could read in time.

    Raises:
        ImageProblem: `metadata`.
    """
    beside = [len(data) for chunk, data in read_png_chunks(source) if chunk != b"IDAT"]
    if len(beside) > MOST_CHUNKS or sum(beside) > MOST_BYTES:
        raise explain_tangled()


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


def select_png_chunks(source: bytes) -> Selected:
    """Return the chunks that a copy should have, previews taken out, and what they say."""
    listed = list(read_png_chunks(source))
    wanted = set(_KEPT)
    header = next((data for kind, data in listed if kind == b"IHDR"), b"").ljust(13, b"\0")
    if header[8] >= 8 and header[9] != 3 and all(kind != b"tRNS" for kind, _ in listed):
        wanted |= _OF_SAMPLES
    chunks, lost, private = [], set(), set()
    found = {"exif": b"", "xmp": b"", "photoshop": b""}
    for kind, data in listed:
        if kind in _TEXT:
            cleaned, part = _clean_text(kind, data, found)
            lost.add(part)
            data = cleaned
        elif kind not in wanted:
            if kind == b"caBX":
                lost.add(CREDENTIALS)
            elif kind not in _OF_CODING:
                private.add(kind.decode("latin-1"))
            continue
        elif kind == b"eXIf":
            start = EXIF_START if data.startswith(EXIF_START) else b""
            found["exif"] = blank_exif_previews(data.removeprefix(start))
            lost.add(PREVIEW if start + found["exif"] != data else "")
            data = start + found["exif"]
        if data:
            chunks.append(make_png_chunk(kind, data))
    if private:
        names = ", ".join(sorted(name for name in private if name.isalpha())[:8])
        lost.add(f"private chunks that may hold the original picture: {names}")
    return Selected(tuple(chunks), explain_lost(lost - {""}), **found)


def _clean_text(kind: bytes, data: bytes, found: dict[str, bytes]) -> tuple[bytes, str]:
    """Return a chunk of text without pictures, empty to leave it out, and what was lost.

    What the text says as EXIF, XMP or IPTC goes into `found`.
    """
    text = _unpack_text(kind, data)
    if text is None:
        return b"", "a text that is damaged or too long"
    cleaned, lost = text.text, ""
    if text.keyword == XMP_KEYWORD:
        cleaned, more = clean_xmp(text.text)
        found["xmp"], lost = cleaned, ", ".join(more)
    elif text.keyword.startswith(_RAW_PROFILE):
        cleaned, lost = _clean_profile(text, found)
    elif blank_text_images(text.text) != text.text:
        return b"", "a text that held a picture"
    if cleaned == text.text or not cleaned:
        return (data if cleaned else b""), lost
    packed = zlib.compress(cleaned) if text.is_packed else cleaned
    return text.keyword + b"\0" + text.head + packed, lost


def _unpack_text(kind: bytes, data: bytes) -> _Text | None:
    """Return a text, None where it cannot be unpacked."""
    keyword, _, text = data.partition(b"\0")
    head = 0
    if kind == b"zTXt":
        head = 1
    elif kind == b"iTXt":
        head = text.find(b"\0", text.find(b"\0", 2) + 1) + 1
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    head_bytes, text = text[:head], text[head:]
    if is_packed:
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(text, TEXT_LIMIT)
        except zlib.error:
            return None
        if unpacker.unconsumed_tail:
            return None
    return _Text(keyword, text, head_bytes, is_packed)


def _clean_profile(text: _Text, found: dict[str, bytes]) -> tuple[bytes, str]:
    """Return the text of a profile in hexadecimal digits without pictures, and what was lost."""
    profile = _read_digits(text.text)
    if profile is None:
        flat = re.sub(rb"[^0-9a-f]", b"", text.text.lower())
        if b"ffd8ff" in flat or blank_text_images(text.text) != text.text:
            return b"", PREVIEW
        return text.text, ""
    name = text.keyword[len(_RAW_PROFILE) :]
    if name in (b"exif", b"APP1") and profile.startswith(EXIF_START):
        exif = blank_exif_previews(profile.removeprefix(EXIF_START))
        found["exif"] = found["exif"] or exif
        cleaned = EXIF_START + exif
    elif name == b"xmp":
        cleaned, _ = clean_xmp(profile)
        found["xmp"] = found["xmp"] or cleaned
    elif name in (b"iptc", b"8bim"):
        cleaned = clean_photoshop(profile)
        found["photoshop"] = cleaned if cleaned[:4] == b"8BIM" else wrap_iptc(cleaned)
    else:
        cleaned = blank_text_images(blank_jpegs(profile))
    if cleaned == profile:
        return text.text, ""
    return _write_digits(name, cleaned), PREVIEW


def _read_digits(text: bytes) -> bytes | None:
    """Return a profile in hexadecimal digits, None for another text."""
    digits = _RAW_TEXT.match(text)
    with suppress(ValueError):
        return bytes.fromhex((digits[2] if digits else b"-").decode())
    return None


def _write_digits(name: bytes, profile: bytes) -> bytes:
    digits = profile.hex().encode()
    lines = (digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"\n%s\n%8d\n" % (name, len(profile)) + b"\n".join(lines) + b"\n"


def drop_location(chunks: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return whole chunks without what names the place."""
    kept = []
    for chunk in chunks:
        kind, data = chunk[4:8], chunk[8:-4]
        if kind == b"eXIf":
            start = EXIF_START if data.startswith(EXIF_START) else b""
            cleaned = blank_location(data.removeprefix(start))
            data = start + cleaned if cleaned else b""
        elif kind in _TEXT:
            data = _drop_text_location(kind, data)
        if data:
            kept.append(chunk if data == chunk[8:-4] else make_png_chunk(kind, data))
    return tuple(kept)


def _drop_text_location(kind: bytes, data: bytes) -> bytes:
    """Return a text without what names the place, nothing where that cannot be told apart."""
    text = _unpack_text(kind, data)
    if text is None or _PLACE_WORDS.search(text.keyword):
        return b""
    cleaned = text.text
    if text.keyword == XMP_KEYWORD:
        cleaned = drop_xmp_location(text.text)
    elif text.keyword.startswith(_RAW_PROFILE):
        cleaned = _drop_profile_location(text)
    if not cleaned or cleaned == text.text:
        return data if cleaned else b""
    packed = zlib.compress(cleaned) if text.is_packed else cleaned
    return text.keyword + b"\0" + text.head + packed


def _drop_profile_location(text: _Text) -> bytes:
    """Return the text of a profile without what names the place, nothing of one of another kind."""
    name, profile = text.keyword[len(_RAW_PROFILE) :], _read_digits(text.text) or b""
    if name in (b"icc", b"icm"):
        return text.text
    if name in (b"exif", b"APP1") and profile.startswith(EXIF_START):
        exif = blank_location(profile.removeprefix(EXIF_START))
        cleaned = EXIF_START + exif if exif else b""
    elif name == b"xmp":
        cleaned = drop_xmp_location(profile)
    elif name in (b"iptc", b"8bim"):
        is_whole = profile.startswith(b"8BIM")
        cleaned = drop_photoshop_location(profile) if is_whole else drop_iptc_location(profile)
    else:
        cleaned = b""
    if cleaned == profile:
        return text.text if profile else b""
    return _write_digits(name, cleaned) if cleaned else b""


def list_texts(chunks: tuple[bytes, ...]) -> list[str]:
    """Return the keywords of texts that another format has no place for."""
    words = (c[8:].partition(b"\0")[0] for c in chunks if c[4:8] in _TEXT)
    kept = (XMP_KEYWORD.title(), COMMENT)
    names = [w.decode("latin-1") for w in words if w.title() not in kept and _RAW_PROFILE not in w]
    return sorted(name for name in set(names) if name.isprintable())


def read_comments(chunks: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return what the texts called `Comment` say, or `comment`, as ImageMagick writes it."""
    texts = (_unpack_text(c[4:8], c[8:-4]) for c in chunks if c[4:8] in _TEXT)
    return tuple(text.text for text in texts if text and text.keyword.title() == COMMENT)


def read_cicp(chunks: tuple[bytes, ...]) -> tuple[int, int]:
    """Return primaries and transfer of `cICP`, 2 where unspecified."""
    data = next((c[8:10] for c in chunks if c[4:8] == b"cICP" and len(c) > 15), b"\2\2")
    return data[0], data[1]


def shows_srgb(chunks: tuple[bytes, ...]) -> bool:
    """Say whether readers that know no other chunk show the colours as sRGB."""
    kinds = {c[4:8]: c[8:-4] for c in chunks}
    if b"sRGB" in kinds:
        return True
    gamma, primaries = kinds.get(b"gAMA", b""), kinds.get(b"cHRM", b"")
    if len(gamma) == 4 and abs(int.from_bytes(gamma, "big") - _SRGB_GAMMA) > 500:
        return False
    if len(primaries) != 32:
        return True
    pairs = zip(struct.unpack(">8I", primaries), _SRGB_PRIMARIES, strict=True)
    return all(abs(found - usual) <= 1_000 for found, usual in pairs)


def make_png_chunks(
    exif: bytes,
    xmp: bytes,
    icc: bytes,
    photoshop: bytes,
    comments: tuple[bytes, ...],
    dpi: tuple[float, float] | None,
    colours: tuple[int, int] | None,
) -> tuple[bytes, ...]:
    """Return chunks for a PNG made from a picture of another format."""
    chunks = []
    if colours:
        chunks.append(make_png_chunk(b"cICP", bytes((*colours, 0, 1))))
    if icc:
        chunks.append(make_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi:
        x, y = (round(density / 0.0254) for density in dpi)
        with suppress(struct.error):
            chunks.append(make_png_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    if exif:
        chunks.append(make_png_chunk(b"eXIf", exif))
    if xmp:
        chunks.append(make_png_chunk(b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + xmp))
    if photoshop:
        packed = zlib.compress(_write_digits(b"iptc", photoshop))
        chunks.append(make_png_chunk(b"zTXt", _RAW_PROFILE + b"iptc\0\0" + packed))
    for comment in comments:
        kind, head = b"tEXt", b"\0"
        if not comment.isascii():
            with suppress(UnicodeDecodeError):
                comment.decode()
                kind, head = b"iTXt", b"\0\0\0\0\0"
        chunks.append(make_png_chunk(kind, COMMENT + head + comment))
    return tuple(chunks)


def splice_png(data: bytes, chunks: tuple[bytes, ...]) -> bytes:
    """Put chunks right after the header of a PNG."""
    header = len(PNG_START) + 25
    return b"".join((data[:header], *chunks, data[header:]))
