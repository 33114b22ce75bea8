"""Files that appear whole or not at all, in folders that are entered through no link.

A `Folder` is held by its descriptor, so that what is asked of it happens in that very folder,
wherever its name leads by now. Windows has no such descriptors: there every call first checks that
the name still leads to the same folder, and through no link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from tue_cli.storage.attributes import write_attributes

DESCRIPTORS: Final = {os.open, os.mkdir, os.rename, os.rmdir, os.stat, os.unlink} <= (
    os.supports_dir_fd
)
"""Whether the system finds files by the descriptor of their folder."""
SCRATCH: Final = "scratch-"
"""What the name of an unfinished file begins with."""

Identity = tuple[int, int]
"""Device and inode, which survive a rename."""

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_ENTER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_LINK
# A pipe must not be waited for; that it is none is checked once it is open.
_OPEN: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | _NO_LINK
_PUBLIC: Final = 0o666
_REFUSALS: Final = frozenset(
    getattr(errno, name)
    for name in ("EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")
    if hasattr(errno, name)
)
"""Errors of an unsupported operation."""


def get_identity(status: os.stat_result) -> Identity:
    """Return what tells a file or folder from every other."""
    return status.st_dev, status.st_ino


def is_link(status: os.stat_result) -> bool:
    """Say whether this is a symlink or, on Windows, a junction."""
    # mypy knows the system it runs on, and this is Windows' own.
    tag = getattr(status, "st_reparse_tag", 0)
    return stat.S_ISLNK(status.st_mode) or tag == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)


def write_atomically(data: bytes, path: Path, mode: int = _PUBLIC) -> None:
    """Write a file so that it appears whole or not at all; a link in its place is replaced.

    The umask takes from the `mode`, as it does where any file is made.

    Raises:
        OSError: as the file system gave it; a former file stays as it was.
        ValueError: the path holds a zero byte.
    """
    with Folder(path.parent) as folder:
        folder.write(data, path.name, mode=mode)


class Folder:
    """A folder that is held until it is closed; a context manager.

    Names are those of its own entries. No call follows a link, but for the path given at first.
    """

    def __init__(self, path: Path, above: Folder | None = None) -> None:
        """Hold the folder that `path` leads to now or, given one `above`, its entry of that name.

        Raises:
            OSError: there is none, or it cannot be entered.
        """
        self.path: Path = Path(os.path.realpath(path)) if above is None else above.path / path
        """Without links, as it was when the folder was entered."""
        self.refused: set[str] = set() if above is None else above.refused
        """What the file system did not do: permissions, times, attributes, locks or syncing; one
        set for a folder and all that was entered from it."""
        self._descriptor: int | None = None
        where, descriptor = (self.path, None) if above is None else above._locate(str(path))
        if DESCRIPTORS:
            self._descriptor = os.open(where, _ENTER, dir_fd=descriptor)
        status = Path(where).lstat() if self._descriptor is None else os.fstat(self._descriptor)
        if not stat.S_ISDIR(status.st_mode) or is_link(status):
            raise _make_error(errno.ENOTDIR, self.path)
        self.identity = get_identity(status)

    def close(self) -> None:
        """Let the folder go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_in_place(self) -> bool:
        """Say whether the folder's path still leads to it, and through no link."""
        try:
            status = self.path.lstat()
        except OSError:
            return False
        return get_identity(status) == self.identity and not is_link(status)

    def enter(
        self, relative: Path, *, make: bool = False, modes: Mapping[Path, int] | None = None
    ) -> Folder:
        """Enter a folder below this one; where asked to, make what is missing of it.

        What is made has its mode in `modes`, by its place below this one, at no moment more.

        Raises:
            OSError: it cannot be entered; ELOOP where a link is in the way.
        """
        if relative.is_absolute() or ".." in relative.parts:
            raise OSError(errno.EINVAL, "Outside the folder", str(relative))
        folder, place = Folder(Path(), self), Path()
        for name in relative.parts:
            place /= name
            with folder:
                below = folder._enter(name, make=make, mode=(modes or {}).get(place))
            folder = below
        return folder

    def _enter(self, name: str, *, make: bool, mode: int | None) -> Folder:
        try:
            return Folder(Path(name), self)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            # Systems differ in what they say of a link where a folder should be.
            status = self.read_status(name)
            is_one = status is not None and is_link(status)
            number = errno.ELOOP if is_one else error.errno or errno.EIO
            raise _make_error(number, self.path / name) from None
        where, descriptor = self._locate(name)
        try:
            os.mkdir(where, 0o777 if mode is None else mode, dir_fd=descriptor)  # noqa: PTH102
        except FileExistsError:
            mode = None
        self.sync()
        folder = Folder(Path(name), self)
        folder.set_mode(mode)
        return folder

    def set_mode(self, mode: int | None) -> None:
        """Give the folder these permissions, where there are any; do nothing for None."""
        if mode is not None and self._descriptor is not None:
            with self.tolerate("permissions"):
                os.chmod(self._descriptor, os.fstat(self._descriptor).st_mode & 0o7000 | mode)  # noqa: PTH101

    def _locate(self, name: str) -> tuple[str, int | None]:
        """Return what the system finds an entry by: its name and this folder, or its path."""
        if self._descriptor is not None:
            return name, self._descriptor
        if not self.is_in_place():
            raise _make_error(errno.ENOENT, self.path)
        return str(self.path / name), None

    def list_names(self) -> list[str]:
        """Return the names of all entries."""
        return os.listdir(self._locate(".")[0] if self._descriptor is None else self._descriptor)  # noqa: PTH208

    def read_status(self, name: str) -> os.stat_result | None:
        """Return what an entry is, itself where it is a link; None where there is none."""
        try:
            where, descriptor = self._locate(name)
            return os.stat(where, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Return a descriptor of a regular file.

        Raises:
            OSError: as the file system gave it; EINVAL for a pipe or a device, ELOOP for a link or,
                where it is to be written, for a file that has another name.
        """
        where, descriptor = self._locate(name)
        if (status := self.read_status(name)) is not None:
            # Looked at first, for only to open a device may do something.
            if is_link(status):
                raise _make_error(errno.ELOOP, self.path / name)
            if not stat.S_ISREG(status.st_mode):
                raise _make_error(errno.EINVAL, self.path / name)
        opened = os.open(where, flags | _OPEN, mode, dir_fd=descriptor)
        status = os.fstat(opened)
        number = 0
        if not stat.S_ISREG(status.st_mode):
            number = errno.EINVAL
        elif flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
            # What is written here would be written to the file's other name too.
            number = errno.ELOOP
        if number:
            os.close(opened)
            raise _make_error(number, self.path / name)
        return opened

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a regular file's content, in hexadecimal."""
        with open(self.open(name, os.O_RDONLY), "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(
        self,
        data: bytes,
        name: str,
        *,
        aside: Folder | None = None,
        like: os.stat_result | None = None,
        attributes: Mapping[str, bytes] | None = None,
        mode: int = _PUBLIC,
    ) -> None:
        """Write a file so that it appears whole or not at all.

        Until then it lies in `aside`, or here. It has `mode` less the umask or, given a `like`,
        its permissions and time once it is finished, and is for nobody but the user before; it gets
        extended `attributes` as far as the file system has such.

        Raises:
            OSError: as the file system gave it; a former file stays as it was.
        """
        aside = aside or self
        scratch = f"{SCRATCH}{secrets.token_hex(8)}"
        mode = mode | stat.S_IWUSR if like is None else 0o600
        opened = aside.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(opened, "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                if not write_attributes(opened, attributes or {}):
                    self.refused.add("attributes")
                if DESCRIPTORS and like is not None:
                    self._copy_status(opened, like)
                with self.tolerate("syncing"):
                    os.fsync(opened)
                written = aside.read_status(scratch)
                if written is None or get_identity(written) != get_identity(os.fstat(opened)):
                    raise _make_error(errno.ENOENT, aside.path / scratch)
            if not DESCRIPTORS and like is not None:
                self._copy_status(aside._locate(scratch)[0], like)
            source, source_folder = aside._locate(scratch)
            target, target_folder = self._locate(name)
            os.replace(  # noqa: PTH105 - a Path knows no descriptor
                source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder
            )
        except BaseException:
            with suppress(OSError):
                aside.unlink(scratch)
            raise
        self.sync()

    def _copy_status(self, file: int | str, like: os.stat_result) -> None:
        """Give a finished file the permissions and the time of another."""
        with self.tolerate("permissions"):
            os.chmod(file, like.st_mode & 0o777 | stat.S_IWUSR)  # noqa: PTH101
        with self.tolerate("times"):
            os.utime(file, ns=(like.st_mtime_ns, like.st_mtime_ns))

    def unlink(self, name: str) -> None:
        """Remove a file or a link, on disk when this returns."""
        where, descriptor = self._locate(name)
        os.unlink(where, dir_fd=descriptor)  # noqa: PTH108 - a Path knows no descriptor
        self.sync()

    def rmdir(self, name: str) -> None:
        """Remove an empty folder."""
        where, descriptor = self._locate(name)
        os.rmdir(where, dir_fd=descriptor)  # noqa: PTH106 - a Path knows no descriptor

    def sync(self) -> None:
        """Wait until the folder's entries are on disk; Windows does not know this."""
        if self._descriptor is not None:
            with self.tolerate("syncing"):
                os.fsync(self._descriptor)

    def lock(self, name: str) -> int:
        """Lock a file for this run alone and return its descriptor; closing it unlocks.

        Raises:
            BlockingIOError: it is locked.
            FileNotFoundError: who locked it removed it meanwhile; try again.
        """
        opened = self.open(name, os.O_RDWR | os.O_CREAT)
        try:
            with self.tolerate("locks"):
                _lock(opened)
            status = self.read_status(name)
            if status is None or get_identity(status) != get_identity(os.fstat(opened)):
                raise _make_error(errno.ENOENT, self.path / name)
        except BaseException:
            os.close(opened)
            raise
        return opened

    def unlock(self, name: str, opened: int) -> None:
        """Unlock a file of `lock` and remove it."""
        if DESCRIPTORS:
            # While it is locked, so that who has opened it already finds it gone.
            with suppress(OSError):
                self.unlink(name)
        os.close(opened)
        if not DESCRIPTORS:
            # Windows removes no open file, and so not one that somebody has locked since.
            with suppress(OSError):
                self.unlink(name)

    @contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """Go on where the file system does not do `what`, and remember it in `refused`."""
        try:
            yield
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self.refused.add(what)


def _make_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _lock(opened: int) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(opened, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        # This is how Windows and its shares say that somebody else has locked it.
        if error.errno == errno.EACCES:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        raise
