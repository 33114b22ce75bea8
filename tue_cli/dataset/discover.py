"""Which pictures there are and where their copies go.

Names alone decide; no picture is opened here but one whose name has no ending. Every refusal that
concerns folders is raised by `discover`, before any work.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.output import WORK, is_output, refuse_links
from tue_cli.dataset.selection import NOT_INCLUDED, WHOLE, Selection, fold
from tue_cli.errors import BadSetting, ImageProblem, NothingToDo
from tue_cli.images.codec import SUFFIXES, UNSUPPORTED, YIELDING, read, read_dimensions
from tue_cli.images.sniff import sniff_format
from tue_cli.storage.atomic import Identity, get_identity
from tue_cli.text import escape, format_ignored

_JUNK = frozenset({"@eadir", "#recycle", "$recycle.bin", "__macosx", "desktop.ini", "ehthumbs.db"})
_JUNK |= {"lost+found", "system volume information", "thumbs.db"}


@dataclass(frozen=True)
class Item:
    """One picture to protect."""

    source: Path
    """Where the original is, as given; symlinks are not resolved."""
    relative: Path
    """Its place below the output folder: tree mirrored, name kept."""
    label: str
    """Its class; "" until labelled."""


@dataclass(frozen=True)
class Found:
    """What lies below the given paths, each part in a stable order."""

    items: tuple[Item, ...]
    ignored: tuple[tuple[Path, str], ...]
    """Other files, and folders not entered, each with a reason."""
    refused: tuple[tuple[Path, str, str], ...]
    """Path, reason and message of what should be a picture, or hold some, and cannot be read."""
    not_included: tuple[Path, ...] = ()
    """Places that pictures would have which --include leaves out."""


def discover(paths: Sequence[Path], output: Path, selection: Selection = WHOLE) -> Found:
    """Find the selected pictures below `paths`, which are folders, with all they hold, or files.

    One folder is mirrored at the output itself, several at `output/<folder name>`, and a file goes
    to `output/<name>`. Symlinks are followed. Raises BadSetting where a path does not exist, where
    input and output overlap, or where two copies would get one place; NothingToDo where there is
    nothing to protect.
    """
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if not os.path.lexists(path):
            raise BadSetting(f"{escape(path)} does not exist.", "Check its spelling.")
    folders = set(filter(_is_folder, paths))
    for folder in folders:
        _refuse_overlap(folder, output, mirrored=True)
    for folder in {path.parent for path in paths if path not in folders}:
        _refuse_overlap(folder, output, mirrored=False)
    entries: list[_Entry] = []
    for path in paths:
        if path not in folders:
            entry = _inspect(path, Path(path.name), named=True)
            entries.append(_select(entry, selection, entry.relative))
        else:
            place = Path(make_absolute(path).name if len(folders) > 1 else "")
            entries.extend(_walk(path, place, output, selection))
    # A set, for a picture may be named beside the folder that holds it.
    entries = sorted(
        set(entries),
        key=lambda entry: (os.fsencode(entry.relative.as_posix()), os.fsencode(entry.path)),
    )
    found = Found(
        items=tuple(Item(e.path, e.relative, "") for e in entries if e.kind == "picture"),
        ignored=tuple((e.path, e.reason) for e in entries if e.kind == "ignored"),
        refused=tuple((e.path, e.reason, e.message) for e in entries if e.kind == "refused"),
        not_included=tuple(e.relative for e in entries if e.reason == NOT_INCLUDED),
    )
    if not found.items and not found.refused:
        others = Counter(reason for _, reason in found.ignored)
        kinds = "; ".join(format_ignored(count, reason) for reason, count in others.items())
        raise NothingToDo(
            f"No picture was found{f': {kinds}' if kinds else ''}.",
            selection.remedy
            or f"tue protects files that end in {', '.join(sorted(SUFFIXES - UNSUPPORTED))}.",
        )
    _refuse_own_names(found.items)
    _refuse_same_places(found.items)
    _refuse_originals(found.items, output)
    refuse_links(output, {item.relative.parent for item in found.items})
    return found


class _Entry(NamedTuple):
    kind: str  # picture, folder, ignored or refused
    path: Path
    relative: Path
    reason: str = ""
    message: str = ""


def _select(entry: _Entry, selection: Selection, relative: Path) -> _Entry:
    """Return an entry as it is, or as one to ignore where the selection leaves it out."""
    if entry.kind == "ignored":
        return entry
    reason = selection.explain_omission(relative, is_folder=entry.kind == "folder")
    return entry._replace(kind="ignored", reason=reason, message="") if reason else entry


def _walk(root: Path, below: Path, output: Path, selection: Selection) -> Iterator[_Entry]:
    """Every entry below a folder, except the folders that are entered.

    Raises BadSetting where a link or a mount leads to the output, or to what it lies in.
    """
    outer = _list_identities_above(output)
    pending: list[tuple[Path, Path, frozenset[tuple[int, int]]]] = [(root, below, frozenset())]
    while pending:
        folder, place, above = pending.pop()
        try:
            here = get_identity(folder.stat())
            paths = list(folder.iterdir())
        except OSError as error:
            message = f"This folder cannot be read: {error.strerror}."
            yield _Entry("refused", folder, place, "unreadable-folder", message)
            continue
        if here in outer:
            raise _explain_overlap(
                output, f"is inside {escape(folder)}, which is part of the input"
            )
        if here in above:
            yield _Entry("ignored", folder, place, "symlink loop")
        elif folder != root and is_output(folder):
            yield _Entry("ignored", folder, place, "folder: already protected")
        else:
            for path in paths:
                entry = _inspect(path, place / path.name)
                entry = _select(entry, selection, entry.relative.relative_to(below))
                if entry.kind == "folder":
                    pending.append((entry.path, entry.relative, above | {here}))
                else:
                    yield entry


def _inspect(path: Path, relative: Path, *, named: bool = False) -> _Entry:
    """What one entry is; `named`: a person asked for this very file."""
    name = path.name.lower()
    if not named and (name.startswith(".") or name in _JUNK):
        return _Entry("ignored", path, relative, "hidden or system file")
    is_picture = path.suffix.lower() in SUFFIXES
    reason, message = "not-a-file", "This is a pipe, a socket or a device, not a file."
    try:
        mode = path.stat().st_mode
    except OSError as error:
        mode = 0
        reason, message = "unreadable", f"This file cannot be read: {error.strerror}."
        if error.errno in (errno.ENOENT, errno.ELOOP):
            reason, message = "broken-link", "This is a broken link: its target does not exist."
    if stat.S_ISDIR(mode):
        return _Entry("folder", path, relative)
    if stat.S_ISREG(mode):
        if is_picture or (not path.suffix and _is_image_within(path)):
            return _Entry("picture", path, relative)
        if not named:
            return _Entry("ignored", path, relative, "not a picture")
        reason, message = "unsupported", "The file does not have the extension of a picture."
    elif not (is_picture or named or reason == "unreadable"):
        return _Entry("ignored", path, relative, "not a regular file")
    return _Entry("refused", path, relative, reason, message)


def _is_image_within(path: Path) -> bool:
    """Say whether a file whose name has no ending begins as a picture does."""
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(opened, "rb") as file:  # noqa: PTH123
            sniff_format(file.read(256))
        read_dimensions(read(path))
    except (OSError, ImageProblem):
        return False
    return True


def _refuse_overlap(folder: Path, output: Path, *, mirrored: bool) -> None:
    """Refuse an output that is or holds the folder or, where it is mirrored whole, lies in it."""
    inner, outer = Path(os.path.realpath(folder)), Path(os.path.realpath(output))
    if _is_same(inner, outer):
        found = f"is the input folder {escape(folder)}"
    elif mirrored and _is_within(outer, inner):
        found = f"is inside the input folder {escape(folder)}"
    elif _is_within(inner, outer):
        found = f"contains the input folder {escape(folder)}"
    else:
        return
    raise _explain_overlap(output, found)


def _explain_overlap(output: Path, found: str) -> BadSetting:
    return BadSetting(
        f"The output folder {escape(output)} {found}.",
        "Choose a folder outside the input with -o; originals are never changed.",
    )


def _list_identities_above(output: Path) -> frozenset[Identity]:
    """Return the output and all folders that it lies in, as far as they are there."""
    output = Path(os.path.realpath(output))
    return _identify((output, *output.parents))


def _identify(folders: Iterable[Path]) -> frozenset[Identity]:
    """Return the identities of the folders that are there."""
    found = set()
    for folder in folders:
        with suppress(OSError):
            found.add(get_identity(folder.stat()))
    return frozenset(found)


def _refuse_own_names(items: Iterable[Item]) -> None:
    """Refuse a copy where tue keeps the state of its run, whatever the case of the names."""
    own = {fold_path(Path(name)) for name in (WORK, MANIFEST)}
    for item in items:
        first = Path(item.relative.parts[0])
        if fold_path(first) in own:
            raise BadSetting(
                f"The copy of {escape(item.source)} would be {escape(item.relative)} in the "
                "output, a name that tue uses for its own files.",
                f"Rename {escape(first)}.",
            )


def _refuse_same_places(items: Iterable[Item]) -> None:
    """Refuse inputs of which two pictures have one place, or one that of another's folder."""
    items = [item for item in items if item.source.suffix.lower() not in YIELDING]
    taken: dict[Path, Item] = {}
    found = [(taken[i.relative], i) for i in items if taken.setdefault(i.relative, i) is not i]
    found += [(taken[p], i) for i in items for p in i.relative.parents[:-1] if p in taken]
    for one, other in found:
        raise BadSetting(
            f"{escape(one.source)} and {escape(other.source)} would have the same place in the "
            "output.",
            "Rename one of them, or protect them into separate folders with -o.",
        )


def find_crowded(places: Sequence[Path], output: Path) -> frozenset[Path]:
    """Return those places below the output that several copies need, or a folder of another.

    Names that differ in case alone are two places where the output's file system has them so;
    names that differ in Unicode form are one.
    """
    found = _find_alike(places, fold_path)
    if found and is_case_sensitive(output):
        found = _find_alike(places, lambda place: normalize_name(place.as_posix()))
    return found


def _find_alike(places: Sequence[Path], alike: Callable[[Path], str]) -> frozenset[Path]:
    """Return the places that `alike` makes equal to another or to another's folder."""
    taken = Counter(map(alike, places))
    folders = {alike(folder) for folder in {f for place in places for f in place.parents[:-1]}}
    return frozenset(p for p in places if taken[alike(p)] > 1 or alike(p) in folders)


def fold_path(relative: Path) -> str:
    """Return a place as the least discerning file systems see it: no case, no Unicode form."""
    return fold(relative.as_posix())


def is_case_sensitive(folder: Path) -> bool:
    """Say whether a folder, made or to be made, has `A` beside `a`; False where nothing tells.

    Nothing is written: the names that are there are looked for in the other case.
    """
    folder = Path(os.path.realpath(folder))
    while not _is_folder(folder) and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        is_mounted = folder.parent.stat().st_dev != folder.stat().st_dev
        for path in itertools.chain(folder.iterdir(), () if is_mounted else (folder,)):
            other = path.with_name(path.name.swapcase())
            if path.name.isascii() and other.name != path.name and os.path.lexists(path):
                same = os.path.lexists(other) and os.path.samestat(other.lstat(), path.lstat())
                return not same
    return False


def find_source_folders(items: Sequence[Item]) -> frozenset[Identity]:
    """The folders that hold the originals, by name and, where that is a link, in truth."""
    folders = {item.source.parent for item in items}
    folders |= {Path(os.path.realpath(i.source)).parent for i in items if i.source.is_symlink()}
    return _identify(folders)


def _refuse_originals(items: Sequence[Item], output: Path) -> None:
    """Refuse an output that leads back to the originals, by a link or a mount."""
    originals = find_source_folders(items)
    for parent in sorted({item.relative.parent for item in items}):
        folder = output / parent
        if _is_folder(folder) and get_identity(folder.stat()) in originals:
            raise BadSetting(
                f"{escape(folder)} in the output leads to a folder of originals.",
                "Remove that link, or choose another folder with -o.",
            )


def make_absolute(path: Path) -> Path:
    """`path` without `..`, its symlinks not resolved."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose a symlink's name


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _is_within(inner: Path, outer: Path) -> bool:
    return any(_is_same(folder, outer) for folder in (inner, *inner.parents))


def normalize_name(text: str) -> str:
    """Return the composed Unicode form, in which names are compared."""
    return unicodedata.normalize("NFC", text)
