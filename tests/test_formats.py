"""Formats beside the common ones: 16 bits, CMYK, GIF, HEIC, JPEG XL, and what is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin
from skimage import data as bundled

from tue_cli.check.run import CheckSpec, check
from tue_cli.config import ProtectSettings
from tue_cli.errors import ImageProblem
from tue_cli.events import AnyEvent, Checked, Failed, Saved
from tue_cli.images import codec, deep, extras
from tue_cli.images import png as png_chunks
from tue_cli.images.codec import DecodedImage, decode
from tue_cli.images.encode import SURVIVAL_FLOOR, Encoded, encode, fit_format
from tue_cli.images.exif import ORIENTATION
from tue_cli.images.quality import compare
from tue_cli.images.residual import collect_facts, measure_residual
from tue_cli.images.resize import add_upsampled, resize_to_square
from tue_cli.images.thumbnails import make_thumbnails, render_difference
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import CopyRecord
from tue_cli.protect.run import protect
from tue_cli.verify.dataset import load_victim_dataset
from tue_cli.verify.pairs import Pair

RADIUS = 8 / 255
ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(
    bundled.astronaut()[40:136, 170:298]  # type: ignore[no-untyped-call]
)
RGB = Image.fromarray(ASTRONAUT)
FINE = np.random.default_rng(5).integers(0, 256, (96, 128, 3), dtype=np.uint16)
DEEP: NDArray[np.uint16] = ASTRONAUT.astype(np.uint16) * np.uint16(256) + FINE
ALPHA = np.tile(np.arange(0, 65536, 512, dtype=np.uint16), (96, 1))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><mark>tue</mark></x:xmpmeta>'
PLANES = {
    "L": DEEP[..., :1],
    "LA": np.dstack((DEEP[..., :1], ALPHA)),
    "RGB": DEEP,
    "RGBA": np.dstack((DEEP, ALPHA)),
}


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def add_noise(picture: DecodedImage) -> NDArray[Any]:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, 16, 16)).astype(np.float32)
    return add_upsampled(signs * np.float32(RADIUS), picture.pixels, RADIUS)


def protected(source: bytes, format: str = "keep") -> tuple[DecodedImage, Encoded]:
    picture = fit_format(decode(source), format, Path("a.png"))
    return picture, encode(picture, add_noise(picture), format=format)


def refused(source: bytes) -> ImageProblem:
    with pytest.raises(ImageProblem) as caught:
        decode(source)
    return caught.value


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(planes: NDArray[np.uint16], more: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG as its specification has it, without a filter; each pass of Adam7 is a picture."""
    height, width, channels = planes.shape
    header = (width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, int(interlaced))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes()
        for top, left, down, across in passes
        for row in planes[top::down, left::across]
    )
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + more
    parts += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return png_chunks.PNG_START + parts


def tiff(
    tags: Mapping[int, tuple[int, tuple[int, ...]]],
    body: bytes,
    order: str = "<",
    page: bytes = b"",
) -> bytes:
    """A TIFF of one strip; `page` is the inside of a further directory, without its link."""
    tags = {**tags, 273: (4, (8,)), 279: (4, (len(body),))}
    start = 8 + len(body) + len(body) % 2
    at = start + 2 + 12 * len(tags) + 4
    table, behind = struct.pack(order + "H", len(tags)), b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack(order + "I", at + len(behind))
            behind += packed + bytes(len(packed) % 2)
        table += struct.pack(order + "HHI", tag, kind, len(values)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    link = struct.pack(order + "I", at + len(behind) if page else 0)
    page = page + bytes(4) if page else b""
    head = mark + struct.pack(order + "I", start)
    return head + body + bytes(len(body) % 2) + table + link + behind + page


def tiff16(
    planes: NDArray[np.uint16], order: str = "<", *, packed: bool = False, photometric: int = 0
) -> bytes:
    """A TIFF of 16 bits; `packed`: with deflate and predictor 2."""
    height, width, channels = planes.shape
    tags: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (16,) * channels),
        259: (3, (8 if packed else 1,)),
        262: (3, (photometric or (2 if channels > 2 else 1),)),
        277: (3, (channels,)),
        278: (4, (height,)),
    }
    if channels in (2, 4):
        tags[338] = (3, (2,))
    values = planes.copy()
    if packed:
        values[:, 1:] -= planes[:, :-1]
        tags[317] = (3, (2,))
    body = values.astype(order + "u2").tobytes()
    return tiff(tags, zlib.compress(body) if packed else body, order)


def stack(picture: DecodedImage) -> NDArray[Any]:
    return picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))


def draw(kind: str, mode: str, *options: str) -> tuple[bytes, NDArray[np.uint16]]:
    planes = PLANES[mode]
    if kind == "png":
        return png16(planes, interlaced="interlaced" in options), planes
    return tiff16(planes, options[0], packed="packed" in options), planes


SOURCES = [
    *(("png", mode) for mode in PLANES),
    ("png", "RGB", "interlaced"),
    *(
        ("tiff", mode, order, packing)
        for mode in ("L", "RGB", "RGBA")
        for order in "<>"
        for packing in ("plain", "packed")
    ),
]


@pytest.mark.parametrize("options", SOURCES, ids=" ".join)
def test_sixteen_bits_are_read_and_written_bit_for_bit(options: tuple[str, ...]) -> None:
    source, planes = draw(*options)
    picture = decode(source)
    assert picture.pixels.dtype == np.uint16 and np.array_equal(stack(picture), planes)
    noisy = add_noise(picture)
    encoded = encode(picture, noisy)
    assert encoded.format == picture.format and encoded.survival == 1
    visible = noisy
    if picture.alpha is not None:
        visible = np.where(picture.alpha[..., None] > 0, noisy, picture.pixels)
        assert np.array_equal(encoded.decoded.alpha, picture.alpha)  # type: ignore[arg-type]
    assert np.array_equal(encoded.decoded.pixels, visible)
    assert encoded.decoded.coding == picture.coding


def test_noise_of_sixteen_bits_has_its_proportion_and_is_not_rounded_to_eight() -> None:
    picture, encoded = protected(png16(DEEP))
    change = encoded.decoded.pixels.astype(int) - picture.pixels
    assert np.abs(change).max() == 8 * 257
    assert len(np.unique(change)) > 1000
    quality = compare(picture.pixels, encoded.decoded.pixels)
    shallow = decode(saved(RGB, "PNG"))
    same = compare(shallow.pixels, encode(shallow, add_noise(shallow)).decoded.pixels)
    assert quality.largest == same.largest == 8
    assert quality.mean == pytest.approx(same.mean, abs=0.1)
    assert quality.psnr == pytest.approx(same.psnr, abs=0.1)
    assert quality.ssim == pytest.approx(same.ssim, abs=0.01)


def test_a_square_of_sixteen_bits_is_that_of_eight() -> None:
    deep_square, square = resize_to_square(DEEP, 32), resize_to_square(ASTRONAUT, 32)
    assert np.abs(deep_square - square).max() < 1.5 / 255


def test_a_white_is_zero_tiff_of_sixteen_bits_is_read_as_it_looks() -> None:
    inverted = tiff16(PLANES["L"], photometric=1)
    at = inverted.index(struct.pack("<HHIH", 262, 3, 1, 1)) + 8
    inverted = inverted[:at] + b"\0" + inverted[at + 1 :]
    assert np.array_equal(decode(inverted).pixels, 65535 - PLANES["L"])


def test_a_transparent_colour_of_sixteen_bits_hides_that_colour_alone() -> None:
    key = tuple(int(value) for value in DEEP[3, 4])
    picture = decode(png16(DEEP, chunk(b"tRNS", struct.pack(">3H", *key))))
    assert picture.alpha is not None and picture.alpha.dtype == np.uint16
    assert np.array_equal(picture.alpha == 0, (DEEP[3, 4] == DEEP).all(axis=2))


def test_the_metadata_of_sixteen_bits_come_through() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Title", "Schöner Hafen", lang="de")
    exif = Image.Exif()
    exif[315] = "A. Person"
    drawn = saved(RGB, "PNG", icc_profile=PROFILE, exif=exif, dpi=(300, 300), pnginfo=info)
    kept = [b"iCCP", b"eXIf", b"pHYs", b"iTXt"]
    more = b"".join(chunk(*one) for one in png_chunks.read_png_chunks(drawn) if one[0] in kept)
    picture, encoded = protected(png16(DEEP, more))
    assert dict(png_chunks.read_png_chunks(encoded.data)).keys() >= set(kept)
    assert encoded.decoded.metadata == picture.metadata
    assert picture.metadata.icc == PROFILE

    tagged = saved(
        Image.fromarray(DEEP[..., 0]), "TIFF", icc_profile=PROFILE, exif=exif, dpi=(300, 300)
    )
    picture, encoded = protected(tagged)
    assert encoded.decoded.metadata.icc == PROFILE and encoded.decoded.pixels.dtype == np.uint16
    with Image.open(io.BytesIO(encoded.data)) as copy:
        assert copy.getexif()[315] == "A. Person" and copy.info["dpi"] == (300, 300)


def test_an_orientation_of_sixteen_bits_is_kept_and_the_pixels_stay_as_stored() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture, encoded = protected(saved(Image.fromarray(DEEP[..., 0]), "TIFF", exif=exif))
    assert np.array_equal(picture.pixels, DEEP[..., :1])
    with Image.open(io.BytesIO(encoded.data)) as copy:
        assert copy.getexif()[ORIENTATION] == 6


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_format_of_eight_bits_is_given_eight_with_a_note(format: str) -> None:
    picture, encoded = protected(png16(DEEP), format)
    assert encoded.format == format.upper() and picture.pixels.dtype == np.uint8
    assert any("reduced to 8 bits" in note for note in picture.notes)
    assert encoded.survival >= SURVIVAL_FLOOR


def test_a_copy_of_sixteen_bits_is_known_again_after_it_was_saved_with_eight() -> None:
    original, encoded = protected(png16(PLANES["RGBA"]))
    assert original.alpha is not None
    copy = encoded.decoded
    intact = measure_residual(original, copy, copy)
    assert intact is not None and intact.survival == pytest.approx(1)
    eight = Image.fromarray(deep.reduce_to_8_bits(stack(copy).astype(np.uint16)))
    found = measure_residual(original, decode(saved(eight, "PNG")), copy)
    assert found is not None and found.survival == pytest.approx(1, abs=0.01)
    half = eight.resize((64, 48), Image.Resampling.LANCZOS)
    found = measure_residual(original, decode(saved(half, "PNG")), copy)
    assert found is not None and found.survival is not None and found.survival > 0.5
    assert collect_facts(original).pixels_sha256 != collect_facts(copy).pixels_sha256


def make_cmyk() -> Image.Image:
    """The picture in CMYK, half of its grey in black ink."""
    ink = 255 - ASTRONAUT.astype(int)
    black = ink.min(axis=2) // 2
    planes = np.dstack((ink - black[..., None], black)).astype(np.uint8)
    return Image.frombytes("CMYK", (128, 96), planes.tobytes())


CMYK = make_cmyk()


def drop_adobe(source: bytes) -> bytes:
    at = source.index(b"\xff\xee\0\x0eAdobe")
    return source[:at] + source[at + 16 :]


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_cmyk_changes_by_at_most_the_radius_in_each_ink_and_not_in_black(
    options: dict[str, Any],
) -> None:
    source = saved(CMYK, "TIFF", icc_profile=b"ink" * 50, **options)
    picture, encoded = protected(source)
    with Image.open(io.BytesIO(encoded.data)) as copy:
        assert copy.mode == "CMYK" and copy.info["icc_profile"] == b"ink" * 50
        change = np.asarray(copy).astype(int) - np.asarray(CMYK)
        seen = np.asarray(copy.convert("RGB")).astype(int) - np.asarray(CMYK.convert("RGB"))
    assert np.abs(change).max(axis=(0, 1)).tolist() == [8, 8, 8, 0]
    assert np.abs(seen).max() <= 8 and np.abs(seen).mean() > 3
    # Less ink where the noise makes a picture of light lighter.
    assert np.array_equal(-change[..., :3] > 0, add_noise(picture) > picture.pixels)
    assert np.array_equal(picture.shown, np.asarray(CMYK.convert("RGB")))


@pytest.mark.parametrize("adobe", [True, False])
def test_a_cmyk_jpeg_keeps_its_colours_tables_and_marker(adobe: bool) -> None:
    source = saved(CMYK, "JPEG", quality=92, icc_profile=b"ink" * 50)
    source = source if adobe else drop_adobe(source)
    picture, encoded = protected(source)
    assert encoded.survival > 0.95
    with Image.open(io.BytesIO(source)) as was, Image.open(io.BytesIO(encoded.data)) as now:
        assert now.mode == "CMYK" and now.info["icc_profile"] == b"ink" * 50
        assert now.quantization == was.quantization  # type: ignore[attr-defined]
        assert ("adobe" in now.info) == adobe
        change = np.asarray(now).astype(int) - np.asarray(was)
    assert compare(picture.pixels, encoded.decoded.pixels).largest < 16
    assert np.abs(change[..., 3]).mean() < 0.5 < 3 < np.abs(change[..., :3]).mean()


def test_cmyk_can_go_from_tiff_to_jpeg_and_not_to_png() -> None:
    source = saved(CMYK, "TIFF")
    assert Image.open(io.BytesIO(protected(source, "jpeg")[1].data)).mode == "CMYK"
    with pytest.raises(ImageProblem, match="PNG has no CMYK") as caught:
        protected(source, "png")
    assert caught.value.reason == "cmyk"


def test_cmyk_that_cannot_be_written_back_is_refused() -> None:
    size = {256: (4, (4,)), 257: (4, (4,)), 262: (3, (5,))}
    sixteen = {**size, 258: (3, (16,) * 4), 277: (3, (4,))}
    spot = {**size, 258: (3, (8,) * 5), 277: (3, (5,)), 338: (3, (0,))}
    for tags, words in ((sixteen, "16 bits"), (spot, "spot colours")):
        problem = refused(tiff(tags, bytes(160)))
        assert problem.reason == "cmyk" and words in problem.message


def test_a_still_gif_becomes_a_png_and_a_note_says_so() -> None:
    gif = saved(RGB.quantize(64), "GIF")
    picture, encoded = protected(gif)
    assert encoded.format == "PNG" and encoded.survival == 1
    assert any("GIF" in note for note in encoded.notes)
    assert np.array_equal(picture.pixels, np.asarray(RGB.quantize(64).convert("RGB")))
    told = saved(RGB.quantize(64), "GIF", comment=b"by A. Person")
    assert protected(told)[1].decoded.metadata.comments == (b"by A. Person",)
    # Comments may also follow the only frame, in several parts.
    assert told.endswith(b"\0;")
    behind = told[:-1] + b"!\xfe" + bytes([3]) + b"sol" + bytes([1]) + b"d\0" + b"!\xfe\1x\0;"
    comments = protected(behind)[1].decoded.metadata.comments
    assert comments == (b"by A. Person", b"sold", b"x")
    # With transparency.
    clear = RGB.quantize(64)
    clear.info["transparency"] = 3
    picture, encoded = protected(saved(clear, "GIF"))
    assert picture.alpha is not None and (picture.alpha == 0).any()
    assert refused(saved(RGB, "GIF", save_all=True, append_images=[RGB.rotate(9)])).reason == (
        "animated"
    )
    assert refused(gif[: len(gif) // 2]).reason == "truncated"


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"optimize": True}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(options: dict[str, Any]) -> None:
    for image in (RGB, RGB.convert("L"), CMYK):
        source = saved(image, "JPEG", **options)
        whole = decode(source)
        for cut in (source[:-2], source[:-1], source[:-2] + bytes(600)):
            picture = decode(cut)
            assert np.array_equal(picture.pixels, whole.pixels)
            assert any("end marker" in note for note in picture.notes)
        for missing in (3, 4, 5, 8, 20, 200):
            assert refused(source[:-missing]).reason == "truncated"
        assert refused(source[:-200] + bytes(600)).reason == "truncated"


def test_preview_pages_of_a_tiff_are_left_out_with_a_note() -> None:
    size = {256: (4, (16,)), 257: (4, (8,)), 258: (3, (8,)), 262: (3, (1,)), 277: (3, (1,))}
    small = struct.pack("<H", 2)
    for kind, found in ((1, True), (0, False), (4, False)):
        entries = struct.pack("<HHII", 254, 4, 1, kind) + struct.pack("<HHII", 256, 4, 1, 4)
        source = tiff(size, bytes(range(128)), page=small + entries)
        if not found:
            assert refused(source).reason == "multi-page"
            continue
        picture, encoded = protected(source)
        assert "left out the embedded preview" in picture.notes
        with Image.open(io.BytesIO(encoded.data)) as copy:
            assert copy.n_frames == 1  # type: ignore[attr-defined]


def twelve_bit_jpeg() -> bytes:
    source = bytearray(saved(RGB, "JPEG"))
    source[source.index(b"\xff\xc0") + 4] = 12
    return bytes(source)


def two_bit_bmp() -> bytes:
    return b"BM" + struct.pack("<IIIIiiHH24x", 70, 0, 54, 40, 4, 4, 1, 2) + bytes(16)


FLOAT = {256: (4, (4,)), 257: (4, (4,)), 258: (3, (32,) * 3), 262: (3, (2,)), 277: (3, (3,))}
TWO = {256: (4, (4,)), 257: (4, (4,)), 258: (3, (16,) * 2), 262: (3, (1,)), 277: (3, (2,))}


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        (twelve_bit_jpeg(), "16-bit", "12 bits"),
        (saved(RGB, "TGA"), "unsupported", "TGA"),
        (saved(RGB, "PCX"), "unsupported", "PCX"),
        (two_bit_bmp(), "mode", "2 bits"),
        (tiff({**FLOAT, 339: (3, (3,) * 3)}, bytes(192)), "mode", "floating-point"),
        (tiff(TWO, bytes(64)), "mode", "2 x 16 bits"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "16-bit", "32 bits"),
        (b"\0\0\2\0\1\0" + bytes(40), "unsupported", "cursor"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "unsupported", "video"),
        (b"FOVb" + bytes(40), "unsupported", "camera raw"),
        (b"\0MRM" + bytes(40), "unsupported", "camera raw"),
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(40), "unsupported", "camera raw"),
        (b"IIU\0" + bytes(40), "unsupported", "camera raw"),
        (b"MM\0*\0\0\0\x08MMMM" + bytes(40), "unsupported", "camera raw"),
    ],
)
def test_a_refusal_says_what_was_found(source: bytes, reason: str, words: str) -> None:
    problem = refused(source)
    assert problem.reason == reason and words in problem.message
    with pytest.raises(ImageProblem) as caught:
        codec.read_dimensions(source)
    assert (caught.value.reason, caught.value.message) == (reason, problem.message)


@pytest.mark.parametrize("suffix", ["3fr", "DCR", "nrw", "nef", "arw", "iiq", "x3f", "mrw", "rwl"])
def test_raw_files_of_every_maker_are_named_as_such(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"IMG_1.{suffix}"
    path.write_bytes(saved(RGB, "TIFF"))  # their thumbnail, as a TIFF reader sees it
    with pytest.raises(ImageProblem, match="camera raw.*TIFF or JPEG") as caught:
        codec.read(path)
    assert caught.value.reason == "unsupported"
    assert path.suffix.lower() in codec.UNSUPPORTED


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    code = (
        "import sys\nsys.modules['pillow_heif'] = sys.modules['pillow_jxl'] = None\n"
        "from tue_cli.images.codec import decode, UNSUPPORTED\n"
        "for head in (b'\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic', b'\\xff\\x0a' + bytes(9)):\n"
        "    try: decode(head)\n"
        "    except Exception as problem: print(problem.reason, problem)\n"
        "print(sorted({'.heic', '.jxl'} - UNSUPPORTED))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    heic, jxl, endings = ran.stdout.splitlines()
    assert (
        heic.startswith("unsupported")
        and "HEIC" in heic
        and "extra heic" in heic
        and "pip install pillow-heif" in heic
    )
    assert (
        jxl.startswith("unsupported")
        and "JPEG XL" in jxl
        and "extra jxl" in jxl
        and "pip install pillow-jxl-plugin" in jxl
    )
    assert endings == "[]"


def drawn_with(package: str, kind: str, image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip(package)
    extras.load_plugin(kind)
    return saved(image, kind, **options)


PACKAGES = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", PACKAGES)
def test_heic_and_jpeg_xl_come_back_in_their_own_format(kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[315] = "A. Person"
    image = RGB.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray((ALPHA >> 8).astype(np.uint8)))
    source = drawn_with(PACKAGES[kind], kind, image, quality=80, exif=exif.tobytes(), xmp=XMP)
    picture, encoded = protected(source)
    assert encoded.format == encoded.decoded.format == picture.format == kind
    assert encoded.survival >= SURVIVAL_FLOOR
    was, now = picture.metadata, encoded.decoded.metadata
    assert (now.exif, now.xmp, now.icc) == (was.exif, was.xmp, was.icc)
    assert was.xmp == XMP and b"A. Person" in was.exif
    if mode == "RGBA":
        assert np.array_equal(picture.alpha, encoded.decoded.alpha)  # type: ignore[arg-type]


def test_a_heic_keeps_its_colours_and_says_what_was_left_out() -> None:
    p3 = {"color_primaries": 12, "transfer_characteristics": 13, "matrix_coefficients": 6}
    picture, encoded = protected(drawn_with("pillow_heif", "HEIF", RGB, full_range_flag=1, **p3))
    assert dict(picture.coding.options)["nclx_profile"]["color_primaries"] == 12
    assert encoded.decoded.coding.options == picture.coding.options
    # Without a profile, a PNG can say such colours, and a JPEG cannot.
    assert protected(encoded.data, "png")[1].decoded.metadata.colours == (12, 13)
    for format in ("jpeg", "webp"):
        with pytest.raises(ImageProblem, match=r"CICP 12/13.*--format keep or png") as caught:
            protected(encoded.data, format)
        assert caught.value.reason == "colour"
    assert protected(drawn_with("pillow_heif", "HEIF", RGB), "jpeg")[1].format == "JPEG"
    several = drawn_with("pillow_heif", "HEIF", RGB, save_all=True, append_images=[RGB.rotate(9)])
    assert "only the main picture of several was kept" in decode(several).notes


def test_a_heic_of_ten_bits_is_refused_and_never_reduced() -> None:
    heif = pytest.importorskip("pillow_heif")
    extras.load_plugin("HEIF")
    file = io.BytesIO()
    heif.from_bytes(mode="RGB;16", size=(128, 96), data=DEEP.tobytes()).save(file)
    problem = refused(file.getvalue())
    assert problem.reason == "16-bit" and "10 bits" in problem.message


def test_a_jpeg_xl_without_loss_stays_so_and_one_of_sixteen_bits_is_refused() -> None:
    picture, encoded = protected(drawn_with("pillow_jxl", "JXL", RGB, lossless=True))
    assert encoded.survival == 1 and np.array_equal(encoded.decoded.pixels, add_noise(picture))
    deep_one = drawn_with("pillow_jxl", "JXL", Image.fromarray(DEEP[..., 0]), lossless=True)
    assert refused(deep_one).reason == "16-bit"


def test_a_jpeg_xl_is_refused_where_its_colours_would_change(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    extras.load_plugin("JXL")
    # A JPEG packed as JPEG XL keeps its profile; that of a copy is one that the decoder makes.
    red = PROFILE.index(b"XYZ \0\0\0\0", PROFILE.index(b"XYZ \0\0\0\0") + 20) + 8
    wider = bytearray(PROFILE)
    wider[red : red + 4] = struct.pack(">I", struct.unpack(">I", PROFILE[red : red + 4])[0] + 9000)
    for profile, fits in ((PROFILE, True), (bytes(wider), False)):
        RGB.save(tmp_path / "a.jpg", quality=92, icc_profile=profile, exif=b"Exif\0\0" + NO_TAGS)
        with pytest.warns(UserWarning), Image.open(tmp_path / "a.jpg") as image:
            image.save(tmp_path / "a.jxl")
        source = (tmp_path / "a.jxl").read_bytes()
        assert decode(source).metadata.icc == profile
        if fits:
            assert protected(source)[1].survival >= SURVIVAL_FLOOR
            continue
        with pytest.raises(ImageProblem, match="colour profile would change.*--format png"):
            protected(source)
        assert protected(source, "png")[1].decoded.metadata.icc == profile


NO_TAGS = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (256, 256), (300, 200), (17, 1000), (160, 90)])
def test_the_header_of_a_jpeg_xl_is_read_without_its_decoder(size: tuple[int, int]) -> None:
    for options in ({}, {"lossless": True, "use_container": True}):
        source = drawn_with("pillow_jxl", "JXL", Image.new("L", size), **options)
        header = extras.read_jxl_header(source)
        assert (header.width, header.height, header.bits) == (*size, 8)
        assert header.is_original == bool(options)


def test_a_jpeg_xl_that_asks_for_too_much_is_refused_before_decoding() -> None:
    pytest.importorskip("pillow_jxl")
    # Not small; height 1 + 2**30 - 1 with 30 bits; ratio 1:1; default metadata.
    bits = 0 | 3 << 1 | (2**30 - 1) << 3 | 1 << 33 | 1 << 36
    assert refused(b"\xff\x0a" + bits.to_bytes(8, "little")).reason == "too-large"


def test_an_animated_jpeg_xl_is_refused() -> None:
    pytest.importorskip("pillow_jxl")
    # 8 x 8 pixels; extra fields: orientation, no size, no preview, animation.
    bits = 1 | 0 << 1 | 1 << 6 | 0 << 9 | 1 << 10 | 0 << 11 | 0 << 14 | 0 << 15 | 1 << 16
    assert refused(b"\xff\x0a" + bits.to_bytes(8, "little")).reason == "animated"


@pytest.fixture
def odd_photos(tmp_path: Path) -> Path:
    """A picture of each kind that used to be refused, in two class folders."""
    folder = tmp_path / "photos"
    files = {
        "one/grey.png": png16(PLANES["L"]),
        "one/deep.tif": tiff16(DEEP, packed=True),
        "one/still.gif": saved(RGB.quantize(64), "GIF"),
        "two/print.jpg": saved(CMYK, "JPEG", quality=92),
        "two/print.tif": saved(CMYK, "TIFF"),
        "two/clear.png": png16(PLANES["RGBA"]),
        "two/c.pjpeg": saved(RGB, "JPEG", quality=92),
        "two/noextension": saved(RGB.rotate(180), "JPEG", quality=92),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def spec_of(photos: Path, output: Path, weights: Path, **changes: Any) -> ProtectSpec:
    settings = ProtectSettings(noise=TueNoise(steps=2))
    spec = ProtectSpec((photos,), output, weights=str(weights), settings=settings, device="cpu")
    return replace(spec, **changes)


def find_saved(events: Iterable[AnyEvent]) -> dict[str, CopyRecord]:
    found = {event.path.name: event.copy for event in events if isinstance(event, Saved)}
    return {name: copy for name, copy in found.items() if isinstance(copy, CopyRecord)}


@pytest.mark.slow
def test_what_used_to_be_refused_is_protected_and_its_copies_can_be_checked(
    odd_photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    events = list(protect(spec_of(odd_photos, output, tiny_weights)))
    made = find_saved(events)
    assert not [event for event in events if isinstance(event, Failed)]
    assert made.keys() == {
        *("grey.png", "deep.tif", "still.png", "print.jpg", "print.tif", "clear.png"),
        *("c.pjpeg", "noextension"),
    }
    lossless = [copy for name, copy in made.items() if name.endswith(("png", "tif"))]
    assert all(0 < copy.largest <= 8 and copy.survival == 1 for copy in lossless)
    assert any("GIF" in note for note in made["still.png"].notes)
    assert made["still.png"].source == "one/still.gif"
    # A second run finds all of them done.
    again = list(protect(spec_of(odd_photos, output, tiny_weights)))
    assert not [event for event in again if isinstance(event, Saved | Failed)]
    # And so does a check; a copy that a site made into an 8-bit JPEG still has noise.
    deep_copy = decode((output / "one" / "deep.tif").read_bytes())
    eight = Image.fromarray(deep.reduce_to_8_bits(deep_copy.pixels))
    (output / "one" / "deep.tif").write_bytes(saved(eight, "JPEG", quality=97, subsampling=0))
    checked = list(check(CheckSpec(output, original=odd_photos)))
    states = {e.path.name: e.state for e in checked if isinstance(e, Checked)}
    assert states.pop("deep.tif") == "recompressed"
    assert set(states.values()) == {"intact"} and len(states) == 7


@pytest.mark.slow
def test_views_and_victims_take_all_kinds_of_pixels(
    odd_photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    events = list(protect(spec_of(odd_photos, output, tiny_weights)))
    copies = {event.source: event for event in events if isinstance(event, Saved)}
    for source, event in copies.items():
        assert source is not None
        views = make_thumbnails(source, event.path, {"path": source.name})
        assert {Image.open(io.BytesIO(v)).mode for v in (views.before, views.after)} <= {"L", "RGB"}
        assert np.ptp(np.asarray(Image.open(io.BytesIO(render_difference(source, event.path)))))
    pairs = [Pair(source, event.path, source.parent.name, source.name)  # type: ignore[arg-type, union-attr]
             for source, event in copies.items()]  # fmt: skip
    failed: list[Failed] = []
    with ThreadPoolExecutor(1) as pool:
        dataset = load_victim_dataset(
            pairs, pairs, size=32, radius=RADIUS, seed=0, pool=pool, failed=failed.append
        )
    assert not failed and dataset.classes == ("one", "two")
    lossy = np.array([pair.original.suffix in ("", ".jpg", ".pjpeg") for pair in pairs])
    for changed, coding in ((dataset.protected, 4 * lossy), (dataset.random, 0)):
        most = np.abs(changed.astype(int) - dataset.clean).max(axis=(1, 2, 3))
        assert (most > 0).all() and (most <= 8 + coding).all()


def test_a_deep_picture_and_one_in_cmyk_are_protected_within_the_radius(
    odd_photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for name in ("deep.tif", "print.tif"):
        (place,) = odd_photos.rglob(name)
        events = list(protect(spec_of(place, tmp_path / "out", tiny_weights, existing="skip")))
        copy = find_saved(events)[name]
        assert 0 < copy.largest <= 8 and copy.survival == 1 and copy.format == "TIFF"


def test_names_that_differ_in_case_are_each_named_where_the_disk_has_one_place_for_both(
    tmp_path: Path, tiny_weights: Path
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    output.mkdir()
    for name, turn in (("IMG_1.JPG", 0), ("img_1.jpg", 90), ("other.jpg", 180)):
        (photos / name).write_bytes(saved(RGB.rotate(turn), "JPEG"))
    if len(list(photos.iterdir())) < 3:
        pytest.skip("this file system cannot hold both")
    # One file by two names that differ in case: so does a disk look that does not tell case.
    (output / "n").touch()
    with contextlib.suppress(FileExistsError):
        (output / "N").hardlink_to(output / "n")
    events = list(protect(spec_of(photos, output, tiny_weights)))
    failed = {event.path.name: event.reason for event in events if isinstance(event, Failed)}
    assert failed == dict.fromkeys(("IMG_1.JPG", "img_1.jpg"), "in-the-way")
    assert find_saved(events).keys() == {"other.jpg"}


def test_a_gif_named_as_something_else_is_refused_with_its_remedy(
    tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(saved(RGB.quantize(64), "GIF"))
    (tmp_path / "photos" / "b.gif").write_bytes(saved(RGB.quantize(64), "GIF"))
    (tmp_path / "photos" / "b.png").write_bytes(saved(RGB, "PNG"))
    (tmp_path / "photos" / "c.gif").write_bytes(saved(RGB.quantize(64), "GIF"))
    events = list(protect(spec_of(tmp_path / "photos", tmp_path / "out", tiny_weights)))
    failed = {event.path.name: event for event in events if isinstance(event, Failed)}
    assert "rename it so that it ends in .gif" in failed.pop("a.jpg").message
    assert failed.pop("b.gif").reason == "in-the-way" and not failed
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["b.png", "c.png"]
    webp = list(
        protect(spec_of(tmp_path / "photos", tmp_path / "webp", tiny_weights, format="webp"))
    )
    assert {name: copy.source for name, copy in find_saved(webp).items()} == {
        "a.webp": "a.jpg",
        "b.webp": "b.png",
        "c.webp": "c.gif",
    }
