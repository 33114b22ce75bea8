"""One picture: its pixels and all that is needed to write it back; read and decode a file.

Pixels stay in stored order (the orientation tag is copied, not applied). A file that cannot be
protected is an `ImageProblem` with a reason: `sniff` says which. `resize` fits the pixels to
the nets, `encode` writes them back; folders and what was done before are elsewhere.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.images import avif, exif, metadata, sniff
from tue_cli.images.metadata import Metadata
from tue_cli.storage import reading

MAX_PIXELS: Final = 200_000_000
MAX_BYTES: Final = 5 * MAX_PIXELS
STRIP_PIXELS: Final = 1 << 20
"""Pixels that are taken from Pillow at a time."""
FORMATS: Final = {"keep", "png", "jpeg", "webp"}

_SUPPORTED: Final = ".jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo .png .webp .tif .tiff .bmp .avif"
_REFUSED: Final = (
    ".gif .apng .heic .heif .hif .jp2 .j2k .jpf .jpx .jxl .ico .cur .icns .psd .xcf .tga .dds "
    ".ppm .pgm .pbm .pnm .qoi .exr .hdr .svg .eps .dib .pcx .dng .cr2 .cr3 .nef .arw .orf "
    ".rw2 .raf .pef .srw"
)
SUFFIXES: Final = frozenset(f"{_SUPPORTED} {_REFUSED}".split())
"""What counts as a picture in a folder; `decode` tells why one of them cannot be protected."""
UNSUPPORTED: Final = frozenset(_REFUSED.split())
"""Those of them that are never protected."""

_LOSSLESS_TIFF: Final = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd"}
)
# Pillow applies a TIFF's orientation when it loads it; these undo that.
_TURNED_BACK: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Coding:
    """How the source was coded, so that a copy can be coded alike."""

    lossless: bool
    tables: tuple[tuple[int, ...], ...] = ()
    """JPEG quantisation tables, one for each component, equal last ones once."""
    subsampling: int = 0
    progressive: bool = False
    compression: str = "raw"
    predictor: int = 1


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded picture and what is needed to write it back."""

    pixels: NDArray[np.uint8]
    """(H, W, C), C = 3 for RGB or 1 for grayscale, in stored order."""
    alpha: NDArray[np.uint8] | None
    """(H, W)"""
    format: str
    """The source's format, in Pillow's word: JPEG, PNG, WEBP, TIFF, BMP or AVIF."""
    coding: Coding = field(default_factory=lambda: Coding(lossless=True))
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    """What a person should know, such as `palette became RGB`."""


def read(path: Path) -> bytes:
    """Return the bytes of a regular file, never waiting for a pipe or a device.

    Raises:
        ImageProblem: `not-a-file`, `unreadable` or `too-large`.
    """
    try:
        return reading.read_file(path, MAX_BYTES)
    except (reading.NotAFile, IsADirectoryError) as error:
        raise ImageProblem("not-a-file", "This is a folder, a pipe or a device.") from error
    except reading.TooLarge as error:
        raise ImageProblem(
            "too-large", f"The file is larger than {MAX_BYTES:,} bytes, the most that tue reads."
        ) from error
    except FileNotFoundError as error:
        raise ImageProblem("unreadable", "The file does not exist.") from error
    except OSError as error:
        raise ImageProblem("unreadable", f"The file cannot be read: {error.strerror}.") from error


def decode(source: bytes) -> DecodedImage:
    """Decode the bytes of a file; its content decides what it is, not its name.

    Raises:
        ImageProblem: empty, not-a-picture, unsupported, animated, multi-page, 16-bit, cmyk,
            mode, too-large, metadata, memory, truncated or unreadable.
    """
    return load(source).extract()


def load(source: bytes) -> OpenImage:
    """Decode a file and leave its pixels with Pillow, which takes four bytes for three.

    Raises:
        ImageProblem: as `decode` says.
    """
    kind = sniff.sniff_format(source)
    sniff.refuse_tangled(kind, source)
    with _OWN_LIMIT, _translate_errors(kind, source):
        image = Image.open(io.BytesIO(source), formats=[kind])
        if image.width * image.height > MAX_PIXELS:
            raise _explain_too_large()
        sniff.refuse(image, source)
        return OpenImage(image, kind, source)


class OpenImage:
    """A decoded file whose pixels are still Pillow's: to be read in strips, or extracted whole."""

    def __init__(self, image: Image.Image, kind: str, source: bytes) -> None:
        """`image` is one that was not refused, and is loaded here."""
        beside = (image.info.get(name) or b"" for name in ("exif", "xmp", "icc_profile"))
        if sum(map(len, beside)) > exif.MOST_BYTES:
            raise exif.explain_tangled()
        self._image, self._kind, self._source = image, kind, source
        self._notes: list[str] = []
        orientation = getattr(image, "tag_v2", {}).get(exif.ORIENTATION, 1)
        image.load()
        turn = _TURNED_BACK.get(orientation)
        self._plain = _convert_mode(image if turn is None else image.transpose(turn), self._notes)
        if self._plain.mode == "RGBA" and kind == "AVIF" and avif.read(source).is_gray:
            # Beside an alpha channel, Pillow makes three equal channels of one.
            self._plain = self._plain.convert("LA")

    def read_strips(self, rows: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Yield places and pixels (R, W, C) of so many rows at a time, alpha the last channel."""
        width, height = self._plain.size
        for top in range(0, height, rows):
            place = slice(top, min(top + rows, height))
            pixels = np.asarray(self._plain.crop((0, top, width, place.stop)))
            yield place, pixels[..., None] if pixels.ndim == 2 else pixels

    def extract(self) -> DecodedImage:
        """Take the pixels out, and all that is needed to write them back.

        Raises:
            ImageProblem: as `decode` says.
        """
        with _translate_errors(self._kind, self._source):
            return self._extract()

    def _extract(self) -> DecodedImage:
        image, kind, source = self._image, self._kind, self._source
        width, height = self._plain.size
        # Strip by strip: Pillow would take three more bytes a pixel to hand over the whole.
        colours = 1 if self._plain.mode in ("L", "LA") else 3
        pixels = np.empty((height, width, colours), np.uint8)
        alpha = None
        if self._plain.mode in ("LA", "RGBA"):
            alpha = np.empty((height, width), np.uint8)
        for rows, strip in self.read_strips(max(1, STRIP_PIXELS // width)):
            pixels[rows] = strip[..., :colours]
            if alpha is not None:
                alpha[rows] = strip[..., -1]
        notes = list(self._notes)
        if image.format == "MPO":
            notes.append("only the first of several frames was kept")
        if kind == "AVIF" and sniff.is_deep_avif(source):
            notes.append("reduced to 8 bits per channel")
        beside, more = metadata.read_metadata(kind, source, image.info)
        return DecodedImage(
            pixels=pixels,
            alpha=alpha,
            format=kind,
            coding=_read_coding(image, kind, source),
            metadata=beside,
            notes=(*notes, *more),
        )


class _OwnLimit:
    """Gives Pillow tue's limit of pixels while any thread decodes, and then its former one back."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inside = 0
        self._former = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._guard:
            if not self._inside:
                self._former = Image.MAX_IMAGE_PIXELS
                # It refuses above twice its limit.
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._former


_OWN_LIMIT: Final = _OwnLimit()


@contextmanager
def _translate_errors(kind: str, source: bytes) -> Iterator[None]:
    """Turn what a decoder raises into a problem with a reason."""
    try:
        yield
    except ImageProblem:
        raise
    except Image.DecompressionBombError as error:
        raise _explain_too_large() from error
    except MemoryError as error:
        raise OutOfMemory from error
    except Exception as error:
        if sniff.is_truncated(kind, source):
            raise ImageProblem(
                "truncated", f"The {kind} file is incomplete: its end is missing."
            ) from error
        if isinstance(error, UnidentifiedImageError):
            raise ImageProblem(
                "unreadable", f"The header of the {kind} file is damaged."
            ) from error
        raise ImageProblem("unreadable", f"The {kind} file is damaged: {error}") from error


def read_dimensions(source: bytes) -> tuple[int, int]:
    """Return a picture's width and height, by its header alone.

    Raises:
        ImageProblem: what `decode` says of it, as far as the header tells.
    """
    kind = sniff.sniff_format(source)
    sniff.refuse_tangled(kind, source)
    try:
        with _OWN_LIMIT, Image.open(io.BytesIO(source), formats=[kind]) as image:
            sniff.refuse(image, source)
            return image.size
    except ImageProblem:
        raise
    except Image.DecompressionBombError as error:
        raise _explain_too_large() from error
    except Exception as error:
        raise ImageProblem("unreadable", f"The header of the {kind} file is damaged.") from error


def _explain_too_large() -> ImageProblem:
    return ImageProblem(
        "too-large",
        f"The picture has more than {MAX_PIXELS // 10**6:,} megapixels; resize it first.",
    )


def _convert_mode(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the picture as L, LA, RGB or RGBA."""
    if image.mode in ("P", "PA"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        notes.append(f"palette converted to {mode}")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}[image.mode]
        notes.append("transparent colour converted to an alpha channel")
    elif image.mode in ("RGBX", "YCbCr"):
        mode = "RGB"
        notes.append(f"{image.mode} converted to RGB")
    else:
        return image
    return image.convert(mode)


def _read_coding(image: Image.Image, kind: str, source: bytes) -> Coding:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        tables = [tuple(image.quantization[part[3]]) for part in image.layer]
        while len(tables) > 1 and tables[-1] == tables[-2]:
            tables.pop()
        # An arrangement that Pillow cannot write (4:4:0, 4:1:1) gets the finest instead.
        subsampling = max(JpegImagePlugin.get_sampling(image), 0)
        return Coding(False, tuple(tables), subsampling, "progressive" in image.info)
    if kind == "TIFF":
        compression = str(image.info.get("compression", "raw"))
        predictor = getattr(image, "tag_v2", {}).get(317, 1)
        return Coding(compression in _LOSSLESS_TIFF, compression=compression, predictor=predictor)
    if kind == "WEBP":
        return Coding(lossless=sniff.is_lossless_webp(source))
    return Coding(lossless=kind != "AVIF" or avif.read(source).is_lossless)
