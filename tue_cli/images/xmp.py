"""XMP without what shows the original, and without what points to parts that a copy lacks.

Bytes that stay are the bytes that were: properties are cut out of the text, and nothing is written
anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final
from xml.parsers import expat

XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
MORE_XMP: Final = b"http://ns.adobe.com/xmp/extension/\0"
LONGEST: Final = 65_533
"""The most bytes that one segment carries."""
_MORE_HEAD: Final = len(MORE_XMP) + 40
"""Before the text of an extension stand its name in 32 digits, its length and the text's place."""

PREVIEW: Final = "the embedded preview"
VIDEO: Final = "the video of a motion photo"
GAIN_MAP: Final = "the HDR gain map"
DEPTH: Final = "the depth map"
CREDENTIALS: Final = "content credentials (C2PA), which hold only for the original"
"""What a copy cannot have, in a photographer's words; `explain_lost` makes notes of them."""

# Possessive: what could be gone back to would take a hundred bytes for each of the text's.
_BASE64_PICTURE = re.compile(
    rb"(?:/9j/|iVBORw0KGgo|UklGR)(?:[A-Za-z0-9+/=\s]|&#x?[0-9A-Fa-f]+;){64,}+"
)
_ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(\"[^\"]*+\"|'[^']*+')")
_TAG_NAME = re.compile(rb"<[^\s/>]++")

MOST_ELEMENTS: Final = 50_000
"""Of one packet; from more, nothing is cut out."""

_GOOGLE: Final = "http://ns.google.com/photos/"
# Properties about a part behind the end of a JPEG: namespace, how the name begins, what is gone.
_APPENDED: Final = (
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "", GAIN_MAP),
    ("http://ns.apple.com/HDRGainMap/1.0/", "", GAIN_MAP),
    (f"{_GOOGLE}1.0/camera/", "MicroVideo", VIDEO),
    (f"{_GOOGLE}1.0/camera/", "MotionPhoto", VIDEO),
    ("http://ns.oplus.com/photos/1.0/camera/", "MotionPhoto", VIDEO),
    ("http://ns.oplus.com/photos/1.0/camera/", "OLivePhoto", VIDEO),
    ("http://ns.oplus.com/photos/1.0/camera/", "VideoLength", VIDEO),
    (f"{_GOOGLE}1.0/container/", "", ""),
    (f"{_GOOGLE}1.0/container/item/", "", ""),
    (f"{_GOOGLE}dd/1.0/container/", "", ""),
    (f"{_GOOGLE}dd/1.0/item/", "", ""),
    (f"{_GOOGLE}dd/1.0/device/", "", DEPTH),
)
# Properties that hold a picture, whatever the file.
_PICTURES: Final = (
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails", PREVIEW),
    (f"{_GOOGLE}1.0/image/", "", PREVIEW),
    (f"{_GOOGLE}1.0/depthmap/", "", DEPTH),
)
_PLACES: Final = (
    ("http://ns.adobe.com/photoshop/1.0/", "City", ""),
    ("http://ns.adobe.com/photoshop/1.0/", "State", ""),
    ("http://ns.adobe.com/photoshop/1.0/", "Country", ""),
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "Location", ""),
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "CountryCode", ""),
    ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "Location", ""),
    ("http://www.w3.org/2003/01/geo/wgs84_pos#", "", ""),
)
_PLACE_WORDS: Final = re.compile(r"gps|latitude|longitude", re.IGNORECASE)
"""In the name of a property of any namespace, such as that of a drone."""
_TERMS: Final = "http://purl.org/dc/terms/ provenance"
_MANIFEST: Final = re.compile(rb"c2pa|jumbf|cai-manifests")
# What the directory of a container names.
_PARTS: Final = ((b"MotionPhoto", VIDEO), (b"GainMap", GAIN_MAP), (b"Depth", DEPTH))


def explain_lost(lost: Iterable[str]) -> tuple[str, ...]:
    """Return a note for each part that a copy does not have."""
    return tuple(f"left out {part}" for part in sorted(set(lost)))


def blank_text_images(text: bytes) -> bytes:
    """Blank every base64 JPEG, PNG or WebP inside a text such as XMP; the length stays."""
    return _BASE64_PICTURE.sub(lambda found: b" " * len(found[0]), text)


def clean_xmp(xmp: bytes, *, appended: bool = False) -> tuple[bytes, frozenset[str]]:
    """Return a packet without pictures, and what it lost in words.

    With `appended`, properties about the parts of a file of several parts go too. A packet that is
    no sound XML has its pictures blanked, and nothing cut out.
    """
    rules = _PICTURES + (_APPENDED if appended else ())
    finder = _Finder(rules, xmp)
    spaces = (*(space for space, _, _ in rules), _TERMS.partition(" ")[0])
    if not any(space.encode() in xmp for space in spaces) or not finder.parse():
        finder.cuts, finder.lost = [], set()
    cut = finder.cut()
    cleaned = blank_text_images(cut)
    if cleaned != cut:
        finder.lost.add(PREVIEW)
    return cleaned, frozenset(finder.lost)


def drop_location(xmp: bytes) -> bytes:
    """Return a packet without the properties that name a place; nothing of one that is unsound."""
    finder = _Finder(_PLACES, xmp, _PLACE_WORDS)
    return finder.cut() if finder.parse() else b""


def merge_extended(main: bytes, extended: bytes) -> bytes | None:
    """Return one packet of a main one and its extension, None where they do not fit together."""
    inside = re.search(rb"<rdf:RDF[^>]*+>(.*)</rdf:RDF>", extended, re.DOTALL)
    end = main.rfind(b"</rdf:RDF>")
    if inside is None or end < 0:
        return None
    pointer = rb"\s+xmpNote:HasExtendedXMP\s*=\s*(?:\"[^\"]*+\"|'[^']*+')"
    merged = re.sub(pointer, b"", main[:end]) + inside[1] + main[end:]
    try:
        expat.ParserCreate(namespace_separator=" ").Parse(merged.rstrip(b"\0"), True)
    except expat.ExpatError:
        return None
    return merged


def clean_segments(
    found: Sequence[tuple[int, bytes]], clean: Callable[[bytes], tuple[bytes, frozenset[str]]]
) -> tuple[dict[int, bytes | None], frozenset[str]]:
    """Return the cleaned payloads of XMP in a JPEG by index, and what they lost.

    The name of an extension is the MD5 of its text, and the main packet has it too.
    """
    cleaned: dict[int, bytes | None] = {}
    lost: frozenset[str] = frozenset()
    names: dict[bytes, bytes] = {}
    extensions: dict[bytes, list[int]] = {}
    for index, (_, data) in enumerate(found):
        if data.startswith(MORE_XMP) and len(data) >= _MORE_HEAD:
            extensions.setdefault(data[35:67], []).append(index)
    for name, places in extensions.items():
        places.sort(key=lambda index: found[index][1][71:75])
        whole = b"".join(found[index][1][_MORE_HEAD:] for index in places)
        text, more = clean(whole)
        lost |= more
        if text == whole:
            cleaned |= {index: found[index][1] for index in places}
            continue
        names[name] = hashlib.md5(text, usedforsecurity=False).hexdigest().upper().encode()
        parts = _split_extension(names[name], text)
        cleaned |= dict(zip_longest(places, parts[: len(places)]))
    for index, (_, data) in enumerate(found):
        if data.startswith(XMP):
            text, more = clean(data[len(XMP) :])
            for old, new in names.items():
                text = text.replace(old, new)
            cleaned[index], lost = XMP + text, lost | more
    return cleaned, lost


def _split_extension(name: bytes, text: bytes) -> list[bytes]:
    room = LONGEST - _MORE_HEAD
    return [
        b"".join((MORE_XMP, name, *(n.to_bytes(4, "big") for n in (len(text), at)), part))
        for at in range(0, len(text), room)
        for part in (text[at : at + room],)
    ]


def join_xmp(segments: Sequence[bytes]) -> tuple[bytes, bool]:
    """Return the XMP in whole segments as one packet, and whether its extension is in it."""
    main = next((part[4 + len(XMP) :] for part in segments if part[4:].startswith(XMP)), b"")
    more = sorted(
        (part[4 + 71 : 4 + 75], part[4 + _MORE_HEAD :])
        for part in segments
        if part[4:].startswith(MORE_XMP)
    )
    if not more:
        return main, True
    merged = merge_extended(main, b"".join(text for _, text in more))
    return merged or main, merged is not None


class _TooManyElements(Exception):
    pass


class _Finder:
    """Finds from where to where the properties lie that have to go."""

    def __init__(
        self,
        rules: tuple[tuple[str, str, str], ...],
        xmp: bytes,
        words: re.Pattern[str] | None = None,
    ) -> None:
        """Properties go by the rules, or if their name has one of the `words`."""
        self.cuts: list[tuple[int, int]] = []
        self.lost: set[str] = set()
        self._rules, self._xmp, self._words = rules, xmp, words
        self._whole = {space.encode() for space, start, _ in rules if not start}
        self._open: list[tuple[int, str | None]] = []
        self._elements = 0
        self._inside = 0
        """How many of the open elements go."""
        self._ended: tuple[int, str] | None = None
        """The outermost one that was closed just now: it ends where the next event begins."""
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.DefaultHandler = self._close

    def parse(self) -> bool:
        """Say whether this is sound XML in UTF-8, not too long; `cuts` and `lost` are full then."""
        text = self._xmp.rstrip(b"\0")
        if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return False
        try:
            self._parser.Parse(text, True)
        except (expat.ExpatError, UnicodeError, _TooManyElements):
            return False
        self._close()
        return True

    def cut(self) -> bytes:
        """Return the packet without them."""
        kept, at = [], 0
        for start, end in sorted(self.cuts):
            if end > at:
                kept.append(self._xmp[at : max(at, start)])
                at = end
        return b"".join((*kept, self._xmp[at:]))

    def _close(self, _: str = "") -> None:
        if self._ended is not None:
            (start, lost), self._ended = self._ended, None
            end = self._parser.CurrentByteIndex
            text = self._xmp[start:end]
            if lost == CREDENTIALS and not _MANIFEST.search(text):
                return
            self.cuts.append((start, end))
            self.lost.update(name for word, name in _PARTS if word in text)
            self.lost.update((lost,) if lost else ())

    def _judge(self, name: str) -> str | None:
        """Return what is lost with a property, None where it stays."""
        space, _, local = name.rpartition(" ")
        for known, start, lost in self._rules:
            if space == known and local.startswith(start):
                return lost
        return "" if self._words and self._words.search(local) else None

    def _start(self, name: str, attributes: Any) -> None:
        self._close()
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise _TooManyElements
        at = self._parser.CurrentByteIndex
        lost = CREDENTIALS if name == _TERMS else self._judge(name)
        self._open.append((at, lost))
        self._inside += lost is not None
        gone = [self._judge(known) for known in attributes[::2]]
        for index, known in enumerate(attributes[::2]):
            if known == _TERMS and _MANIFEST.search(attributes[2 * index + 1].encode()):
                gone[index] = CREDENTIALS
        self.lost.update(part for part in gone if part)
        self._cut_attributes(at, gone)

    def _cut_attributes(self, start: int, gone: list[str | None]) -> None:
        """Cut attributes out of a tag, `gone` in their order without the declarations of names."""
        tag = _TAG_NAME.match(self._xmp, start)
        at = tag.end() if tag else start
        index = 0
        while found := _ATTRIBUTE.match(self._xmp, at):
            at = found.end()
            if found[1].startswith(b"xmlns"):
                if found[2][1:-1] in self._whole:
                    self.cuts.append(found.span())
                continue
            if index < len(gone) and gone[index] is not None:
                self.cuts.append(found.span())
            index += 1

    def _end(self, _: str) -> None:
        self._close()
        start, lost = self._open.pop()
        if lost is not None:
            self._inside -= 1
            if not self._inside:
                self._ended = start, lost
