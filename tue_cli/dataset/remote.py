"""Folders by URL, through fsspec: what lies there, reading it, and writing objects that are whole.

Credentials are those that each protocol's own package finds in the environment. Nothing here keeps
or tells them: every text that may hold a URL goes through `redact`.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from tue_cli.dataset.output import WORK, find_output
from tue_cli.errors import BadSetting, OutputProblem, TueError, require
from tue_cli.text import escape

PROTOCOLS: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "file": "fsspec",
}
"""What a URL may begin with, and the package that it needs beside fsspec."""
READ_ONLY: Final = ("http", "https")
_IN_ENVIRONMENT: Final = "Set the credentials in the environment, as for the provider's own tools."

# The user and password may have any character but spaces. What has a colon before some @ is taken
# for them, so that a place may be hidden, but no password is told.
_URL: Final = re.compile(
    r"\b([a-z][a-z0-9+.-]*://)(?:[^\s@]*:\S*@|[^\s/?#@]*@)?([^\s'\"<>?#]*)([?#][^\s'\"<>]*)?", re.I
)
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SCRATCH: Final = f"tue-scratch-{socket.gethostname()}-"
MOST_NAMED: Final = 1_000_000
"""Files that a range in braces may name."""


def is_url(text: str) -> bool:
    """Say whether this is a URL, and no path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text, re.I) is not None


def redact(text: str) -> str:
    """Return a text without what may be a secret in its URLs: user, password, query, fragment."""
    return _URL.sub(lambda found: f"{found[1]}{found[2]}{'?…' if found[3] else ''}", text)


def explain(error: BaseException) -> str:
    """Return what went wrong with a URL, in one line and without secrets."""
    said = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and (is_url(said) or " " not in said):
        said = "there is nothing"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        said = error.strerror  # the text has the path and a number too
    return escape(redact(" ".join(said.split()))[:300]).rstrip(".")


@dataclass(frozen=True)
class Stored:
    """A file that a `Place` has."""

    name: str
    """Below the place, with slashes."""
    size: int
    version: str
    """Another one after the file has changed: its ETag, or its time."""


@dataclass(frozen=True)
class Place:
    """A folder by its URL, or files that a URL names; the same on every machine."""

    url: str

    def __post_init__(self) -> None:
        """Raise BadSetting for a URL of another kind, PackageMissing without its package."""
        if self.protocol not in PROTOCOLS:
            raise BadSetting(
                f"URLs that begin with {self.protocol}:// are not supported.",
                f"Use one of: {', '.join(PROTOCOLS)}.",
            )
        require("fsspec", PROTOCOLS[self.protocol])

    def __repr__(self) -> str:
        return f"Place({self.shown!r})"

    @property
    def protocol(self) -> str:
        """What its URL begins with."""
        return self.url.partition("://")[0].lower()

    @property
    def shown(self) -> str:
        """Its URL for people, without secrets."""
        return redact(self.url)

    def __getstate__(self) -> dict[str, str]:
        """Return what another process needs: no open connections, and no credentials."""
        return {"url": self.url}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # the packages' errors have no class in common but this
            raise TueError(f"{self.shown} cannot be opened: {explain(error)}.") from None
        return system, root if self.protocol in READ_ONLY else root.rstrip("/")

    def contains(self, other: Place) -> bool:
        """Say whether another place is this one or lies in it, whatever their URLs look like."""
        (system, root), (others, inner) = self._opened, other._opened
        if self.protocol == "file":
            root, inner = os.path.realpath(root), os.path.realpath(inner)
        is_below = inner == root or inner.startswith(f"{root.rstrip('/')}/")
        return type(system) is type(others) and is_below

    def _locate(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def list_files(self, *, may_miss: bool = False) -> list[Stored]:
        """Return the files below it, in the order of their names; of hidden ones, only those that
        tell of an earlier run's output. `may_miss`: a folder on this machine need not be there.

        Raises:
            TueError: it cannot be listed.
        """
        system, root = self._opened
        try:
            system.invalidate_cache()
            if self.protocol in READ_ONLY:
                # Neither `isfile` nor `find` tells an error from a file that is not there.
                is_file = bool(PurePosixPath(urlsplit(self.url).path).suffix)
                system.info(root) if is_file else system.ls(root)
            found = {root: system.info(root)} if system.isfile(root) else {}
            found = found or system.find(root, detail=True)
            top = {"fsspec": root, "adlfs": root.partition("/")[0]}.get(PROTOCOLS[self.protocol])
            if not (found or may_miss or top is None or system.exists(top)):  # others raise
                raise FileNotFoundError("there is no such file or folder")
        except Exception as error:
            raise self.explain_read(error) from None
        stored = []
        for path, about in found.items():
            name = "" if path == root else path.removeprefix(root).lstrip("/")
            parts = PurePosixPath(name).parts
            is_shown = find_output(name) is not None or not any(p.startswith(".") for p in parts)
            is_plain = about.get("type", "file") == "file" and not about.get("islink")
            if is_plain and is_shown:
                stored.append(Stored(name, about.get("size") or 0, _find_version(about)))
        return sorted(stored, key=lambda file: file.name)

    def list_own(self, folder: str) -> set[str]:
        """Return the names of the files directly in a folder of tue's own, WORK/`folder`.

        Raises:
            TueError: it cannot be listed.
        """
        system, _ = self._opened
        root = self._locate(f"{WORK}/{folder}")
        try:
            system.invalidate_cache()
            found = system.find(root)
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise self.explain_read(error) from None
        return {path.removeprefix(root).lstrip("/") for path in found}

    def exists(self, name: str) -> bool:
        """Say whether there is such a file now.

        Raises:
            TueError: that cannot be known.
        """
        system, _ = self._opened
        try:
            system.invalidate_cache()
            system.info(self._locate(name))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self.explain_read(error) from None
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading, in blocks as it is read."""
        system, _ = self._opened
        with system.open(self._locate(name), "rb", block_size=1 << 22) as file:
            yield file

    def read(self, name: str, most: int) -> bytes | None:
        """Return the bytes of a file; None where there is none.

        Raises:
            ValueError: it is larger than `most`.
        """
        try:
            with self.open(name) as file:
                data = file.read(most + 1)
        except FileNotFoundError:
            return None
        if len(data) > most:
            raise ValueError(f"it is larger than {most:,} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file that appears whole or not at all.

        Raises:
            OutputProblem: it cannot be written.
        """
        with self.make_scratch() as scratch:
            try:
                scratch.write_bytes(data)
            except OSError as error:
                raise self._explain_write(name, error) from None
            self.put(scratch, name)

    @contextmanager
    def make_scratch(self) -> Iterator[Path]:
        """Yield a path for an unfinished file, from which `put` takes it; it is removed at last."""
        folder = self._find_scratch_folder()
        if self.protocol == "file":
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._explain_write(WORK, error) from None
        scratch = folder / f"{_SCRATCH}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            if self.protocol != "file":  # it lies among the files of others
                scratch.touch(0o600, exist_ok=False)
            yield scratch
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)

    def _find_scratch_folder(self) -> Path:
        if self.protocol == "file":  # on the same disk, so that a file only needs another name
            return Path(self._opened[1]) / WORK
        return Path(tempfile.gettempdir())

    def clear_scratch(self) -> None:
        """Remove the unfinished files of processes of this machine that were killed."""
        for path in self._find_scratch_folder().glob(f"{_SCRATCH}*"):
            number = path.name.removeprefix(_SCRATCH).partition("-")[0]
            if number.isdecimal() and not is_running(int(number)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def put(self, scratch: Path, name: str) -> None:
        """Make a finished file appear under its name, whole.

        Raises:
            OutputProblem: it cannot be written.
        """
        system, _ = self._opened
        try:
            if self.protocol != "file":
                system.put_file(str(scratch), self._locate(name))
                return
            place = Path(self._locate(name))
            place.parent.mkdir(parents=True, exist_ok=True)
            root = os.path.realpath(self._opened[1])
            if not Path(os.path.realpath(place.parent)).is_relative_to(root):
                raise OSError("a link leads out of the output")
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(place)
        except Exception as error:
            raise self._explain_write(name, error) from None

    def remove(self, name: str) -> None:
        """Remove a file of tue's own, if it is there.

        Raises:
            OutputProblem: it cannot be removed.
        """
        try:
            self._opened[0].rm_file(self._locate(name))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._explain_write(name, error) from None

    def explain_read(self, error: Exception) -> TueError:
        """Return the error to raise where the place cannot be read."""
        remedy = "" if self.protocol == "file" else f" {_IN_ENVIRONMENT}"
        return TueError(
            f"{self.shown} cannot be read: {explain(error)}.", "Check the URL." + remedy
        )

    def _explain_write(self, name: str, error: Exception) -> OutputProblem:
        return OutputProblem(
            f"{self.shown}/{escape(name)} cannot be written: {explain(error)}.",
            "Finished shards are kept. Check that the place exists and has space, and that the "
            "credentials in the environment may write there; then run the same command again.",
        )


def expand(url: str) -> list[str]:
    """Return the URLs that a range in braces stands for: part-{00..11}.tar; else the URL alone.

    Raises:
        BadSetting: a range that names nothing, or too much.
    """
    found = _RANGE.search(url)
    if found is None:
        return [url]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MOST_NAMED:
        raise BadSetting(
            f"{redact(url)}: the range names no file, or more than {MOST_NAMED:,}.",
            "Write {000..123}, for example.",
        )
    numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    return [url[: found.start()] + number + url[found.end() :] for number in numbers]


def is_running(number: int) -> bool:
    """Say whether a process of this machine has that number, as far as the system tells."""
    if os.name != "posix":  # where asking would end it
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _find_version(about: dict[str, Any]) -> str:
    names = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "last_modified", "LastModified")
    return next((str(about[name]) for name in names if about.get(name)), "")
