"""One picture: its pixels and all that is needed to write it back; read and decode a file.

Pixels stay in stored order (the orientation tag is copied, not applied). A file that cannot be
protected is an `ImageProblem` with a reason: `sniff` says which. `resize` fits the pixels to
the nets, `encode` writes them back; folders and what was done before are elsewhere.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tue_cli.errors import ImageProblem, OutOfMemory
from tue_cli.images import avif, deep, exif, extras, jpeg, metadata, sniff
from tue_cli.images.coding import Coding, convert_mode, find_turn, read_coding
from tue_cli.images.deep import Pixels
from tue_cli.images.metadata import Metadata
from tue_cli.images.xmp import PREVIEW, explain_lost
from tue_cli.storage import reading

MAX_PIXELS: Final = 200_000_000
MAX_BYTES: Final = 5 * MAX_PIXELS
STRIP_PIXELS: Final = 1 << 20
"""Pixels that are taken from Pillow at a time."""

_SUPPORTED: Final = (
    ".jpg .jpeg .jpe .jfif .pjpeg .pjp .mpo .png .webp .tif .tiff .bmp .avif .gif .heic .heif .hif "
    ".jxl"
)
_REFUSED: Final = (
    ".apng .jp2 .j2k .jpf .jpx .ico .cur .icns .psd .xcf .tga .dds .ppm .pgm .pbm .pnm .qoi .exr "
    ".hdr .svg .eps .dib .pcx"
)
UNSUPPORTED: Final = sniff.RAW_SUFFIXES | extras.MISSING_SUFFIXES | frozenset(_REFUSED.split())
"""Endings of pictures that are never protected."""
YIELDING: Final = UNSUPPORTED | {".gif", ".heic", ".heif", ".hif"}
"""Endings of pictures that often lie beside a JPEG of the same name, which comes first."""
SUFFIXES: Final = UNSUPPORTED | frozenset(_SUPPORTED.split())
"""What counts as a picture in a folder; `decode` tells why one of them cannot be protected."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded picture and what is needed to write it back."""

    pixels: Pixels
    """(H, W, C), C = 3 for RGB or 1 for grayscale, in stored order; of CMYK, 255 less the ink of
    the first three."""
    alpha: Pixels | None
    """(H, W), with as many bits as the pixels"""
    format: str
    """The source's format, in Pillow's word: JPEG, PNG, WEBP, TIFF, BMP, AVIF, GIF, HEIF or JXL."""
    coding: Coding = field(default_factory=lambda: Coding(lossless=True))
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    """What a person should know, such as `palette became RGB`."""
    black: Pixels | None = None
    """(H, W), of CMYK: 255 less the black ink"""

    @property
    def shown(self) -> Pixels:
        """(H, W, C), what a viewer shows: the pixels, or of CMYK its plain rendering as RGB."""
        if self.black is None:
            return self.pixels
        shown = np.empty_like(self.pixels)
        for top in range(0, len(shown), 128):
            rows = slice(top, top + 128)
            lit = self.pixels[rows].astype(np.uint16) * self.black[rows, :, None]
            shown[rows] = (lit + np.uint16(127)) // np.uint16(255)
        return shown


def read(path: Path) -> bytes:
    """Return the bytes of a regular file, never waiting for a pipe or a device.

    Raises:
        ImageProblem: `not-a-file`, `unreadable`, `too-large`, or `unsupported`: a camera raw file
            by its name.
    """
    try:
        source = reading.read_file(path, MAX_BYTES)
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
    sniff.refuse_raw(path.suffix, source)
    return source


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
    notes: list[str] = []
    with _OWN_LIMIT, _translate_errors(kind, source):
        if kind == "JPEG" and jpeg.is_truncated(source) and jpeg.is_one_scan(source):
            source = jpeg.complete(source)
            notes.append("the end marker was missing and was added")
        image = _open(kind, source)
        if image.width * image.height > MAX_PIXELS:
            raise _explain_too_large()
        sniff.refuse(image, source)
        return OpenImage(image, kind, source, notes)


def _open(kind: str, source: bytes) -> ImageFile.ImageFile:
    """Open a file with Pillow, or with the package that its format needs.

    Raises:
        ImageProblem: `unsupported`: that package is not installed.
    """
    extras.load_plugin(kind)
    if kind == "JXL":
        header = extras.refuse_jxl(source)
        if header.width * header.height > MAX_PIXELS:
            raise _explain_too_large()
    return Image.open(io.BytesIO(source), formats=[kind])


class OpenImage:
    """A decoded file whose pixels are still Pillow's: to be read in strips, or extracted whole."""

    def __init__(
        self, image: ImageFile.ImageFile, kind: str, source: bytes, notes: Sequence[str] = ()
    ) -> None:
        """`image` is one that was not refused, and is loaded here."""
        beside = (image.info.get(name) or b"" for name in ("exif", "xmp", "icc_profile"))
        if sum(map(len, beside)) > exif.MOST_BYTES:
            raise exif.explain_tangled()
        self._image, self._kind, self._source = image, kind, source
        self._notes = list(notes)
        turn = find_turn(image)
        self._planes: NDArray[np.uint16] | None = None
        if deep.is_deep(image):
            self._planes = deep.read_planes(image, lambda: _open(kind, source), turn)
            if "transparency" in image.info:
                self._planes = deep.make_transparent(self._planes, image.info["transparency"])
                self._notes.append("transparent colour converted to an alpha channel")
            return
        image.load()
        self._plain = convert_mode(image if turn is None else image.transpose(turn), self._notes)
        if self._plain.mode == "RGBA" and kind == "AVIF" and avif.read(source).is_gray:
            # Beside an alpha channel, Pillow makes three equal channels of one.
            self._plain = self._plain.convert("LA")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels: alpha or the black of CMYK is the second or fourth."""
        if self._planes is not None:
            height, width, channels = self._planes.shape
            return height, width, channels
        return self._plain.height, self._plain.width, len(self._plain.getbands())

    def read_strips(self, rows: int) -> Iterator[tuple[slice, Pixels]]:
        """Yield places and pixels (R, W, C) of so many rows at a time, with all their channels.

        Those of CMYK are 255 less the ink.
        """
        height, width, _ = self.shape
        for top in range(0, height, rows):
            place = slice(top, min(top + rows, height))
            if self._planes is not None:
                yield place, self._planes[place]
                continue
            pixels = np.asarray(self._plain.crop((0, top, width, place.stop)))
            if self._plain.mode == "CMYK":
                pixels = ~pixels
            yield place, pixels[..., None] if pixels.ndim == 2 else pixels

    def extract(self) -> DecodedImage:
        """Take the pixels out, and all that is needed to write them back.

        Raises:
            ImageProblem: as `decode` says.
        """
        with _translate_errors(self._kind, self._source):
            return self._extract()

    def _take_pixels(self) -> tuple[Pixels, Pixels | None]:
        """Return the colours (H, W, C) and, where there is a further channel, that (H, W)."""
        height, width, channels = self.shape
        colours = 1 if channels < 3 else 3
        if self._planes is not None and channels == colours:
            return self._planes, None
        # Strip by strip: Pillow would take three more bytes a pixel to hand over the whole.
        kind = np.uint8 if self._planes is None else np.uint16
        pixels: Pixels = np.empty((height, width, colours), kind)
        beside: Pixels | None = None
        if channels > colours:
            beside = np.empty((height, width), kind)
        for rows, strip in self.read_strips(max(1, STRIP_PIXELS // width)):
            pixels[rows] = strip[..., :colours]
            if beside is not None:
                beside[rows] = strip[..., -1]
        return pixels, beside

    def _extract(self) -> DecodedImage:
        image, kind, source = self._image, self._kind, self._source
        pixels, beside = self._take_pixels()
        is_cmyk = image.mode == "CMYK"
        notes = list(self._notes)
        if kind in ("HEIF", "GIF"):
            notes += extras.describe_left_out(image, source)
        if kind == "TIFF" and getattr(image, "is_animated", False):
            notes += explain_lost([PREVIEW])
        if image.format == "MPO":
            notes.append("only the first of several frames was kept")
        if kind == "AVIF" and sniff.is_deep_avif(source):
            notes.append("reduced to 8 bits per channel")
        info = dict(image.info)
        if kind == "JXL":
            info["xmp"], boxes = extras.read_jxl_boxes(source)
            notes += boxes
        described, more = metadata.read_metadata(kind, source, info)
        return DecodedImage(
            pixels=pixels,
            alpha=None if is_cmyk else beside,
            black=beside if is_cmyk else None,
            format=kind,
            coding=read_coding(image, kind, source),
            metadata=described,
            notes=tuple(dict.fromkeys((*notes, *more))),
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
        # Of a BMP, only the header can be wrong.
        if isinstance(error, UnidentifiedImageError) or kind == "BMP":
            raise sniff.explain_header(kind, source) from error
        raise ImageProblem("unreadable", f"The {kind} file is damaged: {error}") from error


def read_dimensions(source: bytes) -> tuple[int, int]:
    """Return a picture's width and height, by its header alone.

    Raises:
        ImageProblem: what `decode` says of it, as far as the header tells.
    """
    kind = sniff.sniff_format(source)
    sniff.refuse_tangled(kind, source)
    try:
        with _OWN_LIMIT, _open(kind, source) as image:
            sniff.refuse(image, source)
            return image.size
    except ImageProblem:
        raise
    except Image.DecompressionBombError as error:
        raise _explain_too_large() from error
    except Exception as error:
        raise sniff.explain_header(kind, source) from error


def _explain_too_large() -> ImageProblem:
    return ImageProblem(
        "too-large",
        f"The picture has more than {MAX_PIXELS // 10**6:,} megapixels; resize it first.",
    )
