"""Pictures in and out: decode, shrink, lift, encode, and write whole or not at all.

Pixels stay in stored order (the orientation tag is copied, not applied). A file that cannot be
protected is a `PictureProblem` with a reason. Folders and what was done before are elsewhere.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from tue_cli.errors import PictureProblem
from tue_cli.files import jpeg, metadata
from tue_cli.files.metadata import Metadata

MAX_PIXELS: Final = 200_000_000
MAX_BYTES: Final = 5 * MAX_PIXELS
SURVIVAL_FLOOR: Final = 0.8
STRIP: Final = 128
"""Rows that `lift` works on at a time."""
FORMATS: Final = {"keep", "png", "jpeg", "webp"}

# Pillow refuses above twice its limit and warns above it; `decode` says it in its own words.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_SUPPORTED: Final = ".jpg .jpeg .jpe .jfif .mpo .png .webp .tif .tiff .bmp .avif"
_REFUSED: Final = (
    ".gif .apng .heic .heif .hif .jp2 .j2k .jpf .jpx .jxl .ico .cur .icns .psd .xcf .tga .dds "
    ".ppm .pgm .pbm .pnm .qoi .exr .hdr .svg .eps .dib .pcx .dng .cr2 .cr3 .nef .arw .orf "
    ".rw2 .raf .pef .srw"
)
SUFFIXES: Final = frozenset(f"{_SUPPORTED} {_REFUSED}".split())
"""What counts as a picture in a folder; `decode` tells why one of them cannot be protected."""

_SUFFIX_OF: Final = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "AVIF": ".avif",
}
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (metadata.PNG_START, "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_UNSUPPORTED: Final = (
    (b"GIF8", "a GIF"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"icns", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"gimp xcf", "a GIMP document"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"P4", "a Netpbm picture"),
    (b"P5", "a Netpbm picture"),
    (b"P6", "a Netpbm picture"),
    (b"P7", "a Netpbm picture"),
    (b"\x01\xda", "an SGI picture"),
    (b"BLP", "a BLP texture"),
    (b"FUJIFILMCCD-RAW", "a camera raw file"),
    (b"IIRO", "a camera raw file"),
    (b"IIU\0", "a camera raw file"),
)
_LOSSLESS_TIFF: Final = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd"}
)
# Pillow turns a TIFF upright when it loads it; these turn it back.
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
class Picture:
    """A decoded picture and what is needed to write it back."""

    pixels: NDArray[np.uint8]
    """(H, W, C), C = 3 for RGB or 1 for grey, in stored order."""
    alpha: NDArray[np.uint8] | None
    """(H, W)"""
    format: str
    """The source's format, in Pillow's word: JPEG, PNG, WEBP, TIFF, BMP or AVIF."""
    coding: Coding = field(default_factory=lambda: Coding(lossless=True))
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    """What a person should know, such as `palette became RGB`."""


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
    decoded: Picture
    """`data`, decoded; its pixels and alpha have the shapes of the picture's."""


def read(path: Path) -> bytes:
    """Return the bytes of a regular file, never waiting for a pipe or a device.

    Raises:
        PictureProblem: `not-a-file`, `unreadable` or `too-large`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PictureProblem("not-a-file", "Not a regular file.")
            source = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise PictureProblem("not-a-file", "A folder, not a file.") from error
    except OSError as error:
        raise PictureProblem("unreadable", f"Cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PictureProblem("unreadable", "The path holds a zero byte.") from error
    if len(source) > MAX_BYTES:
        raise PictureProblem("too-large", f"The file has more than {MAX_BYTES:,} bytes.")
    return source


def decode(source: bytes) -> Picture:
    """Decode the bytes of a file; its content decides what it is, not its name.

    Raises:
        PictureProblem: empty, not-a-picture, unsupported, animated, multi-page, 16-bit, cmyk,
            mode, too-large, truncated or unreadable.
    """
    kind = _recognise(source)
    try:
        with Image.open(io.BytesIO(source), formats=[kind]) as image:
            _refuse(image, source)
            return _picture(image, kind, source)
    except PictureProblem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise _too_large() from error
    except Exception as error:
        if _cut_short(kind, source):
            raise PictureProblem("truncated", f"The {kind} ends too early.") from error
        if isinstance(error, UnidentifiedImageError):
            raise PictureProblem("unreadable", f"The header of the {kind} is damaged.") from error
        raise PictureProblem("unreadable", f"The {kind} is damaged: {error}") from error


def _too_large() -> PictureProblem:
    return PictureProblem("too-large", f"More than {MAX_PIXELS:,} pixels; scale it down first.")


def _recognise(source: bytes) -> str:
    """Return Pillow's word for the format that the first bytes speak of."""
    if not source:
        raise PictureProblem("empty", "The file is empty.")
    if source[:4] == b"RIFF" and source[8:12] == b"WEBP":
        return "WEBP"
    if source[4:8] == b"ftyp":
        length = int.from_bytes(source[:4], "big")
        brands = {source[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        _refuse_kind("a camera raw file" if b"crx " in brands else "a HEIC or a video")
    for start, kind in _SIGNATURES:
        if source.startswith(start):
            if kind == "TIFF" and source[8:10] == b"CR":
                _refuse_kind("a camera raw file")
            return kind
    for start, name in _UNSUPPORTED:
        if source.startswith(start):
            if name == "a GIF":
                _refuse_moving_gif(source)
            _refuse_kind(name)
    raise PictureProblem("not-a-picture", "The content is not that of a picture.")


def _refuse_kind(name: str) -> None:
    raise PictureProblem("unsupported", f"This is {name}; export it to PNG, TIFF or JPEG first.")


def _refuse_moving_gif(source: bytes) -> None:
    moves = False
    with suppress(Exception), Image.open(io.BytesIO(source), formats=["GIF"]) as image:
        moves = bool(getattr(image, "is_animated", False))
    if moves:
        raise PictureProblem("animated", "This is a moving picture; only stills are protected.")


def _refuse(image: Image.Image, source: bytes) -> None:
    """Raise for what is sound but cannot be protected, before any pixel is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    tags = getattr(image, "tag_v2", {})
    if 50706 in tags or tags.get(254, 0) == 1:
        _refuse_kind("a camera raw file")
    # A JPEG's further frames are previews and depth maps: left out, not refused.
    if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
        if image.format == "TIFF":
            raise PictureProblem("multi-page", "Has several pages; save each as a file first.")
        raise PictureProblem("animated", "This is a moving picture; only stills are protected.")
    if image.mode == "CMYK":
        raise PictureProblem("cmyk", "Has CMYK colours; convert it to RGB first.")
    deep = source[24] == 16 if image.format == "PNG" else max(tags.get(258, (8,))) > 8
    if image.mode.startswith("I") or (deep and image.mode != "F"):
        raise PictureProblem("16-bit", "Has more than 8 bits a channel; save it with 8 first.")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "P", "PA", "YCbCr"):
        name = {"1": "black-and-white", "F": "floating-point"}.get(image.mode, image.mode)
        raise PictureProblem("mode", f"Has {name} pixels; convert it to RGB or grey first.")


def _picture(image: Image.Image, kind: str, source: bytes) -> Picture:
    """Load an image that was not refused."""
    notes: list[str] = []
    exif = metadata.tiff_exif(image) if kind == "TIFF" else b""
    orientation = getattr(image, "tag_v2", {}).get(metadata.ORIENTATION, 1)
    image.load()
    stored = image.transpose(_TURNED_BACK[orientation]) if orientation in _TURNED_BACK else image
    plain = _plain(stored, notes)
    pixels = np.asarray(plain)
    alpha = None
    if plain.mode in ("LA", "RGBA"):
        alpha = np.ascontiguousarray(pixels[..., -1])
        pixels = pixels[..., :-1]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    blocks: tuple[bytes, ...] = ()
    more: tuple[str, ...] = ()
    if kind == "JPEG":
        blocks, more = jpeg.blocks_of_jpeg(source)
        exif = jpeg.exif_of(blocks)
        if image.format == "MPO":
            notes.append("only the first of several frames was kept")
    elif kind == "PNG":
        blocks, more = metadata.blocks_of_png(source)
    if kind == "AVIF" and _is_deep_avif(source):
        notes.append("more than 8 bits a channel became 8")
    info = image.info
    if not exif and kind != "JPEG":
        exif = metadata.without_exif_previews(info.get("exif", b"").removeprefix(b"Exif\0\0"))
    xmp = info.get("xmp") or b""
    dpi = info.get("dpi")
    return Picture(
        pixels=np.ascontiguousarray(pixels),
        alpha=alpha,
        format=kind,
        coding=_coding(image, kind, source),
        metadata=Metadata(
            exif=exif,
            icc=info.get("icc_profile") or b"",
            xmp=metadata.without_text_pictures(xmp.encode() if isinstance(xmp, str) else xmp),
            dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
            blocks=blocks,
        ),
        notes=(*notes, *more),
    )


def _plain(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the picture as L, LA, RGB or RGBA."""
    if image.mode in ("P", "PA"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        notes.append(f"palette became {mode}")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}[image.mode]
        notes.append("transparent colour became an alpha channel")
    elif image.mode in ("RGBX", "YCbCr"):
        mode = "RGB"
        notes.append(f"{image.mode} became RGB")
    else:
        return image
    return image.convert(mode)


def _coding(image: Image.Image, kind: str, source: bytes) -> Coding:
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
        return Coding(lossless=_is_lossless_webp(source))
    return Coding(lossless=kind != "AVIF")


def _is_lossless_webp(source: bytes) -> bool:
    at = 12
    while at + 8 <= len(source):
        kind = source[at : at + 4]
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        # A frame's own chunks follow its 16 bytes of header.
        size = 16 if kind == b"ANMF" else int.from_bytes(source[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def _is_deep_avif(source: bytes) -> bool:
    at = source.find(b"av1C")
    return at >= 0 and len(source) > at + 6 and bool(source[at + 6] & 0x40)


def _cut_short(kind: str, source: bytes) -> bool:
    """Say whether the file ends before its own structure says so."""
    if kind == "JPEG":
        return jpeg.cut_short(source)
    if kind == "PNG":
        return all(chunk != b"IEND" for chunk, _ in metadata.png_chunks(source))
    if kind == "WEBP":
        return len(source) < 8 + int.from_bytes(source[4:8], "little")
    if kind == "BMP":
        return len(source) < int.from_bytes(source[2:6], "little")
    if kind == "AVIF":
        at = 0
        while (size := int.from_bytes(source[at : at + 4], "big")) > 0 and at < len(source):
            at += size
        return at > len(source)
    return _tiff_cut_short(source)


def _tiff_cut_short(source: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(source), formats=["TIFF"]) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            pairs = [(tags.get(a, ()), tags.get(b, ())) for a, b in ((273, 279), (324, 325))]
    except Exception:
        return int.from_bytes(source[4:8], "little" if source[:1] == b"I" else "big") >= len(source)
    return any(
        start + length > len(source)
        for starts, lengths in pairs
        for start, length in zip(starts, lengths, strict=False)
    )


def shrink(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Squash a picture (H, W, C) to a square (3, size, size) in [0, 1], antialiased."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    planes = np.asarray(small, dtype=np.float32) / np.float32(255)
    if planes.ndim == 2:
        return np.repeat(planes[None], 3, axis=0)
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


def lift(delta: NDArray[np.float32], pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """Add `delta` (3, s, s), in units of [0, 1], to a picture (H, W, C) of any size.

    Bicubic; no level moves by more than floor(radius * 255), and none leaves 0..255.
    """
    height, width, channels = pixels.shape
    bound = np.float32(math.floor(radius * 255 + 1e-6))
    planes = delta.mean(axis=0, keepdims=True) if channels == 1 else delta
    lifted = np.empty_like(pixels)
    scale = planes.shape[1] / height
    for channel in range(channels):
        small = np.asarray(planes[channel], dtype=np.float32) * np.float32(255)
        image = Image.fromarray(small)
        # A strip at a time stays in the cache, which is three times faster at 100 megapixels.
        for top in range(0, height, STRIP):
            rows = slice(top, min(top + STRIP, height))
            if small.shape == (height, width):
                levels = small[rows]
            else:
                box = (0, rows.start * scale, small.shape[1], rows.stop * scale)
                size = (width, rows.stop - rows.start)
                levels = np.array(image.resize(size, Image.Resampling.BICUBIC, box))
            np.rint(levels, out=levels)
            np.clip(levels, -bound, bound, out=levels)
            levels += pixels[rows, :, channel]
            np.clip(levels, 0, 255, out=levels)
            lifted[rows, :, channel] = levels
    return lifted


def encode(
    picture: Picture,
    protected: NDArray[np.uint8],
    *,
    format: str = "keep",
    quality: int | None = None,
) -> Encoded:
    """Write protected pixels (H, W, C) as the picture was written, or as PNG, JPEG or WebP.

    Pixels under alpha 0 stay the picture's own. A lossy format that loses the protection is
    written again, finer, unless `quality` (1..100) is given.

    Raises:
        PictureProblem: alpha, alpha-lost or unwritable.
        ValueError: an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"expected one of {sorted(FORMATS)}, found {format!r}")
    kind = picture.format if format == "keep" else format.upper()
    if kind == "JPEG" and picture.alpha is not None:
        raise PictureProblem("alpha", "JPEG has no transparency; use --format png or webp.")
    if picture.alpha is not None:
        protected = np.where(picture.alpha[..., None] > 0, protected, picture.pixels)
    best: Encoded | None = None
    for options, note in _attempts(picture, kind, quality):
        found = _encoded(picture, protected, kind, options, note)
        if best is None or found.survival > best.survival:
            best = found
        if best.survival >= SURVIVAL_FLOOR:
            break
    assert best is not None
    if best.survival < SURVIVAL_FLOOR:
        note = f"only {best.survival:.0%} of the protection survives in this {kind}"
        best = replace(best, notes=(*best.notes, note))
    return best


def _attempts(picture: Picture, kind: str, quality: int | None) -> list[tuple[dict[str, Any], str]]:
    """Return Pillow's options for each try, the preferred first, with a note."""
    coding = picture.coding
    same = picture.format == kind
    own: dict[str, Any]
    if kind == "JPEG":
        progressive = {"progressive": True} if same and coding.progressive else {}
        if quality is not None:
            own = {"subsampling": coding.subsampling if same else 0}
            return [({"quality": quality, **own, **progressive}, "")]
        finer = [_finer(level, {"subsampling": 0}, noted=same) for level in (95, 100)]
        if not same:
            return finer
        tables = {"qtables": [list(table) for table in coding.tables]}
        return [({**tables, "subsampling": coding.subsampling, **progressive}, ""), *finer]
    if kind == "WEBP":
        if quality is None and coding.lossless:
            return [({"lossless": True, "exact": True}, "")]
        own = {"exact": True}
    elif kind == "AVIF":
        # Twice as fast as Pillow's 6 for files of the same size and quality.
        own = {"subsampling": "4:4:4", "speed": 8}
        if picture.alpha is not None:
            own["advanced"] = {"alpha:lossless": "1"}
    elif kind == "TIFF":
        if not coding.lossless:
            note = f"{coding.compression} compression became deflate"
            return [({"compression": "tiff_adobe_deflate"}, note)]
        return [({"compression": coding.compression}, "")]
    else:
        return [({}, "")]
    if quality is not None:
        return [({"quality": quality, **own}, "")]
    return [_finer(level, own, noted=level > 90) for level in (90, 95, 100)]


def _finer(level: int, own: dict[str, Any], *, noted: bool) -> tuple[dict[str, Any], str]:
    note = f"written at quality {level} so that the protection survives" if noted else ""
    return {"quality": level, **own}, note


def _encoded(
    picture: Picture,
    protected: NDArray[np.uint8],
    kind: str,
    options: dict[str, Any],
    note: str,
) -> Encoded:
    notes = [note] if note else []
    try:
        data = _written(picture, protected, kind, options, notes)
        decoded = decode(data)
    except Exception as error:
        raise PictureProblem("unwritable", f"Cannot be written as {kind}: {error}") from error
    pixels, alpha = decoded.pixels, decoded.alpha
    if picture.pixels.shape[2] == 1 and pixels.shape[2] == 3:
        # WebP has no grey: what was one plane comes back as three alike.
        pixels = np.ascontiguousarray(pixels[..., 1:2])
    if picture.alpha is not None:
        # WebP and AVIF leave out an alpha that hides nothing.
        alpha = np.full_like(picture.alpha, 255) if alpha is None else alpha
        if not np.array_equal(alpha, picture.alpha):
            raise PictureProblem("alpha-lost", f"{kind} changed the transparency; use png.")
    decoded = replace(decoded, pixels=pixels, alpha=alpha)
    survival = _survival(picture.pixels, protected, pixels)
    return Encoded(data, kind, _SUFFIX_OF[kind], survival, tuple(notes), decoded)


def _written(
    picture: Picture,
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
        blocks, more = (beside.blocks, ()) if same else jpeg.blocks_for_jpeg(beside)
        notes.extend(more)
        if not same and beside.dpi:
            options = {**options, "dpi": beside.dpi}
        return jpeg.spliced_jpeg(_saved_jpeg(image, options), blocks, keep_jfif=not same)
    if kind == "PNG":
        blocks = beside.blocks if same else metadata.blocks_for_png(beside)
        return metadata.spliced_png(_saved(image, kind, options), blocks)
    if kind == "BMP":
        if picture.alpha is not None:
            return _bmp_with_alpha(planes, beside)
        return _saved(image, kind, {"dpi": beside.dpi} if beside.dpi else {})
    # A grey profile says nothing about the three channels that WebP makes of a grey picture.
    if beside.icc and not (kind == "WEBP" and beside.icc[16:20] == b"GRAY"):
        options = {**options, "icc_profile": beside.icc}
    if kind == "TIFF":
        return _written_tiff(image, options, picture, notes)
    if beside.xmp:
        options = {**options, "xmp": beside.xmp}
    if beside.exif:
        with suppress(Exception):
            return _saved(image, kind, {**options, "exif": beside.exif})
        notes.append("EXIF was damaged and could not be copied")
    return _saved(image, kind, options)


def _written_tiff(
    image: Image.Image, options: dict[str, Any], picture: Picture, notes: list[str]
) -> bytes:
    tags, directories = metadata.tiff_tags(picture.metadata.exif)
    if picture.coding.predictor == 2 and options["compression"] != "raw":
        tags[317] = 2
    data = _saved(image, "TIFF", {**options, "exif": tags})
    try:
        return metadata.tiff_with_directories(data, directories)
    except Exception:
        notes.append("EXIF was damaged and could not be copied")
        return data


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _saved_jpeg(image: Image.Image, options: dict[str, Any]) -> bytes:
    try:
        return _saved(image, "JPEG", options)
    except OSError:
        # Pillow's buffer for a progressive file is too small for noise at the finest quality.
        return _saved(image, "JPEG", {**options, "progressive": False})


def _bmp_with_alpha(planes: NDArray[np.uint8], beside: Metadata) -> bytes:
    """Return a BMP with a version 4 header: Pillow's own BMP writer drops the alpha channel."""
    height, width, _ = planes.shape
    x, y = (round(density / 0.0254) for density in beside.dpi or (0.0, 0.0))
    body = planes[::-1, :, (2, 1, 0, 3)].tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), x, y, 0, 0)
    header += struct.pack("<4I4s", *masks, b"BGRs") + bytes(48)
    start = 14 + len(header)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header + body


def _survival(
    original: NDArray[np.uint8], protected: NDArray[np.uint8], decoded: NDArray[np.uint8]
) -> float:
    """Return <d', d> / <d, d>: d is the protection, d' what is left of it in the file.

    Pixels under alpha 0 have d = 0, so they count for nothing.
    """
    left, whole = 0.0, 0.0
    for top in range(0, len(original), 32):
        rows = slice(top, top + 32)
        start = original[rows]
        delta, kept = (
            np.subtract(pixels[rows], start, dtype=np.int16).astype(np.float32).ravel()
            for pixels in (protected, decoded)
        )
        left += float(kept @ delta)
        whole += float(delta @ delta)
    return left / whole if whole else 1.0


def write_whole(data: bytes, path: Path, scratch: Path, mtime_ns: int | None) -> None:
    """Write a file so that it appears whole or not at all.

    `scratch` is a path on the same file system; it is gone afterwards, whatever happens.

    Raises:
        OSError: as the file system gave it.
    """
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mtime_ns is not None:
            os.utime(scratch, ns=(mtime_ns, mtime_ns))
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise
