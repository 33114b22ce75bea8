"""Which pictures there are, where their copies go, which class and which key each one gets.

Names only: no picture is opened here. Every refusal that concerns folders is raised by
`discover`, before any work.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tue_cli.errors import BadSetting, NothingToDo
from tue_cli.files.images import SUFFIXES
from tue_cli.files.manifest import is_output, shown

_JUNK = frozenset(
    {
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
_ROUNDS = 100
"""Of k-means; it settles in far fewer."""


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


def default_output(paths: Sequence[Path]) -> Path:
    """The folder `<name>-protected` beside the one folder given, or beside the files' folder.

    Raises BadSetting where there is no such one folder.
    """
    folders = {_absolute(path if path.is_dir() else path.parent) for path in paths}
    if len(folders) != 1 or (len(paths) > 1 and any(path.is_dir() for path in paths)):
        raise BadSetting("There are several inputs.", "Name the output folder with -o.")
    folder = folders.pop()
    if not folder.name:
        raise BadSetting(f"{shown(folder)} has no name.", "Name the output folder with -o.")
    return folder.with_name(f"{folder.name}-protected")


def discover(paths: Sequence[Path], output: Path) -> Found:
    """Find the pictures below `paths`, which are folders, taken with all they hold, or files.

    One folder is mirrored at the output itself, several at `output/<folder name>`, and a file goes
    to `output/<name>`. Symlinks are followed. Raises BadSetting where a path does not exist, where
    input and output overlap, or where two copies would get one place on some file system;
    NothingToDo where there is nothing to protect.
    """
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if not os.path.lexists(path):
            raise BadSetting(f"{shown(path)} does not exist.", "Check the spelling.")
    folders = {path for path in paths if path.is_dir()}
    for folder in folders:
        _refuse_overlap(folder, output, mirrored=True)
    for folder in {path.parent for path in paths if path not in folders}:
        _refuse_overlap(folder, output, mirrored=False)
    entries: list[_Entry] = []
    for path in paths:
        if path not in folders:
            entries.append(_look(path, Path(path.name), named=True))
        elif len(folders) == 1:
            entries.extend(_walk(path, Path(), output))
        else:
            entries.extend(_walk(path, Path(_absolute(path).name), output))
    entries.sort(
        key=lambda entry: (os.fsencode(entry.relative.as_posix()), os.fsencode(entry.path))
    )
    found = Found(
        items=tuple(Item(e.path, e.relative, "") for e in entries if e.kind == "picture"),
        ignored=tuple((e.path, e.reason) for e in entries if e.kind == "ignored"),
        refused=tuple((e.path, e.reason, e.message) for e in entries if e.kind == "refused"),
    )
    if not found.items and not found.refused:
        others = Counter(reason for _, reason in found.ignored)
        kinds = ", ".join(f"{count} × {reason}" for reason, count in sorted(others.items()))
        raise NothingToDo(
            f"No picture was found{f' (left aside: {kinds})' if kinds else ''}.",
            f"The names of pictures end in {', '.join(sorted(SUFFIXES))}.",
        )
    refuse_collisions(found.items)
    _refuse_originals(found.items, output)
    return found


class _Entry(NamedTuple):
    kind: str  # picture, folder, ignored or refused
    path: Path
    relative: Path
    reason: str = ""
    message: str = ""


def _walk(root: Path, below: Path, output: Path) -> Iterator[_Entry]:
    """Every entry below a folder, except the folders that are entered."""
    pending: list[tuple[Path, Path, frozenset[tuple[int, int]]]] = [(root, below, frozenset())]
    while pending:
        folder, place, above = pending.pop()
        try:
            here = _identity(folder)
            paths = list(folder.iterdir())
        except OSError as error:
            message = f"The folder cannot be read: {error.strerror}."
            yield _Entry("refused", folder, place, "unreadable-folder", message)
            continue
        if here in above:
            yield _Entry("ignored", folder, place, "symlink loop")
        elif folder != root and (is_output(folder) or _same(folder, output)):
            yield _Entry("ignored", folder, place, "already-protected output")
        else:
            for path in paths:
                entry = _look(path, place / path.name)
                if entry.kind == "folder":
                    pending.append((entry.path, entry.relative, above | {here}))
                else:
                    yield entry


def _look(path: Path, relative: Path, *, named: bool = False) -> _Entry:
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
        reason, message = "unreadable", f"This cannot be read: {error.strerror}."
        if error.errno in (errno.ENOENT, errno.ELOOP):
            reason, message = "broken-link", "This symlink leads nowhere."
    if stat.S_ISDIR(mode):
        return _Entry("folder", path, relative)
    if stat.S_ISREG(mode):
        if is_picture:
            return _Entry("picture", path, relative)
        if not named:
            return _Entry("ignored", path, relative, "not a picture")
        reason, message = "unsupported", "The name of this file does not end as a picture's does."
    elif not (is_picture or named or reason == "unreadable"):
        return _Entry("ignored", path, relative, "not a regular file")
    return _Entry("refused", path, relative, reason, message)


def _refuse_overlap(folder: Path, output: Path, *, mirrored: bool) -> None:
    """Refuse an output that is or holds the folder or, where it is mirrored whole, lies in it."""
    inner, outer = Path(os.path.realpath(folder)), Path(os.path.realpath(output))
    if _same(inner, outer):
        found = f"is the input folder {shown(folder)} itself"
    elif mirrored and _within(outer, inner):
        found = f"lies inside the input folder {shown(folder)}"
    elif _within(inner, outer):
        found = f"holds the input folder {shown(folder)}"
    else:
        return
    raise BadSetting(
        f"The output folder {shown(output)} {found}.",
        "Choose a folder apart from the input with -o: originals are never touched.",
    )


def refuse_collisions(items: Iterable[Item]) -> None:
    """Refuse two copies in one place, or a copy where another's folder must be.

    Compared as the least discerning file systems do: neither case nor Unicode form matters.
    """
    sources: dict[str, Item] = {}
    for item in items:
        other = sources.setdefault(_folded(item.relative), item)
        if other is not item:
            _collide(other, item)
    for item in items:
        for parent in item.relative.parents[:-1]:
            if other_item := sources.get(_folded(parent)):
                _collide(other_item, item)


def _collide(one: Item, other: Item) -> None:
    raise BadSetting(
        f"{shown(one.source)} and {shown(other.source)} would get the same place in the output.",
        "Rename one of them, or protect them into two outputs.",
    )


def _refuse_originals(items: Iterable[Item], output: Path) -> None:
    """Refuse an output whose symlinks lead back to the originals."""
    originals = {_identity(folder) for folder in {item.source.parent for item in items}}
    for parent in sorted({item.relative.parent for item in items}):
        folder = output / parent
        if folder.is_dir() and _identity(folder) in originals:
            raise BadSetting(
                f"{shown(folder)} in the output is a folder of originals.",
                "Remove that symlink, or choose another output with -o.",
            )


def labelled(
    found: Found, mode: str, note: Callable[[str], None] = lambda _: None
) -> tuple[Item, ...]:
    """The items with their classes.

    `mode` is `folders` (the first folder below the input is the class; what lies above those gets
    the input's name), `single` (one class of the input's name), `auto` (`folders` where there are
    at least two such folders, else `single`) or a CSV file of the columns `path,class`, with or
    without a header; a path counts from the input folder, is absolute, or is a unique file name.
    Rows that name no item are counted in a `note`. Raises BadSetting where an item has no row.
    """
    items = found.items
    if mode == "auto":
        tops = {item.relative.parts[0] for item in items if len(item.relative.parts) > 1}
        mode = "folders" if len(tops) > 1 else "single"
    if mode == "single":
        name = _input_name(items)
        return tuple(replace(item, label=name) for item in items)
    if mode == "folders":
        name = _input_name(items)
        tiers = [item.relative.parts for item in items]
        names = [parts[0] if len(parts) > 1 else name for parts in tiers]
        return tuple(replace(i, label=label) for i, label in zip(items, names, strict=True))
    if mode.lower().endswith(".csv") or Path(mode).is_file():
        return _labelled_by(Path(mode), items, note)
    raise BadSetting(
        f"--labels {shown(mode)} is unknown.",
        "Choose auto, folders, single, cluster:N or a CSV file with the columns path,class.",
    )


def cluster_labels(features: NDArray[np.float32], count: int, seed: int) -> list[str]:
    """Classes found by k-means on `features` (N, D): `cluster-00`, … in order of appearance.

    At most `count` of them; deterministic. Raises BadSetting where `count` is below one.
    """
    if count < 1:
        raise BadSetting(f"--labels cluster:{count} asks for no cluster.", "Ask for one or more.")
    points = features.astype(np.float64)
    if not len(points):
        return []
    # k-means++ (Arthur and Vassilvitskii 2007): far points are likelier to be centres.
    random = np.random.default_rng(seed)
    centres = points[random.integers(len(points), size=1)]
    while len(centres) < count:
        gaps = _squared_distances(points, centres).min(axis=1)
        if not gaps.any():
            break
        drawn = random.choice(len(points), p=gaps / gaps.sum())
        centres = np.concatenate([centres, points[drawn : drawn + 1]])
    nearest = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        former, nearest = nearest, _squared_distances(points, centres).argmin(axis=1)
        if np.array_equal(former, nearest):
            break
        for cluster in np.unique(nearest):
            centres[cluster] = points[nearest == cluster].mean(axis=0)
    numbers: dict[int, int] = {}
    return [f"cluster-{numbers.setdefault(int(n), len(numbers)):02d}" for n in nearest]


def assign_keys(
    classes: Iterable[str], available: Sequence[str], taken: Mapping[str, str]
) -> dict[str, str]:
    """Class -> key, each key used once.

    Choices in `taken`, of former runs, are kept, and the keys of its other classes stay theirs.
    Where a new class starts to look for a free key depends on its name alone, so that a folder
    tends to get the same key everywhere. Raises BadSetting where there are too few keys.
    """
    wanted, keys = sorted(set(classes)), list(dict.fromkeys(available))
    chosen = {name: key for name, key in taken.items() if key in set(keys)}
    used = set(chosen.values())
    new = [name for name in wanted if name not in chosen]
    if len(new) > len(keys) - len(used):
        former = len(chosen.keys() - set(wanted))
        reserved = f" ({former} more were used in this output before)" if former else ""
        raise BadSetting(
            f"There are {len(wanted)} classes{reserved}, but the weights have {len(keys)} keys.",
            "Use weights with more classes, --labels cluster:N or single, or `tue train` weights "
            "of your own.",
        )
    for name in new:
        digest = hashlib.sha256(_nfc(name).encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") % len(keys)
        while keys[place] in used:
            place = (place + 1) % len(keys)
        chosen[name] = keys[place]
        used.add(keys[place])
    return {name: chosen[name] for name in wanted}


def _labelled_by(
    table: Path, items: Sequence[Item], note: Callable[[str], None]
) -> tuple[Item, ...]:
    """The items with the classes that a CSV file gives them."""
    # The later spelling wins: a path from the input folder before one from the working folder.
    spellings: dict[str, Item] = {}
    spellings |= {_nfc(item.source.as_posix()): item for item in items}
    spellings |= {_nfc(_absolute(item.source).as_posix()): item for item in items}
    spellings |= {_nfc(item.relative.as_posix()): item for item in items}
    counts = Counter(item.source.name for item in items)
    for item in items:
        if counts[item.source.name] == 1:
            spellings.setdefault(_nfc(item.source.name), item)
    classes: dict[Item, str] = {}
    unknown = 0
    for path, label in _rows(table):
        named = spellings.get(_nfc(Path(path).as_posix()))
        if named is None:
            unknown += 1
        elif classes.setdefault(named, label) != label:
            raise BadSetting(
                f"{shown(table)} puts {shown(path)} into two classes, {shown(classes[named])} and "
                f"{shown(label)}.",
                "Keep one of the two rows.",
            )
    if missing := [shown(item.relative) for item in items if item not in classes]:
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise BadSetting(
            f"{len(missing)} of {len(items)} pictures have no row in {shown(table)}: {few}",
            "Add a row `path,class` for each, its path counted from the input folder.",
        )
    if unknown:
        note(f"{unknown} rows of {shown(table)} name no picture of this run.")
    return tuple(replace(item, label=classes[item]) for item in items)


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """Path and class of every row that is not blank."""
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, csv.Error) as error:
        raise BadSetting(
            f"The labels {shown(table)} cannot be read: {error}.", "Name a CSV file."
        ) from error
    path_at, class_at = 0, 1
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if "path" in header and "class" in header:
        path_at, class_at = header.index("path"), header.index("class")
        del rows[0]
    for line, row in rows:
        if len(row) <= max(path_at, class_at) or not row[class_at].strip():
            raise BadSetting(
                f"Line {line} of {shown(table)} has no class.",
                "Write every row as `path,class`, with a comma between.",
            )
        yield row[path_at], row[class_at].strip()


def _input_name(items: Sequence[Item]) -> str:
    """The name of the folder that all items' places count from."""
    roots = {_absolute(item.source.parents[len(item.relative.parts) - 1]) for item in items}
    return (roots.pop().name if len(roots) == 1 else "") or "pictures"


def _squared_distances(
    points: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From every point (N, D) to every centre (K, D): (N, K), exactly zero at the centre itself."""
    return np.stack([np.square(points - centre).sum(axis=1) for centre in centres], axis=1)


def _absolute(path: Path) -> Path:
    """`path` without `..`, its symlinks not resolved."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose a symlink's name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _within(inner: Path, outer: Path) -> bool:
    return any(_same(folder, outer) for folder in (inner, *inner.parents))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(relative: Path) -> str:
    return _nfc(unicodedata.normalize("NFD", relative.as_posix()).casefold())
