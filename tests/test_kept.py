"""What copies keep of the system's own: modes of folders, extended attributes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tue_cli.config import ProtectSettings
from tue_cli.dataset.output import find_folder_modes
from tue_cli.events import AnyEvent, Done, Saved
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import CopyRecord, ProtectSummary
from tue_cli.protect.run import protect

QUICK = ProtectSettings(noise=TueNoise(steps=1))
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    """Six photographs in two class folders."""
    return Path(shutil.copytree(small_photos, tmp_path / "private" / "photos"))


@pytest.fixture
def spec(photos: Path, tmp_path: Path, tiny_weights: Path) -> ProtectSpec:
    """What protects them quickly."""
    weights = str(tiny_weights)
    return ProtectSpec(
        (photos,), tmp_path / "out", weights=weights, settings=QUICK, device="cpu", jobs=2
    )


def run(spec: ProtectSpec) -> list[AnyEvent]:
    events: list[AnyEvent] = list(protect(spec))
    assert isinstance(events[-1], Done) and isinstance(events[-1].result, ProtectSummary)
    assert events[-1].result.protected and not events[-1].result.failed
    return events


def mode_of(folder: Path) -> str:
    return f"{folder.stat().st_mode & 0o7777:o}"


@contextmanager
def with_umask(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_folders_of_copies_have_the_modes_of_the_originals(
    umask: int, photos: Path, spec: ProtectSpec
) -> None:
    first, second = sorted(path for path in photos.iterdir() if path.is_dir())
    photos.chmod(0o750)
    first.chmod(0o700)
    second.chmod(0o775)
    assert spec.output is not None
    with with_umask(umask):
        run(spec)
    assert mode_of(spec.output) == "750"
    assert mode_of(spec.output / first.name) == "700"
    assert mode_of(spec.output / second.name) == "775"


@POSIX
def test_a_folder_that_was_there_keeps_its_mode(photos: Path, spec: ProtectSpec) -> None:
    assert spec.output is not None
    spec.output.mkdir()
    spec.output.chmod(0o711)
    photos.chmod(0o700)
    run(spec)
    assert mode_of(spec.output) == "711"


@POSIX
def test_the_copy_of_a_single_file_is_as_private_as_its_folder(
    photos: Path, spec: ProtectSpec
) -> None:
    picture = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    picture.parent.chmod(0o700)
    run(replace(spec, paths=(picture,)))
    assert spec.output is not None and mode_of(spec.output) == "700"


@POSIX
def test_folders_that_share_a_place_permit_what_all_permit(tmp_path: Path) -> None:
    for name, mode in (("one", 0o750), ("two", 0o705), ("shared", 0o1777), ("locked", 0o500)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)

    def found(*names: str) -> str:
        return f"{find_folder_modes((tmp_path / n / 'a.jpg', Path(n)) for n in names)[Path()]:o}"

    assert found("one", "two") == "700"
    assert found("shared") == "755", "nobody else may write without the sticky bit"
    assert found("locked") == "700", "the copies must be written"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these calls")
def test_copies_keep_extended_attributes(photos: Path, spec: ProtectSpec) -> None:
    assert sys.platform == "linux"
    picture = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    try:
        os.setxattr(picture, "user.xdg.tags", b"boats,harbour")
        os.setxattr(picture, "user.thumbnail", b"\x89PNG\r\n\x1a\n")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    picture.chmod(0o444)
    events = run(spec)
    assert spec.output is not None
    copy = spec.output / picture.relative_to(photos)
    assert os.listxattr(copy) == ["user.xdg.tags"]
    assert os.getxattr(copy, "user.xdg.tags") == b"boats,harbour"
    (saved,) = (event for event in events if isinstance(event, Saved) and event.path == copy)
    assert isinstance(saved.copy, CopyRecord)
    assert saved.copy.notes[0].endswith("may hold the original picture: user.thumbnail")
