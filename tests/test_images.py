"""Pictures come in and go out whole, with their metadata and without their previews."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin
from skimage import data as bundled

from tue_cli.errors import ImageProblem
from tue_cli.images import bmp, codec, jpeg, png, tiff
from tue_cli.images.codec import DecodedImage, decode
from tue_cli.images.coding import Coding, list_attempts
from tue_cli.images.encode import (
    SURVIVAL_FLOOR,
    Encoded,
    encode,
)
from tue_cli.images.exif import blank_exif_previews
from tue_cli.images.quality import compare
from tue_cli.images.resize import add_upsampled, resize_to_square

RADIUS = 8 / 255
ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(
    bundled.astronaut()[40:136, 170:298]  # type: ignore[no-untyped-call]
)
ALPHA = np.tile(np.arange(128, dtype=np.uint8) * 2, (96, 1))
ALPHA[:10] = np.random.default_rng(3).integers(0, 256, (10, 128))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><mark>tue</mark></x:xmpmeta>'
HOSTILE = Path(
    os.environ.get("TUE_DATA", Path(__file__).parents[1] / "../shared/data/hostile-pictures.tar.xz")
)


def picture_file(kind: str, mode: str, **options: Any) -> bytes:
    image = Image.fromarray(ASTRONAUT).convert("L" if mode in ("L", "LA") else "RGB")
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(ALPHA))
    if (kind, mode) == ("BMP", "RGBA"):
        planes = np.asarray(image)
        return bmp.write(planes, None, b"")
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def protect(source: bytes, **options: Any) -> tuple[DecodedImage, NDArray[np.uint8], Encoded]:
    picture = decode(source)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, 16, 16)).astype(np.float32)
    protected = add_upsampled(signs * np.float32(RADIUS), picture.pixels, RADIUS)
    return picture, protected, encode(picture, protected, **options)


def reopened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def reason(source: bytes) -> str:
    with pytest.raises(ImageProblem) as caught:
        decode(source)
    assert caught.value.message
    return caught.value.reason


def thumbnail() -> bytes:
    file = io.BytesIO()
    Image.fromarray(ASTRONAUT).resize((32, 24)).save(file, "JPEG")
    return file.getvalue()


def exif_with_thumbnail(preview: bytes, order: str = "<") -> bytes:
    """IFD0 with an orientation, a maker and a maker's note; IFD1 with a JPEG."""
    make = b"Camera\0\0"
    first = struct.pack(order + "H", 2)
    first += struct.pack(order + "HHIHxx", 0x0112, 3, 1, 6)
    first += struct.pack(order + "HHII", 0x010F, 2, 7, 38)
    second = 8 + len(first) + 4 + len(make)
    first += struct.pack(order + "I", second) + make
    start = second + 2 + 24 + 4
    last = struct.pack(order + "H", 2)
    last += struct.pack(order + "HHII", 513, 4, 1, start)
    last += struct.pack(order + "HHII", 514, 4, 1, len(preview)) + bytes(4)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + first + last + preview + b"maker's note"


COMBINATIONS = [
    *(("JPEG", mode) for mode in ("L", "RGB")),
    *(("PNG", mode) for mode in ("L", "LA", "RGB", "RGBA")),
    *(("TIFF", mode) for mode in ("L", "LA", "RGB", "RGBA")),
    *(("BMP", mode) for mode in ("L", "RGB", "RGBA")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("AVIF", mode) for mode in ("L", "RGB", "RGBA")),
]


@pytest.mark.parametrize(("kind", "mode"), COMBINATIONS)
def test_every_format_comes_back_in_its_own_format_and_shape(kind: str, mode: str) -> None:
    picture, protected, encoded = protect(picture_file(kind, mode))
    assert picture.format == encoded.format == encoded.decoded.format == kind
    assert picture.pixels.shape == encoded.decoded.pixels.shape == protected.shape
    assert picture.pixels.shape[2] == (1 if mode in ("L", "LA") else 3)
    assert encoded.survival >= SURVIVAL_FLOOR
    if kind in ("PNG", "TIFF", "BMP"):
        visible = protected
        if picture.alpha is not None:
            visible = np.where(picture.alpha[..., None] > 0, protected, picture.pixels)
        assert np.array_equal(encoded.decoded.pixels, visible)
        assert encoded.survival == 1


@pytest.mark.parametrize(("kind", "mode"), [c for c in COMBINATIONS if c[1] in ("LA", "RGBA")])
def test_alpha_is_kept_bit_for_bit(kind: str, mode: str) -> None:
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture, _, encoded = protect(picture_file(kind, mode, **lossless))
    assert picture.alpha is not None and encoded.decoded.alpha is not None
    assert np.array_equal(picture.alpha, encoded.decoded.alpha)
    if kind != "AVIF":
        hidden = picture.alpha == 0
        assert hidden.any()
        assert np.array_equal(encoded.decoded.pixels[hidden], picture.pixels[hidden])


def test_an_alpha_that_hides_nothing_is_no_loss() -> None:
    image = Image.fromarray(ASTRONAUT)
    image.putalpha(255)
    file = io.BytesIO()
    image.save(file, "PNG")
    _, _, encoded = protect(file.getvalue(), format="webp")
    assert encoded.decoded.alpha is not None and encoded.decoded.alpha.min() == 255


def test_a_transparent_palette_becomes_rgba_and_says_so() -> None:
    file = io.BytesIO()
    Image.fromarray(ASTRONAUT).quantize(16).save(file, "PNG", transparency=3)
    picture, _, encoded = protect(file.getvalue())
    assert picture.notes == ("palette converted to RGBA",)
    assert picture.alpha is not None and set(np.unique(picture.alpha)) == {0, 255}
    assert np.array_equal(encoded.decoded.alpha, picture.alpha)  # type: ignore[arg-type]


@given(
    height=st.integers(1, 40),
    width=st.sampled_from([1, 2, 7, 31, 500]),
    channels=st.sampled_from([1, 3]),
    levels=st.floats(0, 20),
    size=st.sampled_from([1, 3, 32]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80)
def test_the_radius_holds_at_full_size(
    height: int, width: int, channels: int, levels: float, size: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    delta = random.normal(0, 0.1, (3, size, size)).astype(np.float32)
    lifted = add_upsampled(delta, pixels, levels / 255)
    assert lifted.shape == pixels.shape and lifted.dtype == np.uint8
    assert np.abs(lifted.astype(int) - pixels).max() <= int(levels + 1e-6)


def test_a_delta_of_the_pictures_size_is_added_as_it_is() -> None:
    pixels = np.full((9, 9, 3), 100, np.uint8)
    levels = np.random.default_rng(0).integers(-8, 9, (3, 9, 9))
    lifted = add_upsampled((levels / 255).astype(np.float32), pixels, RADIUS)
    assert np.array_equal(lifted.astype(int) - 100, levels.transpose(1, 2, 0))


def test_the_noise_of_16_bits_is_as_strong_as_that_of_8() -> None:
    delta = np.full((3, 4, 4), 4 / 255, np.float32)
    lifted = add_upsampled(delta, np.full((20, 30, 3), 30000, np.uint16), RADIUS)
    assert (lifted == 30000 + 4 * 257).all()


@pytest.mark.parametrize("size", [32, 400])
def test_a_tall_picture_has_no_seams(size: int) -> None:
    delta = np.random.default_rng(0).normal(0, 0.02, (3, size, size)).astype(np.float32)
    lifted = add_upsampled(delta, np.full((300, 40, 1), 128, np.uint8), RADIUS)[..., 0]
    plane = Image.fromarray(delta.mean(axis=0) * np.float32(255))
    whole = np.asarray(plane.resize((40, 300), Image.Resampling.BICUBIC))
    assert np.abs(lifted - 128.0 - whole.clip(-8, 8)).max() < 0.501


def test_a_grey_picture_gets_the_mean_of_the_channels() -> None:
    delta = np.array([2, 4, 6], np.float32).reshape(3, 1, 1) / np.float32(255)
    assert add_upsampled(delta, np.full((1, 1, 1), 10, np.uint8), RADIUS).item() == 14


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 1), (96, 128, 3)])
def test_shrink_gives_a_square_in_zero_to_one(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    small = resize_to_square(pixels, 32)
    assert small.shape == (3, 32, 32) and small.dtype == np.float32
    assert small.min() >= 0 and small.max() <= 1
    assert small.mean() == pytest.approx(pixels.mean() / 255, abs=0.02)


def test_the_square_of_16_bits_is_that_of_8() -> None:
    for pixels in (ASTRONAUT[:96, :128], np.full((40, 60, 1), 255, np.uint8)):
        deep = resize_to_square(pixels.astype(np.uint16) * 257, 32)
        assert deep.max() <= 1 and np.abs(deep - resize_to_square(pixels, 32)).max() < 1 / 255


def test_shrink_of_the_same_size_changes_nothing() -> None:
    pixels = ASTRONAUT[:32, :32]
    assert np.allclose(resize_to_square(pixels, 32), pixels.transpose(2, 0, 1) / 255)


def test_shrink_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 1), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_to_square(stripes, 32) - 0.5).max() < 0.05


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_tables_sampling_and_scan_order(
    subsampling: int, progressive: bool
) -> None:
    source = picture_file(
        "JPEG", "RGB", quality=91, subsampling=subsampling, progressive=progressive
    )
    picture = decode(source)
    before, after = reopened(source), reopened(encode(picture, picture.pixels).data)
    assert before.quantization == after.quantization  # type: ignore[attr-defined]
    assert before.layer == after.layer  # type: ignore[attr-defined]
    assert ("progressive" in after.info) == progressive


def test_a_coarse_jpeg_is_written_finer_so_that_the_protection_survives() -> None:
    _, _, encoded = protect(picture_file("JPEG", "RGB", quality=15))
    assert encoded.survival >= SURVIVAL_FLOOR
    assert "noise survives: 95" in " ".join(encoded.notes)


def test_an_explicit_quality_wins() -> None:
    _, _, encoded = protect(picture_file("JPEG", "RGB", quality=95), quality=15)
    assert encoded.survival < SURVIVAL_FLOOR
    (note,) = encoded.notes
    assert note == f"only a part of the noise survives in this JPEG: {encoded.survival:.0%}"


def test_noise_in_a_progressive_jpeg_of_the_finest_tables_is_written() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise // 128 * 255).resize((300, 300)).save(
        file, "JPEG", quality=100, subsampling=0
    )
    picture = decode(file.getvalue())
    coding = Coding(False, picture.coding.tables, 0, progressive=True)
    fine = DecodedImage(picture.pixels, None, "JPEG", coding)
    assert encode(fine, noise).decoded.pixels.shape == noise.shape


def test_a_lossless_webp_stays_lossless_and_a_lossy_one_lossy() -> None:
    _, protected, encoded = protect(picture_file("WEBP", "RGB", lossless=True))
    assert np.array_equal(encoded.decoded.pixels, protected)
    _, _, encoded = protect(picture_file("WEBP", "RGB", quality=80))
    assert b"VP8L" not in encoded.data[:40]


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_a_webp_is_written_lossless_where_no_quality_would_do(kind: str) -> None:
    picture = decode(picture_file(kind, "RGB", quality=80))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, *ASTRONAUT.shape[:2]))
    colours = (signs - signs.mean(axis=0)).astype(np.float32) * np.float32(RADIUS)
    protected = add_upsampled(colours, picture.pixels, RADIUS)
    encoded = encode(picture, protected, format="webp")
    assert np.array_equal(encoded.decoded.pixels, protected) and encoded.survival == 1
    assert encoded.notes == ("written losslessly so that the noise survives",)
    chosen = encode(picture, protected, format="webp", quality=100)
    assert b"VP8L" not in chosen.data[:40] and chosen.survival < SURVIVAL_FLOOR


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_keeps_its_compression(compression: str) -> None:
    _, _, encoded = protect(picture_file("TIFF", "RGB", compression=compression))
    assert reopened(encoded.data).info["compression"] == compression


@pytest.mark.parametrize("target", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_conversion_takes_the_metadata_along(target: str, mode: str) -> None:
    exif = exif_with_thumbnail(thumbnail())
    kind = "JPEG" if target == "png" else "PNG"
    source = picture_file(kind, mode, exif=b"Exif\0\0" + exif, icc_profile=PROFILE, dpi=(300, 300))
    picture, _, encoded = protect(source, format=target)
    assert encoded.format == target.upper()
    assert encoded.format == target.upper()
    assert encoded.decoded.pixels.shape == picture.pixels.shape
    after = reopened(encoded.data)
    assert after.getexif()[0x0112] == 6
    assert after.info["icc_profile"] == PROFILE
    assert b"\xff\xd8\xff" not in encoded.data[2:]


def test_a_grey_profile_does_not_go_into_a_webp() -> None:
    grey = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    _, _, encoded = protect(picture_file("PNG", "L", icc_profile=grey), format="webp")
    assert "icc_profile" not in reopened(encoded.data).info


def test_a_jpeg_cannot_have_alpha() -> None:
    with pytest.raises(ImageProblem) as caught:
        protect(picture_file("PNG", "RGBA"), format="jpeg")
    assert caught.value.reason == "alpha" and "--format png" in caught.value.message


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="gif"):
        protect(picture_file("PNG", "RGB"), format="gif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_profile_and_xmp_are_kept(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    options: dict[str, Any] = {} if kind in ("PNG", "TIFF") else {"xmp": XMP}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        text.add_text("Title", "a name")
        options = {"pnginfo": text}
    if kind == "TIFF":
        exif[700] = XMP
    source = picture_file(kind, "RGB", exif=exif, icc_profile=PROFILE, **options)
    _, _, encoded = protect(source)
    after = reopened(encoded.data)
    # Pillow turns a TIFF upright on loading and then forgets the tag, so ask before.
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert dict(image.getexif()).items() >= {0x0112: 6, 0x010F: "Camera"}.items()
    assert after.info["icc_profile"] == PROFILE
    assert after.info["xmp"].rstrip(b"\0") == XMP
    if kind == "PNG":
        assert after.info["Title"] == "a name"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_density_is_kept(kind: str) -> None:
    _, _, encoded = protect(picture_file(kind, "RGB", dpi=(300, 150)))
    assert reopened(encoded.data).info["dpi"] == pytest.approx((300, 150), abs=0.1)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_keeps_the_exif_directory(compression: str) -> None:
    values = {36867: "2020:01:02 03:04:05", 33434: 0.5}
    inner: tiff.Directory = {36867: (2, b"2020:01:02 03:04:05\0"), 33434: (5, b"\1\0\0\0\2\0\0\0")}
    plain = picture_file("TIFF", "RGB", compression=compression)
    exif = tiff.pack_exif("<", {34665: (4, inner)})
    _, _, encoded = protect(tiff.graft_tags(plain, exif))
    assert reopened(encoded.data).getexif().get_ifd(34665) == values


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_pixels_stay_in_stored_order_and_the_orientation_tag_stays(
    kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, _, encoded = protect(picture_file(kind, "RGB", exif=exif))
    assert picture.pixels.shape == ASTRONAUT.shape
    assert compare(ASTRONAUT, picture.pixels).psnr > 25
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert image.getexif().get(0x0112) == orientation
    assert encoded.decoded.pixels.shape == ASTRONAUT.shape


def test_jpeg_segments_are_copied_byte_for_byte() -> None:
    xmp = jpeg.make_segment(0xE1, jpeg.XMP + XMP)
    iptc = jpeg.make_segment(0xED, jpeg.PHOTOSHOP + b"8BIM\x04\x04\0\0\0\0\0\x05\x1c\x02\x05\0\0\0")
    comment = jpeg.make_segment(0xFE, b"a comment")
    exif = jpeg.make_segment(0xE1, b"Exif\0\0" + exif_with_thumbnail(b"")[:-12] + b"maker's note")
    blocks = (exif, xmp, iptc, comment)
    source = jpeg.splice_jpeg(picture_file("JPEG", "RGB"), blocks, keep_jfif=True)
    _, _, encoded = protect(source)
    kept = [jpeg.make_segment(marker, data) for marker, data, _ in jpeg.read_segments(encoded.data)]
    assert kept[0][4:9] == b"JFIF\0"
    assert kept[2:5] == list(blocks[1:])
    assert kept[1][:40] == exif[:40] and kept[1].endswith(b"maker's note")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_embedded_thumbnail_does_not_show_the_original(kind: str, order: str) -> None:
    preview = thumbnail()
    exif = exif_with_thumbnail(preview, order)
    source = picture_file(kind, "RGB", exif=b"Exif\0\0" + exif)
    _, _, encoded = protect(source)
    assert preview[-60:-20] not in encoded.data
    after = reopened(encoded.data).getexif()
    assert after[0x010F] == "Camera" and after.get(0x0112) == 6
    assert not after.get_ifd(0x0001) and after._info.next == 0  # type: ignore[union-attr]
    if kind != "AVIF":
        assert b"maker's note" in encoded.data


def test_a_thumbnail_without_compression_is_blanked_too() -> None:
    strip = b"original" * 12
    exif = exif_with_thumbnail(strip).replace(b"\x01\x02\x04", b"\x11\x01\x04")
    exif = exif.replace(b"\x02\x02\x04", b"\x17\x01\x04")
    cleaned = blank_exif_previews(exif)
    assert len(cleaned) == len(exif) and b"original" not in cleaned
    assert cleaned[:34] == exif[:34] and cleaned.endswith(b"maker's note")


def test_a_preview_inside_a_makers_note_is_blanked_in_its_place() -> None:
    exif, preview = exif_with_thumbnail(b""), thumbnail()
    cleaned = blank_exif_previews(exif + preview + b"the rest")
    assert cleaned == blank_exif_previews(exif) + bytes(len(preview)) + b"the rest"


@given(noise=st.binary(max_size=200), order=st.sampled_from([b"II*\0", b"MM\0*", b""]))
@settings(max_examples=200)
def test_any_exif_can_be_cleaned(noise: bytes, order: bytes) -> None:
    assert len(blank_exif_previews(order + noise)) == len(order + noise)


def test_an_exif_directory_that_loops_ends() -> None:
    exif = bytearray(exif_with_thumbnail(b""))
    struct.pack_into("<I", exif, 34, 8)
    assert blank_exif_previews(bytes(exif))[:34] == exif[:34]


def photoshop_preview(preview: bytes) -> bytes:
    resource = b"8BIM\x04\x0c\0\0" + struct.pack(">I", len(preview)) + preview
    return jpeg.make_segment(0xED, jpeg.PHOTOSHOP + resource + bytes(len(preview) % 2))


def xmp_preview(preview: bytes) -> bytes:
    return jpeg.make_segment(0xE1, jpeg.XMP + b"<image>" + base64.b64encode(preview) + b"</image>")


@pytest.mark.parametrize(
    "hidden",
    [
        photoshop_preview,
        xmp_preview,
        lambda preview: jpeg.make_segment(0xE0, b"JFXX\0\x10" + preview),
        lambda preview: jpeg.make_segment(0xE5, b"Preview" + preview),
        lambda preview: jpeg.make_segment(0xE2, b"FPXR\0" + preview),
        lambda preview: jpeg.make_segment(0xEB, b"JP\0\1" + preview),
    ],
)
def test_no_other_segment_shows_the_original(hidden: Callable[[bytes], bytes]) -> None:
    preview = thumbnail()
    source = jpeg.splice_jpeg(picture_file("JPEG", "RGB"), (hidden(preview),), keep_jfif=True)
    _, _, encoded = protect(source + preview)
    assert preview[-60:-20] not in encoded.data
    assert base64.b64encode(preview)[100:140] not in encoded.data


def test_a_text_in_a_png_does_not_show_the_original() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "exif\n 9\n" + thumbnail().hex("\n", 36), zip=True)
    text.add_text("Raw profile type odd", "odd\n 9\n" + thumbnail().hex("-"))
    text.add_text("Raw profile type none", "/" + base64.b64encode(thumbnail()).decode())
    text.add_text("Title", "kept")
    picture, _, encoded = protect(picture_file("PNG", "RGB", pnginfo=text))
    info = reopened(encoded.data).info
    assert info["Title"] == "kept" and "left out the embedded preview" in picture.notes
    texts = "".join(str(value) for value in info.values()).replace("\n", "").replace("-", "")
    assert thumbnail().hex()[40:80] not in texts
    assert base64.b64encode(thumbnail())[40:80].decode() not in texts


def test_further_frames_of_a_jpeg_are_left_out_and_said() -> None:
    file = io.BytesIO()
    second = Image.fromarray(ASTRONAUT[::-1])
    Image.fromarray(ASTRONAUT).save(file, "MPO", save_all=True, append_images=[second])
    picture, _, encoded = protect(file.getvalue())
    assert any("first of several frames" in note for note in picture.notes)
    assert getattr(reopened(encoded.data), "n_frames", 1) == 1
    assert len(encoded.data) < len(file.getvalue())


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = Image.fromarray(ASTRONAUT)
MOVING: dict[str, Any] = {"save_all": True, "append_images": [RGB.rotate(180)]}


def png_header(depth: int, colour: int, width: int = 4, height: int = 4) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(4 * (1 + 4 * 6)))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return png.PNG_START + b"".join(png.make_png_chunk(*chunk) for chunk in chunks)


BOMB = b"BM" + struct.pack("<IIIIiiHH24x", 99, 0, 54, 40, 30_000, 30_000, 1, 24)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"", "empty"),
        (b"<!doctype html><p>not found", "not-a-picture"),
        (b"\0" * 100, "not-a-picture"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "unsupported"),
        (b"8BPS\0\1" + bytes(30), "unsupported"),
        (saved(RGB, "GIF", **MOVING), "animated"),
        (saved(RGB, "PNG", **MOVING), "animated"),
        (saved(RGB, "WEBP", **MOVING), "animated"),
        (saved(RGB, "AVIF", **MOVING), "animated"),
        (saved(RGB, "TIFF", **MOVING), "multi-page"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "16-bit"),
        (saved(RGB.convert("1"), "PNG"), "mode"),
        (saved(RGB.convert("F"), "TIFF"), "mode"),
        (saved(RGB.convert("LAB"), "TIFF"), "mode"),
        (png_header(8, 2, 60_000, 60_000), "too-large"),
        (BOMB, "too-large"),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x03\0\xff\xda\0\2\xff\xd9", "unreadable"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_a_reason(source: bytes, expected: str) -> None:
    assert reason(source) == expected


def test_a_header_that_asks_for_too_much_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = picture_file("PNG", "RGB")
    monkeypatch.setattr(codec, "MAX_PIXELS", 128 * 96 - 1)
    monkeypatch.setattr(codec, "OpenImage", lambda *_: pytest.fail("was decoded"))
    assert reason(source) == "too-large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_a_picture_that_is_cut_short_is_not_half_protected(kind: str) -> None:
    source = picture_file(kind, "RGB")
    whole = decode(source).pixels
    for share in (0.1, 0.3, 0.5, 0.9, 0.999):
        try:
            found = decode(source[: int(len(source) * share)])
        except ImageProblem as problem:
            assert problem.reason in ("truncated", "unreadable")
        else:
            assert np.array_equal(found.pixels, whole)
    assert reason(source[: len(source) // 2]) == "truncated"


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=60)
def test_a_damaged_byte_is_a_picture_problem_at_worst(at: int, byte: int, kind: str) -> None:
    source = bytearray(picture_file(kind, "L"))
    source[at % min(len(source), 700)] = byte
    try:
        protect(bytes(source))
    except ImageProblem as problem:
        assert problem.reason


@pytest.mark.slow
def test_what_pillow_says_of_damaged_tags_stays_off_the_screen(tmp_path: Path) -> None:
    exif = struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x010F, 2, 9999, 50_000) + bytes(4)
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures" / "damaged.jpg"
    path.write_bytes(picture_file("JPEG", "RGB", exif=b"Exif\0\0" + exif))
    with pytest.warns(UserWarning, match="Tag data"):  # a library leaves that to the program
        decode(path.read_bytes())
    command = [sys.executable, "-W", "always", "-m", "tue_cli", "protect", str(path.parent)]
    ran = subprocess.run([*command, "--steps", "1"], capture_output=True, check=True, text=True)
    assert "Protected 1 picture in" in ran.stdout
    assert "Tag data" not in ran.stderr and "Warning" not in ran.stderr


def test_pillow_has_its_own_limit_of_pixels_back_after_a_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = picture_file("PNG", "RGB")
    with pytest.raises(ImageProblem, match="pixels"):
        decode(BOMB)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, [source] * 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(source).pixels.size and codec.read_dimensions(source)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pictures_can_be_worked_on_in_several_threads() -> None:
    sources = [picture_file(kind, mode) for kind, mode in COMBINATIONS]
    alone = [protect(source)[2].data for source in sources]
    with ThreadPoolExecutor(4) as pool:
        together = [encoded.data for _, _, encoded in pool.map(protect, sources)]
    assert alone == together


def test_discovery_lists_unsupported_pictures_too() -> None:
    assert {".jpg", ".avif", ".gif", ".heic"} <= codec.SUFFIXES
    assert ".txt" not in codec.SUFFIXES and ".mp4" not in codec.SUFFIXES


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a picture.jpg"
    path.write_bytes(b"bytes")
    assert codec.read(path) == b"bytes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    caught: list[str] = []

    def attempt() -> None:
        try:
            codec.read(path)
        except ImageProblem as problem:
            caught.append(problem.reason)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert caught == ["not-a-file"]


def test_a_folder_and_a_missing_file_are_picture_problems(tmp_path: Path) -> None:
    with pytest.raises(ImageProblem) as caught:
        codec.read(tmp_path)
    assert caught.value.reason == "not-a-file"
    with pytest.raises(ImageProblem) as caught:
        codec.read(tmp_path / "missing.jpg")
    assert caught.value.reason == "unreadable"


@pytest.mark.slow
def test_a_thousand_hostile_pictures_raise_image_problems_at_worst(
    needed: Callable[[Path], Path], tmp_path: Path
) -> None:
    with tarfile.open(needed(HOSTILE)) as archive:
        archive.extractall(tmp_path, filter="data")
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    reasons: Counter[str] = Counter()
    for path in sorted(paths):
        started = time.process_time()
        try:
            picture, _, encoded = protect(codec.read(path))
            assert compare(picture.pixels, encoded.decoded.pixels).psnr > 20, path
            reasons["protected"] += 1
        except ImageProblem as problem:
            reasons[problem.reason] += 1
        assert time.process_time() - started < 20, path
    assert reasons["protected"] > 500
    assert "unwritable" not in reasons and "alpha-lost" not in reasons


def test_a_jpeg_is_packed_as_well_as_its_original() -> None:
    random = np.random.default_rng(5)
    rough = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).resize((256, 256))
    sizes = {}
    for name, options in (("plain", {}), ("own", {"optimize": True})):
        file = io.BytesIO()
        rough.save(file, "JPEG", quality=95, subsampling=0, **options)
        picture, _, encoded = protect(file.getvalue())
        assert picture.coding.optimized == (name == "own") == encoded.decoded.coding.optimized
        sizes[name] = len(encoded.data)
    assert sizes["own"] < 0.97 * sizes["plain"]


def test_a_jpeg_that_is_written_finer_is_packed_as_its_original() -> None:
    coding = Coding(False, tables=((1,) * 64,), progressive=True, optimized=True)
    attempts = list_attempts(coding, "JPEG", None, same=True, has_alpha=False)
    assert len(attempts) == 3
    assert all(options["progressive"] and options["optimize"] for options, _ in attempts)
