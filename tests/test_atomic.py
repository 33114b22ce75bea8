"""Files that appear whole or not at all, and folders that are entered through no link."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from tue_cli.storage import atomic
from tue_cli.storage.atomic import Folder, write_atomically
from tue_cli.storage.attributes import read_attributes


@pytest.fixture(params=[True, False], ids=["descriptors", "paths"], autouse=True)
def _as_each_system_finds_files(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By descriptors of folders where the system has them, and by paths as Windows does."""
    if request.param and not atomic.DESCRIPTORS:
        pytest.skip("this system finds files by paths alone")
    monkeypatch.setattr(atomic, "DESCRIPTORS", request.param)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_whole_with_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(b"new", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == b"new"
    assert (tmp_path / "page.html").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert names(tmp_path) == {"plain", "page.html"}


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")
def test_a_file_has_the_permissions_asked_for_and_none_that_the_umask_takes(
    tmp_path: Path,
) -> None:
    for mode, expected in ((0o640, 0o640), (0o600, 0o600), (0o444, 0o644)):
        write_atomically(b"new", tmp_path / "page.html", mode)
        (tmp_path / f"{mode}").touch(expected)
        assert (tmp_path / "page.html").stat().st_mode == (tmp_path / f"{mode}").stat().st_mode


def test_a_copy_gets_the_time_and_the_permissions_of_its_original(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.touch(mode=0o640)
    os.utime(original, ns=(10**18, 15 * 10**17))
    (tmp_path / "copy.jpg").write_bytes(b"old")
    with Folder(tmp_path) as folder:
        folder.write(b"new", "copy.jpg", like=original.stat())
    status = (tmp_path / "copy.jpg").stat()
    assert (tmp_path / "copy.jpg").read_bytes() == b"new"
    assert status.st_mtime_ns == 15 * 10**17 and status.st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomically(b"new", tmp_path / "folder")
    assert names(tmp_path) == {"folder"}


def test_a_link_in_the_place_of_a_file_is_replaced_and_never_written_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "page.html").symlink_to("precious")
    write_atomically(b"new", tmp_path / "page.html")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "page.html").is_symlink()


def test_an_unfinished_copy_is_for_nobody_else_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    original = tmp_path / "original"
    original.touch(mode=0o644)
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    with Folder(tmp_path) as folder:
        folder.write(b"copy", "copy.jpg", like=original.stat())
        assert folder.refused == {"permissions", "times"}
    assert (tmp_path / "copy.jpg").stat().st_mode & 0o077 == 0


def test_what_a_file_system_does_not_do_is_remembered_and_gone_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.EINVAL

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with Folder(tmp_path) as folder, folder.enter(Path("a"), make=True) as below:
        below.write(b"copy", "copy.jpg")
        assert folder.refused == {"syncing"}
        number = errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            below.write(b"another", "copy.jpg")
    assert (tmp_path / "a/copy.jpg").read_bytes() == b"copy"


def test_folders_below_are_made_where_that_is_asked(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        with pytest.raises(FileNotFoundError):
            folder.enter(Path("a/b"))
        with folder.enter(Path("a/b"), make=True) as below:
            below.write(b"copy", "c")
    assert (tmp_path / "a/b/c").read_bytes() == b"copy"


@pytest.mark.parametrize("link", ["a", "a/b"])
@pytest.mark.parametrize("target", ["originals", "nowhere"])
def test_no_link_below_a_folder_is_followed(tmp_path: Path, link: str, target: str) -> None:
    (tmp_path / "originals/b").mkdir(parents=True)
    (tmp_path / "out" / link).parent.mkdir(parents=True)
    (tmp_path / "out" / link).symlink_to(tmp_path / target)
    with Folder(tmp_path / "out") as folder:
        with pytest.raises(OSError, match=r".") as caught:
            folder.enter(Path("a/b"), make=True)
        assert caught.value.errno == errno.ELOOP
        assert caught.value.filename == str(tmp_path / "out" / link)
    assert names(tmp_path / "originals") == {"b"} and not names(tmp_path / "originals/b")


@pytest.mark.parametrize("relative", ["..", "a/../..", "/etc"])
def test_nothing_outside_a_folder_is_entered(tmp_path: Path, relative: str) -> None:
    (tmp_path / "out/a").mkdir(parents=True)
    with Folder(tmp_path / "out") as folder, pytest.raises(OSError, match="Outside"):
        folder.enter(Path(relative))


def test_a_folder_that_was_exchanged_for_a_link_is_no_longer_in_place(tmp_path: Path) -> None:
    (tmp_path / "originals").mkdir()
    (tmp_path / "out/a").mkdir(parents=True)
    with Folder(tmp_path / "out") as folder, folder.enter(Path("a")) as below:
        assert folder.is_in_place() and below.is_in_place()
        (tmp_path / "out/a").rename(tmp_path / "away")
        assert not below.is_in_place()
        (tmp_path / "out/a").symlink_to(tmp_path / "originals")
        assert folder.is_in_place() and not below.is_in_place()
        try:
            below.write(b"copy", "copy.jpg")
        except FileNotFoundError:
            assert not atomic.DESCRIPTORS
        assert not names(tmp_path / "originals")


def test_a_link_given_as_the_folder_itself_is_followed_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("one")
    with Folder(tmp_path / "link") as folder:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("two")
        folder.write(b"copy", "copy.jpg")
    assert names(tmp_path / "one") == {"copy.jpg"} and not names(tmp_path / "two")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_or_a_link_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"precious")
    with Folder(tmp_path) as folder:
        for name, number in (("pipe", errno.EINVAL), ("link", errno.ELOOP)):
            for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
                with pytest.raises(OSError, match=r".") as caught:
                    folder.open(name, flags)
                assert caught.value.errno == number


def test_a_file_with_another_name_is_read_and_never_written(tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(b"precious")
    (tmp_path / "planted").hardlink_to(tmp_path / "original")
    with Folder(tmp_path) as folder:
        os.close(folder.open("planted", os.O_RDONLY))
        with pytest.raises(OSError, match=r".") as caught:
            folder.open("planted", os.O_RDWR | os.O_APPEND)
        assert caught.value.errno == errno.ELOOP


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder, Folder(tmp_path) as other:
        opened = folder.lock("lock")
        with pytest.raises(BlockingIOError):
            other.lock("lock")
        folder.unlock("lock", opened)
        assert not names(tmp_path)
        other.unlock("lock", other.lock("lock"))


@pytest.mark.skipif(os.name == "nt", reason="Windows locks in another way")
def test_where_nothing_can_be_locked_a_lock_is_gone_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Folder(tmp_path) as folder:
        folder.unlock("lock", folder.lock("lock"))
        assert folder.refused == {"locks"}


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_folder_that_is_made_has_the_mode_asked_for_whatever_the_umask(
    umask: int, tmp_path: Path
) -> None:
    if not atomic.DESCRIPTORS:
        pytest.skip("without descriptors, folders keep what the umask leaves")
    modes = {Path("a"): 0o700, Path("a/b"): 0o755, Path("there"): 0o700}
    (tmp_path / "there").mkdir(mode=0o750)
    former = (tmp_path / "there").stat().st_mode
    before = os.umask(umask)
    try:
        with Folder(tmp_path) as folder:
            for place in ("a/b", "there"):
                folder.enter(Path(place), make=True, modes=modes).close()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "there").stat().st_mode == former, "it was there before"


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")
def test_a_folder_never_permits_more_than_asked_for_not_even_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = os.umask(0)
    try:
        with Folder(tmp_path) as folder:
            monkeypatch.setattr(
                Folder,
                "set_mode",
                lambda made, mode: seen.append((made.path.stat().st_mode & 0o777, mode)),
            )
            folder.enter(Path("private"), make=True, modes={Path("private"): 0o700}).close()
    finally:
        os.umask(before)
    assert seen == [(0o700, 0o700)]


def has_attributes(folder: Path) -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.setxattr(folder, "user.tue", b"1")
        os.removexattr(folder, "user.tue")
    except OSError:
        return False
    return True


def test_a_copy_gets_the_attributes_of_people_and_none_that_may_hold_the_picture(
    tmp_path: Path,
) -> None:
    if not has_attributes(tmp_path):
        pytest.skip("this file system has no extended attributes")
    assert sys.platform == "linux"
    original = tmp_path / "original"
    original.touch()
    os.setxattr(original, "user.xdg.tags", "häfen,boats".encode())
    os.setxattr(original, "user.view", b"..\xff\xd8\xff\xe0 a thumbnail")
    kept, notes = read_attributes(original)
    assert kept == {"user.xdg.tags": "häfen,boats".encode()}
    assert notes == ("left out extended attributes that may hold the original picture: user.view",)
    with Folder(tmp_path) as folder:
        folder.write(b"new", "copy.jpg", like=original.stat(), attributes=kept)
        assert folder.refused == set()
    assert os.listxattr(tmp_path / "copy.jpg") == ["user.xdg.tags"]
    assert os.getxattr(tmp_path / "copy.jpg", "user.xdg.tags") == "häfen,boats".encode()


def test_attributes_that_the_file_system_refuses_cost_no_copy(tmp_path: Path) -> None:
    if not has_attributes(tmp_path):
        pytest.skip("this file system has no extended attributes")
    with Folder(tmp_path) as folder:
        folder.write(b"new", "copy.jpg", attributes={"nonsense": b"", "user.a": b"1"})
        assert folder.refused == {"attributes"}
    assert (tmp_path / "copy.jpg").read_bytes() == b"new"
