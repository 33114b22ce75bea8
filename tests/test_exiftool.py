"""What exiftool says of an original, it says of its copy, but for what one table allows.

exiftool writes most of the metadata into pictures drawn here, so both ends are judged by a program
that shares no code with tue. Without it these tests are skipped; `.ci/run` installs it if it can.
"""

from __future__ import annotations

import base64
import io
import json
import re
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

from tue_cli.images import avif, boxes, codec, jpeg, png, tiff
from tue_cli.images.encode import encode

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed"),
]

SHOWS = "it shows the original"
FILM = "it is about a film that the copy does not have"
MAP = "it is about a gain map that the copy does not have"
ALLOWED = (
    (r"jpeg|gimp", r"IFD1:.*", SHOWS),
    (r"thumbs", r"XMP-xmp:Thumbnail.*", SHOWS),
    (r"motion", r"XMP-GCamera:MicroVideo.*", FILM),
    (r"gain", r"MPF0:.*|MPImage\d:.*|XMP-hdrgm:.*", MAP),
    (r"gain", r"XMP-Container:.*", MAP),
    (r"c2pa", r"JUMBF.*|XMP-dcterms:Provenance", "it vouches for the original's bytes"),
    (r"tiff.*", r"IFD0:Strip(ByteCounts|Offsets)", "the pixels are packed to another size"),
    (r"avif.*", r"QuickTime:(Copy\d:)?MediaData.*", "the pixels, and where they lie"),
    (r"avif.*", r"QuickTime:(ChromaFormat|SeqProfile|CompatibleBrands)", "4:4:4, for the noise"),
)
"""Pictures and tags by regular expressions, and why a tag may differ. Nothing else may."""
ALLOWED_ELSEWHERE = (
    (
        r"tiff to \w+",
        r"IFD0:(ImageWidth|ImageHeight|BitsPerSample|SamplesPerPixel|RowsPerStrip|Compression|Planar.*|Strip.*|.*Interp.*)",
        "they say how a TIFF codes the pixels",
    ),
    (r"avif to \w+", r"Meta:PrimaryItemReference", "a part of the coding of an AVIF"),
    (r"jpeg to \w+", r"JFIF:.*|Ducky:.*|Adobe:.*", "parts of the coding of a JPEG"),
    (r"\w+ to webp", r"IPTC:.*|Photoshop:.*", "WebP has no place for it, which a note says"),
)
"""The same for copies in another format; only tags that the original has are looked at."""

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


def protect(source: bytes, format: str = "keep") -> tuple[bytes, str]:
    """Return a protected copy, and its notes."""
    picture = codec.decode(source)
    noise = np.random.default_rng(1).integers(-8, 9, picture.pixels.shape)
    protected = (picture.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
    encoded = encode(picture, protected, format=format)
    return encoded.data, " | ".join((*picture.notes, *encoded.notes))


def describe(path: Path) -> dict[str, list[Any]]:
    """Return what exiftool says, by group and tag: one value for each time that it says so."""
    said = run_exiftool("-j", "-n", "-b", "-a", "-u", "-U", "-e", "-G1:4", path)
    (found,) = json.loads(said)
    apart = ("System:", "SourceFile", "ExifTool:ExifToolVersion", "File:FileSize")
    tags: dict[str, list[Any]] = {}
    for tag, value in found.items():
        if not tag.startswith(apart):
            tags.setdefault(re.sub(r":Copy\d+", "", tag), []).append(value)
    return tags


def find_differences(original: Path, data: bytes, suffix: str) -> dict[str, tuple[Any, Any]]:
    copy = original.with_name(f"copy{suffix}")
    copy.write_bytes(data)
    was, now = describe(original), describe(copy)
    tags = was.keys() | now.keys()
    return {tag: (was.get(tag), now.get(tag)) for tag in tags if was.get(tag) != now.get(tag)}


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
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


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


Row = tuple[str, str, str]


def find_rows(name: str, table: tuple[Row, ...]) -> list[Row]:
    return [row for row in table if re.fullmatch(row[0], name)]


def is_allowed(tag: str, rows: list[Row]) -> bool:
    return any(re.fullmatch(allowed, tag) for _, allowed, _ in rows)


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_copy_says_what_its_original_says(name: str, tmp_path: Path) -> None:
    original = write_original(name, tmp_path)
    data, notes = protect(original.read_bytes())
    found = find_differences(original, data, original.suffix)
    rows = find_rows(name, ALLOWED)
    assert not {tag: pair for tag, pair in found.items() if not is_allowed(tag, rows)}, notes
    unused = [row for row in rows if not any(is_allowed(tag, [row]) for tag in found)]
    assert not unused, "the table allows what does not happen"


@pytest.mark.parametrize(("name", "format"), CONVERSIONS)
def test_a_copy_in_another_format_says_what_it_can(name: str, format: str, tmp_path: Path) -> None:
    original = write_original(name, tmp_path)
    data, notes = protect(original.read_bytes(), format)
    found = find_differences(original, data, SUFFIXES[format])
    rows = find_rows(f"{name} to {format}", ALLOWED_ELSEWHERE) + find_rows(name, ALLOWED)
    apart = ("File:", "QuickTime:", "RIFF:", "PNG:", "ExifTool:")
    other = {
        tag: (was, now)
        for tag, (was, now) in found.items()
        if was is not None and not tag.startswith(apart) and not is_allowed(tag, rows)
    }
    assert not other, notes


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "avif", "bmp"])
def test_a_copy_without_metadata_is_found_out(name: str, tmp_path: Path) -> None:
    original = write_original(name, tmp_path)
    kind = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF"}.get(name, name.upper())
    found = find_differences(original, save(kind), original.suffix)
    rows = find_rows(name, ALLOWED)
    wanted = {"ICC_Profile:ProfileDescription"} if name != "png" else {"PNG:Gamma"}
    if name != "bmp":
        wanted |= {"IFD0:Artist", "GPS:GPSLatitude", "ExifIFD:UserComment", "XMP-dc:Title"}
    assert {tag for tag in wanted if not is_allowed(tag, rows)} <= found.keys()
