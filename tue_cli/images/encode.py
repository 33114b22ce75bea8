"""A protected picture as a file: written as its source was, and read back to see what is left.

A lossy format that loses the protection is tried again, finer. What each format is given besides
the pixels is decided here; `metadata` and `jpeg` know how it is laid out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from PIL import Image

from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.images import avif, bmp, deep, jpeg, metadata, png
from tue_cli.images.codec import DecodedImage, OpenImage, decode, load
from tue_cli.images.coding import (
    DEEP,
    choose_kind,
    explain_alpha,
    list_attempts,
    refuse_unfit,
)
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.extras import has_same_colours
from tue_cli.images.quality import measure_survival
from tue_cli.images.tiff import graft_tags

SURVIVAL_FLOOR: Final = 0.8


@dataclass(frozen=True, eq=False)
class Encoded:
    """A protected picture as a file, and what a reader gets back from that file."""

    data: bytes
    format: str
    survival: float
    """The share of the protection that is left in the file: 1 where it is lossless."""
    notes: tuple[str, ...]
    decoded: DecodedImage
    """`data`, decoded; its pixels and alpha have the shapes of the picture's."""


def encode(
    picture: DecodedImage,
    protected: Pixels,
    *,
    format: str = "keep",
    quality: int | None = None,
) -> Encoded:
    """Write protected pixels (H, W, C) as the picture was written, or as PNG, JPEG or WebP.

    A GIF, which has too few colours for noise, is written as PNG. Pixels under alpha 0 stay the
    picture's own. A lossy format that loses the protection is written again, finer or (WebP)
    lossless, unless `quality` (1..100) is given.

    Raises:
        ImageProblem: alpha, alpha-lost, colour, crop or unwritable.
        ValueError: an unknown format, or one that has not as many bits as the pixels.
    """
    kind = choose_kind(picture.format, format)
    if picture.pixels.dtype == np.uint16 and kind not in DEEP:
        raise ValueError(f"{kind} has 8 bits per channel, the pixels have 16")
    if kind == "JPEG" and picture.alpha is not None:
        raise explain_alpha()
    lost: tuple[str, ...] = ()
    if kind != picture.format:
        beside, lost = metadata.convert(picture.metadata, picture.format, kind)
        picture = replace(picture, metadata=beside)
    if picture.alpha is not None:
        protected = np.where(picture.alpha[..., None] > 0, protected, picture.pixels)
    best: _EncodedFile | None = None
    decoded: DecodedImage | None = None
    attempts = list_attempts(
        picture.coding,
        kind,
        quality,
        same=picture.format == kind,
        has_alpha=picture.alpha is not None,
    )
    for options, note in attempts:
        found, opened = _try_encoding(picture, protected, kind, options, note)
        if best is None or found.survival > best.survival:
            best, decoded = found, None
        if best.survival >= SURVIVAL_FLOOR:
            # Before the pixels are taken from Pillow: large ones are not held three times.
            del protected
            decoded = opened.extract()
            break
        del opened
    assert best is not None
    notes = (*lost, *best.notes)
    if picture.format == "GIF" and format == "keep":
        notes = ("written as PNG, because the few colours of a GIF cannot hold the noise", *notes)
    if best.survival < SURVIVAL_FLOOR:
        notes = (*notes, f"only a part of the noise survives in this {kind}: {best.survival:.0%}")
    with _translate_errors(kind):
        decoded = _restore_shape(picture, kind, decoded or decode(best.data))
    return Encoded(best.data, kind, best.survival, notes, decoded)


def fit_format(picture: DecodedImage, format: str, place: PurePath) -> DecodedImage:
    """Return a picture with as many bits as the format of its copy holds, and a note of that.

    Raises:
        ImageProblem: as `refuse_unfit` does.
    """
    kind, has_ink = choose_kind(picture.format, format), picture.black is not None
    has_alpha = picture.alpha is not None
    refuse_unfit(picture.format, kind, place, has_ink=has_ink, has_alpha=has_alpha)
    if picture.pixels.dtype == np.uint8 or kind in DEEP:
        return picture
    return replace(
        picture,
        pixels=reduce_to_8_bits(picture.pixels),
        alpha=None if picture.alpha is None else reduce_to_8_bits(picture.alpha),
        notes=(*picture.notes, f"reduced to 8 bits per channel, which is all that {kind} holds"),
    )


@dataclass(frozen=True)
class _EncodedFile:
    data: bytes
    survival: float
    notes: tuple[str, ...]


def _try_encoding(
    picture: DecodedImage,
    protected: Pixels,
    kind: str,
    options: dict[str, Any],
    note: str,
) -> tuple[_EncodedFile, OpenImage]:
    """Write a file and read it back, as far as it takes to see what survives."""
    notes = [note] if note else []
    with _translate_errors(kind):
        data = _encode_file(picture, protected, kind, options, notes)
        opened = load(data)
        survival = measure_survival(picture.pixels, protected, opened.read_strips(32))
    return _EncodedFile(data, survival, tuple(notes)), opened


@contextmanager
def _translate_errors(kind: str) -> Iterator[None]:
    """Turn what an encoder raises, or a decoder of its file, into a problem with a reason."""
    try:
        yield
    except (MemoryError, OutOfMemory):
        raise
    except ImageProblem as problem:
        if problem.reason == "alpha-lost":
            raise
        raise ImageProblem(
            "unwritable", f"The copy cannot be written as {kind}: {problem}"
        ) from problem
    except Exception as error:
        raise ImageProblem(
            "unwritable", f"The copy cannot be written as {kind}: {error}"
        ) from error


def _restore_shape(picture: DecodedImage, kind: str, decoded: DecodedImage) -> DecodedImage:
    """Return a copy in the shapes that the picture has.

    Raises:
        ImageProblem: alpha-lost.
    """
    if picture.format == kind in ("HEIF", "JXL"):
        was, now = picture.metadata.icc, decoded.metadata.icc
        options = picture.coding.options
        if (was and not has_same_colours(was, now)) or options != decoded.coding.options != ():
            raise ImageProblem("unwritable", "its colour profile would change. Use --format png.")
    pixels, alpha = decoded.pixels, decoded.alpha
    if picture.pixels.shape[2] == 1 and pixels.shape[2] == 3:
        # WebP has no grayscale: one plane comes back as three equal ones.
        pixels = np.ascontiguousarray(pixels[..., 1:2])
    if picture.alpha is not None:
        # WebP and AVIF leave out an alpha that hides nothing.
        alpha = np.full_like(picture.alpha, 255) if alpha is None else alpha
        if not np.array_equal(alpha, picture.alpha):
            raise ImageProblem("alpha-lost", f"{kind} changed the transparency; use --format png.")
    return replace(decoded, pixels=pixels, alpha=alpha)


def _encode_file(
    picture: DecodedImage,
    protected: Pixels,
    kind: str,
    options: dict[str, Any],
    notes: list[str],
) -> bytes:
    """Return the bytes of a file; where the metadata cannot be written, the pixels still are."""
    beside = picture.metadata
    planes = _stack_planes(picture, protected)
    same = picture.format == kind
    if kind == "PNG":
        chunks = beside.segments if same else metadata.make_png_chunks(beside)
        return png.splice_png(_encode_png(planes, options), chunks)
    if kind == "TIFF":
        return _write_tiff(planes, options, picture, notes)
    image = _make_image(planes, picture)
    if kind == "JPEG":
        segments = beside.segments
        if not same:
            segments, more = jpeg.make_segments(
                beside.exif, beside.xmp, beside.icc, beside.photoshop, beside.comments
            )
            if beside.dpi:
                options = {**options, "dpi": beside.dpi}
            notes.extend(more)
        data = _save_jpeg(image, options)
        if not picture.coding.adobe_marker:
            data = jpeg.drop_adobe_marker(data)
        return jpeg.splice_jpeg(data, segments, keep_jfif=not same)
    if kind == "BMP":
        if picture.alpha is not None or beside.segments:
            return bmp.write(planes, beside.dpi, b"".join(beside.segments))
        # Pillow would make up a resolution.
        return _save_image(image, kind, {"dpi": beside.dpi or (0.0, 0.0)})
    if kind == "AVIF":
        data = _save_image(image, kind, options)
        return avif.write(data, beside.segments, beside.exif, beside.xmp)
    # A grayscale profile does not fit the three channels that WebP makes of one.
    if beside.icc and not (kind == "WEBP" and beside.icc[16:20] == b"GRAY"):
        options = {**options, "icc_profile": beside.icc}
    if beside.xmp:
        options = {**options, "xmp": beside.xmp}
    if beside.exif:
        with suppress(Exception):
            return _save_image(image, kind, {**options, "exif": beside.exif})
        notes.append("EXIF was damaged and could not be copied")
    return _save_image(image, kind, options)


def _stack_planes(picture: DecodedImage, protected: Pixels) -> Pixels:
    """Return all channels of a copy (H, W, C), with the picture's own alpha or black."""
    further = picture.alpha if picture.black is None else picture.black
    return protected if further is None else np.dstack((protected, further))


def _make_image(planes: Pixels, picture: DecodedImage) -> Image.Image:
    if picture.black is not None:
        height, width, _ = planes.shape
        return Image.frombytes("CMYK", (width, height), (~planes).tobytes())
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def _encode_png(planes: Pixels, options: dict[str, Any]) -> bytes:
    if planes.dtype == np.uint16:
        return deep.encode_png(planes)
    image = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
    return _save_image(image, "PNG", options)


def _write_tiff(
    planes: Pixels, options: dict[str, Any], picture: DecodedImage, notes: list[str]
) -> bytes:
    if picture.metadata.icc:
        options = {**options, "icc_profile": picture.metadata.icc}
    predict = picture.coding.predictor == 2 and options["compression"] != "raw"
    if planes.dtype == np.uint16:
        image = deep.pack_rows(planes, predict=predict)
        data = _save_image(image, "TIFF", options)
        data = deep.relabel_tiff(data, planes.shape, predict=predict)
    else:
        if predict:
            options = {**options, "tiffinfo": {317: 2}}
        data = _save_image(_make_image(planes, picture), "TIFF", options)
    with suppress(Exception):
        return graft_tags(data, picture.metadata.exif) if picture.metadata.exif else data
    notes.append("EXIF was damaged and could not be copied")
    return data


def _save_image(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _save_jpeg(image: Image.Image, options: dict[str, Any]) -> bytes:
    try:
        return _save_image(image, "JPEG", options)
    except OSError:
        # Pillow's buffer for such files is too small for noise at the finest quality.
        plain = {"progressive": False, "optimize": False}
        return _save_image(image, "JPEG", {**options, **plain})
