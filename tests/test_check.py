"""`tue check` on real small pictures: what sites and accidents do to copies, and what is told."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tue_cli.check.run import PIXELS_AT_ONCE, CheckSpec, check, check_ahead
from tue_cli.check.summary import CheckSummary
from tue_cli.config import ProtectSettings
from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.match import Expected, pair_files, read_expected
from tue_cli.errors import BadSetting, ExitCode, NothingToDo
from tue_cli.events import Advanced, AnyEvent, Checked, Done, Note, Skipped, Table
from tue_cli.images import avif
from tue_cli.images.boxes import make_box
from tue_cli.images.exif import wrap_iptc
from tue_cli.images.jpeg import APP13, PHOTOSHOP, make_segment, read_segments
from tue_cli.images.residual import CopyFacts
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectSummary
from tue_cli.protect.run import protect

ASSETS = Path(__file__).parent.parent / "assets" / "photos"
ICC = bytes(16) + b"RGB " + bytes(16) + b"acsp" + bytes(88)
NAMES = {
    "everyday/cat.png",
    "everyday/coffee.jpg",
    "everyday/glass.png",
    "everyday/grey.png",
    "space/astronaut.jpg",
    "space/rocket.jpg",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A folder with `photos`, six small pictures, and `copies`, their protected copies.

    `astronaut` is a phone's, on its side; `rocket` has EXIF and a profile; `glass` is transparent.
    """
    place = tmp_path_factory.mktemp("made")
    photos = place / "photos"
    (photos / "everyday").mkdir(parents=True)
    (photos / "space").mkdir()

    def small(name: str) -> Image.Image:
        with Image.open(next(ASSETS.rglob(name))) as image:
            image.thumbnail((160, 120))
            return Image.fromarray(np.asarray(image.convert("RGB")))

    small("cat.*").save(photos / "everyday" / "cat.png")
    small("coffee.*").save(photos / "everyday" / "coffee.jpg", quality=90)
    small("photographer.*").convert("L").save(photos / "everyday" / "grey.png")
    glass = small("deep-field.*").convert("RGBA")
    alpha = np.zeros((glass.height, glass.width), np.uint8)
    alpha[:, glass.width // 3 :] = 255
    glass.putalpha(Image.fromarray(alpha))
    glass.save(photos / "everyday" / "glass.png")
    exif = Image.Exif()
    exif[271] = "a camera"
    small("rocket.*").save(photos / "space" / "rocket.jpg", quality=90, exif=exif, icc_profile=ICC)
    exif[274] = 6
    small("astronaut.*").crop((0, 0, 120, 80)).save(
        photos / "space" / "astronaut.jpg", quality=90, exif=exif
    )
    settings = ProtectSettings(noise=TueNoise(steps=2), smooth=1.0)
    spec = ProtectSpec((photos,), place / "copies", settings=settings, device="cpu", jobs=2)
    events = list(protect(replace(spec, weights=str(tiny_weights))))
    assert isinstance(events[-1], Done) and isinstance(events[-1].result, ProtectSummary)
    assert events[-1].result.protected == len(NAMES)
    return place


def left_in(outcome: Checked) -> float:
    """What is left of the noise, where it could be measured."""
    assert outcome.survival is not None
    return outcome.survival


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A folder of copies that a test may change, with its manifest."""
    shutil.copytree(made / "copies", tmp_path / "site")
    return tmp_path / "site"


def looked(spec: CheckSpec) -> tuple[dict[str, Checked], CheckSummary, list[AnyEvent]]:
    """The outcome of each picture by its name in the manifest, the result, and all events."""
    events = list(check(spec))
    assert isinstance(events[-1], Done)
    outcomes = {event.picture: event for event in events if isinstance(event, Checked)}
    return outcomes, events[-1].result, list(events)


def change(path: Path, how: Callable[[Image.Image], Image.Image] = lambda i: i, **o: Any) -> None:
    """Do what a site does with a picture: open it, change it, save it without its metadata."""
    with Image.open(path) as image:
        changed = how(image.copy())
    changed.info = {}
    changed.save(path, **o)


def edit(site: Path, changed: Callable[[dict[str, Any]], object]) -> None:
    """Change every record of a manifest."""
    manifest = json.loads((site / MANIFEST).read_text())
    for record in manifest["pictures"]:
        changed(record)
    (site / MANIFEST).write_text(json.dumps(manifest))


def without_segments(data: bytes) -> bytes:
    """Return a JPEG without what stands beside its pixels, as `exiftool -all=` leaves it."""
    kept, at = data[:2], 2
    for marker, _, end in read_segments(data):
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            kept += data[at:end]
        at = end
    return kept + data[at:]


def hidden_white(image: Image.Image) -> Image.Image:
    """Return a picture with white where nothing is seen."""
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0, :3] = 255
    return Image.fromarray(pixels)


def updated(fields: dict[str, Any], record: dict[str, Any]) -> None:
    record.update(fields)


def older(record: dict[str, Any]) -> None:
    """Take out of a record what older versions did not write."""
    for name in ("size", "metadata", "pixels_sha256", "small_rms"):
        del record[name]


def test_untouched_copies_are_intact(made: Path) -> None:
    outcomes, result, events = looked(CheckSpec(made / "copies"))
    assert outcomes.keys() == NAMES
    assert result.states == {"intact": 6} and result.mismatches == result.extra == 0
    assert result.survival is None
    assert not [e for e in events if isinstance(e, Table | Note | Skipped)]


@pytest.mark.parametrize(
    ("suffix", "options", "least"),
    [
        (".jpg", {"quality": 90}, 0.85),
        (".jpg", {"quality": 75}, 0.75),
        (".jpg", {"quality": 50}, 0.6),
        (".webp", {"quality": 75}, 0.6),
    ],
)
def test_recompression_leaves_a_share_of_the_protection(
    suffix: str, options: dict[str, Any], least: float, made: Path, tmp_path: Path
) -> None:
    for name, from_copies in (("everyday/cat.png", True), ("everyday/coffee.jpg", False)):
        source = made / ("copies" if from_copies else "photos") / name
        place = (tmp_path / name).with_suffix(suffix)
        place.parent.mkdir(exist_ok=True)
        with Image.open(source) as image:
            image.save(place, **options)
    outcomes, result, _ = looked(CheckSpec(tmp_path, made / "photos", made / "copies"))
    cat, coffee = outcomes["everyday/cat.png"], outcomes["everyday/coffee.jpg"]
    assert cat.state == coffee.state == "recompressed"
    assert cat.path == tmp_path / "everyday" / f"cat{suffix}"
    assert least < left_in(cat) < 1.02
    # In the place of `coffee` the site has its original, recompressed alike.
    assert abs(left_in(coffee)) < 0.15
    assert result.states == {"recompressed": 2, "missing": 4} and result.measured == 2


@pytest.mark.parametrize("quality", [30, 75])
def test_noise_under_the_mask_is_measured_too(
    quality: int, made: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    photos, copies, site = made / "photos", tmp_path / "copies", tmp_path / "site"
    spec = ProtectSpec((photos,), copies, weights=str(tiny_weights), device="cpu", jobs=2)
    list(protect(spec))
    (site / "everyday").mkdir(parents=True)
    for source in (copies / "everyday" / "cat.png", photos / "everyday" / "coffee.jpg"):
        with Image.open(source) as image:
            image.save(site / "everyday" / f"{source.stem}.jpg", quality=quality)
    outcomes, _, _ = looked(CheckSpec(site, photos, copies))
    assert 0.8 < left_in(outcomes["everyday/cat.png"]) < 1.1
    assert abs(left_in(outcomes["everyday/coffee.jpg"])) < 0.15


def test_finer_recompression_leaves_more(site: Path, made: Path) -> None:
    left = []
    for quality in (20, 50, 90):
        shutil.copy(made / "copies" / "space" / "rocket.jpg", site / "space")
        change(site / "space" / "rocket.jpg", quality=quality)
        outcomes, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
        left.append(left_in(outcomes["space/rocket.jpg"]))
    assert left == sorted(left)


@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_a_resized_copy_is_compared_at_the_smaller_size(
    way: Image.Resampling, site: Path, made: Path
) -> None:
    change(site / "everyday" / "cat.png", lambda i: i.resize((i.width // 2, i.height // 2), way))
    change(site / "space" / "rocket.jpg", lambda i: i.resize((i.width * 2, i.height * 2), way))
    outcomes, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
    for name in ("everyday/cat.png", "space/rocket.jpg"):
        assert outcomes[name].state == "resized"
        assert 0.8 < left_in(outcomes[name]) < 1.05
        assert "was" in outcomes[name].notes[0] or outcomes[name].lost


def test_metadata_that_a_site_took_out_is_named(site: Path) -> None:
    place = site / "space" / "rocket.jpg"
    place.write_bytes(without_segments(place.read_bytes()))
    outcomes, _, _ = looked(CheckSpec(site))
    rocket = outcomes["space/rocket.jpg"]
    assert rocket.state == "metadata-gone" and rocket.survival == 1.0
    assert rocket.lost == ("exif", "icc")


def test_iptc_comments_colours_and_crop_that_a_site_took_out_are_named(
    tmp_path: Path, tiny_weights: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    image = Image.open(ASSETS / "everyday" / "cat.png").convert("RGB").resize((96, 64))
    image.save(photos / "told.jpg", quality=95, comment=b"sold")
    told = (photos / "told.jpg").read_bytes()
    iptc = make_segment(APP13, PHOTOSHOP + wrap_iptc(b"\x1c\2\x19\0\4quay"))
    (photos / "told.jpg").write_bytes(told[:2] + iptc + told[2:])
    image.save(photos / "wide.avif", quality=95)
    p3 = make_box(b"colr", b"nclx" + struct.pack(">3HB", 12, 13, 6, 0x80))
    crop = make_box(b"clap", struct.pack(">8i", 40, 1, 30, 1, 0, 1, 0, 1))
    wide = avif.write((photos / "wide.avif").read_bytes(), (p3, crop), b"", b"")
    (photos / "wide.avif").write_bytes(wide)
    settings = ProtectSettings(noise=TueNoise(steps=1))
    spec = ProtectSpec((photos,), out, settings=settings, device="cpu", weights=str(tiny_weights))
    list(protect(spec))
    assert looked(CheckSpec(out))[1].states == {"intact": 2}
    (out / "told.jpg").write_bytes(without_segments((out / "told.jpg").read_bytes()))
    change(out / "wide.avif", quality=95)
    outcomes, _, _ = looked(CheckSpec(out))
    assert outcomes["told.jpg"].lost == ("comments", "iptc")
    assert outcomes["told.jpg"].state == "metadata-gone"
    assert outcomes["wide.avif"].lost == ("colours", "crop")

    def forget(record: dict[str, Any]) -> None:
        record["metadata"] = []

    # A manifest of an older version does not say that the copies had these.
    edit(out, forget)
    outcomes, _, _ = looked(CheckSpec(out))
    assert outcomes["told.jpg"].lost == () and outcomes["told.jpg"].state == "rewritten"


def test_the_same_pixels_in_other_bytes_are_rewritten(site: Path) -> None:
    change(site / "everyday" / "cat.png", compress_level=1)
    # Grayscale, colour and an alpha that hides nothing are one picture to a viewer.
    change(site / "everyday" / "grey.png", lambda i: i.convert("RGBA"))
    change(site / "everyday" / "glass.png", lambda i: hidden_white(i), compress_level=1)
    outcomes, result, _ = looked(CheckSpec(site))
    assert result.states == {"intact": 3, "rewritten": 3}
    assert result.survival is None  # nothing that was measured: no pixel has changed


def test_a_grey_webp_is_known_by_its_pixels(made: Path, tmp_path: Path, tiny_weights: Path) -> None:
    settings = ProtectSettings(noise=TueNoise(steps=1))
    spec = ProtectSpec((made / "photos" / "everyday" / "grey.png",), tmp_path / "out")
    spec = replace(spec, settings=settings, format="webp", quality=95, device="cpu")
    list(protect(replace(spec, weights=str(tiny_weights))))
    data = (tmp_path / "out" / "grey.webp").read_bytes()
    (tmp_path / "out" / "grey.webp").write_bytes(data + bytes(2))
    _, result, _ = looked(CheckSpec(tmp_path / "out"))
    assert result.states == {"rewritten": 1}


def test_what_cannot_be_read_never_stops_the_others(site: Path) -> None:
    whole = (site / "space" / "rocket.jpg").read_bytes()
    (site / "space" / "rocket.jpg").write_bytes(whole[: len(whole) // 2])
    (site / "everyday" / "cat.png").write_text("<html>not found</html>")
    (site / "everyday" / "coffee.jpg").unlink()
    (site / "everyday" / "coffee.jpg").mkdir()
    (site / "everyday" / "glass.png").unlink()
    os.mkfifo(site / "everyday" / "glass.png")
    (site / "space" / "astronaut.jpg").unlink()
    outcomes, result, _ = looked(CheckSpec(site))
    assert result.states == {"intact": 1, "unreadable": 4, "missing": 1}
    reasons = {name: o.reason for name, o in outcomes.items() if o.state == "unreadable"}
    assert reasons == {
        "everyday/cat.png": "not-a-picture",
        "everyday/coffee.jpg": "not-a-file",
        "everyday/glass.png": "not-a-file",
        "space/rocket.jpg": "truncated",
    }


def test_other_files_are_named_and_are_no_mismatch(site: Path) -> None:
    (site / "page.html").touch()
    (site / "space" / "logo.png").touch()
    (site / ".DS_Store").touch()
    _, result, events = looked(CheckSpec(site))
    extra = {e.path.relative_to(site).as_posix() for e in events if isinstance(e, Skipped)}
    assert extra == {"page.html", "space/logo.png"}
    assert result.extra == 2 and result.mismatches == 0


def test_copies_are_found_by_name_in_one_flat_folder(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "copies" / "space" / "rocket.jpg", tmp_path / "ROCKET.JPG")
    shutil.copy(made / "copies" / "everyday" / "cat.png", tmp_path / "cat.webp")
    outcomes, result, _ = looked(CheckSpec(tmp_path, manifest=made / "copies" / MANIFEST))
    assert result.states == {"intact": 2, "missing": 4} and result.extra == 0
    assert outcomes["space/rocket.jpg"].path == tmp_path / "ROCKET.JPG"
    assert outcomes["space/rocket.jpg"].notes == ("found as ROCKET.JPG",)


def test_a_name_that_several_have_is_nobodys(made: Path, tmp_path: Path) -> None:
    _, (expected, *_) = read_expected(made / "copies")

    def paired(records: list[str], files: list[str]) -> dict[str, str]:
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        found = pair_files([replace(expected, path=Path(name)) for name in records], folder).files
        return {key.as_posix(): file.as_posix() for key, file in found.items()}

    assert paired(["a/x.png", "b/x.png"], ["x.png"]) == {}
    assert paired(["x.png"], ["x.jpg", "x.webp"]) == {}
    assert paired(["x.png", "x.jpg"], ["x.jpg"]) == {"x.jpg": "x.jpg"}
    assert paired(["a/x.png", "b/x.png"], ["a/x.jpg", "b/x.jpg"]) == {
        "a/x.png": "a/x.jpg",
        "b/x.png": "b/x.jpg",
    }
    assert paired(["x.png"], ["deep/x.txt"]) == {}


def test_an_original_that_has_changed_is_said_and_not_used(
    site: Path, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "photos", tmp_path / "photos")
    change(tmp_path / "photos" / "everyday" / "coffee.jpg", ImageOps.mirror)
    (tmp_path / "photos" / "space" / "rocket.jpg").unlink()
    for name in ("everyday/coffee.jpg", "space/rocket.jpg", "everyday/cat.png"):
        change(site / name, lambda i: i.convert("RGB"), format="JPEG", quality=60)
    outcomes, _, events = looked(CheckSpec(site, tmp_path / "photos", made / "copies"))
    told = {name: outcome.original for name, outcome in outcomes.items()}
    assert told["everyday/coffee.jpg"] == "changed"
    assert told["space/rocket.jpg"] == "missing"
    assert told["everyday/cat.png"] == "unchanged"
    assert outcomes["everyday/coffee.jpg"].survival is None
    notes = " ".join(event.message for event in events if isinstance(event, Note))
    assert "1 original was not found" in notes and "1 original has changed" in notes


def test_without_intact_copies_a_bound_is_told(site: Path, made: Path, tmp_path: Path) -> None:
    for quality, name in ((75, "everyday/coffee.jpg"), (30, "space/rocket.jpg")):
        change(site / name, quality=quality)
    shutil.copy(made / "photos" / "everyday" / "cat.png", site / "everyday" / "cat.png")
    bounds, result, events = looked(CheckSpec(site, made / "photos"))
    exact, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
    for name in ("everyday/coffee.jpg", "space/rocket.jpg"):
        found = bounds[name]
        assert found.survival is None and found.recorded_mean and found.recorded_mean > 0
        assert found.at_most and left_in(exact[name]) - 0.05 < found.at_most <= 1
        assert found.mean and found.mean > 0
        assert found.psnr and found.recorded_psnr and found.psnr < found.recorded_psnr + 1
    assert bounds["everyday/cat.png"].at_most == 0
    assert exact["everyday/cat.png"].survival == 0
    assert result.measured == 0 and result.survival is None
    assert any("intact copies" in event.message for event in events if isinstance(event, Note))


def test_a_picture_that_a_site_turned_upright_is_compared_upright(site: Path, made: Path) -> None:
    place = site / "space" / "astronaut.jpg"
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(place.read_bytes())))
    turned.info = {}
    turned.save(place, quality=90)
    outcomes, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
    found = outcomes["space/astronaut.jpg"]
    assert found.state == "recompressed" and "rotated" in found.notes
    assert left_in(found) > 0.8
    turned.resize((turned.width // 2, turned.height // 2)).save(place)
    found = looked(CheckSpec(site, made / "photos", made / "copies"))[0]["space/astronaut.jpg"]
    assert found.state == "resized" and left_in(found) > 0.7


def test_nothing_is_measured_in_a_crop_or_in_another_picture(site: Path, made: Path) -> None:
    change(site / "space" / "rocket.jpg", lambda i: i.crop((0, 0, i.width, i.height // 2)))
    change(site / "everyday" / "coffee.jpg", ImageOps.invert)
    outcomes, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
    assert outcomes["space/rocket.jpg"].state == "resized"
    assert outcomes["everyday/coffee.jpg"].state == "recompressed"
    for name in ("space/rocket.jpg", "everyday/coffee.jpg"):
        cropped = outcomes[name]
        assert cropped.survival is cropped.at_most is cropped.mean is None
        assert "does not match the original" in " ".join(cropped.notes)


def test_transparency_that_was_painted_over_does_not_count(site: Path, made: Path) -> None:
    def on_white(image: Image.Image) -> Image.Image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")

    change(site / "everyday" / "glass.png", on_white, format="JPEG", quality=95, subsampling=0)
    outcomes, _, _ = looked(CheckSpec(site, made / "photos", made / "copies"))
    glass = outcomes["everyday/glass.png"]
    assert glass.lost == ("transparency",) and left_in(glass) > 0.8
    assert glass.mean and glass.mean < 10


def test_older_manifests_are_still_read(site: Path, made: Path) -> None:
    edit(site, older)
    change(site / "everyday" / "cat.png", compress_level=1)
    change(site / "everyday" / "coffee.jpg", quality=60)
    change(site / "space" / "rocket.jpg", lambda i: i.resize((40, 30)))
    names = ("everyday/cat.png", "everyday/coffee.jpg", "space/rocket.jpg")

    def states(spec: CheckSpec) -> list[str]:
        outcomes, _, _ = looked(spec)
        return [outcomes[name].state for name in names]

    assert states(CheckSpec(site)) == ["changed"] * 3
    assert states(CheckSpec(site, made / "photos")) == ["rewritten", "recompressed", "resized"]
    whole = site.with_name("whole")
    shutil.copytree(made / "copies", whole)
    edit(whole, older)
    assert states(CheckSpec(site, manifest=whole)) == ["rewritten", "recompressed", "resized"]


@pytest.mark.parametrize("field", ["path", "source"])
@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "", "a\0b"])
def test_a_path_that_leads_out_of_the_folder_is_refused(field: str, path: str, site: Path) -> None:
    edit(site, lambda record: record.update({field: path}))
    with pytest.raises(BadSetting, match="outside"):
        list(check(CheckSpec(site, site)))


def test_fields_of_the_wrong_kind_count_as_missing(site: Path, made: Path) -> None:
    change(site / "everyday" / "coffee.jpg", quality=60)
    for wrong in (
        {"size": "large", "source": 7, "format": []},
        {"size": [1, None], "metadata": 5, "mean": "x", "psnr": True},
        {"size": [-1, 10**30], "metadata": [[]], "pixels_sha256": {}, "small_rms": 10**400},
        {"small_rms": -1.0, "mean": float("nan"), "psnr": float("inf")},
    ):
        edit(site, functools.partial(updated, wrong))
        _, result, _ = looked(CheckSpec(site, made / "photos"))
        assert result.checked == 6 and result.mismatches == 1


def test_what_cannot_be_checked_is_said_before_any_work(site: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for spec, says in (
        (CheckSpec(tmp_path / "nosuch"), "does not exist"),
        (CheckSpec(site / MANIFEST), "not a folder"),
        (CheckSpec(site, tmp_path / "nosuch"), "does not exist"),
        (CheckSpec(tmp_path / "empty"), "no tue-manifest.json"),
        (CheckSpec(site, manifest=site / "space" / "rocket.jpg"), "cannot be read"),
    ):
        with pytest.raises(BadSetting, match=says):
            list(check(spec))
    edit(site, dict.clear)
    with pytest.raises(BadSetting, match="incomplete"):
        list(check(CheckSpec(site)))
    manifest = json.loads((site / MANIFEST).read_text())
    (site / MANIFEST).write_text(json.dumps({**manifest, "pictures": []}))
    with pytest.raises(NothingToDo):
        list(check(CheckSpec(site)))


def test_large_pictures_are_not_decoded_side_by_side() -> None:
    side = 6000
    known = CopyFacts((side, side), (), "")
    expected = [
        Expected(Path(str(n)), Path(str(n)), "", "", None, known, None, None, None)
        for n in range(6)
    ]
    most = PIXELS_AT_ONCE // side**2
    running, peak, guard = [0], [0], threading.Lock()

    def inspect(copy: Expected, _: Path | None) -> Checked:
        with guard:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        threading.Event().wait(0.01)
        with guard:
            running[0] -= 1
        return Checked(copy.path, "intact", copy.path.as_posix())

    with ThreadPoolExecutor(4) as pool:
        results = list(check_ahead(expected, {}, inspect, pool, 8))
    assert [result.path.name for result in results] == list("012345")
    assert peak[0] <= most


def test_a_check_that_is_left_stops(site: Path) -> None:
    job = check(CheckSpec(site, jobs=1))
    assert any(isinstance(event, Advanced) for event in job)
    job.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("copies")]


def tue(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tue_cli", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.mark.slow
def test_the_command_tells_a_table_and_exits_with_5_on_a_mismatch(site: Path, made: Path) -> None:
    ran = tue(site)
    assert ran.returncode == ExitCode.OK and b"6 copies checked: all intact." in ran.stdout, (
        ran.stderr
    )
    change(site / "everyday" / "coffee.jpg", quality=50)
    (site / "[red]page.html").touch()
    ran = tue(site, "--original", made / "photos", "--manifest", made / "copies" / MANIFEST)
    assert ran.returncode == ExitCode.MISMATCH
    table = ran.stdout.decode()
    assert "everyday/coffee.jpg" in table and "recompressed" in table and "%" in table
    assert "everyday/cat.png" not in table and "1 other file " in table
    ran = tue(site, "-v")
    assert b"everyday/cat.png" in ran.stdout and b"[red]page.html" in ran.stderr
    assert tue(site, "-q").stdout == b""


def test_the_command_speaks_json(site: Path, made: Path) -> None:
    change(site / "everyday" / "coffee.jpg", quality=50)
    ran = tue(site, "--original", made / "photos", "--manifest", made / "copies", "--json")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [e["event"] for e in events] == ["started", *["checked"] * 6, "done"]
    coffee = next(e for e in events if e.get("picture") == "everyday/coffee.jpg")
    assert coffee["state"] == "recompressed" and 0 < coffee["survival"] < 1.02
    assert coffee["path"] == str(site / "everyday" / "coffee.jpg")
    assert events[-1]["states"] == {"intact": 5, "recompressed": 1}
    assert events[-1]["survival"] == coffee["survival"]


def test_checking_needs_no_torch(site: Path) -> None:
    change(site / "everyday" / "coffee.jpg", quality=50)
    code = (
        "import sys\nfrom tue_cli.cli import main\n"
        f"try: main(['check', {str(site)!r}, '--original', {str(site)!r}])\n"
        "except SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stderr.decode().strip().endswith("False")
