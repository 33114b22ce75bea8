"""Which pictures were asked for: paths that a list names, and patterns that names must match."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tue_cli.errors import BadSetting
from tue_cli.storage.reading import MOST_LIST

ANY_FOLDERS = "**"
NOT_INCLUDED = "no --include pattern matches"


@dataclass(frozen=True)
class Selection:
    """Which of the pictures below the given folders are taken.

    A pattern without a slash matches a name anywhere, one with a slash a path below the given
    folder; `*` stays within a name, `**` stands for any folders. A folder that matches stands for
    all it holds, and a pattern that ends in a slash matches only folders. Neither case nor the
    Unicode form matters.
    """

    include: tuple[str, ...] = ()
    """Where there are any, one must match."""
    exclude: tuple[str, ...] = ()
    """None may match."""
    recursive: bool = True

    @property
    def remedy(self) -> str:
        """What to do where nothing is left; empty where all pictures are taken."""
        given = {
            "--include": self.include,
            "--exclude": self.exclude,
            "--no-recursive": not self.recursive,
        }
        options = " or ".join(option for option, is_given in given.items() if is_given)
        return f"Change or leave out {options}." if options else ""

    def explain_omission(self, relative: Path, *, is_folder: bool = False) -> str:
        """Return why a picture, or a whole folder, is left out; empty where it is not.

        `relative` is its path below the given folder.
        """
        parts = fold(relative.as_posix()).split("/")
        if any(_match(pattern, parts, is_folder=is_folder) for pattern in self.exclude):
            return f"{'folder: ' if is_folder else ''}left out by --exclude"
        if is_folder:
            return "" if self.recursive else "folder: left out by --no-recursive"
        is_wanted = any(_match(pattern, parts, is_folder=False) for pattern in self.include)
        return "" if is_wanted or not self.include else NOT_INCLUDED


WHOLE = Selection()


def _match(pattern: str, parts: Sequence[str], *, is_folder: bool) -> bool:
    """Say whether a pattern matches a path, or a folder that it lies in."""
    wanted = [part for part in fold(pattern).split("/") if part not in ("", ".")]
    if "/" not in pattern.rstrip("/"):
        wanted = [ANY_FOLDERS, *wanted]
    if pattern.endswith("/") and not is_folder:
        parts = parts[:-1]
    return _match_parts(wanted, parts)


def _match_parts(wanted: Sequence[str], parts: Sequence[str]) -> bool:
    """Say whether the first parts of a path are as wanted."""
    if not wanted:
        return True
    if wanted[0] == ANY_FOLDERS:
        return any(_match_parts(wanted[1:], parts[at:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _match_parts(wanted[1:], parts[1:])


def fold(text: str) -> str:
    """Return a name as the least discerning file systems see it: no case, no Unicode form."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFC", folded)


def read_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return patterns as they were typed.

    Raises:
        BadSetting: an empty one.
    """
    patterns = tuple(patterns)
    for pattern in patterns:
        if not pattern.strip("/."):
            raise BadSetting(
                f"The pattern {pattern!r} names no picture.",
                "Write *.png, or cats/ for a folder with all it contains.",
            )
    return patterns


def read_paths(paths: list[str]) -> tuple[Path, ...]:
    """Replace - by the paths that stdin lists.

    Raises:
        BadSetting: an empty path, or no path in the list.
    """
    result: list[Path] = []
    for path in paths:
        if not path:
            raise BadSetting("A path is empty.", "Write . for the folder you are in.")
        if path != "-":
            result.append(Path(path))
            continue
        if sys.stdin is None:
            raise BadSetting(
                "- reads a list from stdin, but stdin is closed.", "Name the pictures instead."
            )
        data = sys.stdin.buffer.read(MOST_LIST + 1)
        if len(data) > MOST_LIST:
            raise BadSetting(
                f"The list on stdin is larger than {MOST_LIST:,} bytes, the most that tue reads.",
                "Write one path per line, or name the folder that contains the pictures.",
            )
        lines = data.split(b"\0") if b"\0" in data else data.splitlines()
        result += [Path(os.fsdecode(line)) for line in lines if line]
    if not result:
        raise BadSetting("The list on stdin is empty.", "Write one path per line.")
    return tuple(result)
