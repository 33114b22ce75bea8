"""Files of JSON lines: finished work, one entry a line, on disk before anything is claimed of it.

A kill leaves half a line at worst; who reads passes over what is no entry, and goes on.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tue_cli.storage.atomic import Folder, get_identity
from tue_cli.storage.reading import MOST_STATE, open_regular, parse_json

LONGEST_LINE: Final = 1_000_000
"""Bytes of a line, which has about a thousand."""
MOST_ODD: Final = 1_000
"""Lines that are no entries: more than any kills leave."""

Entry = TypeVar("Entry")


class TooManyOdd(OSError):
    """A file most of which can be nothing that tue wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            errno.EINVAL, f"more than {MOST_ODD:,} lines of it are no entries", str(path)
        )


def format_line(entry: Any) -> str:
    """Return an entry as one line of JSON, equal for equal entries.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    return json.dumps(entry, sort_keys=True, allow_nan=False)


def read_lines(path: Path, parse: Callable[[Any], Entry | None]) -> Iterator[Entry]:
    """Yield what `parse` makes of each line's JSON, oldest first, passing over its Nones.

    Raises:
        OSError: as `open_regular` says, or `TooManyOdd`.
    """
    odd = 0
    with open_regular(path, MOST_STATE) as file:
        while line := file.readline(LONGEST_LINE):
            entry = None
            with suppress(ValueError):
                entry = parse(parse_json(line))
            if entry is not None:
                yield entry
                continue
            odd += 1
            if odd > MOST_ODD:
                raise TooManyOdd(path)


class LineFile:
    """A file of JSON lines that is added to until it is closed; a context manager."""

    def __init__(self, folder: Folder, name: str, mode: int = 0o666) -> None:
        """Open a file of a folder that stays held meanwhile; where it is missing it is made.

        It then has `mode` less the umask.

        Raises:
            OSError: as `Folder.open` says.
        """
        self._folder, self._name = folder, name
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = open(folder.open(name, flags, mode), "a+b")  # noqa: PTH123, SIM115
        # A kill may have left half a line; it must not swallow the next one.
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        folder.sync()

    def append(self, *entries: Any) -> None:
        """Add entries, on disk when this returns.

        Raises:
            OSError: as the file system gave it.
            ValueError: as `format_line` says.
        """
        self._file.write("".join(f"{format_line(entry)}\n" for entry in entries).encode())
        self._file.flush()
        with self._folder.tolerate("syncing"):
            os.fsync(self._file.fileno())

    def is_in_place(self) -> bool:
        """Say whether its name still leads to the file that is open here."""
        status = self._folder.read_status(self._name)
        opened = os.fstat(self._file.fileno())
        return status is not None and get_identity(status) == get_identity(opened)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
