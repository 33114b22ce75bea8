"""tue's mark: a property in the XMP of a copy, by which the copy is known wherever it goes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from tue_cli import __version__
from tue_cli.images import jpeg, metadata, tiff
from tue_cli.images.codec import DecodedImage
from tue_cli.images.encode import Encoded

NAMESPACE: Final = b"urn:uuid:0c8f6f5e-5b0a-4f7e-9d55-6f1b7a3f2c41#"
_MARK: Final = (
    b'<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" rdf:about=""'
    b' xmlns:tue="%b" tue:protected="%b"/>'
) % (NAMESPACE, __version__.encode())
_PACKET: Final = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">%b</rdf:RDF></x:xmpmeta>\n'
    b'<?xpacket end="w"?>'
)
_END: Final = re.compile(rb"</(?:[\w.-]+:)?RDF\s*>")
_PREFIX: Final = re.compile(rb"xmlns:([\w.-]+)\s*=\s*[\"']%b[\"']" % re.escape(NAMESPACE))
_PNG_XMP: Final = b"iTXtXML:com.adobe.xmp\0"


def has_mark(xmp: bytes) -> bool:
    """Say whether a packet of XMP, perhaps written anew by another program, has tue's mark."""
    prefixes = {found[1] for found in _PREFIX.finditer(xmp)}
    return any(re.search(rb"\b%b:protected\b" % re.escape(prefix), xmp) for prefix in prefixes)


def add_mark(xmp: bytes) -> bytes:
    """Return a packet of XMP with tue's mark, a new one for none.

    One that ends in no RDF, or is not written in UTF-8, comes back as it is.
    """
    if not xmp:
        return _PACKET % _MARK
    ends = [found.start() for found in _END.finditer(xmp)]
    return b"".join((xmp[: ends[-1]], _MARK, xmp[ends[-1] :])) if ends else xmp


def prepare(picture: DecodedImage) -> DecodedImage:
    """Return a picture whose copy will have the mark."""
    beside = picture.metadata
    marked, segments = add_mark(beside.xmp), beside.segments
    if picture.format == "JPEG":
        segments = _mark_segments(segments)
    elif picture.format == "PNG":
        others = (chunk for chunk in segments if not chunk[4:].startswith(_PNG_XMP))
        segments = (*others, *metadata.make_png_chunks(metadata.Metadata(xmp=marked)))
    elif picture.format == "TIFF":
        beside = replace(beside, exif=tiff.set_xmp(beside.exif, marked))
    return replace(picture, metadata=replace(beside, xmp=marked, segments=segments))


def complete(encoded: Encoded) -> Encoded:
    """Return a copy with the mark, or with a note where its file has no place for one."""
    if has_mark(encoded.decoded.metadata.xmp):
        return encoded
    note = f"the mark could not be written into the metadata of this {encoded.format}"
    return replace(encoded, notes=(*encoded.notes, note))


def _mark_segments(segments: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the segments of a JPEG with the mark in the first that holds XMP, or in a new one."""
    starts = [segment[4:].startswith(jpeg.XMP) for segment in segments]
    place = starts.index(True) if True in starts else len(segments)
    xmp = b"".join(segments[place : place + 1])[4 + len(jpeg.XMP) :]
    payload = jpeg.XMP + add_mark(xmp)
    if len(payload) > jpeg.LONGEST:
        return segments
    return (*segments[:place], jpeg.make_segment(jpeg.APP1, payload), *segments[place + 1 :])
