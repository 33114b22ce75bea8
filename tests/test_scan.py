"""What a folder holds, and how its pictures would look: told before anything is written."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tue_cli.config import ProtectSettings
from tue_cli.dataset.records import read_unfinished
from tue_cli.errors import BadSetting, ImageProblem, NothingToDo
from tue_cli.events import Done, Looked, Saved, Started
from tue_cli.images.codec import read_dimensions
from tue_cli.images.thumbnails import read_size, render_dots
from tue_cli.noise import TueNoise
from tue_cli.protect.preview import preview
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectPlan
from tue_cli.protect.run import protect
from tue_cli.protect.scan import ScanSpec, ScanSummary, count_images, scan_folder
from tue_cli.text import format_count, format_duration, format_size

ASSETS = Path(__file__).parent.parent / "assets" / "photos"
QUICK = ProtectSettings(noise=TueNoise(steps=1))


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    """Six photographs in two class folders, small enough to be quick."""
    return Path(shutil.copytree(small_photos, tmp_path / "photos"))


def scan(folder: Path, labels: str = "auto") -> ScanSummary:
    done = list(scan_folder(ScanSpec(folder, labels=labels)))[-1]
    assert isinstance(done, Done)
    return done.result


def test_a_scan_tells_what_is_there_and_what_is_left_out(photos: Path) -> None:
    (photos / "space" / "layers.psd").write_bytes(b"8BPS")
    (photos / "space" / "page.jpg").write_text("<html>")
    (photos / "notes.txt").write_text("x")
    found = scan(photos)
    assert found.pictures == 8 and found.classes == {"everyday": 3, "space": 5}
    assert found.formats == {"JPEG": 6, "PNG": 1, "PSD": 1}
    assert found.refused == {"unsupported": 1, "not-a-picture": 1}
    assert found.ignored == {"not a picture": 1}
    assert found.output == Path(f"{photos}-protected")
    assert scan(photos, "single").classes == {"owner": 8}
    assert count_images(photos / "space") == 5 and count_images(photos) == 0


def test_a_scan_shows_the_classes_that_a_run_would_take(photos: Path, tiny_weights: Path) -> None:
    (photos / "space").rename(photos.parent / "space")
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    list(protect(spec))
    (photos.parent / "space").rename(photos / "space")
    found = scan(photos)
    assert found.classes == {"owner": 3, "space": 3}
    assert scan(photos, "folders").classes == {"everyday": 3, "space": 3}
    labels = {}
    for event in protect(spec):
        if isinstance(event, Started) and isinstance(event.plan, ProtectPlan):
            labels = {one.name: one.pictures for one in event.plan.classes}
    assert labels == found.classes

    list(protect(replace(spec, labels="cluster:2", existing="overwrite")))
    assert scan(photos).classes == {}, "which groups there are, a run finds"
    assert set(scan(photos, "folders").classes) == {"everyday", "space"}


def test_a_scan_reads_no_more_than_the_beginning_of_a_picture(photos: Path) -> None:
    Image.new("RGB", (4000, 2000)).save(photos / "space" / "large.bmp")
    tracemalloc.start()
    found = scan(photos)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.sizes[-1] == (4000, 2000) and peak < 4_000_000


def test_a_scan_refuses_what_cannot_be_protected(tmp_path: Path) -> None:
    with pytest.raises(NothingToDo):
        scan(tmp_path)
    with pytest.raises(BadSetting):
        scan(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_scan_finds_a_run_to_go_on_with(photos: Path, tiny_weights: Path) -> None:
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    job = protect(spec)
    for event in job:
        if isinstance(event, Saved):
            break
    job.close()
    left = scan(photos).former
    assert left is not None and left.done >= 1 and not left.is_finished
    assert left.resume(ProtectSpec((photos,))).settings == QUICK
    list(protect(spec))
    assert read_unfinished(Path(f"{photos}-protected")) is None
    whole = scan(photos).former
    assert whole is not None and whole.is_finished and whole.done == 6


def test_a_look_shows_three_and_writes_nothing_beside_the_originals(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    (photos / "everyday" / "a.jpg").write_text("<html>")
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    events = list(preview(spec, tmp_path / "scratch"))
    looked = [event for event in events if isinstance(event, Looked)]
    assert len(looked) == 3 and not (tmp_path / "photos-protected").exists()
    assert all(event.path.is_file() and event.full_difference.is_file() for event in looked)
    done = events[-1]
    assert isinstance(done, Done)
    assert done.result.pictures == 7 and done.result.seconds > 0
    assert done.result.psnr is not None and done.result.psnr > 25


@pytest.mark.slow
def test_a_look_knows_what_was_protected_before(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    list(protect(spec))
    done = list(preview(spec, tmp_path / "scratch"))[-1]
    assert isinstance(done, Done)
    assert (done.result.pictures, done.result.already_done) == (0, 6)


def test_a_look_refuses_other_settings_only_where_the_run_would(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    list(protect(spec))
    other = replace(spec, settings=replace(QUICK, seed=1))
    with pytest.raises(BadSetting, match="other settings"):
        list(preview(other, tmp_path / "scratch"))
    done = list(preview(replace(other, existing="overwrite"), tmp_path / "scratch"))[-1]
    assert isinstance(done, Done) and done.result.pictures == 6


def test_dots_keep_the_proportions(photos: Path, tiny_weights: Path, tmp_path: Path) -> None:
    spec = ProtectSpec((photos,), weights=str(tiny_weights), settings=QUICK, device="cpu")
    looked = next(e for e in preview(spec, tmp_path / "scratch") if isinstance(e, Looked))
    width, height = read_size(looked.before)
    drawn = render_dots(looked.before, 60, 60)
    assert drawn.dtype == np.uint8 and drawn.shape[0] % 2 == 0 and max(drawn.shape[:2]) == 60
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(width / height, rel=0.1)


def test_a_glance_reads_the_header_alone() -> None:
    data = (ASSETS / "space" / "rocket.jpg").read_bytes()
    assert read_dimensions(data) == read_dimensions(data[: len(data) // 2])
    with pytest.raises(ImageProblem, match="is not a picture"):
        read_dimensions(b"<html>")


def test_figures_read_as_people_say_them() -> None:
    assert [format_duration(s) for s in (42, 185, 7800)] == ["42 s", "3 min 05 s", "2 h 10 min"]
    assert [format_size(n) for n in (812, 4200, 31e6)] == ["812 bytes", "4.2 kB", "31 MB"]
    assert [format_count(n, "class") for n in (1, 3)] == ["1 class", "3 classes"]
    assert format_count(1200, "picture") == "1,200 pictures"
