"""A protected picture as a file: written as its source was, and read back to see what is left.

A lossy format that loses the protection is tried again, finer. What each format is given besides
the pixels is decided here; `metadata` and `jpeg` know how it is laid out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.images import avif, bmp, jpeg, metadata, png
from tue_cli.images.codec import FORMATS, DecodedImage, OpenImage, decode, load
from tue_cli.images.tiff import graft_tags

SURVIVAL_FLOOR: Final = 0.8
_SUFFIX_OF: Final = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "AVIF": ".avif",
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """A protected picture as a file, and what a reader gets back from that file."""

    data: bytes
    format: str
    suffix: str
    """The usual extension of the format."""
    survival: float
    """The share of the protection that is left in the file: 1 where it is lossless."""
    notes: tuple[str, ...]
    decoded: DecodedImage
    """`data`, decoded; its pixels and alpha have the shapes of the picture's."""


def encode(
    picture: DecodedImage,
    protected: NDArray[np.uint8],
    *,
    format: str = "keep",
    quality: int | None = None,
) -> Encoded:
    """Write protected pixels (H, W, C) as the picture was written, or as PNG, JPEG or WebP.

    Pixels under alpha 0 stay the picture's own. A lossy format that loses the protection is
    written again, finer or (WebP) lossless, unless `quality` (1..100) is given.

    Raises:
        ImageProblem: alpha, alpha-lost, colour, crop or unwritable.
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"expected one of {sorted(FORMATS)}, found {format!r}")
    kind = picture.format if format == "keep" else format.upper()
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
    for options, note in _list_attempts(picture, kind, quality):
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
    if best.survival < SURVIVAL_FLOOR:
        notes = (*notes, f"only {best.survival:.0%} of the noise survives in this {kind}")
    with _translate_errors(kind):
        decoded = _restore_shape(picture, kind, decoded or decode(best.data))
    return Encoded(best.data, kind, _SUFFIX_OF[kind], best.survival, notes, decoded)


def explain_alpha() -> ImageProblem:
    """Return the problem of a transparent picture whose copy would be a JPEG."""
    return ImageProblem("alpha", "JPEG has no transparency; use --format png or webp.")


def _list_attempts(
    picture: DecodedImage, kind: str, quality: int | None
) -> list[tuple[dict[str, Any], str]]:
    """Return Pillow's options for each try, the preferred first, with a note."""
    coding = picture.coding
    if kind == "JPEG":
        same = picture.format == kind
        own: dict[str, Any] = {"subsampling": coding.subsampling}
        if coding.progressive:
            own["progressive"] = True
        if quality is not None:
            return [({"quality": quality, **own}, "")]
        finer = [_refine(level, {"subsampling": 0}, noted=same) for level in (95, 100)]
        tables = [list(table) for table in coding.tables]
        return [({"qtables": tables, **own}, ""), *finer] if same else finer
    if kind == "TIFF":
        if coding.lossless:
            return [({"compression": coding.compression}, "")]
        note = f"{coding.compression} compression replaced by deflate"
        return [({"compression": "tiff_adobe_deflate"}, note)]
    if kind in ("PNG", "BMP"):
        return [({}, "")]
    own = {"exact": True}
    if kind == "AVIF":
        # Twice as fast as Pillow's 6 for files of the same size and quality.
        gray = picture.pixels.shape[2] == 1
        own = {"subsampling": "4:0:0" if gray else "4:4:4", "speed": 8}
        if picture.alpha is not None:
            own["advanced"] = {"alpha:lossless": "1"}
    if quality is not None:
        return [({"quality": quality, **own}, "")]
    finer = [_refine(level, own, noted=level > 90) for level in (90, 95, 100)]
    if kind == "AVIF" and coding.lossless:
        # Pillow codes brightness and colours apart, which rounds them.
        note = "written at quality 100, not losslessly; use --format png for a lossless copy"
        return [({"quality": 100, **own}, "" if gray else note)]
    if kind == "AVIF":
        return finer
    # Lossy WebP halves the colour channels, whatever the quality.
    lossless = {"lossless": True, **own}
    note = "written losslessly so that the noise survives"
    return [(lossless, "")] if coding.lossless else [*finer, (lossless, note)]


def _refine(level: int, own: dict[str, Any], *, noted: bool) -> tuple[dict[str, Any], str]:
    note = f"written at quality {level} so that the noise survives" if noted else ""
    return {"quality": level, **own}, note


@dataclass(frozen=True)
class _EncodedFile:
    data: bytes
    survival: float
    notes: tuple[str, ...]


def _try_encoding(
    picture: DecodedImage,
    protected: NDArray[np.uint8],
    kind: str,
    options: dict[str, Any],
    note: str,
) -> tuple[_EncodedFile, OpenImage]:
    """Write a file and read it back, as far as it takes to see what survives."""
    notes = [note] if note else []
    with _translate_errors(kind):
        data = _encode_file(picture, protected, kind, options, notes)
        opened = load(data)
        survival = _measure_survival(picture.pixels, protected, opened)
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
    protected: NDArray[np.uint8],
    kind: str,
    options: dict[str, Any],
    notes: list[str],
) -> bytes:
    """Return the bytes of a file; where the metadata cannot be written, the pixels still are."""
    beside = picture.metadata
    planes = protected if picture.alpha is None else np.dstack((protected, picture.alpha))
    image = Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)
    same = picture.format == kind
    if kind == "JPEG":
        segments = beside.segments
        if not same:
            segments, more = jpeg.make_segments(
                beside.exif, beside.xmp, beside.icc, beside.photoshop, beside.comments
            )
            if beside.dpi:
                options = {**options, "dpi": beside.dpi}
            notes.extend(more)
        return jpeg.splice_jpeg(_save_jpeg(image, options), segments, keep_jfif=not same)
    if kind == "PNG":
        chunks = beside.segments if same else metadata.make_png_chunks(beside)
        return png.splice_png(_save_image(image, kind, options), chunks)
    if kind == "BMP":
        if picture.alpha is not None or beside.segments:
            return bmp.write(planes, beside.dpi, b"".join(beside.segments))
        return _save_image(image, kind, {"dpi": beside.dpi} if beside.dpi else {})
    if kind == "AVIF":
        data = _save_image(image, kind, options)
        return avif.write(data, beside.segments, beside.exif, beside.xmp)
    # A grayscale profile does not fit the three channels that WebP makes of one.
    if beside.icc and not (kind == "WEBP" and beside.icc[16:20] == b"GRAY"):
        options = {**options, "icc_profile": beside.icc}
    if kind == "TIFF":
        return _write_tiff(image, options, picture, notes)
    if beside.xmp:
        options = {**options, "xmp": beside.xmp}
    if beside.exif:
        with suppress(Exception):
            return _save_image(image, kind, {**options, "exif": beside.exif})
        notes.append("EXIF was damaged and could not be copied")
    return _save_image(image, kind, options)


def _write_tiff(
    image: Image.Image, options: dict[str, Any], picture: DecodedImage, notes: list[str]
) -> bytes:
    if picture.coding.predictor == 2 and options["compression"] != "raw":
        options = {**options, "tiffinfo": {317: 2}}
    data = _save_image(image, "TIFF", options)
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
        # Pillow's buffer for a progressive file is too small for noise at the finest quality.
        return _save_image(image, "JPEG", {**options, "progressive": False})


def _measure_survival(
    original: NDArray[np.uint8], protected: NDArray[np.uint8], opened: OpenImage
) -> float:
    """Return <d', d> / <d, d>: d is the protection, d' what is left of it in the file.

    Pixels under alpha 0 have d = 0, so they count for nothing.
    """
    left, whole = 0.0, 0.0
    channels = original.shape[2]
    for rows, found in opened.read_strips(32):
        decoded = found[..., 1:2] if channels == 1 and found.shape[2] > 2 else found[..., :channels]
        start = original[rows]
        delta, kept = (
            np.subtract(pixels, start, dtype=np.int16).astype(np.float32).ravel()
            for pixels in (protected[rows], decoded)
        )
        left += float(kept @ delta)
        whole += float(delta @ delta)
    return left / whole if whole else 1.0
