"""Colour, crop and metadata of a copy are the original's, and what must go is named and gone."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tue_cli.errors import ImageProblem
from tue_cli.images import avif, bmp, boxes, codec, jpeg, png, tiff
from tue_cli.images.encode import Encoded, encode
from tue_cli.images.exif import wrap_iptc
from tue_cli.images.orientation import read_orientation
from tue_cli.images.xmp import clean_xmp, merge_extended

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
ZOE = "© 2024 Zoë Brücké\0"
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x19\x00\x05harbo\x1c\x02\x50\x00\x03Ida\0\0\0"
VIDEO_NOTE = "left out the video of a motion photo"
GAIN_NOTE = "left out the HDR gain map"
PREVIEW_NOTE = "left out the embedded preview"


def draw(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.dstack((x * 3, y * 4, 255 - x * 2)) + random.integers(-20, 21, (height, width, 3))
    return Image.fromarray(base.clip(0, 255).astype(np.uint8))


def save(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    image = draw().convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(file, kind, **options)
    return file.getvalue()


def protect(source: bytes, format: str = "keep") -> tuple[Encoded, list[str]]:
    """Return a copy, and all notes on it."""
    picture = codec.decode(source)
    noise = np.random.default_rng(1).integers(-8, 9, picture.pixels.shape)
    protected = (picture.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
    encoded = encode(picture, protected, format=format)
    return encoded, [*picture.notes, *encoded.notes]


def refuse(source: bytes, format: str = "keep") -> ImageProblem:
    with pytest.raises(ImageProblem) as caught:
        protect(source, format)
    return caught.value


def thumbnail() -> bytes:
    file = io.BytesIO()
    draw(32, 24, 5).save(file, "JPEG")
    return file.getvalue()


def packet(attributes: str = "", inside: str = "") -> bytes:
    attributes = f" {attributes}" if attributes else ""
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description '
        f'rdf:about=""{attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


TITLE = '<dc:title xmlns:dc="http://purl.org/dc/elements/1.1/">Red harbour</dc:title>'


def add_segments(*segments: tuple[int, bytes], behind: bytes = b"") -> bytes:
    data = save("JPEG", quality=95, subsampling=0)
    return data[:2] + b"".join(jpeg.make_segment(*part) for part in segments) + data[2:] + behind


def read_directory(data: bytes, at: int, order: str) -> dict[int, tuple[int, bytes]]:
    """Return kind and bytes of the tags of a directory, read apart from tue's own reader."""
    sizes = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
    (count,) = struct.unpack_from(order + "H", data, at)
    found = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, amount = struct.unpack_from(order + "HHI", data, entry)
        length = sizes[kind] * amount
        start = entry + 8
        if length > 4:
            (start,) = struct.unpack_from(order + "I", data, start)
        found[tag] = kind, data[start : start + length]
    return found


def read_tiff(data: bytes) -> tuple[str, dict[int, tuple[int, bytes]]]:
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    tags = read_directory(data, struct.unpack_from(order + "I", data, 4)[0], order)
    for pointer in (34665, 34853, 40965):
        if pointer in tags:
            tags |= read_directory(data, struct.unpack(order + "I", tags[pointer][1])[0], order)
    return order, tags


# --- TIFF ------------------------------------------------------------------------------------


def make_tags(order: str) -> dict[int, tuple[int, bytes]]:
    def pack(code: str, *values: float) -> bytes:
        return struct.pack(order + code, *values)

    return {
        270: (2, "Červený přístav\0".encode()),
        282: (5, pack("II", 2400, 10)),
        315: (2, ZOE.encode()),
        318: (5, pack("4I", 3127, 10000, 329, 1000)),
        33432: (2, ZOE.encode("latin-1")),
        33550: (12, pack("3d", 0.5, 0.5, 0)),
        33723: (4, IPTC),
        34377: (1, wrap_iptc(IPTC) + b"8BIM\4\x0a\0\0\0\0\0\1\1\0"),
        34735: (3, pack("8H", 1, 1, 0, 1, 1024, 0, 1, 1)),
        34737: (2, b"WGS 84|\0"),
        40092: (1, "röd".encode("utf-16-le")),
        42112: (2, b"<GDALMetadata/>\0"),
        50000: (7, bytes(range(200))),
        51000: (11, pack("2f", 1.5, -2.5)),
    }


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_the_tags_of_a_tiff_are_the_same_bytes(order: str, compression: str) -> None:
    inner: tiff.Directory = {
        33434: (5, struct.pack(order + "II", 1, 250)),
        37500: (7, b"a maker's note \xff\x00"),
        37510: (7, b"UNICODE\0J\0\xfc\0"),
        40965: (4, {1: (2, b"R98\0"), 2: (7, b"0100")}),
    }
    place: tiff.Directory = {1: (2, b"N\0"), 2: (5, struct.pack(order + "6I", 52, 1, 31, 1, 0, 1))}
    plain: tiff.Directory = dict(make_tags(order))
    exif = tiff.pack_exif(order, {**plain, 34665: (4, inner), 34853: (4, place)})
    source = tiff.graft_tags(save("TIFF", compression=compression), exif)
    encoded, notes = protect(source)
    was, now = read_tiff(source), read_tiff(encoded.data)
    assert was[0] == now[0] == order
    wanted = {*plain, *inner, *place, 1, 2} - {40965}
    assert {tag: now[1].get(tag) for tag in wanted} == {tag: was[1][tag] for tag in wanted}
    assert not notes
    assert np.asarray(Image.open(io.BytesIO(encoded.data))).shape == (48, 64, 3)


def test_tags_are_turned_where_samples_of_two_bytes_fix_the_byte_order() -> None:
    file = io.BytesIO()
    Image.new("I;16", (4, 4)).save(file, "TIFF")
    inner: tiff.Directory = {33434: (5, struct.pack(">II", 1, 250)), 37500: (7, b"a note")}
    tags: tiff.Directory = {**make_tags(">"), 34665: (4, inner)}
    turned = tiff.graft_tags(file.getvalue(), tiff.pack_exif(">", tags))
    order, found = read_tiff(turned)
    assert order == "<" and found[33434] == (5, struct.pack("<II", 1, 250))
    assert {tag: found[tag] for tag in make_tags("<")} == make_tags("<")
    assert found[37500] == (7, b"a note")


def test_tags_of_a_tiff_that_show_the_original_are_left_out_and_named() -> None:
    view = thumbnail()
    preview = b"8BIM\4\x0c\0\0" + struct.pack(">I", len(view)) + view + bytes(len(view) % 2)
    tags: tiff.Directory = {
        331: (4, struct.pack("<I", 8)),
        34377: (1, wrap_iptc(IPTC) + preview),
        37724: (7, b"Adobe Photoshop Document Data Block\0" + bytes(900)),
        50001: (7, bytes(70_000)),
        52545: (7, b"c2pa"),
    }
    source = tiff.graft_tags(save("TIFF"), tiff.pack_exif("<", tags))
    # `graft_tags` copies no 330, the place of a preview: it says how a TIFF is laid out.
    source = source.replace(struct.pack("<HHI", 331, 4, 1), struct.pack("<HHI", 330, 4, 1))
    encoded, notes = protect(source)
    _, kept = read_tiff(encoded.data)
    assert kept[34377][1] == wrap_iptc(IPTC)
    assert not kept.keys() & {330, 37724, 50001, 52545}
    assert PREVIEW_NOTE in notes and "left out the layers of a Photoshop document" in notes
    assert any("C2PA" in note for note in notes) and any(": 50001" in note for note in notes)


def test_a_note_names_a_tag_that_a_tiff_has_twice() -> None:
    tags: tiff.Directory = {305: (2, b"Darkroom\0"), 306: (2, b"Scanner\0"), 315: (2, b"Ida\0")}
    source = tiff.graft_tags(save("TIFF"), tiff.pack_exif("<", tags))
    assert protect(source)[1] == []
    source = source.replace(struct.pack("<HH", 306, 2), struct.pack("<HH", 305, 2))
    encoded, notes = protect(source)
    assert notes == ["left out further values of TIFF tags: 305"]
    assert read_tiff(encoded.data)[1][305] == (2, b"Darkroom\0")


def test_tags_before_a_damaged_one_are_kept() -> None:
    source = tiff.graft_tags(
        save("TIFF"), tiff.pack_exif("<", {274: (3, b"\6\0"), 315: (2, b"Ida\0")})
    )
    (first,) = struct.unpack_from("<I", source, 4)
    (count,) = struct.unpack_from("<H", source, first)
    longer = source[:first] + struct.pack("<H", count + 9) + source[first + 2 :]
    exif, _ = tiff.read_tiff_exif(longer[: first + 2 + 12 * count])
    assert read_tiff(exif)[1] == {274: (3, b"\6\0"), 315: (2, b"Ida\0")}


@pytest.mark.parametrize("target", ["png", "jpeg", "webp"])
def test_a_tiff_in_another_format_takes_along_what_has_a_place_there(target: str) -> None:
    tags: tiff.Directory = {
        315: (2, ZOE.encode()),
        700: (1, packet("", TITLE)),
        33723: (7, IPTC),
        34665: (4, {37500: (7, b"a maker's note")}),
    }
    source = tiff.graft_tags(save("TIFF", icc_profile=PROFILE), tiff.pack_exif(">", tags))
    encoded, notes = protect(source, target)
    beside = encoded.decoded.metadata
    order, exif = read_tiff(beside.exif)
    assert order == ">" and exif[315] == (2, ZOE.encode()) and exif[37500][1] == b"a maker's note"
    assert not exif.keys() & {256, 273, 700, 33723}
    assert beside.xmp == packet("", TITLE) and beside.icc == PROFILE
    told = any("IPTC" in note for note in notes)
    assert told if target == "webp" else beside.photoshop == wrap_iptc(IPTC) and not told


# --- JPEG ------------------------------------------------------------------------------------

FILM = boxes.make_box(b"ftyp", b"mp42\0\0\0\0mp42") + boxes.make_box(b"mdat", bytes(range(256)))
CAMERA = 'xmlns:Cam="http://ns.google.com/photos/1.0/camera/"'
CONTAINER = "http://ns.google.com/photos/1.0/container/"
HDR = "http://ns.adobe.com/hdr-gain-map/1.0/"


@pytest.mark.parametrize(
    ("xmp", "left"),
    [
        (
            packet(
                f"{CAMERA} Cam:MicroVideo='1' Cam:MicroVideoOffset = \"9\" Cam:Kind='a>b'", TITLE
            ),
            packet(f"{CAMERA} Cam:Kind='a>b'", TITLE),
        ),
        (
            packet(CAMERA, f"<Cam:MotionPhoto>1</Cam:MotionPhoto>{TITLE}<Cam:Kind/>"),
            packet(CAMERA, f"{TITLE}<Cam:Kind/>"),
        ),
        (
            packet("", f'<C:Directory xmlns:C="{CONTAINER}"><rdf:Seq/></C:Directory>{TITLE}'),
            packet("", TITLE),
        ),
    ],
)
def test_a_motion_photo_loses_its_film_and_what_points_to_it(xmp: bytes, left: bytes) -> None:
    encoded, notes = protect(add_segments((jpeg.APP1, jpeg.XMP + xmp), behind=FILM))
    assert notes == [VIDEO_NOTE]
    assert b"ftyp" not in encoded.data and encoded.decoded.metadata.xmp == left


def test_a_gain_map_goes_with_its_xmp_and_its_index() -> None:
    names = f'xmlns:C="{CONTAINER}" xmlns:I="{CONTAINER}item/" xmlns:hdrgm="{HDR}"'
    inside = '<C:Directory><rdf:Seq><rdf:li><C:Item I:Semantic="GainMap"/></rdf:li></rdf:Seq>'
    xmp = packet(f'{names} hdrgm:Version="1.0"', f"{inside}</C:Directory>{TITLE}")
    table = b"MPF\0MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0xB000, 7, 4, b"0100", 0)
    segments = ((jpeg.APP1, jpeg.XMP + xmp), (jpeg.APP2, table))
    encoded, notes = protect(add_segments(*segments, behind=thumbnail()))
    assert GAIN_NOTE in notes and encoded.decoded.metadata.xmp == packet("", TITLE)
    assert b"MPF\0" not in encoded.data and thumbnail()[60:90] not in encoded.data


def test_xmp_about_a_film_stays_where_nothing_was_left_out() -> None:
    xmp = packet(f'{CAMERA} Cam:MotionPhoto="0"', TITLE)
    encoded, notes = protect(add_segments((jpeg.APP1, jpeg.XMP + xmp), behind=bytes(5_000)))
    assert not notes and encoded.decoded.metadata.xmp == xmp


def test_content_credentials_go_with_the_pointer_to_them() -> None:
    manifest = boxes.make_box(b"jumb", boxes.make_box(b"jumd", b"c2pa\0\x11\0\x10\0\0" + bytes(20)))
    terms = 'xmlns:t="http://purl.org/dc/terms/"'
    told = "<t:provenance>a farm in Kent</t:provenance>"
    xmp = packet(f"{terms} t:provenance='self#jumbf=/c2pa/x'", told)
    segments = ((jpeg.APP11, b"JP\0\1\0\0\0\1" + manifest), (jpeg.APP1, jpeg.XMP + xmp))
    encoded, notes = protect(add_segments(*segments))
    assert len(notes) == 1 and "content credentials (C2PA)" in notes[0]
    assert b"c2pa" not in encoded.data and encoded.decoded.metadata.xmp == packet(terms, told)
    chunk = png.make_png_chunk(b"caBX", manifest)
    encoded, notes = protect(png.splice_png(save("PNG"), (chunk,)))
    assert "C2PA" in notes[0] and b"c2pa" not in encoded.data
    riff = save("WEBP", lossless=True, xmp=packet("", TITLE)) + b"C2PA\4\0\0\0jumb"
    riff = riff[:4] + struct.pack("<I", len(riff) - 8) + riff[8:]
    assert "C2PA" in protect(riff)[1][0]


def split_xmp(text: bytes, room: int = 40_000) -> list[tuple[int, bytes]]:
    """Return a main packet and the segments of its extension."""
    name = hashlib.md5(text, usedforsecurity=False).hexdigest().upper()
    note = 'xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
    main = packet(f'{note} xmpNote:HasExtendedXMP="{name}"', TITLE)
    parts = [
        (
            jpeg.APP1,
            jpeg.MORE_XMP + name.encode() + struct.pack(">II", len(text), at) + text[at:][:room],
        )
        for at in range(0, len(text), room)
    ]
    return [(jpeg.APP1, jpeg.XMP + main), *reversed(parts)]


def test_extended_xmp_stays_without_what_shows_the_original() -> None:
    image = base64.b64encode(thumbnail()).decode()
    story = "<d:story xmlns:d='urn:d'>" + "Es war einmal. " * 6_000 + "</d:story>"
    space = 'xmlns:GI="http://ns.google.com/photos/1.0/image/"'
    text = packet(f"{space} GI:Mime='image/jpeg' GI:Data='{image}'", story)
    encoded, notes = protect(add_segments(*split_xmp(text)))
    assert notes == [PREVIEW_NOTE] and image[:60].encode() not in encoded.data
    segments = encoded.decoded.metadata.segments
    more = sorted(part[75:] for part in segments if part[4:].startswith(jpeg.MORE_XMP))
    left = b"".join(part[4:] for part in more)
    assert left == packet("", story)
    name = hashlib.md5(left, usedforsecurity=False).hexdigest().upper().encode()
    assert encoded.data.count(name) == len(more) + 1
    # Another format has room for one whole packet.
    assert story.encode() in protect(encoded.data, "png")[0].decoded.metadata.xmp


def test_extended_xmp_without_pictures_is_the_same_bytes() -> None:
    segments = split_xmp(packet("", "<d:s xmlns:d='urn:d'>" + "so it goes " * 9_000 + "</d:s>"))
    encoded, notes = protect(add_segments(*segments))
    found = [(marker, data) for marker, data, _ in jpeg.read_segments(encoded.data)]
    assert [part for part in found if part in segments] == segments and not notes


@pytest.mark.parametrize(
    ("comment", "kind"),
    [(b"a quay", b"tEXt"), ("Zoë".encode(), b"iTXt"), ("Zoë".encode("latin-1"), b"tEXt")],
)
def test_a_jpeg_as_png_keeps_comment_iptc_and_xmp(comment: bytes, kind: bytes) -> None:
    resources = wrap_iptc(IPTC) + b"8BIM\4\x0a\0\0\0\0\0\1\1\0"
    source = add_segments(
        (jpeg.COMMENT, comment),
        (jpeg.APP13, jpeg.PHOTOSHOP + resources),
        (jpeg.APP1, jpeg.XMP + packet("", TITLE)),
    )
    encoded, notes = protect(source, "png")
    beside = encoded.decoded.metadata
    assert not notes and beside.xmp == packet("", TITLE)
    assert beside.photoshop == resources and beside.comments == (comment,)
    assert kind + b"Comment\0" in encoded.data
    again, notes = protect(encoded.data, "jpeg")
    assert again.decoded.metadata.photoshop == resources
    assert again.decoded.metadata.comments == (comment,) and not notes
    _, notes = protect(source, "webp")
    assert [note for note in notes if "IPTC" in note] and [
        note for note in notes if "comment" in note
    ]


def test_a_segment_of_unknown_content_is_named() -> None:
    encoded, notes = protect(add_segments((0xE5, b"something"), (jpeg.APP12, b"Ducky\0\1\0\4")))
    assert notes == ["left out private segments that may hold the original picture: APP5"]
    assert b"something" not in encoded.data and b"Ducky" in encoded.data


# --- PNG -------------------------------------------------------------------------------------


def raw_profile(name: str, data: bytes, kind: bytes = b"zTXt") -> bytes:
    text = f"\n{name}\n{len(data):8}\n".encode() + data.hex("\n", -36).encode() + b"\n"
    packed = b"\0" + zlib.compress(text) if kind == b"zTXt" else text
    return png.make_png_chunk(kind, f"Raw profile type {name}".encode() + b"\0" + packed)


@pytest.mark.parametrize("kind", [b"zTXt", b"tEXt"])
def test_raw_profiles_of_gimp_keep_their_tags_and_lose_their_thumbnail(kind: bytes) -> None:
    view = thumbnail()
    head = b"II*\0" + struct.pack("<IHHHII", 8, 1, 305, 2, 4, int.from_bytes(b"GIM\0", "little"))
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(view), 0)
    exif = head + struct.pack("<I", 26) + second + view
    profiles = {"exif": b"Exif\0\0" + exif, "iptc": wrap_iptc(IPTC)}
    chunks = tuple(raw_profile(name, data, kind) for name, data in profiles.items())
    encoded, notes = protect(png.splice_png(save("PNG"), chunks))
    info = {key: str(value) for key, value in Image.open(io.BytesIO(encoded.data)).info.items()}
    left = bytes.fromhex("".join(info["Raw profile type exif"].split()[2:]))
    assert left.startswith(b"Exif\0\0" + head) and len(left) == len(profiles["exif"])
    assert view[20:60] not in left and notes == [PREVIEW_NOTE]
    assert chunks[1] in encoded.data
    # A copy in another format has them in the places that it has.
    beside = protect(encoded.data, "jpeg")[0].decoded.metadata
    assert read_tiff(beside.exif)[1][305][1] == b"GIM\0" and beside.photoshop == wrap_iptc(IPTC)


def test_packed_xmp_in_a_png_loses_only_its_thumbnails() -> None:
    image = base64.b64encode(thumbnail()).decode()
    view = f'<i:image xmlns:i="http://ns.adobe.com/xap/1.0/g/img/">{image}</i:image>'
    xmp = packet(
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/"',
        f"<xmp:Thumbnails>{view}</xmp:Thumbnails>{TITLE}",
    )
    chunk = png.make_png_chunk(b"iTXt", png.XMP_KEYWORD + b"\0\1\0\0\0" + zlib.compress(xmp))
    encoded, notes = protect(png.splice_png(save("PNG"), (chunk,)))
    assert notes == [PREVIEW_NOTE]
    assert encoded.decoded.metadata.xmp == packet('xmlns:xmp="http://ns.adobe.com/xap/1.0/"', TITLE)


def test_what_a_png_says_of_its_samples_stays_where_they_stay_alike() -> None:
    background = png.make_png_chunk(b"bKGD", struct.pack(">3H", 1, 2, 3))
    encoded, notes = protect(png.splice_png(save("PNG"), (background,)))
    assert background in encoded.data and not notes
    file = io.BytesIO()
    draw().quantize(16).save(file, "PNG")
    index = png.make_png_chunk(b"bKGD", b"\3")
    data = file.getvalue()
    at = data.index(b"IDAT") - 4
    encoded, _ = protect(data[:at] + index + data[at:])
    assert b"bKGD" not in encoded.data


def test_exif_with_the_prefix_of_jpeg_is_cleaned_in_a_png_and_moved_without_it() -> None:
    exif = tiff.pack_exif("<", {315: (2, b"Ida\0")})
    chunk = png.make_png_chunk(b"eXIf", b"Exif\0\0" + exif)
    encoded, notes = protect(png.splice_png(save("PNG"), (chunk,)))
    assert chunk in encoded.data and not notes
    assert protect(encoded.data, "jpeg")[0].decoded.metadata.exif == exif


def test_private_chunks_of_a_png_are_named() -> None:
    encoded, notes = protect(png.splice_png(save("PNG"), (png.make_png_chunk(b"mkBF", bytes(99)),)))
    assert ": mkBF" in notes[0] and b"mkBF" not in encoded.data


@pytest.mark.parametrize("target", ["jpeg", "webp"])
def test_a_png_of_other_colours_than_srgb_is_not_relabelled(target: str) -> None:
    linear = png.make_png_chunk(b"gAMA", struct.pack(">I", 100_000))
    wide = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    primaries = png.make_png_chunk(b"cHRM", struct.pack(">8I", *wide))
    pq = png.make_png_chunk(b"cICP", b"\x09\x10\0\1")
    for chunk in (linear, primaries, pq):
        source = png.splice_png(save("PNG"), (chunk,))
        assert chunk in protect(source)[0].data
        problem = refuse(source, target)
        assert problem.reason == "colour" and "--format keep" in problem.message
    usual = png.make_png_chunk(b"gAMA", struct.pack(">I", 45_455))
    assert protect(png.splice_png(save("PNG"), (usual,)), target)[0].format == target.upper()
    profile = save("PNG", icc_profile=PROFILE)
    assert protect(png.splice_png(profile, (linear,)), target)[0].decoded.metadata.icc == PROFILE


def test_texts_of_a_png_that_a_jpeg_has_no_place_for_are_named() -> None:
    chunks = [png.make_png_chunk(b"tEXt", text) for text in (b"Author\0Ida", b"comment\0a quay")]
    encoded, notes = protect(png.splice_png(save("PNG"), tuple(chunks)), "jpeg")
    assert "left out texts, which have no place in a JPEG: Author" in notes
    assert encoded.decoded.metadata.comments == (b"a quay",)


# --- AVIF ------------------------------------------------------------------------------------


def make_colours(primaries: int, transfer: int) -> bytes:
    return boxes.make_box(b"colr", b"nclx" + struct.pack(">3HB", primaries, transfer, 6, 0x80))


SRGB = make_colours(1, 13)
CROP = boxes.make_box(b"clap", struct.pack(">8i", 40, 1, 30, 1, 2, 1, -1, 1))
OBLONG = boxes.make_box(b"pasp", struct.pack(">II", 4, 3))


def make_avif(*shown: bytes, exif: bytes = b"", mode: str = "RGB", **options: Any) -> bytes:
    return avif.write(save("AVIF", mode, quality=90, speed=9, **options), shown, exif, b"")


@pytest.mark.parametrize("pair", [(2, 2), (12, 13), (9, 16), (9, 18), (1, 8), (1, 13)])
@pytest.mark.parametrize("profile", [b"", PROFILE])
def test_an_avif_keeps_its_colours(pair: tuple[int, int], profile: bytes) -> None:
    shown = [make_colours(*pair)]
    if profile:
        shown.insert(0, boxes.make_box(b"colr", b"prof" + profile))
    encoded, _ = protect(make_avif(*shown))
    kept = avif.read(encoded.data)
    assert kept.boxes == tuple(shown)
    assert (
        avif._read_colours(avif._find_sequence(encoded.data, boxes.read_meta(encoded.data)))[:2]
        == pair
    )
    assert Image.open(io.BytesIO(encoded.data)).info.get("icc_profile", b"") == profile


def test_an_avif_without_a_colour_box_is_what_its_coded_picture_says() -> None:
    source = make_avif(make_colours(9, 16)).replace(b"colrnclx", b"freenclx")
    assert b"colr" not in source
    encoded, _ = protect(source)
    assert avif.read_cicp(avif.read(encoded.data).boxes) == (9, 16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_keeps_crop_turn_and_shape_of_pixels(mode: str) -> None:
    turn, flip = boxes.make_box(b"irot", b"\1"), boxes.make_box(b"imir", b"\1")
    shown = (SRGB, OBLONG, CROP, turn, flip)
    encoded, notes = protect(make_avif(*shown, mode=mode))
    assert avif.read(encoded.data).boxes == shown
    assert not [note for note in notes if "left out" in note]
    meta = boxes.read_meta(encoded.data)
    turned = [
        uses for uses in meta.uses.values() if any(meta.properties[n - 1] == CROP for n, _ in uses)
    ]
    assert len(turned) == (2 if mode == "RGBA" else 1)  # its alpha too
    assert all(must for uses in turned for n, must in uses if meta.properties[n - 1] == CROP)


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_exif_of_an_avif_is_the_same_bytes(order: str) -> None:
    tags: tiff.Directory = {
        274: (3, struct.pack(order + "H", 6)),
        315: (2, "Jürgen\0".encode()),
        34665: (4, {37500: (7, b"a maker's note \xff\0")}),
    }
    exif = tiff.pack_exif(order, tags)
    encoded, _ = protect(make_avif(SRGB, exif=exif))
    assert avif.read(encoded.data).exif == exif
    # Viewers turn by boxes, not by EXIF.
    assert b"irot" not in encoded.data and read_orientation(encoded.decoded) == 1


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("flip", [None, 0, 1])
def test_the_turn_of_an_avif_becomes_an_orientation_elsewhere(turn: int, flip: int | None) -> None:
    shown = [SRGB, boxes.make_box(b"irot", bytes([turn]))]
    if flip is not None:
        shown.append(boxes.make_box(b"imir", bytes([flip])))
    exif = tiff.pack_exif("<", {315: (2, b"Ida\0"), 34665: (4, {37500: (7, b"a note")})})
    source = make_avif(*shown, exif=exif)
    wanted = Image.open(io.BytesIO(source)).getexif().get(274, 1)
    assert read_orientation(codec.decode(source)) == wanted
    copy = Image.open(io.BytesIO(protect(source, "png")[0].data)).getexif()
    assert copy.get(274, 1) == wanted and copy[315] == "Ida"
    assert copy.get_ifd(34665)[37500] == b"a note"


def test_a_cropped_avif_is_not_shown_whole_in_another_format() -> None:
    problem = refuse(make_avif(SRGB, CROP), "png")
    assert problem.reason == "crop" and "--format keep" in problem.message


def test_the_colours_of_an_avif_go_into_a_png_and_are_not_lost_in_others() -> None:
    source = make_avif(make_colours(12, 13))
    data = protect(source, "png")[0].data
    assert b"cICP\x0c\x0d\0\1" in data
    for target in ("jpeg", "webp"):
        assert refuse(source, target).reason == "colour"
    profile = boxes.make_box(b"colr", b"prof" + PROFILE)
    encoded, _ = protect(make_avif(profile, make_colours(12, 13)), "jpeg")
    assert encoded.decoded.metadata.icc == PROFILE


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grayscale_avif_stays_grayscale(mode: str) -> None:
    source = save("AVIF", mode, quality=90, **({"subsampling": "4:0:0"} if mode == "LA" else {}))
    assert avif.read(source).is_gray
    encoded, _ = protect(source)
    assert avif.read(encoded.data).is_gray and encoded.decoded.pixels.shape == (48, 64, 1)
    assert (encoded.decoded.alpha is not None) == (mode == "LA")


def test_colours_that_cannot_be_decoded_are_refused_with_their_matrix() -> None:
    source = save("AVIF", quality=90)
    at = source.index(b"colrnclx") + 12
    problem = refuse(source[:at] + b"\0\x0e" + source[at + 2 :])
    assert problem.reason == "mode" and "matrix 14" in problem.message


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_avif_is_a_picture_problem_at_worst(seed: int) -> None:
    data = bytearray(make_avif(SRGB, OBLONG, exif=tiff.pack_exif("<", {315: (2, b"Ida\0")})))
    random = np.random.default_rng(seed)
    for at in random.integers(0, boxes.read_meta(bytes(data)).end, 4):
        data[at] = random.integers(256)
    try:
        protect(bytes(data))
    except ImageProblem as problem:
        assert problem.reason != "unwritable", problem


# --- BMP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_bmp_keeps_the_profile_and_the_primaries_of_its_header(mode: str) -> None:
    image = draw().convert(mode)
    if mode == "RGBA":
        image.putalpha(200)
    planes = np.atleast_3d(np.asarray(image))
    primaries = bytes(4) + struct.pack("<9i3I", *range(1, 10), 1 << 16, 2 << 16, 3 << 16)
    linked = b"KNIL" + bytes(48) + struct.pack("<I", 4) + b"c:\\wide.icc\0"
    embedded = b"DEBM" + bytes(48) + struct.pack("<I", 2) + PROFILE
    for colours in (primaries, linked, embedded):
        source = bmp.write(planes, (100, 50), colours)
        assert np.array_equal(np.atleast_3d(np.asarray(Image.open(io.BytesIO(source)))), planes)
        encoded, notes = protect(source)
        assert bmp.read_colours(encoded.data)[1] == colours and not notes
        assert encoded.survival == 1 and encoded.decoded.metadata.dpi == pytest.approx(
            (100, 50), 0.01
        )
    assert protect(source, "png")[0].decoded.metadata.icc == PROFILE
    for colours in (primaries, linked):
        assert refuse(bmp.write(planes, None, colours), "png").reason == "colour"
    assert protect(bmp.write(planes, None, bytes(52)), "png")[0].format == "PNG"


# --- XMP -------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_can_be_cleaned_as_xmp(data: bytes) -> None:
    clean_xmp(data, appended=True)
    clean_xmp(b"<a>" + data + b"</a>", appended=True)
    merge_extended(packet(), data)


def test_xmp_that_is_no_sound_xml_has_its_pictures_blanked_in_place() -> None:
    image = base64.b64encode(thumbnail())
    broken = b"<a><b>" + image + b"</a>"
    cleaned, lost = clean_xmp(broken)
    assert lost and len(cleaned) == len(broken) and not re.search(rb"/9j/", cleaned)


@pytest.mark.parametrize(
    "xmp",
    [
        packet(f'xmlns:C="{CONTAINER}"', "<C:a>" * 100_000 + "</C:a>" * 100_000),
        packet(f'xmlns:C="{CONTAINER}"', "<d/>" * 3_000_000),
        packet(f'xmlns:C="{CONTAINER}" ' + " ".join(f'C:a{n}="1"' for n in range(50_000))),
        b"<!DOCTYPE a ["
        + b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 9) for n in range(1, 30))
        + b"]><a>&e29;</a>",
    ],
)
def test_xmp_that_nobody_would_write_takes_no_time(xmp: bytes) -> None:
    started = time.process_time()
    clean_xmp(xmp, appended=True)
    assert time.process_time() - started < 3


def test_pictures_below_that_of_a_tiff_are_named_of_either_kind() -> None:
    for kind in (4, 13):
        tags: tiff.Directory = {315: (2, b"Ida\0"), 331: (4, struct.pack("<I", 8))}
        source = tiff.graft_tags(save("TIFF"), tiff.pack_exif("<", tags))
        was, place = struct.pack("<HHI", 331, 4, 1), struct.pack("<HHI", 330, kind, 1)
        assert PREVIEW_NOTE in protect(source.replace(was, place))[1]


def test_no_resolution_is_made_up_for_a_bmp() -> None:
    source = save("BMP", dpi=(0, 0))
    assert source[38:46] == bytes(8)
    assert protect(source)[0].data[38:46] == bytes(8)
    source = save("BMP", dpi=(300, 150))
    assert protect(source)[0].data[38:46] == source[38:46] != bytes(8)
