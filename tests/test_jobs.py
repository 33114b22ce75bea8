"""The jobs, run as an interface runs them: real pictures, real small weights."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tue_cli.config import TRAININGS, AdversarySettings, ProtectSettings, TrainSettings
from tue_cli.dataset.discover import Item
from tue_cli.dataset.manifest import MANIFEST, read_manifest, sha256
from tue_cli.dataset.match import find_known_copies
from tue_cli.engine.canvas import Canvas
from tue_cli.errors import BadSetting, DeviceUnavailable, NothingToDo, OutputProblem, WeightsProblem
from tue_cli.events import AnyEvent, Done, Failed, Metric, Note, Saved, Skipped, Started
from tue_cli.images.codec import DecodedImage, decode
from tue_cli.images.mark import has_mark
from tue_cli.noise import EmNoise, LspNoise, TapNoise, TueNoise
from tue_cli.protect.context import ALGORITHM, BATCH, KEYS
from tue_cli.protect.copier import Prepared
from tue_cli.protect.pipeline import BATCH_PIXELS, LoadedTask, load_ahead
from tue_cli.protect.plan import Task
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectForecast, ProtectPlan, ProtectSummary
from tue_cli.protect.run import protect
from tue_cli.train.result import TrainSummary, warn_of_days
from tue_cli.train.run import TrainSpec, train
from tue_cli.weights import pack, read, read_graph

QUICK = ProtectSettings(noise=TueNoise(steps=1))


def spec_of(photos: Path, output: Path, tiny: Path, **changes: object) -> ProtectSpec:
    spec = ProtectSpec((photos,), output, weights=str(tiny), settings=QUICK, device="cpu", jobs=2)
    return replace(spec, **changes)  # type: ignore[arg-type]


def run(spec: ProtectSpec) -> list[AnyEvent]:
    return list(protect(spec))


def done(events: list[AnyEvent]) -> ProtectSummary:
    assert isinstance(events[-1], Done) and isinstance(events[-1].result, ProtectSummary)
    return events[-1].result


def planned(spec: ProtectSpec) -> ProtectForecast:
    event = run(spec)[-1]
    assert isinstance(event, Done) and isinstance(event.result, ProtectForecast)
    return event.result


def keys_of(events: list[AnyEvent]) -> Mapping[str, str]:
    plans = [event.plan for event in events if isinstance(event, Started)]
    assert isinstance(plans[-1], ProtectPlan)
    return plans[-1].keys


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copies(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(folder).items() if name != MANIFEST}


def timeless(folder: Path) -> dict[str, object]:
    """The manifest without what depends on the clock."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["seconds"], manifest["finished"]
    for record in manifest["pictures"]:
        del record["seconds"]
    return dict(manifest)


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    """Six photographs in two class folders, small enough to be quick."""
    return Path(shutil.copytree(small_photos, tmp_path / "photos"))


def test_every_picture_gets_a_copy_in_the_mirrored_tree(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    before = tree(photos)
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert done(events).protected == 6
    assert copies(tmp_path / "out").keys() == before.keys()
    assert tree(photos) == before
    assert not set(copies(tmp_path / "out").values()) & set(before.values())


def test_what_the_manifest_claims_is_what_the_files_hold(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    run(spec_of(photos, output, tiny_weights, format="png"))
    records = timeless(output)["pictures"]
    assert isinstance(records, list) and len(records) == 6
    for record in records:
        original = decode((photos / record["source"]).read_bytes()).pixels.astype(int)
        copy = decode((output / record["path"]).read_bytes()).pixels.astype(int)
        assert record["sha256"] == sha256(output / record["path"])
        assert record["largest"] == np.abs(copy - original).max() == 8
        assert record["mean"] == pytest.approx(np.abs(copy - original).mean(), abs=1e-3)


def test_a_sky_moves_by_a_share_of_the_radius_and_what_is_rough_by_all_of_it(
    tmp_path: Path, tiny_weights: Path
) -> None:
    random = np.random.default_rng(0)
    sky = random.normal((90, 120, 160), 0.7, (128, 128, 3))
    pixels = sky.clip(0, 255).astype(np.uint8)
    pixels[64:] = random.integers(40, 216, (64, 128, 3))
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "beach.png")
    # Enlarging goes a quarter beyond what is enlarged.
    for smooth, share in ((0.25, 2.5), (1.0, 8)):
        output = tmp_path / str(smooth)
        run(spec_of(tmp_path / "in", output, tiny_weights, settings=replace(QUICK, smooth=smooth)))
        change = decode((output / "beach.png").read_bytes()).pixels.astype(int) - pixels
        assert np.abs(change[:40]).max() == pytest.approx(share, abs=0.5)
        assert np.abs(change[72:]).max() == 8


def test_modification_times_are_kept(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    os.utime(photos / "space" / "rocket.jpg", ns=(10**18, 10**18))
    run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert (tmp_path / "out" / "space" / "rocket.jpg").stat().st_mtime_ns == 10**18


def test_each_class_gets_its_own_key_and_gets_it_again(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    keys = []
    for output in (tmp_path / "a", tmp_path / "b"):
        events = run(spec_of(photos, output, tiny_weights))
        keys.append(keys_of(events))
    assert keys[0] == keys[1]
    assert set(keys[0]) == {"space", "everyday"}
    assert len(set(keys[0].values())) == 2


@pytest.mark.slow
def test_the_same_run_writes_the_same_bytes(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for output in (tmp_path / "a", tmp_path / "b"):
        run(spec_of(photos, output, tiny_weights))
    assert copies(tmp_path / "a") == copies(tmp_path / "b")
    assert timeless(tmp_path / "a") == timeless(tmp_path / "b")


@pytest.mark.slow
def test_another_seed_writes_other_bytes(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    run(spec_of(photos, tmp_path / "a", tiny_weights))
    other = replace(QUICK, seed=1)
    run(spec_of(photos, tmp_path / "b", tiny_weights, settings=other))
    assert not set(copies(tmp_path / "a").items()) & set(copies(tmp_path / "b").items())


def test_a_second_run_touches_nothing(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.jpg")}
    inodes = {p: p.stat().st_ino for p in times}
    events = run(spec)
    assert done(events).already_done == 6
    assert sum(isinstance(e, Skipped) for e in events) == 6
    assert inodes == {p: p.stat().st_ino for p in times}


@pytest.mark.slow
def test_a_run_that_was_left_goes_on_and_ends_equal(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for number in range(BATCH):
        shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / f"rocket-{number}.jpg")
    run(spec_of(photos, tmp_path / "whole", tiny_weights))
    spec = spec_of(photos, tmp_path / "left", tiny_weights)
    job = protect(spec)
    for event in job:
        if isinstance(event, Saved):
            break
    job.close()
    finished = copies(tmp_path / "left")
    assert len([name for name in finished if not name.startswith(".tue")]) > 0
    assert not (tmp_path / "left" / MANIFEST).exists()
    events = run(spec)
    assert done(events).already_done == len(
        [name for name in finished if not name.startswith(".tue")]
    )
    assert copies(tmp_path / "left") == copies(tmp_path / "whole")
    assert timeless(tmp_path / "left") == timeless(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_equal(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for number in range(3 * BATCH):
        shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / f"rocket-{number}.jpg")
    command = [sys.executable, "-m", "tue_cli", "protect", str(photos), "--steps", "2"]
    command += ["--weights", str(tiny_weights), "--device", "cpu", "-q", "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    with subprocess.Popen([*command, str(tmp_path / "killed")]) as process:
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "killed").rglob("*.jpg"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / MANIFEST).exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert copies(tmp_path / "killed") == copies(tmp_path / "whole")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


@pytest.fixture
def many(photos: Path) -> Path:
    """So many pictures that some are still to be begun when the first copy is there."""
    for number in range(3 * BATCH):
        shutil.copy(photos / "everyday" / "cat.png", photos / "space" / f"z-{number:02d}.png")
    return photos


def test_a_folder_exchanged_for_a_link_mid_run_never_costs_an_original(
    many: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    before, space = tree(many), tmp_path / "out" / "space"
    job = protect(spec_of(many, tmp_path / "out", tiny_weights))
    with pytest.raises(OutputProblem, match="is a link|was removed or replaced"):
        for _ in job:
            if space.is_dir() and not space.is_symlink():
                space.rename(tmp_path / "out" / "away")
                space.symlink_to(many / "space")
    assert tree(many) == before


@pytest.mark.slow
@pytest.mark.parametrize("removed", [".tue", ".tue/journal.jsonl"])
def test_a_run_whose_journal_is_removed_stops_at_once_and_knows_its_copies_again(
    removed: str, many: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec, output = spec_of(many, tmp_path / "out", tiny_weights), tmp_path / "out"
    outcomes = 0
    with pytest.raises(OutputProblem, match="was removed or replaced"):
        for event in protect(spec):
            outcomes += isinstance(event, Saved)
            if outcomes == 1 and (output / removed).exists():
                subprocess.run(["rm", "-r", output / removed], check=True)
    assert outcomes <= 2 * BATCH
    finished = [name for name in copies(output) if not name.startswith(".tue")]
    assert len(finished) >= outcomes
    events = run(spec)
    assert done(events).already_done == len(finished)
    assert done(events).failed == 0


def test_a_run_whose_output_is_removed_stops_at_once(
    many: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    with pytest.raises(OutputProblem, match="was removed or replaced"):
        for event in protect(spec_of(many, tmp_path / "out", tiny_weights)):
            if isinstance(event, Saved) and (tmp_path / "out").exists():
                (tmp_path / "out").rename(tmp_path / "away")
    assert not (tmp_path / "out").exists()


def test_a_poor_file_system_is_one_note(
    photos: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("chmod", "utime", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    if os.name != "nt":
        monkeypatch.setattr("fcntl.flock", refuse)
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert done(events).protected == 6 and not done(events).failed
    notes = [e.message for e in events if isinstance(e, Note)]
    (note,) = [message for message in notes if "file system" in message]
    assert "permissions" in note and "times" in note and "power cut" in note


def test_a_newer_algorithm_leaves_finished_copies_and_the_manifest_tells_both(
    photos: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    before = copies(tmp_path / "out")
    shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / "new.jpg")
    for place in ("context", "copier", "pipeline"):
        monkeypatch.setattr(f"tue_cli.protect.{place}.ALGORITHM", ALGORITHM + 1)
    monkeypatch.setattr("tue_cli.protect.context.__version__", "99")
    events = run(spec)
    assert done(events).protected == 1 and done(events).already_done == 6
    assert copies(tmp_path / "out").items() >= before.items()
    assert [e for e in events if isinstance(e, Note) and "6 copies" in e.message]
    manifest = timeless(tmp_path / "out")
    assert manifest["run"]["algorithm"] == ALGORITHM + 1  # type: ignore[index]
    made = {record["path"]: record["algorithm"] for record in manifest["pictures"]}  # type: ignore[attr-defined]
    assert made.pop("space/new.jpg") == ALGORITHM + 1
    assert set(made.values()) == {ALGORITHM}


def test_names_that_differ_in_case_get_their_own_copies(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / "ROCKET.JPG")
    if len(tree(photos)) != 7:
        pytest.skip("this disk does not tell case")
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert done(events).protected == 7
    assert copies(tmp_path / "out").keys() == tree(photos).keys()


def test_a_raw_file_beside_its_jpeg_stands_in_nobody_s_way(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (photos / "space" / "rocket.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0" + bytes(64))
    spec = spec_of(photos, tmp_path / "out", tiny_weights, format="png")
    for protected, already_done in ((6, 0), (0, 6)):
        events = run(spec)
        assert [(e.path.name, e.reason) for e in events if isinstance(e, Failed)] == [
            ("rocket.CR2", "unsupported")
        ]
        result = done(events)
        assert (result.protected, result.already_done) == (protected, already_done)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert [failed["path"] for failed in manifest["summary"]["failed"]] == ["space/rocket.CR2"]
    assert "space/rocket.png" in {record["path"] for record in manifest["pictures"]}


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_a_jpeg_named_as_a_raw_file_never_takes_another_copy_s_place(
    existing: str, photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    shutil.copy(photos / "space" / "astronaut.jpg", photos / "space" / "rocket.heic")
    shutil.copy(photos / "space" / "astronaut.jpg", photos / "space" / "alone.heic")
    spec = spec_of(photos, tmp_path / "out", tiny_weights, format="png", existing=existing)
    events = run(spec)
    reasons = {e.path.name: e.reason for e in events if isinstance(e, Failed)}
    assert reasons == {"rocket.heic": "in-the-way"}
    assert done(events).protected == 7
    sources = {r["path"]: r["source"] for r in timeless(tmp_path / "out")["pictures"]}  # type: ignore[attr-defined]
    assert sources["space/rocket.png"] == "space/rocket.jpg"
    assert sources["space/alone.png"] == "space/alone.heic"


def test_a_changed_original_is_protected_anew(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    before = copies(tmp_path / "out")
    shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / "astronaut.jpg")
    assert done(run(spec)).protected == 1
    changed = {k for k, v in copies(tmp_path / "out").items() if before[k] != v}
    assert changed == {"space/astronaut.jpg"}


@pytest.mark.slow
def test_other_settings_need_another_place(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(photos, tmp_path / "out", tiny_weights))
    weaker = replace(QUICK, noise=TueNoise(steps=1, radius=4 / 255))
    with pytest.raises(BadSetting, match="radius"):
        run(spec_of(photos, tmp_path / "out", tiny_weights, settings=weaker))
    events = run(
        spec_of(photos, tmp_path / "out", tiny_weights, settings=weaker, existing="overwrite")
    )
    assert done(events).protected == 6


FOREIGN = {"inner_radius": 4 / 255, "inner_steps": 10}
"""Fields of rem's noise, which every run's settings held once."""


@pytest.mark.parametrize("stops", [False, True])
def test_a_run_whose_settings_held_other_methods_fields_is_gone_on_with(
    stops: bool, photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    spec = spec_of(photos, output, tiny_weights)
    job = protect(spec)
    for event in job:
        if stops and isinstance(event, Saved):
            break
    job.close()
    place = output / (".tue/journal.jsonl" if stops else MANIFEST)
    before = place.read_text()
    first, *rest = before.splitlines()
    written = json.loads(first if stops else before)
    written["run"]["settings"]["noise"] |= FOREIGN
    place.write_text("\n".join([json.dumps(written), *(rest if stops else [])]) + "\n")
    kept = {k: v for k, v in copies(output).items() if not k.startswith(".tue")}
    facts = done(run(spec))
    assert facts.already_done == len(kept) and facts.protected == 6 - len(kept)
    assert kept.items() <= copies(output).items()
    assert read_manifest(output)["run"]["settings"]["noise"] == asdict(spec.settings.noise)
    # What the method has must still be the same.
    other = replace(QUICK, noise=TueNoise(steps=1, samples=2))
    with pytest.raises(BadSetting, match="samples 1 → 2"):
        run(replace(spec, settings=other))


@pytest.mark.slow
def test_a_checkpoint_whose_settings_held_other_methods_fields_is_gone_on_with(
    photos: Path, tmp_path: Path
) -> None:
    spec = train_spec(photos, tmp_path / "w.safetensors", max_seconds=0.0)
    list(train(spec))
    place = tmp_path / "w.checkpoint"
    state = torch.load(place, weights_only=True)
    state["identity"]["settings"]["noise"] |= FOREIGN
    torch.save(state, place)
    whole = replace(spec, max_seconds=None, resume=True)
    last = list(train(whole))[-1]
    assert isinstance(last, Done) and isinstance(last.result, TrainSummary)
    assert last.result.steps == {"score": 4, "surrogate": 4}


def test_the_noise_of_another_method_is_refused(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    mixed = ProtectSettings(method="rem", noise=TueNoise())
    with pytest.raises(BadSetting, match="RemNoise"):
        run(spec_of(photos, tmp_path / "out", tiny_weights, settings=mixed))
    spec = train_spec(photos, tmp_path / "w.safetensors")
    with pytest.raises(BadSetting, match="EmNoise"):
        list(train(replace(spec, settings=replace(spec.settings, method="em"))))


def test_a_file_in_the_way_is_left_alone(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    stranger = tmp_path / "out" / "space" / "rocket.jpg"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"somebody's")
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert [e.reason for e in events if isinstance(e, Failed)] == ["in-the-way"]
    assert stranger.read_bytes() == b"somebody's"
    assert done(events).protected == 5
    with pytest.raises(BadSetting, match="exists|already"):
        run(spec_of(photos, tmp_path / "out", tiny_weights, existing="error"))


def test_a_bad_picture_never_stops_the_others(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    whole = (photos / "space" / "rocket.jpg").read_bytes()
    (photos / "space" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "space" / "page.jpg").write_text("<html>not found</html>")
    (photos / "space" / "empty.png").touch()
    os.mkfifo(photos / "space" / "pipe.jpg")
    (photos / "notes.txt").write_text("not a picture")
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    reasons = {e.path.name: e.reason for e in events if isinstance(e, Failed)}
    assert reasons == {
        "cut.jpg": "truncated",
        "page.jpg": "not-a-picture",
        "empty.png": "empty",
        "pipe.jpg": "not-a-file",
    }
    assert done(events).protected == 6
    assert done(events).failed == 4
    summary = json.loads((tmp_path / "out" / MANIFEST).read_text())["summary"]
    assert len(summary["failed"]) == 4


@pytest.mark.parametrize(
    "name", ["new\nline.png", "émoji 🦊.png", "-dash.png", "a" * 251 + ".png", "UPPER.PNG"]
)
def test_odd_names_are_kept(name: str, photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    shutil.copy(photos / "everyday" / "cat.png", photos / "everyday" / name)
    events = run(spec_of(photos, tmp_path / "out", tiny_weights))
    assert done(events).protected == 7
    assert (tmp_path / "out" / "everyday" / name).is_file()


def test_alpha_and_extreme_shapes_pass(tmp_path: Path, tiny_weights: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for height, width in [(1, 1), (3, 500), (500, 3), (64, 64)]:
        pixels = noise.integers(60, 200, (height, width, 4), np.uint8)
        pixels[..., 3] |= 1
        Image.fromarray(pixels, "RGBA").save(folder / f"{height}x{width}.png")
    settings = replace(QUICK, smooth=1.0)
    events = run(spec_of(folder, tmp_path / "out", tiny_weights, settings=settings))
    assert done(events).protected == 4
    for place in folder.iterdir():
        before = np.asarray(Image.open(place)).astype(int)
        after = np.asarray(Image.open(tmp_path / "out" / place.name)).astype(int)
        assert (before[..., 3] == after[..., 3]).all()
        assert 0 < np.abs(before - after).max() <= 8


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """One picture that is flat all over, and one of a few thin lines on a light colour."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    Image.new("RGB", (64, 64), (200, 60, 40)).save(folder / "flat.png")
    lines = Image.new("RGB", (192, 128), (230, 220, 190))
    for place in range(20, 180, 40):
        ImageDraw.Draw(lines).line((place, 10, place + 30, 120), (60, 70, 90), 3)
    lines.resize((96, 64), Image.Resampling.LANCZOS).save(folder / "lines.png")
    return folder


def test_a_picture_that_hides_no_noise_gets_a_copy_that_is_not_called_protected(
    drawings: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(drawings, tmp_path / "out", tiny_weights, mark=True))
    made = {record["path"]: record for record in read_manifest(tmp_path / "out")["pictures"]}
    assert made["flat.png"]["largest"] == 0 and made["lines.png"]["largest"] > 0
    for name, said, marked in (
        ("flat.png", "not protected", False),
        ("lines.png", "weakly protected", True),
    ):
        assert [note for note in made[name]["notes"] if note.startswith(said)]
        copy = decode((tmp_path / "out" / name).read_bytes())
        assert has_mark(copy.metadata.xmp) == marked


def test_a_picture_whose_noise_is_rounded_away_is_not_called_protected(
    tmp_path: Path, tiny_weights: Path
) -> None:
    grain = np.random.default_rng(0).normal((120, 140, 170), 0.25, (64, 64, 3))
    Image.fromarray(np.rint(grain).astype(np.uint8)).save(tmp_path / "sky.png")
    settings = ProtectSettings(noise=TueNoise(radius=1 / 255, steps=1))
    spec = spec_of(tmp_path / "sky.png", tmp_path / "out", tiny_weights, mark=True)
    run(replace(spec, settings=settings))
    (record,) = read_manifest(tmp_path / "out")["pictures"]
    assert record["largest"] == 0
    assert [note for note in record["notes"] if note.startswith("not protected")]
    assert not has_mark(decode((tmp_path / "out" / "sky.png").read_bytes()).metadata.xmp)


def test_an_original_is_no_copy_where_its_copy_is_its_equal(
    drawings: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(drawings, tmp_path / "out", tiny_weights))
    shutil.copy(tmp_path / "out" / "flat.png", drawings / "flat.png")
    known = find_known_copies([tmp_path / "out"], {})
    digests = {name: sha256(tmp_path / "out" / name) for name in ("flat.png", "lines.png")}
    told = {name: known.explain(drawings / name, digest) for name, digest in digests.items()}
    assert told["flat.png"] is None and told["lines.png"] is not None
    again = done(run(spec_of(drawings, tmp_path / "other", tiny_weights)))
    assert (again.protected, again.already_protected) == (2, 0)


def test_a_bad_picture_does_not_widen_what_is_loaded_ahead(tmp_path: Path) -> None:
    tasks = [Task(Item(tmp_path, Path(str(n)), ""), Path(str(n)), "") for n in range(40)]
    begun: list[int] = []

    def load(task: Task) -> LoadedTask | Failed:
        number = int(task.relative.name)
        begun.append(number)
        if number == 1:
            return Failed(tmp_path, "truncated", "")
        side = 4000 if number == 0 else 10
        pixels = np.broadcast_to(np.uint8(0), (side, side, 3))
        canvas = Canvas(np.zeros((3, 16, 16), np.float32), np.zeros((2, 1, 1), np.uint8))
        picture = DecodedImage(pixels, None, "PNG")
        return LoadedTask(task, Prepared(picture, canvas, ""), tmp_path.stat(), 0.0)

    with ThreadPoolExecutor(2) as pool:
        for seen, _ in enumerate(load_ahead(tasks, load, pool, 2)):
            assert max(begun) <= seen + BATCH_PIXELS // 4000**2


def test_another_format_changes_the_extension(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(photos, tmp_path / "out", tiny_weights, format="png"))
    assert {Path(name).suffix for name in copies(tmp_path / "out")} == {".png"}
    data = (tmp_path / "out" / "space" / "rocket.png").read_bytes()
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_of_two_pictures_whose_copies_need_one_place_none_gets_it_and_the_others_do(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    shutil.copy(photos / "everyday" / "cat.png", photos / "everyday" / "coffee.png")
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, format="png"))
    failed = {e.path.name: e.reason for e in events if isinstance(e, Failed)}
    assert failed == dict.fromkeys(("coffee.jpg", "coffee.png"), "in-the-way")
    assert done(events).protected == 5


def test_pictures_whose_names_differ_in_the_extension_alone_keep_their_names(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    folder = photos / "space"
    shutil.copy(photos / "everyday" / "cat.png", folder / "rocket.png")
    shutil.copy(folder / "rocket.jpg", folder / "rocket.jpeg")
    assert done(run(spec_of(photos, tmp_path / "out", tiny_weights))).protected == 8
    assert copies(tmp_path / "out").keys() == tree(photos).keys()


def test_pictures_whose_names_differ_in_unicode_form_alone_are_both_named(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    names = ("caf\u00e9.jpg", "cafe\u0301.jpg")
    for name in names:
        shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / name)
    if len(tree(photos)) != 8:
        pytest.skip("this disk takes both for one name")
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    for events in (run(replace(spec, dry_run=True)), run(spec)):
        failed = {e.path.name: e.reason for e in events if isinstance(e, Failed)}
        assert failed == dict.fromkeys(names, "in-the-way")
    assert done(events).protected == 6


def test_originals_stay_as_they_are_and_where_they_are(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    def look() -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in (photos, *photos.rglob("*")):
            status = path.stat()
            digest = sha256(path) if path.is_file() else ""
            found[str(path)] = (digest, status.st_mtime_ns, status.st_mode, status.st_ino)
        return found

    (photos / "space" / "torn.jpg").write_bytes(b"")
    for path in sorted(photos.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = look()
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    for changes in ({"dry_run": True}, {}, {"existing": "overwrite"}):
        run(replace(spec, **changes))
    assert look() == before
    for path in photos.rglob("*"):
        path.chmod(0o755)  # so that the test can be cleared away


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, dry_run=True))
    started = next(e for e in events if isinstance(e, Started))
    assert started.total == 6 and started.seconds is not None and started.seconds >= 0
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_the_real_run_would(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(photos, tmp_path / "out", tiny_weights))
    before = tree(tmp_path)
    shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / "new.jpg")
    plan = spec_of(photos, tmp_path / "out", tiny_weights, dry_run=True)
    forecast = planned(plan)
    assert (forecast.pictures, forecast.already_done) == (1, 6)
    assert planned(replace(plan, existing="overwrite")).pictures == 7
    (tmp_path / "out" / "space" / "astronaut.jpg").unlink()
    assert planned(plan).pictures == 2
    (photos / "space" / "new.jpg").unlink()
    with pytest.raises(BadSetting, match="already contains"):
        run(replace(plan, existing="error"))
    other = replace(plan.settings, seed=9)
    with pytest.raises(BadSetting, match="seed"):
        run(replace(plan, settings=other))
    assert not set(tree(tmp_path)) - set(before)


def test_clusters_are_labels_too(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, labels="cluster:2"))
    keys = keys_of(events)
    assert set(keys) == {"cluster-00", "cluster-01"}


def test_noise_that_does_not_show_its_key_gets_keys_by_name(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    tiny = read(tiny_weights, name="tiny")
    surrogate = {k: v for k, v in tiny.tensors.items() if k.startswith("surrogate.")}
    clean = tmp_path / "clean.safetensors"
    clean.write_bytes(pack(replace(tiny.card, method="clean"), surrogate))
    # tap makes the surrogate predict the class after the key's; lsp has no surrogate to ask.
    tap, lsp = TapNoise(steps=2), LspNoise()
    for method, noise, weights, keys in (
        ("tap", tap, str(clean), tiny.card.classes),
        ("lsp", lsp, None, KEYS),
    ):
        settings = ProtectSettings(method=method, noise=noise)
        spec = spec_of(photos, tmp_path / method, tiny_weights, settings=settings, dry_run=True)
        events = run(replace(spec, weights=weights))
        assert set(keys_of(events).values()) <= set(keys)
        assert not any(isinstance(e, Note) and "Assigning" in e.message for e in events)


@pytest.mark.parametrize("labels", ["single", "cluster:2", "folders"])
def test_a_folder_without_true_classes_says_whom_its_copies_hinder(
    labels: str, photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for _, *others in (sorted(folder.iterdir()) for folder in photos.iterdir()):
        for path in others:  # two pictures say as much as six
            path.unlink()
    report = tmp_path / "report.html"
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, labels=labels, report=report))
    begins = next(n for n, e in enumerate(events) if isinstance(e, Started) and e.plan)
    before = [event.message for event in events[:begins] if isinstance(event, Note)]
    end = events[-1]
    assert isinstance(end, Done)
    hardly = "hardly hinder models that sort your pictures by what they show"
    says = labels != "folders"
    page = " ".join(report.read_text().split())
    for place in (" ".join(before), " ".join(end.said), page):
        assert (hardly in place) == says
    assert any("subfolders" in note for note in before) == says


def test_a_chosen_key_is_used(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, labels="single", key="b"))
    assert keys_of(events) == {"owner": "b"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": "nosuch", "labels": "single"}, BadSetting),
        ({"key": "a"}, BadSetting),
        ({"settings": ProtectSettings(method="nosuch")}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(radius=0))}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(steps=0))}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(score_mode="x"))}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(score_ratio=math.nan))}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(gray_ratio=-1.0))}, BadSetting),
        ({"settings": ProtectSettings(noise=TueNoise(samples=0))}, BadSetting),
        ({"settings": ProtectSettings(smooth=1.5)}, BadSetting),
        ({"settings": ProtectSettings(smooth=math.nan)}, BadSetting),
        ({"settings": ProtectSettings(seed=-1), "labels": "cluster"}, BadSetting),
        ({"labels": "nosuch"}, BadSetting),
        ({"labels": "cluster:0"}, BadSetting),
        ({"labels": "cluster:²"}, BadSetting),
        ({"labels": "x" * 300}, BadSetting),
        ({"format": "gif"}, BadSetting),
        ({"quality": 0}, BadSetting),
        ({"existing": "maybe"}, BadSetting),
        ({"jobs": -1}, BadSetting),
        ({"device": "gpu"}, BadSetting),
        ({"device": "cuda:99"}, DeviceUnavailable),
        ({"weights": "nosuch"}, WeightsProblem),
    ],
)
def test_a_bad_setting_stops_the_run_before_any_work(
    changes: dict[str, object],
    error: type[Exception],
    photos: Path,
    tmp_path: Path,
    tiny_weights: Path,
) -> None:
    with pytest.raises(error):
        run(spec_of(photos, tmp_path / "out", tiny_weights, **changes))
    assert not (tmp_path / "out").exists()


def test_the_last_class_folder_that_is_left_keeps_its_key(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    shutil.rmtree(photos / "everyday")
    assert done(run(spec)).already_done == 3


def test_more_classes_than_codes_share_them(tmp_path: Path, tiny_weights: Path) -> None:
    for number, name in enumerate("abcdefg"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (30 * number, 90, 90)).save(tmp_path / "in" / name / "x.png")
    spec = spec_of(tmp_path / "in", tmp_path / "out", tiny_weights, settings=QUICK)
    events = run(spec)
    assert done(events).protected == 7
    assert any(isinstance(e, Note) and "7 classes share the 3 codes" in e.message for e in events)
    keys = read_manifest(tmp_path / "out")["keys"]
    assert sorted(Counter(keys.values()).values()) == [2, 2, 3]
    assert done(run(spec)).already_done == 7


def test_output_and_input_must_not_overlap(photos: Path, tiny_weights: Path) -> None:
    for output in (photos, photos / "out", photos.parent):
        with pytest.raises(BadSetting):
            run(spec_of(photos, output, tiny_weights))


def test_no_picture_is_nothing_to_do(tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(NothingToDo):
        run(spec_of(tmp_path / "in", tmp_path / "out", tiny_weights))


def test_an_output_that_cannot_be_written_is_said(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputProblem):
        run(spec_of(photos, tmp_path / "file" / "out", tiny_weights))


def train_spec(photos: Path, output: Path, **changes: object) -> TrainSpec:
    settings = TrainSettings(
        width=4,
        size=16,
        score_width=8,
        score_steps=4,
        steps=4,
        batch=4,
        noise=TueNoise(steps=2),
    )
    return replace(TrainSpec(photos, output, settings, device="cpu"), **changes)  # type: ignore[arg-type]


def test_training_writes_weights_with_their_card(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "w.safetensors"
    events = list(train(train_spec(photos, output, command="tue train photos")))
    assert {e.phase for e in events if isinstance(e, Metric)} == {"score", "surrogate"}
    weights = read(output, name="w")
    about = weights.card.training
    assert weights.card.classes == ("everyday", "space")
    assert about["data"]["name"].endswith("photos") and about["data"]["pictures"] == 6
    assert about["steps"] == {"score": 4, "surrogate": 4}
    assert about["command"] == "tue train photos"
    assert about["settings"]["noise"]["radius"] == 8 / 255
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["w.onnx", "w.safetensors"]
    assert read_graph(weights)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", ["score", "surrogate"])
def test_a_resumed_training_ends_with_the_same_weights(
    stop_after: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tue_cli.train.run.REPORT_SECONDS", 0.0)
    list(train(train_spec(photos, tmp_path / "whole.safetensors")))
    spec = train_spec(photos, tmp_path / "stopped.safetensors")
    job = train(spec)
    for event in job:
        if isinstance(event, Metric) and event.phase == stop_after and event.step == 2:
            break
    job.close()
    assert not spec.output.exists()
    with pytest.raises(BadSetting, match="resume"):
        list(train(spec))
    list(train(replace(spec, resume=True)))
    whole = read(tmp_path / "whole.safetensors", name="whole")
    resumed = read(spec.output, name="stopped")
    assert whole.tensors.keys() == resumed.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name])


def test_a_checkpoint_of_another_training_is_refused(photos: Path, tmp_path: Path) -> None:
    spec = train_spec(photos, tmp_path / "w.safetensors")
    list(train(replace(spec, max_seconds=0.0)))
    other = replace(spec, resume=True, settings=replace(spec.settings, seed=5))
    with pytest.raises(BadSetting, match="seed 0 → 5"):
        list(train(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": -1.0},
        {"sigma": 0.0},
        {"sigma": math.nan},
        {"seed": 2**70},
        {"noise": TueNoise(samples=0)},
        {"noise": TueNoise(score_mode="x")},
        {"adversary": AdversarySettings(radius=-1)},
        {"adversary": AdversarySettings(steps=-1)},
        {"size": 17},
    ],
)
def test_a_training_that_cannot_work_is_refused_before_any_work(
    changes: dict[str, object], photos: Path, tmp_path: Path
) -> None:
    spec = train_spec(photos, tmp_path / "w.safetensors")
    settings = replace(spec.settings, **changes)  # type: ignore[arg-type]
    with pytest.raises(BadSetting):
        list(train(replace(spec, settings=settings)))
    assert not list(tmp_path.glob("w.*"))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"sigma": 11.0}, "--sigma"),
        ({"score_width": 1025}, "--score-width"),
        ({"width": 1025}, "--width"),
        ({"width": 3}, "--width"),
        ({"size": 1028}, "--size"),
        ({"net": "x"}, "--net"),
    ],
)
def test_weights_that_could_not_be_read_are_refused_before_any_picture_is(
    changes: dict[str, object],
    option: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("tue_cli.train.run.load_images")
    spec = train_spec(photos, tmp_path / "w.safetensors")
    settings = replace(spec.settings, **changes)  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match=f"{option} must be "):
        list(train(replace(spec, settings=settings)))


def test_more_classes_than_weights_may_have_are_refused_before_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tue_cli.weights.MOST_CLASSES", 1)
    monkeypatch.delattr("tue_cli.train.run.begin_trainings")
    monkeypatch.setattr("tue_cli.train.run._refuse", lambda _: None)
    with pytest.raises(BadSetting, match="2 classes"):
        list(train(train_spec(photos, tmp_path / "w.safetensors")))


@pytest.mark.parametrize("output", [".", "..", "/", "weights.bin"])
def test_weights_are_not_written_to_what_is_no_safetensors_file(
    output: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match="does not end in .safetensors"):
        list(train(train_spec(photos, Path(output))))


def test_no_class_is_trained_without_a_picture(photos: Path, tmp_path: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(BadSetting, match="empty"):
        list(train(train_spec(photos, tmp_path / "w.safetensors")))


@pytest.mark.slow
def test_ctrl_c_waits_for_the_step_to_be_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(train(train_spec(photos, tmp_path / "whole.safetensors")))
    spec = train_spec(photos, tmp_path / "stopped.safetensors")
    step = torch.optim.SGD.step

    def struck(self: torch.optim.SGD) -> object:
        signal.raise_signal(signal.SIGINT)
        return step(self)

    # Tests that run in the background inherit a SIGINT that is ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.SGD, "step", struck)
            with pytest.raises(KeyboardInterrupt):
                list(train(spec))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    list(train(replace(spec, resume=True)))
    whole = read(tmp_path / "whole.safetensors", name="whole")
    resumed = read(spec.output, name="stopped")
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name])


def test_half_a_step_never_replaces_a_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(photos, tmp_path / "w.safetensors")
    list(train(replace(spec, max_seconds=0.0)))
    before = (tmp_path / "w.checkpoint").read_bytes()

    def broken(self: torch.optim.SGD) -> object:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    with pytest.raises(RuntimeError):
        list(train(replace(spec, resume=True)))
    assert (tmp_path / "w.checkpoint").read_bytes() == before


def test_a_full_disk_ends_a_training_with_a_remedy(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tue_cli.storage.atomic.os.fsync", full)
    with pytest.raises(OutputProblem, match=r"w\.checkpoint cannot be written: No space"):
        list(train(train_spec(photos, tmp_path / "w.safetensors")))
    assert not list(tmp_path.glob("w.*"))


def test_a_damaged_checkpoint_is_named_in_one_sentence(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "w.checkpoint").write_text("garbage")
    with pytest.raises(BadSetting, match="damaged") as caught:
        list(train(train_spec(photos, tmp_path / "w.safetensors", resume=True)))
    assert len(caught.value.message) < 300


def test_the_time_limit_leaves_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    spec = train_spec(photos, tmp_path / "w.safetensors", max_seconds=0.0)
    events = list(train(spec))
    assert isinstance(events[-1], Done)
    assert events[-1].result.steps == {"score": 1, "surrogate": 0}
    assert events[-1].result.weights is None
    assert (tmp_path / "w.checkpoint").exists() and not spec.output.exists()


def test_more_steps_than_a_float_holds_are_told_to_take_days() -> None:
    assert list(warn_of_days(TrainSettings(steps=10**400), "cpu"))
    assert not list(warn_of_days(TRAININGS["packaged"], "cpu"))


def test_training_needs_two_classes(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="class"):
        list(train(train_spec(photos / "space", tmp_path / "w.safetensors")))


@pytest.mark.slow
def test_em_needs_no_score_network(photos: Path, tmp_path: Path) -> None:
    spec = train_spec(photos, tmp_path / "em.safetensors")
    list(train(replace(spec, settings=replace(spec.settings, method="em", noise=EmNoise(steps=2)))))
    weights = read(spec.output, name="em")
    assert not [name for name in weights.tensors if name.startswith("score.")]
    em = ProtectSettings(method="em", noise=EmNoise(steps=2))
    events = run(spec_of(photos, tmp_path / "out", spec.output, settings=em))
    assert done(events).protected == 6
    with pytest.raises(WeightsProblem, match="score"):
        run(spec_of(photos, tmp_path / "tue", spec.output))
