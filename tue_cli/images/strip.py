"""What `--strip` takes out of a picture before its copy is written: its location, or all metadata.

What says how the pixels are to be shown always stays: colour, orientation, resolution, crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tue_cli.images import exif, jpeg, png, tiff, xmp
from tue_cli.images.codec import DecodedImage
from tue_cli.images.metadata import Metadata

STRIP: Final = ("none", "gps", "metadata")
_NOTES: Final = {
    "gps": "removed the location, as --strip gps asks",
    "metadata": "removed the metadata, as --strip metadata asks",
}
# Chunks that say how the pixels of a PNG are shown.
_SHOWN: Final = frozenset(b"iCCP sRGB gAMA cHRM cICP mDCV cLLI pHYs sTER sBIT bKGD".split())


def strip(picture: DecodedImage, what: str) -> DecodedImage:
    """Return a picture without its location (`gps`) or its `metadata`, and a note if it had any."""
    if what == "none":
        return picture
    remove = _remove_location if what == "gps" else _remove_metadata
    beside = remove(picture.metadata, picture.format)
    if beside == picture.metadata:
        return picture
    return replace(picture, metadata=beside, notes=(*picture.notes, _NOTES[what]))


def _remove_metadata(beside: Metadata, kind: str) -> Metadata:
    kept, segments = tiff.keep_coding(beside.exif), beside.segments
    if kind == "JPEG":
        own = (jpeg.JFIF, jpeg.PROFILE)
        segments = tuple(part for part in segments if part[4:].startswith(own))
        if kept:
            segments += (jpeg.make_segment(jpeg.APP1, exif.EXIF_START + kept),)
    if kind == "PNG":
        had_exif = any(chunk[4:8] == b"eXIf" for chunk in segments)
        segments = tuple(chunk for chunk in segments if chunk[4:8] in _SHOWN)
        # As a text in digits, which few programs turn by, it does not come back as a chunk.
        segments += (png.make_png_chunk(b"eXIf", kept),) if kept and had_exif else ()
    return replace(beside, exif=kept, xmp=b"", segments=segments, photoshop=b"", comments=())


def _remove_location(beside: Metadata, kind: str) -> Metadata:
    remove = tiff.drop_location if kind == "TIFF" else exif.blank_location
    segments = beside.segments
    if kind == "JPEG":
        segments = _clean_segments(segments)
    if kind == "PNG":
        segments = png.drop_location(segments)
    return replace(
        beside,
        exif=remove(beside.exif),
        xmp=xmp.drop_location(beside.xmp) if beside.xmp else b"",
        segments=segments,
        photoshop=exif.drop_photoshop_location(beside.photoshop),
    )


def _clean_segments(segments: Sequence[bytes]) -> tuple[bytes, ...]:
    found = [(segment[1], segment[4:]) for segment in segments]
    cleaned = jpeg.clean_exif(found, exif.blank_location)
    cleaned |= jpeg.clean_resources(found, exif.drop_photoshop_location)
    cleaned |= xmp.clean_segments(found, lambda text: (xmp.drop_location(text), frozenset()))[0]
    kept = ((mark, cleaned.get(index, data)) for index, (mark, data) in enumerate(found))
    return tuple(
        jpeg.make_segment(mark, data) for mark, data in kept if data not in (None, jpeg.XMP)
    )
