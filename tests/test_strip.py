"""`--strip gps` and `--strip metadata`: what is gone from a copy, and what stays.

exiftool, where it is installed, and tue's own reader say what a copy holds.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.dataset.manifest import read_manifest
from tue_cli.errors import BadSetting, is_installed
from tue_cli.images import exif, jpeg, png, tiff, xmp
from tue_cli.images.codec import decode
from tue_cli.images.encode import encode
from tue_cli.images.exif import wrap_iptc
from tue_cli.images.strip import strip

COMMAND = ["protect", "--steps", "1", "--backend", "torch", "--device", "cpu"]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLACES = (b"Kiel", b"Germany", b"52.52", b"Holtenau")
"""What names the place in the pictures drawn here, apart from GPS in EXIF."""
KEPT = b"Zoe Brueck"
TITLE = b"Red harbour"
NUMBERS = struct.pack("<6I", 52, 1, 31, 1, 12345, 1000)
GPS: tiff.Directory = {1: (2, b"N\0"), 2: (5, NUMBERS)}
IPTC = b"".join(
    struct.pack(">BBBH", 0x1C, 2, field, len(text)) + text
    for field, text in ((25, b"boats"), (90, b"Kiel"), (101, b"Germany"), (80, KEPT))
)
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description '
    'rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="52.52,0N" '
    'exif:ColorSpace="1" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
    'photoshop:City="Kiel" photoshop:Credit="Zoe Brueck" '
    'xmlns:d="http://www.dji.com/drone-dji/1.0/" d:GpsLongitude="52.52" d:FlightYaw="7" '
    'xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/">'
    f"<dc:title>{TITLE.decode()}</dc:title>"
    "<e:LocationCreated><rdf:Bag><rdf:li><e:City>Holtenau</e:City></rdf:li></rdf:Bag>"
    "</e:LocationCreated></rdf:Description></rdf:RDF></x:xmpmeta>"
).encode()


def make_exif(order: str = "<") -> bytes:
    inner: tiff.Directory = {
        37500: (7, b"Nikon\0 a maker note"),
        40961: (3, b"\1\0"),
        40965: (4, {1: (2, b"R03\0")}),
    }
    tags: tiff.Directory = {
        274: (3, b"\6\0"),
        282: (5, struct.pack("<II", 240, 1)),
        283: (5, struct.pack("<II", 240, 1)),
        296: (3, b"\2\0"),
        315: (2, KEPT + b"\0"),
        34665: (4, inner),
        34853: (4, GPS),
    }
    return tiff.pack_exif(order, tags)


def draw() -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (48, 48, 3), np.uint8))


def save(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    draw().save(file, kind, **options)
    return file.getvalue()


def make_jpeg() -> bytes:
    segments = (
        (jpeg.APP1, b"Exif\0\0" + make_exif()),
        (jpeg.APP1, jpeg.XMP + XMP),
        (jpeg.APP13, jpeg.PHOTOSHOP + wrap_iptc(IPTC) + b"8BIM\4\x25\0\0\0\0\0\x10" + bytes(16)),
        (jpeg.COMMENT, b"a comment"),
    )
    data = save("JPEG", quality=95, subsampling=0, dpi=(240, 240), icc_profile=PROFILE)
    listed = b"".join(jpeg.make_segment(*segment) for segment in segments)
    return jpeg.splice_jpeg(data, (listed,), keep_jfif=True)


def make_png() -> bytes:
    digits = b"\niptc\n%8d\n%b\n" % (len(IPTC), IPTC.hex().encode())
    chunks = (
        (b"iCCP", b"p\0\0" + zlib.compress(PROFILE)),
        (b"pHYs", struct.pack(">IIB", 9449, 9449, 1)),
        (b"tIME", struct.pack(">HBBBBB", 2024, 5, 6, 7, 8, 9)),
        (b"eXIf", make_exif()),
        (b"iTXt", png.XMP_KEYWORD + b"\0\0\0\0\0" + XMP),
        (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(digits)),
        (b"tEXt", b"exif:GPSLatitude\0" + b"52.52"),
        (b"tEXt", b"Author\0" + KEPT),
    )
    return png.splice_png(save("PNG"), tuple(png.make_png_chunk(*chunk) for chunk in chunks))


def make_tiff() -> bytes:
    order, tags = tiff._read_tags(make_exif())
    tags |= {700: (1, XMP), 33723: (4, IPTC + bytes(-len(IPTC) % 4)), 34377: (1, wrap_iptc(IPTC))}
    tags |= {33550: (12, struct.pack("<3d", 1, 1, 0)), 34737: (2, b"Kiel|\0")}
    return tiff.graft_tags(save("TIFF", icc_profile=PROFILE), tiff.pack_exif(order, tags))


def make_webp() -> bytes:
    return save("WEBP", lossless=True, exif=make_exif(), icc_profile=PROFILE, xmp=XMP)


def make_avif() -> bytes:
    return save("AVIF", quality=95, exif=make_exif(), icc_profile=PROFILE, xmp=XMP)


def make_heif() -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return save("HEIF", quality=95, exif=make_exif(), icc_profile=PROFILE, xmp=XMP)


def make_jxl() -> bytes:
    import pillow_jxl  # noqa: F401

    return save("JXL", lossless=True, exif=b"Exif\0\0" + make_exif(), xmp=XMP)


KINDS: dict[str, Callable[[], bytes]] = {
    "jpg": make_jpeg,
    "png": make_png,
    "tif": make_tiff,
    "webp": make_webp,
    "avif": make_avif,
}
MAKERS = [pytest.param(make, id=kind) for kind, make in KINDS.items()]
for kind, make, package in (("heic", make_heif, "pillow_heif"), ("jxl", make_jxl, "pillow_jxl")):
    missing = pytest.mark.skipif(not is_installed(package), reason=f"{package} is not installed")
    MAKERS.append(pytest.param(make, id=kind, marks=missing))


def protect(source: bytes, what: str, format: str = "keep") -> tuple[bytes, tuple[str, ...]]:
    picture = strip(decode(source), what)
    noise = np.random.default_rng(1).integers(-8, 9, picture.pixels.shape)
    protected = (picture.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
    encoded = encode(picture, protected, format=format)
    return encoded.data, (*picture.notes, *encoded.notes)


def describe(data: bytes, folder: Path) -> dict[str, Any] | None:
    """Return what exiftool says of a picture; None where it is not installed."""
    if not shutil.which("exiftool"):
        return None
    path = folder / "picture"
    path.write_bytes(data)
    command = ["exiftool", "-config", "", "-j", "-n", "-a", "-u", "-U", "-G1", "-ee", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(json.loads(done.stdout)[0])


def holds(data: bytes, text: bytes) -> bool:
    """Say whether a text is anywhere in a file, also in what is packed or written in digits."""
    if text in data or text.hex().encode() in data:
        return True
    chunks = png.read_png_chunks(data) if data.startswith(png.PNG_START) else ()
    for kind, content in chunks:
        if kind == b"zTXt":
            unpacked = zlib.decompress(content.partition(b"\0")[2][1:])
            if text in unpacked or text.hex().encode() in unpacked.replace(b"\n", b""):
                return True
    return False


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_without_its_location_keeps_all_else(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    source = make()
    data, notes = protect(source, "gps")
    assert "removed the location, as --strip gps asks" in notes
    for place in PLACES:
        assert not holds(data, place), place
    was, now = decode(source).metadata, decode(data).metadata
    for tag in (274, 282, 315, 34665):
        assert tiff.read_tag(now.exif, tag) == tiff.read_tag(was.exif, tag)
    assert b"a maker note" in now.exif and not tiff.read_tag(now.exif, 34853)
    assert NUMBERS not in data, "the numbers are gone, not only what points to them"
    assert TITLE in now.xmp and b"Zoe Brueck" in now.xmp and b"FlightYaw" in now.xmp
    assert now.icc == was.icc
    before, after = describe(source, tmp_path), describe(data, tmp_path)
    if before is not None and after is not None:
        assert any("GPS" in tag for tag in before) or make is make_jxl
        assert not [tag for tag in after if "gps" in tag.lower() or "Location" in tag]
        assert after.get("IFD0:Artist") == before.get("IFD0:Artist")
        assert after.get("XMP-dc:Title") == before.get("XMP-dc:Title")
        assert after.get("IPTC:Keywords") == before.get("IPTC:Keywords")
        assert after.get("ExifTool:Warning") in (None, before.get("ExifTool:Warning"))


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_without_metadata_is_shown_as_before(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    source = make()
    data, notes = protect(source, "metadata")
    assert "removed the metadata, as --strip metadata asks" in notes
    for text in (*PLACES, KEPT, TITLE, b"a comment", b"boats", b"a maker note"):
        assert not holds(data, text), text
    was, now = decode(source).metadata, decode(data).metadata
    for tag in (274, 282, 283, 296):
        assert tiff.read_tag(now.exif, tag) == tiff.read_tag(was.exif, tag)
    assert b"R03\0" in now.exif, "without a profile, this says that the colours are Adobe RGB"
    assert now.icc == was.icc and now.dpi == was.dpi
    assert (now.xmp, now.photoshop, now.comments) == (b"", b"", ())
    whole, _ = protect(source, "none")
    before, after = describe(whole, tmp_path), describe(data, tmp_path)
    if before is not None and after is not None:
        groups = {tag.partition(":")[0] for tag in after}
        assert not [g for g in groups if g.startswith(("XMP", "IPTC", "Photoshop", "GPS", "Nikon"))]
        for name in ("IFD0:Orientation", "QuickTime:Rotation"):
            assert after.get(name) == before.get(name)


@pytest.mark.parametrize("what", ["gps", "metadata"])
def test_a_copy_in_another_format_is_stripped_too(what: str) -> None:
    for source in (make_jpeg(), make_tiff()):
        for format in ("png", "webp", "jpeg"):
            data, notes = protect(source, what, format)
            assert not [place for place in PLACES if holds(data, place)], format
            assert holds(data, KEPT) == (what == "gps")
            assert what == "gps" or not any("no place" in note for note in notes)


@pytest.mark.parametrize("what", ["gps", "metadata"])
def test_a_picture_that_says_nothing_gets_no_note(what: str) -> None:
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP"):
        picture = decode(save(kind))
        assert strip(picture, what) is picture, kind


def test_metadata_that_cannot_be_read_does_not_stay_without_its_location() -> None:
    segments = (
        (jpeg.APP1, b"Exif\0\0II*\0\xff\xff\xff\xff GPS 52.52"),
        (jpeg.APP1, jpeg.XMP + XMP[:-30]),
    )
    listed = b"".join(jpeg.make_segment(*segment) for segment in segments)
    source = jpeg.splice_jpeg(save("JPEG"), (listed,), keep_jfif=True)
    data, _ = protect(source, "gps")
    assert not holds(data, b"52.52") and jpeg.XMP not in data and b"Exif" not in data


def test_a_long_packet_loses_the_location_in_its_extension() -> None:
    more = XMP.replace(TITLE, b"a long story " * 6000)
    name = b"0123456789ABCDEF" * 2
    note = b' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="%b"' % name
    main = XMP.replace(b' rdf:about=""', b' rdf:about=""' + note)
    found = [(jpeg.APP1, jpeg.XMP + main)]
    found += [(jpeg.APP1, part) for part in xmp._split_extension(name, more)]
    listed = b"".join(jpeg.make_segment(*segment) for segment in found)
    source = jpeg.splice_jpeg(save("JPEG"), (listed,), keep_jfif=True)
    kept = decode(protect(source, "gps")[0]).metadata.xmp
    assert b"a long story" in kept and TITLE in kept
    assert not any(place in kept for place in PLACES)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_location_is_cut_out_and_all_other_bytes_stay_in_their_places(order: str) -> None:
    tags: tiff.Directory = {315: (2, KEPT + b"\0"), 34853: (4, GPS), 50000: (2, b"late\0")}
    source = tiff.pack_exif(order, tags)
    cleaned = exif.blank_location(source)
    assert len(cleaned) == len(source)
    for text in (KEPT, b"late"):
        assert cleaned.index(text) == source.index(text)
    assert not tiff.read_tag(cleaned, 34853) and NUMBERS not in cleaned
    assert tiff.read_tag(cleaned, 50000) == b"late\0"
    assert exif.blank_location(cleaned) == cleaned


def test_any_bytes_can_be_searched_for_a_location() -> None:
    random = np.random.default_rng(3)
    whole = make_exif()
    for _ in range(300):
        broken = bytearray(whole)
        for at in random.integers(0, len(whole), 4):
            broken[at] = random.integers(0, 256)
        exif.blank_location(bytes(broken))
        tiff.keep_coding(bytes(broken))
        exif.drop_photoshop_location(wrap_iptc(bytes(broken)))
        exif.drop_iptc_location(b"\x1c" + bytes(broken))


def test_a_run_strips_copies_and_says_so_and_another_run_must_do_the_same(
    tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(make_jpeg())
    out = str(tmp_path / "out")
    command = [*COMMAND, str(tmp_path / "in"), "-o", out, "--weights", str(tiny_weights)]
    result = CliRunner().invoke(app, [*command, "--strip", "metadata"])
    assert result.exit_code == 0, result.output
    assert "Removed the metadata, as --strip metadata asks: 1 picture." in result.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest["run"]["strip"] == "metadata"
    assert manifest["pictures"][0]["metadata"] == ["exif", "icc"]
    other = CliRunner().invoke(app, command)
    assert isinstance(other.exception, BadSetting)
    assert "strip metadata → not set" in other.exception.message
    checked = CliRunner().invoke(app, ["check", out, "--original", str(tmp_path / "in")])
    assert checked.exit_code == 0, checked.output
    # Whoever publishes the copy once more without metadata is told what that copy had.
    data = (tmp_path / "out" / "a.jpg").read_bytes()
    Image.open(io.BytesIO(data)).save(tmp_path / "out" / "a.jpg", quality=100)
    events = CliRunner().invoke(app, ["check", out, "--json"]).stdout.splitlines()
    (lost,) = (e.get("lost") for e in map(json.loads, events) if e["event"] == "checked")
    assert "xmp" not in lost
