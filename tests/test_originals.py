"""Originals are found again where `tue protect` found them, and no published file says where."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tue_cli.check.run import CheckSpec, check
from tue_cli.config import ProtectSettings
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.memory import ORIGINALS, recall_originals
from tue_cli.errors import BadSetting
from tue_cli.events import AnyEvent, Checked, Note, Started
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.run import protect
from tue_cli.verify.request import VerifySpec
from tue_cli.verify.run import verify


@pytest.fixture
def spec(small_photos: Path, tmp_path: Path, tiny_weights: Path) -> ProtectSpec:
    shutil.copytree(small_photos, tmp_path / "photos")
    settings = ProtectSettings(noise=TueNoise(steps=1))
    return ProtectSpec(
        (tmp_path / "photos",), tmp_path / "out", weights=str(tiny_weights), settings=settings,
        device="cpu",
    )  # fmt: skip


def recalled(output: Path) -> Path | None:
    records = read_manifest(output)["pictures"]
    return recall_originals(output, ((r["source"], r["source_sha256"]) for r in records))


def recompress(output: Path) -> None:
    """Save a copy again, as a website would."""
    path = next(output.rglob("*.jpg"))
    with Image.open(path) as image:
        image.save(path, quality=70)


def changed_of(events: Iterable[object]) -> Checked:
    return next(e for e in events if isinstance(e, Checked) and e.state == "recompressed")


def notes(events: Iterable[object]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Note))


def test_check_finds_the_originals_again_when_the_copies_were_moved(
    spec: ProtectSpec, tmp_path: Path
) -> None:
    list(protect(spec))
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    recompress(moved)
    events = list(check(CheckSpec(moved)))
    assert changed_of(events).original == "unchanged" and changed_of(events).at_most is not None
    assert str(tmp_path / "photos") in notes(events) and "--original names another" in notes(events)


def test_a_named_folder_of_originals_wins(spec: ProtectSpec, tmp_path: Path) -> None:
    list(protect(spec))
    recompress(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    events = list(check(CheckSpec(tmp_path / "out", tmp_path / "empty")))
    assert changed_of(events).original == "missing" and "remember" not in notes(events)


def test_intact_copies_say_nothing_of_originals(spec: ProtectSpec, tmp_path: Path) -> None:
    list(protect(spec))
    assert not notes(list(check(CheckSpec(tmp_path / "out"))))


def test_only_the_user_can_read_where_originals_are(
    spec: ProtectSpec, tmp_path: Path, own_home: Path
) -> None:
    list(protect(spec))
    file = own_home / ORIGINALS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(tmp_path / "photos") in file.read_text()
    published = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert (tmp_path / "out" / MANIFEST) in published
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in published)


def test_the_same_run_again_remembers_nothing_twice(spec: ProtectSpec, own_home: Path) -> None:
    list(protect(spec))
    before = (own_home / ORIGINALS).read_bytes()
    list(protect(spec))
    assert (own_home / ORIGINALS).read_bytes() == before


def test_files_from_several_folders_are_found_where_most_are(
    spec: ProtectSpec, tmp_path: Path
) -> None:
    photos = sorted((tmp_path / "photos").rglob("*.*"))
    list(protect(replace(spec, paths=tuple(photos))))
    sizes = {folder: len(list(folder.iterdir())) for folder in (tmp_path / "photos").iterdir()}
    assert recalled(tmp_path / "out") == max(sizes, key=lambda folder: sizes[folder])


def test_originals_that_are_gone_or_others_are_not_taken(spec: ProtectSpec, tmp_path: Path) -> None:
    list(protect(spec))
    assert recalled(tmp_path / "out") == tmp_path / "photos"
    for path in (tmp_path / "photos").rglob("*.*"):
        path.write_bytes(b"another")
    assert recalled(tmp_path / "out") is None
    shutil.rmtree(tmp_path / "photos")
    assert recalled(tmp_path / "out") is None
    with pytest.raises(BadSetting, match="--original") as refused:
        list(verify(VerifySpec(tmp_path / "out", device="cpu")))
    assert "no longer there" in str(refused.value) or "not known" in str(refused.value)


def test_verify_finds_the_originals_again(spec: ProtectSpec, tmp_path: Path) -> None:
    list(protect(spec))
    job, events = verify(VerifySpec(tmp_path / "out", device="cpu")), list[AnyEvent]()
    for event in job:
        events.append(event)
        if isinstance(event, Started):
            break
    job.close()
    assert str(tmp_path / "photos") in notes(events)


def test_a_home_that_cannot_be_written_costs_nothing(
    spec: ProtectSpec, tmp_path: Path, own_home: Path
) -> None:
    shutil.rmtree(own_home)
    own_home.write_text("in the way")
    try:
        list(protect(spec))
        assert (tmp_path / "out" / MANIFEST).is_file() and recalled(tmp_path / "out") is None
    finally:
        own_home.unlink()


@pytest.mark.parametrize(
    "line",
    ["", "7", '{"manifest": "M"}', '{"manifest": "M", "folders": 7}', '{"manifest": "M", '
     '"folders": ["\\u0000"]}', '{"manifest": "M", "folders": ["nosuch", "\\ud800"]}'],
)  # fmt: skip
def test_what_is_damaged_among_the_places_is_passed_over(
    line: str, spec: ProtectSpec, tmp_path: Path, own_home: Path
) -> None:
    list(protect(spec))
    (written,) = (own_home / ORIGINALS).read_text().splitlines()
    digest = json.loads(written)["manifest"]
    lines = (line.replace("M", digest), written, line.replace("M", digest))
    (own_home / ORIGINALS).write_text("\n".join(lines))
    assert recalled(tmp_path / "out") == tmp_path / "photos"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folder_of_any_name_is_found_again(
    spec: ProtectSpec, small_photos: Path, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path / "odd ") + b"\xff\n"))
    shutil.copytree(small_photos, odd)
    list(protect(replace(spec, paths=(odd,))))
    assert recalled(tmp_path / "out") == odd
