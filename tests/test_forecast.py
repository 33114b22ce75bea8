"""A dry run: what it says of a run, held against what the run then does."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.config import ProtectSettings
from tue_cli.console import SHOWN_FAILURES, SHOWN_ROWS
from tue_cli.dataset.discover import Item
from tue_cli.dataset.manifest import sha256
from tue_cli.errors import ImageProblem
from tue_cli.events import AnyEvent, Done, Failed, Note, Started
from tue_cli.images import avif, boxes, codec, png
from tue_cli.images.header import BEGINNING, Header, read_header
from tue_cli.noise import TueNoise
from tue_cli.protect.forecast import Made, Ready, Sample, estimate_seconds, estimate_size
from tue_cli.protect.plan import Task
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectForecast, ProtectPlan
from tue_cli.protect.run import protect

ASSETS = Path(__file__).parent.parent / "assets" / "photos"
QUICK = ProtectSettings(noise=TueNoise(steps=1))


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    """Six photographs in two class folders, small enough to be quick."""
    return Path(shutil.copytree(small_photos, tmp_path / "photos"))


@pytest.fixture
def spec(photos: Path, tmp_path: Path, tiny_weights: Path) -> ProtectSpec:
    """What protects them quickly; a dry run."""
    out, weights = tmp_path / "out", str(tiny_weights)
    return ProtectSpec(
        (photos,), out, weights=weights, settings=QUICK, device="cpu", jobs=2, dry_run=True
    )


def dry(spec: ProtectSpec) -> tuple[list[AnyEvent], ProtectForecast]:
    events: list[AnyEvent] = list(protect(replace(spec, dry_run=True)))
    assert isinstance(events[-1], Done) and isinstance(events[-1].result, ProtectForecast)
    return events, events[-1].result


def real(spec: ProtectSpec) -> list[AnyEvent]:
    return list(protect(replace(spec, dry_run=False)))


def failures(events: list[AnyEvent]) -> set[tuple[Path, str, str]]:
    return {(e.path, e.reason, e.message) for e in events if isinstance(e, Failed)}


def plan_of(events: list[AnyEvent]) -> ProtectPlan:
    plan = [event.plan for event in events if isinstance(event, Started)][-1]
    assert isinstance(plan, ProtectPlan)
    return plan


def notes(events: list[AnyEvent]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Note))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path) if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def count_bytes(folder: Path) -> int:
    found = [path for path in folder.rglob("*.*") if path.is_file()]
    return sum(path.stat().st_size for path in found if path.suffix != ".json")


def add_boxes(path: Path, *contents: bytes) -> bytes:
    """Return an AVIF with properties that Pillow does not write: type and content of each."""
    listed = tuple(boxes.make_box(content[:4], content[4:]) for content in contents)
    return avif.write(path.read_bytes(), listed, b"", b"")


def spoil(photos: Path, out: Path) -> None:
    """Add pictures whose headers, names or places say that they cannot be protected."""
    (photos / "empty.png").touch()
    (photos / "page.jpg").write_text("<html>")
    (photos / "drawing.svg").write_text("<svg/>")
    (photos / "vanished.png").symlink_to(photos / "nowhere.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "moving.png", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "pages.tif", save_all=True, append_images=frames[1:])
    Image.new("1", (8, 8)).save(photos / "bits.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 99)).save(photos / "glass.png")
    whole = (photos / "space" / "rocket.jpg").read_bytes()
    (photos / "head.jpg").write_bytes(whole[:100])
    shutil.copy(photos / "everyday" / "cat.png", photos / "space" / "rocket.tga")
    frames[0].save(photos / "wide.avif")
    usual = b"colrnclx" + struct.pack(">3HB", 1, 13, 6, 0x80)
    part = b"clap" + struct.pack(">8i", 4, 1, 4, 1, 0, 1, 0, 1)
    (photos / "cut.avif").write_bytes(add_boxes(photos / "wide.avif", usual, part))
    colours = b"colrnclx" + struct.pack(">3HB", 12, 13, 6, 0x80)
    (photos / "wide.avif").write_bytes(add_boxes(photos / "wide.avif", colours))
    steep = png.make_png_chunk(b"gAMA", struct.pack(">I", 100_000))
    frames[0].save(photos / "steep.png")
    steeper = png.splice_png((photos / "steep.png").read_bytes(), (steep,))
    (photos / "steep.png").write_bytes(steeper)
    (out / "space").mkdir(parents=True)
    (out / "space" / "astronaut.jpg").write_text("somebody's own")


def test_a_dry_run_names_what_a_run_then_fails_and_writes_nothing(
    spec: ProtectSpec, photos: Path, tmp_path: Path
) -> None:
    spoil(photos, tmp_path / "out")
    spec = replace(spec, format="jpeg")
    before = tree(tmp_path)
    events, forecast = dry(spec)
    assert tree(tmp_path) == before
    run = real(spec)
    assert failures(events) == failures(run)
    assert isinstance(run[-1], Done)
    summary = run[-1].result
    assert (forecast.failed, forecast.reasons) == (summary.failed, summary.reasons)  # type: ignore[attr-defined]
    assert forecast.failed == 14 and forecast.pictures == summary.protected == 5  # type: ignore[attr-defined]
    expected = "empty not-a-picture unsupported broken-link animated multi-page mode alpha colour"
    assert {*expected.split(), "crop", "unreadable", "in-the-way"} == set(forecast.reasons)


def test_a_dry_run_foresees_that_a_heic_would_change_its_colours(
    spec: ProtectSpec, photos: Path
) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    p3 = {"color_primaries": 12, "transfer_characteristics": 13, "matrix_coefficients": 6}
    p3["full_range_flag"] = 1
    Image.new("RGB", (64, 64), "red").save(photos / "wide.heic", nclx_profile=p3)
    events, forecast = dry(replace(spec, format="jpeg"))
    assert forecast.reasons == {"colour": 1}
    assert failures(events) == failures(real(replace(spec, format="jpeg")))


def test_what_a_picture_turns_out_to_be_when_it_is_tried_is_told_too(
    spec: ProtectSpec, photos: Path
) -> None:
    path = photos / "space" / "rocket.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    events, forecast = dry(spec)
    assert failures(events) == failures(real(spec)) and forecast.reasons == {"truncated": 1}


def test_a_marked_copy_is_not_planned_once_it_was_tried(
    spec: ProtectSpec, photos: Path, tmp_path: Path
) -> None:
    real(replace(spec, mark=True))
    shutil.copy(tmp_path / "out" / "space" / "rocket.jpg", photos / "space" / "again.jpg")
    elsewhere = replace(spec, output=tmp_path / "elsewhere")
    events, forecast = dry(elsewhere)
    assert not failures(events) and (forecast.pictures, forecast.already_protected) == (6, 1)
    summary = real(elsewhere)[-1]
    assert isinstance(summary, Done) and summary.result.already_protected == 1  # type: ignore[attr-defined]


def test_a_dry_run_sees_which_copies_were_edited_and_which_originals_changed(
    spec: ProtectSpec, photos: Path, tmp_path: Path
) -> None:
    real(spec)
    space, copies = photos / "space", tmp_path / "out" / "space"
    (copies / "astronaut.jpg").write_text("edited")
    (copies / "deep-field.jpg").unlink()
    times = (space / "rocket.jpg").stat()
    shutil.copy(space / "astronaut.jpg", space / "rocket.jpg")
    os.utime(space / "rocket.jpg", ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))
    (photos / "everyday" / "cat.png").touch()  # its content is as it was
    events, forecast = dry(spec)
    assert (forecast.pictures, forecast.already_done) == (2, 3)
    assert forecast.reasons == {"in-the-way": 1}
    run = real(spec)
    assert failures(events) == failures(run) and isinstance(run[-1], Done)
    result = run[-1].result
    assert (result.protected, result.already_done, result.failed) == (2, 3, 1)  # type: ignore[attr-defined]


def test_copies_of_another_class_are_known_as_ours(spec: ProtectSpec, tmp_path: Path) -> None:
    real(spec)
    events, forecast = dry(replace(spec, labels="single"))
    assert forecast.pictures == 6 and not failures(events)
    (tmp_path / "out" / "space" / "rocket.jpg").write_text("somebody's own")
    events, forecast = dry(replace(spec, labels="single"))
    assert forecast.pictures == 5 and forecast.reasons == {"in-the-way": 1}
    assert failures(events) == failures(real(replace(spec, labels="single")))


def cut_photos(folder: Path) -> Iterator[Path]:
    """Cut each photograph into pieces of different sizes."""
    folder.mkdir()
    for source in sorted(ASSETS.rglob("*.*")):
        with Image.open(source) as image:
            image.thumbnail((600, 600))
            for number, (width, height) in enumerate(((90, 120), (200, 150), (300, 240))):
                left = number * 40
                path = folder / f"{source.stem}-{number}{source.suffix}"
                image.crop((left, left, left + width, left + height)).save(path)
                yield path


@pytest.mark.parametrize("form", ["keep", "png", "webp"])
def test_the_size_is_estimated_within_a_half(spec: ProtectSpec, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "cut"
    assert len(list(cut_photos(folder))) == 18
    spec = replace(spec, paths=(folder,), format=form)
    estimated = dry(spec)[1].estimated_bytes
    real(spec)
    assert estimated is not None
    assert 1 / 1.5 < estimated / count_bytes(tmp_path / "out") < 1.5


def test_the_size_of_a_few_pictures_is_exact(spec: ProtectSpec, tmp_path: Path) -> None:
    estimated = dry(spec)[1].estimated_bytes
    real(spec)
    assert estimated == count_bytes(tmp_path / "out")


def ready(side: int, count: int, form: str = "JPEG") -> Ready:
    task = Task(Item(Path("a"), Path("a"), "a"), Path("a"), "a")
    return Ready(task, Header((side, side), form, count))


def test_time_and_size_grow_with_the_pixels() -> None:
    """Each format by its own pictures, and the size by what the copies follow better."""
    jpegs = [Made(ready(1000, 50), 2_000_000, 2.0), Made(ready(2000, 99), 8_000_000, 8.0)]
    pngs = [Made(ready(1000, 300, "PNG"), 600, 9.0), Made(ready(1500, 100, "PNG"), 200, 9.0)]
    sample = Sample((*jpegs, *pngs), (), frozenset(), 5.0)
    pictures = [ready(1000, 10)] * 40 + [ready(3000, 1000, "PNG")]
    assert estimate_size(pictures[:40], sample) == 40 * 2_000_000
    assert estimate_size(pictures[40:], sample) == 2000
    assert estimate_size(pictures, sample) == 80_002_000
    seconds = estimate_seconds(pictures[:40], sample, 2)
    assert seconds == pytest.approx(2 * 5 + 40 * 2 / 2, rel=0.01)
    assert estimate_size(pictures, Sample((), (), frozenset(), 0.0)) is None
    assert estimate_seconds(pictures, Sample((), (), frozenset(), 0.0), 2) is None


def test_a_disk_without_room_is_told_before_any_work(
    spec: ProtectSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "free" not in notes(dry(spec)[0])
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2000))
    events, forecast = dry(spec)
    assert forecast.free_bytes == 2000 and "only 2.0 kB are free" in notes(events)
    run = real(spec)
    before = run[: next(n for n, event in enumerate(run) if isinstance(event, Started))]
    assert "only 2.0 kB are free" in notes(before)
    # What is replaced makes room for its own kind.
    assert "free" not in notes(real(replace(spec, existing="overwrite")))


def test_codes_are_provisional_until_a_class_is_protected(spec: ProtectSpec, photos: Path) -> None:
    plan = plan_of(dry(spec)[0])
    assert [(one.name, one.pictures, one.provisional) for one in plan.classes] == [
        ("everyday", 3, True),
        ("space", 3, True),
    ]
    assert {one.name: one.key for one in plan.classes} == plan.keys
    assert not any(one.provisional for one in plan_of(real(spec)).classes)
    shutil.copytree(photos / "space", photos / "travel")
    grown = plan_of(dry(spec)[0])
    assert [one.provisional for one in grown.classes] == [False, False, True]
    # What was chosen for another folder stays here, as long as names mean the same.
    other = replace(spec, output=photos.parent / "elsewhere")
    plan = plan_of(dry(other)[0])
    assert [one.provisional for one in plan.classes] == [False, False, True]
    assert all(plan.keys[name] == grown.keys[name] for name in ("everyday", "space"))
    grouped = plan_of(dry(replace(other, labels="cluster:2"))[0])
    assert all(one.provisional for one in grouped.classes)
    asked = replace(other, labels="single", key="a")
    assert [one.provisional for one in plan_of(dry(asked)[0]).classes] == [False]


def test_the_plan_says_what_a_class_is(spec: ProtectSpec, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"{path.relative_to(photos)},x" for path in photos.glob("*/*")]
    table.write_text("\n".join(rows))
    shutil.copytree(photos, tmp_path / "more")

    def labels_of(labels: str, *paths: Path) -> str:
        return plan_of(dry(replace(spec, labels=labels, paths=paths or spec.paths))[0]).labels

    assert labels_of("auto") == "each subfolder of photos (2)"
    assert labels_of("auto", photos, tmp_path / "more") == "each folder given (2)"
    assert labels_of("auto", photos / "space") == labels_of("single") == "one, all pictures"
    assert labels_of("cluster:2") == "2 groups of similar pictures"
    assert labels_of(str(table)) == "from labels.csv (1)"


def tue(*arguments: object) -> tuple[str, str]:
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.stdout, ran.stderr


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A hundred folders of one picture."""
    folder = tmp_path / "many"
    for number in range(100):
        (folder / f"person {number:02d}").mkdir(parents=True)
        Image.new("RGB", (20, 20), (number, 90, 200)).save(
            folder / f"person {number:02d}" / "x.png"
        )
    return folder


def test_a_long_table_of_classes_is_cut_unless_all_is_asked_for(
    many: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    quick = ("--weights", tiny_weights, "--steps", 1)
    command = ("protect", many, "-n", "-o", tmp_path / "out", *quick)
    said = tue(*command)[1]
    assert "  classes: each subfolder of many (100)\n" in said
    lines = [line.split() for line in said.splitlines() if line.startswith(" person")]
    assert len(lines) == SHOWN_ROWS and lines[0][:3] == ["person", "00", "1"]
    assert all(line[3] in ("a", "b", "c") and line[4] == "yes" for line in lines)
    assert f"and {100 - SHOWN_ROWS} more; -v lists them." in said
    said = tue(*command, "-v")[1]
    assert sum(line.startswith(" person") for line in said.splitlines()) == 100
    said = tue(*command, "--json")[0]
    started = next(one for one in map(json.loads, said.splitlines()) if one["event"] == "started")
    assert len(started["classes"]) == 100
    assert tue(*command, "-q") == ("", "")


def test_a_dry_run_names_a_few_failures_unless_all_are_asked_for(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for number in range(30):
        (photos / "space" / f"bad-{number:02d}.png").write_bytes(b"no picture")
    quick = ("--weights", tiny_weights, "--steps", 1)
    command = ("protect", photos, "-n", "-o", tmp_path / "out", *quick)
    out, err = tue(*command)
    assert err.count("bad-") == SHOWN_FAILURES
    assert f"and {30 - SHOWN_FAILURES} more; -v names them.\nTo protect: 6 pictures\n" in err
    assert "6 pictures to protect." in out
    assert "Cannot be protected: 30 pictures. Why: no picture inside (30)." in out
    assert tue(*command, "-v")[1].count("bad-") == 30
    events = [json.loads(line) for line in tue(*command, "--json")[0].splitlines()]
    assert sum(event["event"] == "failed" for event in events) == 30


def make_late(folder: Path) -> Iterator[Path]:
    """Draw pictures whose beginning does not tell enough."""
    image = Image.open(ASSETS / "space" / "rocket.jpg").convert("RGB").resize((400, 300))
    profile = bytes(range(256)) * 1000
    image.save(folder / "profile.jpg", icc_profile=profile)
    image.save(folder / "profile.webp", icc_profile=profile, lossless=True)
    image.save(folder / "plain.tif")
    image.save(folder / "plain.bmp")
    frames = [image.effect_spread(seed) for seed in (5, 9, 13)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    damaged = bytearray((folder / "profile.jpg").read_bytes())
    damaged[2:] = b"\xff\xd9" * (len(damaged) // 2)
    (folder / "damaged.jpg").write_bytes(damaged)
    yield from folder.iterdir()


def test_a_header_says_what_the_whole_file_says(tmp_path: Path) -> None:
    paths = list(make_late(tmp_path))
    assert len(paths) == 9
    for path in paths:
        assert path.stat().st_size > BEGINNING, path
        try:
            expected: object = codec.read_dimensions(path.read_bytes())
        except ImageProblem as problem:
            expected = problem.reason, problem.message
        try:
            found: object = read_header(path).size
        except ImageProblem as problem:
            found = problem.reason, problem.message
        assert found == expected, path


def test_of_a_sound_file_the_beginning_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.bmp"
    Image.new("RGB", (4000, 2000)).save(path)
    length = path.stat().st_size
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header == Header((4000, 2000), "BMP", length)
    assert peak < 2 * BEGINNING < length / 50


def test_a_plan_says_by_how_much_copies_outgrow_their_originals(
    spec: ProtectSpec, photos: Path
) -> None:
    shutil.rmtree(photos / "everyday")
    events, plan = dry(replace(spec, format="png"))
    assert plan.original_bytes == sum(p.stat().st_size for p in photos.rglob("*.jpg"))
    assert plan.estimated_bytes is not None
    times = plan.estimated_bytes / plan.original_bytes
    assert times > 1.25
    said = " ".join(events[-1].said) if isinstance(events[-1], Done) else ""
    assert f", {times:.1f} times the originals, in about" in said
    assert "Noise compresses badly, above all in lossless formats such as PNG." in said
    (events, plan) = dry(spec)
    said = " ".join(events[-1].said) if isinstance(events[-1], Done) else ""
    assert "of copies, in about" in said and "compresses" not in said
