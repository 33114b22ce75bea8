"""What exiftool says of an original, it says of its copy, but for what one table allows.

The table is in `benchmarks/metadata.py`. exiftool writes most of the metadata into pictures drawn
here, so both ends are judged by a program that shares no code with tue; what it cannot write is in
`benchmarks/camera.py`. Without it these tests are skipped; `.ci/run` installs it if it can.
"""

from __future__ import annotations

import base64
import io
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks import camera, metadata, script
from benchmarks.metadata import ALLOWED, Compared, describe, explain, find_differences
from benchmarks.rows import read_rows
from tue_cli.errors import is_installed
from tue_cli.images import avif, boxes, codec, jpeg, png, tiff
from tue_cli.images.encode import encode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed"),
]

TEXTS = (
    "-IFD0:Artist=Zoë Brücké",
    "-IFD0:Copyright=© 2024 Zoë Brücké",
    "-IFD0:ImageDescription=Červený přístav",
    "-IFD0:Make=Nikon",
    "-IFD0:Model=X 100",
    "-IFD0:Software=Darkroom 1.0",
    "-IFD0:XPKeywords=röd; hamn",
    "-IFD0:Rating=4",
    "-IFD0:XResolution=240",
    "-IFD0:YResolution=240",
    "-IFD0:WhitePoint=0.3127 0.329",
    "-ExifIFD:DateTimeOriginal=2024:05:06 07:08:09",
    "-ExifIFD:OffsetTimeOriginal=+02:00",
    "-ExifIFD:ExposureTime=1/250",
    "-ExifIFD:FNumber=5.6",
    "-ExifIFD:ISO=200",
    "-ExifIFD:LensModel=50 mm",
    "-ExifIFD:ColorSpace=65535",
    "-ExifIFD:UserComment=Jürgen",
    "-GPS:GPSLatitude=52.52",
    "-GPS:GPSLatitudeRef=N",
    "-GPS:GPSLongitude=13.4",
    "-GPS:GPSLongitudeRef=E",
    "-GPS:GPSProcessingMethod=GPS",
    "-InteropIFD:InteropIndex=R98",
)
XMP = (
    "-XMP-dc:Title=Červený přístav",
    "-XMP-dc:Title-de=Roter Hafen",
    "-XMP-dc:Subject=harbour",
    "-XMP-dc:Subject=boats",
    "-XMP-dc:Creator=Zoë Brücké",
    "-XMP-xmp:Rating=4",
    "-XMP-photoshop:City=Kiel",
    "-XMP-lr:HierarchicalSubject=places|harbour",
    "-XMP-xmpMM:DocumentID=xmp.did:1234",
    "-XMP-iptcCore:Location=pier",
    "-XMP-crs:Exposure2012=+0.5",
)
IPTC = (
    "-IPTC:CodedCharacterSet=UTF8",
    "-IPTC:Keywords=harbour",
    "-IPTC:Keywords=röd",
    "-IPTC:By-line=Zoë Brücké",
    "-IPTC:Caption-Abstract=Červený přístav",
    "-Photoshop:CopyrightFlag=1",
    "-Photoshop:URL=https://example.org",
)
GEO = (
    "-IFD0:PixelScale=1 1 0",
    "-IFD0:ModelTiePoint=0 0 0 100 200 0",
    "-IFD0:GeoTiffDirectory=1 1 0 1 1024 0 1 1",
    "-IFD0:GeoTiffAsciiParams=WGS 84|",
)


def draw(seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:48, 0:64]
    base = np.dstack((x * 3, y * 4, 255 - x * 2)) + random.integers(-20, 21, (48, 64, 3))
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def save(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    draw().save(file, kind, **options)
    return file.getvalue()


def run_exiftool(*arguments: object) -> str:
    command = ["exiftool", "-config", "", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def protect(source: bytes, format: str = "keep") -> tuple[bytes, str, tuple[str, ...]]:
    """Return a protected copy, its format, and its notes."""
    picture = codec.decode(source)
    noise = np.random.default_rng(1).integers(-8, 9, picture.pixels.shape)
    protected = (picture.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
    encoded = encode(picture, protected, format=format)
    return encoded.data, encoded.format, (*picture.notes, *encoded.notes)


# --- originals -------------------------------------------------------------------------------

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
THUMBNAIL = io.BytesIO()
draw(3).resize((32, 24)).save(THUMBNAIL, "JPEG")
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
CONTAINER = "http://ns.google.com/photos/1.0/container/"
EXTENDED = ("-XMP-dc:Description=" + "a long story " * 6_000,)


def make_exif(order: str = "<") -> bytes:
    """Return EXIF with a note of the camera's maker, which exiftool cannot write from nothing."""
    note = tiff.pack_exif(">", {2: (3, b"\0\0\0\xc8"), 4: (2, b"FINE  \0\0")})
    inner: tiff.Directory = {37500: (7, b"Nikon\0\2\x10\0\0" + note)}
    return tiff.pack_exif(order, {271: (2, b"NIKON CORPORATION\0"), 34665: (4, inner)})


def make_xmp(attributes: str, inside: str = "") -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description '
        f'rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Label="red" {attributes}>'
        f"{inside}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def make_jpeg(*segments: tuple[int, bytes], xmp: bytes = b"", behind: bytes = b"") -> bytes:
    exif = b"Exif\0\0" + make_exif(">")
    data = save("JPEG", quality=95, subsampling=0, exif=exif, icc_profile=PROFILE)
    more = ((jpeg.APP1, jpeg.XMP + xmp),) if xmp else ()
    listed = [jpeg.make_segment(*segment) for segment in (*more, *segments)]
    return data[:2] + b"".join(listed) + data[2:] + behind


def make_motion_photo() -> bytes:
    film = boxes.make_box(b"ftyp", b"mp42\0\0\0\0mp42") + boxes.make_box(b"mdat", bytes(500))
    camera = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"'
    offset = f'GCamera:MicroVideo="1" GCamera:MicroVideoOffset="{len(film)}"'
    return make_jpeg(xmp=make_xmp(f'{camera} {offset} GCamera:SpecialTypeID="a"'), behind=film)


def make_gain_map() -> bytes:
    hdrgm = 'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    names = f'xmlns:Container="{CONTAINER}" xmlns:Item="{CONTAINER}item/"'
    item = '<Container:Item Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="738"/>'
    listed = f'<rdf:Seq><rdf:li rdf:parseType="Resource">{item}</rdf:li></rdf:Seq>'
    inside = f"<Container:Directory>{listed}</Container:Directory>"
    table = b"MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0xB000, 7, 4, b"0100", 0)
    xmp = make_xmp(f"{hdrgm} {names}", inside)
    return make_jpeg((jpeg.APP2, b"MPF\0" + table), xmp=xmp, behind=THUMBNAIL.getvalue())


def make_credentials() -> bytes:
    label = bytes.fromhex("6332706100110010800000aa00389b71") + b"\3c2pa\0"
    manifest = boxes.make_box(b"jumb", boxes.make_box(b"jumd", label))
    terms = 'xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="self#jumbf=/c2pa/a"'
    return make_jpeg((jpeg.APP11, b"JP\0\1\0\0\0\1" + manifest), xmp=make_xmp(terms))


def make_xmp_thumbnails() -> bytes:
    image = base64.b64encode(THUMBNAIL.getvalue()).decode()
    spaces = 'xmlns:g="http://ns.adobe.com/xap/1.0/g/img/"'
    inside = f'<rdf:li rdf:parseType="Resource"><g:image>{image}</g:image></rdf:li>'
    inside = f"<xmp:Thumbnails><rdf:Alt>{inside}</rdf:Alt></xmp:Thumbnails>"
    return make_jpeg(xmp=make_xmp(spaces, inside))


def make_png(*more: bytes) -> bytes:
    chunks = (
        (b"gAMA", struct.pack(">I", 50_000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
        (b"sBIT", b"\7\7\7"),
        (b"bKGD", struct.pack(">3H", 1, 2, 3)),
        (b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
        (b"oFFs", struct.pack(">iiB", 5, 6, 0)),
        (b"tIME", struct.pack(">HBBBBB", 2024, 5, 6, 7, 8, 9)),
        (b"iTXt", b"Title\0\0\0sv\0Titel\0" + "Röd hamn".encode()),
        (b"zTXt", b"Author\0\0" + zlib.compress(b"Zo\xeb")),
    )
    written = tuple(png.make_png_chunk(*chunk) for chunk in chunks)
    return png.splice_png(save("PNG"), (*written, *more))


def make_raw_profile(name: str, data: bytes) -> bytes:
    digits = data.hex("\n", -36)
    text = f"\n{name}\n{len(data):8}\n{digits}\n".encode()
    packed = zlib.compress(text)
    return png.make_png_chunk(b"zTXt", b"Raw profile type " + name.encode() + b"\0\0" + packed)


def make_gimp_png() -> bytes:
    """Return a PNG whose EXIF and IPTC are texts in hexadecimal digits."""
    view = THUMBNAIL.getvalue()
    tags = b"II*\0" + struct.pack("<IHHHI4sI", 8, 1, 274, 3, 1, b"\6\0\0\0", 26)
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(view), 0)
    iptc = b"8BIM\4\4\0\0\0\0\0\x0c\x1c\2\x19\0\7harbour"
    return make_png(
        make_raw_profile("exif", b"Exif\0\0" + tags + second + view),
        make_raw_profile("iptc", iptc),
    )


def make_tiff(order: str, **options: Any) -> bytes:
    return tiff.graft_tags(save("TIFF", icc_profile=PROFILE, **options), make_exif(order))


def make_avif() -> bytes:
    return save("AVIF", quality=90, exif=make_exif(), icc_profile=PROFILE)


def make_wide_avif() -> bytes:
    """Return an AVIF in Display P3 that is cropped, turned and mirrored, of oblong pixels."""
    listed = (
        (b"colr", b"nclx" + struct.pack(">3HB", 12, 13, 6, 0x80)),
        (b"pasp", struct.pack(">II", 4, 3)),
        (b"clap", struct.pack(">8i", 40, 1, 30, 1, 2, 1, -1, 1)),
        (b"irot", b"\1"),
        (b"imir", b"\0"),
    )
    shown = tuple(boxes.make_box(*box) for box in listed)
    return avif.write(save("AVIF", quality=90), shown, make_exif(), b"")


def make_odd_jpeg() -> bytes:
    """Return a JPEG that is coded as few are, in Photoshop's way."""
    adobe = b"Adobe\0\x64\0\0\0\0\1"
    source = make_jpeg((jpeg.APP14, adobe), (jpeg.APP13, b"Adobe_CM\0\1\0\1\0\0\0\0"))
    return source.replace(b"\xff\xc0\0\x11", b"\xff\xc1\0\x11")


def make_odd_png() -> bytes:
    """Return a PNG of one frame and few colours, with a text behind the pixels."""
    file = io.BytesIO()
    draw().quantize(16).save(file, "PNG")
    frame = struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 1, 0, 0)
    chunks = (png.make_png_chunk(b"acTL", struct.pack(">II", 1, 0)),)
    data = png.splice_png(file.getvalue(), (*chunks, png.make_png_chunk(b"fcTL", frame)))
    return data[:-12] + png.make_png_chunk(b"tEXt", b"Title\0A quay") + data[-12:]


def make_layers() -> bytes:
    """Return a big-endian TIFF with a layer of Photoshop, a smaller picture, and a tag twice."""
    record = struct.pack(">4iH4s4s4BI", 0, 0, 48, 64, 0, b"8BIM", b"norm", 255, 0, 0, 0, 16)
    layers = struct.pack(">h", 1) + record + struct.pack(">II8s", 0, 0, b"\5Quay 1\0")
    data = b"Adobe Photoshop Document Data Block\0" + b"8BIMLayr" + struct.pack(">I", len(layers))
    source = save("TIFF")
    start = len(source)
    smaller = struct.pack(">H", 2) + b"".join(
        struct.pack(">HHIHH", tag, 3, 1, side, 0) for tag, side in ((256, 32), (257, 24))
    )
    tags: tiff.Directory = {
        305: (2, b"Darkroom 1.0\0"),
        306: (2, b"2024:05:06 07:08:09\0"),
        331: (4, struct.pack(">I", start)),
        37724: (7, data + layers),
    }
    grafted = tiff.graft_tags(source + smaller + bytes(4), tiff.pack_exif(">", tags))
    # `graft_tags` writes neither the place of a smaller picture nor a tag twice.
    for tag, kind, other in ((331, 4, 330), (306, 2, 305)):
        entry = struct.pack(">HH", other, kind)
        grafted = grafted.replace(struct.pack(">HH", tag, kind), entry)
    return grafted


def make_gif() -> bytes:
    file = io.BytesIO()
    draw().quantize(64).save(file, "GIF", comment=b"a comment")
    return file.getvalue()[:-1] + b"!\xfe\4more\0;"


def make_old_bmp() -> bytes:
    """Return a BMP with the shortest of headers."""
    body = np.asarray(draw())[::-1, :, ::-1].tobytes()
    return struct.pack("<2sIHHIIHHHH", b"BM", 26 + len(body), 0, 0, 26, 12, 64, 48, 1, 24) + body


def make_bmp() -> bytes:
    """Return a BMP with a version 5 header and an embedded profile."""
    body = np.asarray(draw())[::-1, :, ::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, 64, 48, 1, 24, 0, len(body), 3780, 3780, 0, 0)
    head += bytes(16) + b"DEBM" + bytes(48)
    head += struct.pack("<IIII", 4, 124 + len(body), len(PROFILE), 0)
    start = struct.pack("<2sIHHI", b"BM", 138 + len(body) + len(PROFILE), 0, 0, 138)
    return start + head + body + PROFILE


ORIGINALS: dict[str, tuple[str, Callable[[], bytes], tuple[str, ...]]] = {
    "jpeg": (
        ".jpg",
        lambda: make_jpeg((jpeg.COMMENT, b"a comment"), (jpeg.APP12, b"Ducky\0\1\0\4\0\0\0P\0\0")),
        (*TEXTS, *XMP, *IPTC, *EXTENDED, "-ThumbnailImage<={thumbnail}"),
    ),
    "motion": (".jpg", make_motion_photo, ()),
    "gain": (".jpg", make_gain_map, ()),
    "c2pa": (".jpg", make_credentials, ()),
    "thumbs": (".jpg", make_xmp_thumbnails, ()),
    "png": (".png", make_png, (*TEXTS, *XMP)),
    "gimp": (".png", make_gimp_png, ()),
    "webp": (
        ".webp",
        lambda: save("WEBP", lossless=True, exif=make_exif(), icc_profile=PROFILE),
        (*TEXTS, *XMP),
    ),
    "tiff": (".tif", lambda: make_tiff("<"), (*TEXTS, *XMP, *IPTC, *GEO)),
    "tiff big-endian": (
        ".tif",
        lambda: make_tiff(">", compression="tiff_lzw"),
        (*TEXTS, *XMP, *IPTC, *GEO),
    ),
    "avif": (".avif", make_avif, (*TEXTS, *XMP)),
    "avif wide": (".avif", make_wide_avif, ()),
    "bmp": (".bmp", make_bmp, ()),
    "bmp old": (".bmp", make_old_bmp, ()),
    "jpeg odd": (".jpg", make_odd_jpeg, ()),
    "jpeg coarse": (".jpg", lambda: save("JPEG", quality=5), ()),
    "png odd": (".png", make_odd_png, ()),
    "tiff layers": (".tif", make_layers, ()),
    "tiff big": (".tif", lambda: save("TIFF", big_tiff=True), ()),
    "tiff jpeg": (".tif", lambda: make_tiff("<", compression="jpeg"), ()),
    "gif": (".gif", make_gif, ()),
}
CONVERSIONS = [
    ("jpeg", "png"),
    ("jpeg", "webp"),
    ("tiff", "png"),
    ("tiff", "jpeg"),
    ("tiff", "webp"),
    ("webp", "png"),
    ("avif", "png"),
]
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


def write_original(name: str, folder: Path) -> Path:
    suffix, make, arguments = ORIGINALS[name]
    path = folder / f"original{suffix}"
    path.write_bytes(make())
    thumbnail = folder / "thumbnail"
    thumbnail.write_bytes(THUMBNAIL.getvalue())
    if arguments:
        filled = (argument.replace("{thumbnail}", str(thumbnail)) for argument in arguments)
        run_exiftool("-overwrite_original", *filled, path)
    return path


def compare(name: str, folder: Path, format: str = "keep") -> Compared:
    original = write_original(name, folder)
    data, kind, notes = protect(original.read_bytes(), format)
    copy = original.with_name(f"copy{SUFFIXES.get(kind, original.suffix)}")
    copy.write_bytes(data)
    was, now = describe([original, copy])
    copies = f"{codec.decode(original.read_bytes()).format} to {kind}"
    return Compared(name, copies, find_differences(was, now, copies), notes)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compared]:
    """Every original and its copy, and those in other formats."""
    pairs = [*((name, "keep") for name in ORIGINALS), *CONVERSIONS]
    return {pair: compare(pair[0], tmp_path_factory.mktemp("one"), pair[1]) for pair in pairs}


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures as cameras write them, `cameras`, and what was found of it."""
    place = tmp_path_factory.mktemp("cameras")
    camera.write(place / "cameras")
    words = ["--work", str(place / "work"), "--results", str(place), str(place / "cameras")]
    for format in ("keep", "png"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["metadata.py", "--format", format, *words])
            script.run(metadata.parse_arguments(), metadata.measure)
    return place


def find_unexplained(found: Compared) -> dict[str, tuple[Any, Any]]:
    return {
        tag: values
        for tag, values in found.differences.items()
        if not explain(tag, values, found.copies, found.notes)
    }


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_copy_says_what_its_original_says(
    name: str, compared: dict[tuple[str, str], Compared]
) -> None:
    found = compared[name, "keep"]
    assert not find_unexplained(found), found.notes


@pytest.mark.parametrize("pair", CONVERSIONS, ids=" to ".join)
def test_a_copy_in_another_format_says_what_it_can(
    pair: tuple[str, str], compared: dict[tuple[str, str], Compared]
) -> None:
    assert not find_unexplained(compared[pair]), compared[pair].notes


def test_copies_of_pictures_of_cameras_say_what_these_say(cameras: Path) -> None:
    rows = list(read_rows(cameras / "metadata.jsonl"))
    assert [row["settings"]["format"] for row in rows] == ["keep", "png"]
    for row in rows:
        assert row["unexplained"] == [] and row["refused"] == {}
        assert row["copies"] == row["pictures"] == len(camera.CAMERAS) >= 36


def test_the_table_allows_nothing_that_does_not_happen(
    cameras: Path, compared: dict[tuple[str, str], Compared]
) -> None:
    pictures = [
        found
        for output in (cameras / "work").iterdir()
        for found in metadata.compare_all(cameras / "cameras", output)
    ]
    used = {
        row
        for found in (*compared.values(), *pictures)
        for tag, values in found.differences.items()
        for row in explain(tag, values, found.copies, found.notes)
    }
    heic = is_installed("pillow_heif")
    assert [row for row in ALLOWED if row not in used and (heic or "HEIF to" not in row[0])] == []


def test_a_difference_that_no_note_names_is_found() -> None:
    copies, told = "JPEG to JPEG", (metadata.PREVIEW,)
    gone: metadata.Tags = {"IFD1:Compression": [6], "IFD0:Artist": ["Ida"]}
    found = find_differences(gone, {}, copies)
    assert find_unexplained(Compared("a.jpg", copies, found, ())).keys() == gone.keys()
    assert find_unexplained(Compared("a.jpg", copies, found, told)).keys() == {"IFD0:Artist"}
    # What is said of a preview may go, and may not say something else.
    changed = find_differences({"IFD1:Compression": [6]}, {"IFD1:Compression": [7]}, copies)
    assert find_unexplained(Compared("a.jpg", copies, changed, told))


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "avif", "bmp"])
def test_a_copy_without_metadata_is_found_out(name: str, tmp_path: Path) -> None:
    original = write_original(name, tmp_path)
    kind = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF"}.get(name, name.upper())
    copy = original.with_stem("copy")
    copy.write_bytes(save(kind))
    copies = f"{kind} to {kind}"
    was, now = describe([original, copy])
    differences = find_differences(was, now, copies)
    wanted = {"ICC_Profile:ProfileDescription"} if name != "png" else {"PNG:Gamma"}
    if name != "bmp":
        wanted |= {"IFD0:Artist", "GPS:GPSLatitude", "ExifIFD:UserComment", "XMP-dc:Title"}
    assert wanted <= find_unexplained(Compared(name, copies, differences, ())).keys()
