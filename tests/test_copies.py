"""Protected copies among the pictures: known by place, content or mark, and left alone."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import mark_slow
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_cli import tue
from test_jobs import copies, done, planned, run, spec_of, timeless, tree

from tue_cli.check.run import CheckSpec, check
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.match import KnownCopies
from tue_cli.errors import BadSetting
from tue_cli.events import AnyEvent, Checked, Done, Note, Saved, Skipped
from tue_cli.images import jpeg, mark
from tue_cli.images.codec import decode
from tue_cli.protect.preview import preview
from tue_cli.protect.run import protect

RDF = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
TITLE = "Rötlicher Hafen"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + RDF + b'<rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title><rdf:Alt><rdf:li xml:lang="x-default">'
    + TITLE.encode()
    + b"</rdf:li></rdf:Alt></dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def make_info() -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    return info


FORMATS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "JPEG": ("jpg", lambda: {"xmp": XMP}),
    "PNG": ("png", lambda: {"pnginfo": make_info()}),
    "WEBP": ("webp", lambda: {"xmp": XMP}),
    "TIFF": ("tif", lambda: {"tiffinfo": {700: XMP, 315: "Jo"}}),
    "AVIF": ("avif", lambda: {"xmp": XMP}),
}
"""Formats that hold XMP -> their ending, and what makes Pillow write some."""


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_photos, tmp_path / "photos"))


@pytest.fixture(scope="module")
def made(
    small_photos: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Outputs of the six photographs, to be copied: unmarked, and marked."""
    place = tmp_path_factory.mktemp("made")
    outputs = {"plain": place / "plain", "marked": place / "marked"}
    for name, output in outputs.items():
        run(spec_of(small_photos, output, tiny_weights, mark=name == "marked"))
    return outputs


@pytest.fixture
def output(made: dict[str, Path], tmp_path: Path) -> Path:
    """A finished output of the six photographs."""
    return Path(shutil.copytree(made["plain"], tmp_path / "copies"))


def skipped(events: list[AnyEvent]) -> dict[str, str]:
    return {e.path.name: e.reason for e in events if isinstance(e, Skipped) and e.reason != "done"}


def notes(events: list[AnyEvent]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Note))


def said(events: list[AnyEvent]) -> str:
    assert isinstance(events[-1], Done)
    return "\n".join(events[-1].said)


@pytest.mark.parametrize(
    ("place", "existing"),
    [
        (".", "skip"),
        (".", "overwrite"),
        ("space", "skip"),
        ("space/rocket.jpg", "skip"),
    ],
)
def test_copies_in_their_own_output_are_left_alone_and_nothing_is_written(
    place: str, existing: str, output: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    before = tree(tmp_path)
    count = {".": 6, "space": 3, "space/rocket.jpg": 1}[place]
    events = run(spec_of(output / place, tmp_path / "again", tiny_weights, existing=existing))
    assert skipped(events).values() and set(skipped(events).values()) == {"already-protected"}
    assert len(skipped(events)) == count == done(events).already_protected
    assert done(events).protected == done(events).failed == done(events).already_done == 0
    assert "Nothing to do:" in said(events) and "folder of the originals" in said(events)
    assert tree(tmp_path) == before and not (tmp_path / "again").exists()
    assert ("6 pictures are protected copies already" in notes(events)) == (count == 6)


def test_the_command_ends_well_and_v_names_the_copies(
    output: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    ran = tue("protect", str(output), "--weights", str(tiny_weights), "-v", cwd=tmp_path)
    assert ran.returncode == 0
    assert b"Nothing to do: all pictures are protected copies already." in ran.stdout
    assert b"copies/space/rocket.jpg: This is a protected copy already." in ran.stderr
    assert not (tmp_path / "copies-protected").exists()


def test_copies_of_an_unfinished_run_are_known_too(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    half = tmp_path / "half"
    job = protect(spec_of(photos, half, tiny_weights))
    next(event for event in job if isinstance(event, Saved))
    job.close()
    assert not (half / MANIFEST).exists()
    finished = [name for name in copies(half) if not name.startswith(".tue")]
    events = run(spec_of(half, tmp_path / "again", tiny_weights))
    assert done(events).already_protected == len(finished) > 0 == done(events).protected


def test_a_copy_among_the_originals_is_left_alone_whatever_it_is_called(
    photos: Path, output: Path, tiny_weights: Path
) -> None:
    before = timeless(output)
    shutil.copy(output / "space" / "rocket.jpg", photos / "space" / "renamed.jpeg")
    shutil.copy(output / "space" / "astronaut.jpg", photos / "space" / "astronaut.jpg")
    Image.effect_noise((40, 30), 60).convert("RGB").save(photos / "space" / "new.png")
    spec = spec_of(photos, output, tiny_weights)
    assert planned(replace(spec, dry_run=True)).pictures == 1
    events = run(spec)
    expected = dict.fromkeys(["renamed.jpeg", "astronaut.jpg"], "already-protected")
    assert skipped(events) == expected
    assert "2 pictures are protected copies already and were left alone." in notes(events)
    assert (done(events).protected, done(events).already_done) == (1, 5)
    assert not (output / "space" / "renamed.jpeg").exists()
    listed = {r["path"]: r for r in timeless(output)["pictures"]}  # type: ignore[attr-defined]
    assert listed.pop("space/new.png")
    assert list(listed.values()) == before["pictures"]


def test_copies_of_another_output_are_known_among_the_originals(
    photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    first = tmp_path / "first"
    run(spec_of(photos, first, tiny_weights))
    remembered = own_home / "copies.jsonl"
    assert stat.S_IMODE(remembered.stat().st_mode) == 0o600
    shutil.copy(first / "space" / "rocket.jpg", photos / "space" / "renamed.jpeg")
    shutil.rmtree(first)
    spec = spec_of(photos, tmp_path / "second", tiny_weights)
    assert planned(replace(spec, dry_run=True)).already_protected == 1
    before = remembered.read_bytes()
    events = run(spec)
    assert skipped(events) == {"renamed.jpeg": "already-protected"}
    assert done(events).protected == 6
    # The same copies are not written down again.
    assert remembered.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[]", '{"copies": [[1, 2]]}', '{"copies": [["ab", 2]]}'])
def test_a_damaged_list_of_copies_is_passed_over(
    line: str, photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    (own_home / "copies.jsonl").write_text(line)
    run(spec_of(photos / "space", tmp_path / "first", tiny_weights))
    copied = spec_of(tmp_path / "first" / "rocket.jpg", tmp_path / "second", tiny_weights)
    (tmp_path / "first" / MANIFEST).unlink()
    assert skipped(run(copied)) == {"rocket.jpg": "already-protected"}


def test_a_list_of_copies_that_cannot_be_read_is_said_and_stays(
    photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    remembered = own_home / "copies.jsonl"
    remembered.write_text("odd\n" * 1001)
    for name in ("first", "second"):
        events = run(spec_of(photos / "space", tmp_path / name, tiny_weights))
        assert "copies.jsonl cannot be read: more than 1,000 lines" in notes(events)
        assert done(events).protected == 3
        assert remembered.read_text() == "odd\n" * 1001


def change(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
    image.rotate(180).save(path)


def test_a_changed_copy_in_its_output_is_left_alone_with_its_own_sentence(
    output: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    change(output / "space" / "rocket.jpg")
    spec = spec_of(output / "space", tmp_path / "again", tiny_weights)
    events = run(spec)
    assert skipped(events)["rocket.jpg"] == "changed-copy"
    assert done(events).already_protected == 3 and not (tmp_path / "again").exists()
    assert "1 picture is a protected copy that was changed" in notes(events)
    assert "2 pictures are protected copies already" in notes(events)
    assert planned(replace(spec, dry_run=True)).already_protected == 3


def test_a_changed_copy_that_nothing_tells_of_is_a_picture_like_any_other(
    made: dict[str, Path], tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(made["plain"] / "space" / "rocket.jpg", tmp_path / "in")
    change(tmp_path / "in" / "rocket.jpg")
    assert done(run(spec_of(tmp_path / "in", tmp_path / "out", tiny_weights))).protected == 1


def test_pictures_added_to_an_output_are_protected(
    output: Path, photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    shutil.copy(photos / "space" / "rocket.jpg", output / "another.jpg")
    events = run(spec_of(output, tmp_path / "again", tiny_weights))
    assert done(events).protected == 1 and done(events).already_protected == 6
    assert list(copies(tmp_path / "again")) == ["another.jpg"]


def test_a_manifest_that_cannot_be_read_is_a_note(
    output: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (output / MANIFEST).write_text("{")
    events = run(spec_of(output / "space", tmp_path / "again", tiny_weights, labels="single"))
    assert done(events).protected == 3
    assert f"{MANIFEST} cannot be read" in notes(events)
    assert "tue cannot tell which pictures in" in notes(events)


def test_a_plan_reads_only_files_whose_size_is_that_of_a_copy(tmp_path: Path) -> None:
    known = KnownCopies(frozenset({"0" * 64}), frozenset(), frozenset({4, None}), frozenset(), ())
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert not known.is_likely(tmp_path / "a.jpg") and not known.is_likely(tmp_path / "gone.jpg")


def test_a_preview_of_copies_says_so(output: Path, tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "scratch").mkdir()
    spec = spec_of(output, tmp_path / "again", tiny_weights)
    told = notes(list(preview(spec, tmp_path / "scratch")))
    assert "rocket.jpg: This is a protected copy already." in told


def draw(path: Path, form: str, **options: Any) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path, form, **options)


@pytest.mark.parametrize("with_xmp", mark_slow([True, False], but=[True]))
@pytest.mark.parametrize("form", FORMATS)
def test_a_mark_joins_the_xmp_and_is_found_without_the_manifest(
    form: str, with_xmp: bool, tmp_path: Path, tiny_weights: Path
) -> None:
    ending, make = FORMATS[form]
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / f"x.{ending}"
    draw(source, form, **(make() if with_xmp else {}))
    for name in ("plain", "marked"):
        events = run(spec_of(source, tmp_path / name, tiny_weights, mark=name == "marked"))
        assert done(events).protected == 1
    plain, marked = (decode((tmp_path / n / source.name).read_bytes()) for n in ("plain", "marked"))
    assert np.array_equal(plain.pixels, marked.pixels)
    assert not mark.has_mark(plain.metadata.xmp) and mark.has_mark(marked.metadata.xmp)
    assert (TITLE.encode() in marked.metadata.xmp) == with_xmp
    with Image.open(tmp_path / "marked" / source.name) as image:
        tags = image.getexif()
        assert form != "TIFF" or not with_xmp or tags[315] == "Jo"
    (record,) = read_manifest(tmp_path / "marked")["pictures"]
    assert "xmp" in record["metadata"] and not any("mark" in note for note in record["notes"])
    (checked,) = (e for e in check(CheckSpec(tmp_path / "marked")) if isinstance(e, Checked))
    assert checked.state == "intact"
    (tmp_path / "marked" / MANIFEST).unlink()
    events = run(spec_of(tmp_path / "marked", tmp_path / "again", tiny_weights))
    assert skipped(events) == {source.name: "already-protected"}
    assert "Nothing to do" in said(events)


@pytest.mark.parametrize("form", mark_slow(["png", "jpeg", "webp"], but=["png"]))
def test_a_mark_outlives_another_format(form: str, tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "x.tif", "TIFF", tiffinfo={700: XMP})
    run(spec_of(tmp_path / "in", tmp_path / "out", tiny_weights, mark=True, format=form))
    (copy,) = (path for path in (tmp_path / "out").iterdir() if path.name != MANIFEST)
    xmp = decode(copy.read_bytes()).metadata.xmp
    assert mark.has_mark(xmp) and TITLE.encode() in xmp


def test_a_marked_jpeg_saved_again_by_another_program_is_known(
    made: dict[str, Path], tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("rocket", "astronaut"):
        with Image.open(made["marked"] / "space" / f"{name}.jpg") as image:
            kept = {"xmp": image.info["xmp"]} if name == "rocket" else {}
            image.resize((50, 40)).save(tmp_path / "in" / f"{name}.jpg", quality=80, **kept)
    spec = spec_of(tmp_path / "in", tmp_path / "out", tiny_weights)
    events = run(spec)
    assert skipped(events) == {"rocket.jpg": "already-protected"}
    assert list(copies(tmp_path / "out")) == ["astronaut.jpg"]
    assert "1 picture is a protected copy already and was left alone." in notes(events)


def test_check_tells_when_the_metadata_with_the_mark_was_removed(
    tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "x.png", "PNG")
    run(spec_of(tmp_path / "in", tmp_path / "out", tiny_weights, mark=True))
    with Image.open(tmp_path / "out" / "x.png") as image:
        image.copy().save(tmp_path / "out" / "x.png")
    (checked,) = (e for e in check(CheckSpec(tmp_path / "out")) if isinstance(e, Checked))
    assert (checked.state, checked.lost) == ("metadata-gone", ("xmp",))


@pytest.mark.parametrize("why", ["no place in the format", "no room", "no RDF"])
def test_a_copy_that_cannot_be_marked_is_written_with_a_note(
    why: str, tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "in").mkdir()
    room = b" " * (jpeg.LONGEST - len(jpeg.XMP) - len(XMP) - 10)
    odd = {"no room": XMP.replace(b"</dc:title>", b"</dc:title>" + room), "no RDF": b"<x/>"}
    form = "BMP" if why not in odd else "JPEG"
    source = tmp_path / "in" / f"x.{form.lower()}"
    draw(source, form, **({"xmp": odd[why]} if why in odd else {}))
    events = run(spec_of(source, tmp_path / "out", tiny_weights, mark=True))
    assert done(events).protected == 1
    (record,) = read_manifest(tmp_path / "out")["pictures"]
    assert f"the mark could not be written into the metadata of this {form}" in record["notes"]


def test_a_mark_is_known_in_xmp_that_another_program_wrote_anew() -> None:
    namespace = mark.NAMESPACE.decode()
    written = f"<a xmlns:ns1='{namespace}'><ns1:protected>0.1.0</ns1:protected></a>".encode()
    assert mark.has_mark(written)
    assert not mark.has_mark(written.replace(b"ns1:protected", b"ns1:other"))
    assert not mark.has_mark(b'<a xmlns:tue="urn:other"><tue:protected/></a>')


def test_a_mark_is_a_setting_of_the_copies(
    photos: Path, made: dict[str, Path], output: Path, tiny_weights: Path
) -> None:
    assert "mark" not in read_manifest(output)["run"]  # as in outputs of versions without marks
    with pytest.raises(BadSetting, match="mark not set → True"):
        run(spec_of(photos, output, tiny_weights, mark=True))
    again = run(spec_of(photos, made["marked"], tiny_weights, mark=True))
    assert done(again).already_done == 6
