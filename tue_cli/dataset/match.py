"""Which file is which copy: what a manifest says of each, and where the copy lies by now.

A manifest may come from anybody: a path in it that leads out of its folder is refused, and a field
of the wrong kind counts as missing. Names only; no picture is opened here.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.manifest import MANIFEST, is_changed, read_manifest, sha256
from tue_cli.dataset.memory import DIGITS, recall_copies
from tue_cli.dataset.output import is_output
from tue_cli.dataset.records import read_records
from tue_cli.errors import BadSetting, NothingToDo, TueError
from tue_cli.images.codec import SUFFIXES
from tue_cli.images.residual import CopyFacts
from tue_cli.text import escape

PROTECTED = ("already-protected", "This is a protected copy already.")
MARKED = ("already-protected", "This is a protected copy already: its metadata has tue's mark.")
CHANGED = (
    "changed-copy",
    "This is a protected copy that was changed after tue wrote it. Protect its original instead.",
)
"""Why a picture is left alone: a word for scripts, and a sentence."""


@dataclass(frozen=True)
class Expected:
    """One copy, as its record describes it; None stands for what the record lacks."""

    path: Path
    """Below the output folder."""
    source: Path
    """Below the folder of originals."""
    source_sha256: str
    sha256: str
    format: str | None
    known: CopyFacts | None
    """What it was like."""
    mean: float | None
    """The mean change of its pixels, in levels."""
    psnr: float | None
    small_rms: float | None
    """As `residual.measure_small_rms` returns it."""


@dataclass(frozen=True)
class Paired:
    """The files of a folder beside the records of a manifest."""

    files: dict[Path, Path]
    """Expected path -> where the file lies, both below their folders; what is missing is not in."""
    extra: tuple[Path, ...]
    """Files that no record speaks of, in order."""


@dataclass(frozen=True)
class KnownCopies:
    """Copies that may lie among the pictures to protect, known by their place or their content."""

    hashes: frozenset[str]
    remembered: frozenset[str]
    """The first digits of more hashes, as `recall_copies` gives them."""
    sizes: frozenset[int | None]
    """Of their files, in bytes."""
    places: frozenset[str]
    """Where the outputs that hold some of the pictures have, or had, their copies."""
    problems: tuple[str, ...]
    """Which outputs could not be read, in sentences."""

    def explain(self, source: Path, digest: str) -> tuple[str, str] | None:
        """Return why a picture of this content is left alone, as a reason and a message."""
        if self._is_copy(digest):
            return PROTECTED
        return CHANGED if self._is_place(source) else None

    def is_likely(self, source: Path) -> bool:
        """Say whether a picture will be left alone; it is read only if its size is that of one."""
        if self._is_place(source):
            return True
        try:
            return source.stat().st_size in self.sizes and self._is_copy(sha256(source))
        except OSError:
            return False

    def _is_copy(self, digest: str) -> bool:
        return digest in self.hashes or digest[:DIGITS] in self.remembered

    def _is_place(self, source: Path) -> bool:
        return bool(self.places) and _spell_place(source) in self.places


def find_known_copies(paths: Iterable[Path], own: Mapping[str, int | None]) -> KnownCopies:
    """Return the copies of all outputs that `paths` lie in, of the run's own output, and those that
    the user's data folder remembers.

    `own` are those of the run's output: sha256 -> size, if known.
    """
    copies, places, problems = dict(own), set[str](), []
    for output in dict.fromkeys(output for path in paths for output in _list_outputs_above(path)):
        try:
            for record in read_records(output):
                if is_changed(record):
                    copies[record["sha256"]] = record.get("bytes")
                places.add(_spell_place(output / record["path"]))
        except TueError as error:
            problems.append(
                f"{error.message} So tue cannot tell which pictures in {escape(output)} are "
                "protected copies."
            )
    remembered, problem = recall_copies()
    return KnownCopies(
        hashes=frozenset(copies),
        remembered=frozenset(remembered),
        sizes=frozenset((*copies.values(), *remembered.values())),
        places=frozenset(places),
        problems=(*problems, *filter(None, [problem])),
    )


def _list_outputs_above(path: Path) -> Iterator[Path]:
    """Yield each output that is a folder, or holds it or a file."""
    real = Path(os.path.realpath(path))
    yield from filter(is_output, (real, *real.parents))


def _spell_place(path: Path) -> str:
    return normalize_name(os.path.realpath(path))


def read_expected(place: Path) -> tuple[Path, tuple[Expected, ...]]:
    """Read a manifest, named itself or by its folder; return the folder and what it describes.

    Raises:
        BadSetting: there is none, it cannot be read, or it names a place outside its folder.
        NothingToDo: it describes no copy.
    """
    folder = place.parent if place.is_file() else place
    try:
        manifest = read_manifest(place)
    except BadSetting as error:
        raise BadSetting(
            error.message,
            f"Name the folder that `tue protect` wrote, or add --manifest with its {MANIFEST}.",
        ) from None
    records = {record["path"]: _parse_record(record, folder) for record in manifest["pictures"]}
    if not records:
        raise NothingToDo(f"The manifest in {escape(folder)} lists no picture.")
    return folder, tuple(records[path] for path in sorted(records))


def pair_files(expected: Sequence[Expected], folder: Path) -> Paired:
    """Find the file of each record: at its path, else by a name that only one of either has.

    Neither case nor the extension matters to a name, since sites change both: a file in the same
    folder is preferred, then one of the same full name anywhere, then one of the same stem.
    """
    free = {file.relative_to(folder): None for file in _list_files(folder)}
    files: dict[Path, Path] = {}
    for copy in expected:
        if _exists(folder / copy.path):
            files[copy.path] = copy.path
            free.pop(copy.path, None)
    for key in (_fold_path, _fold_name, _fold_stem):
        lost = _group_by(key, (copy.path for copy in expected if copy.path not in files))
        found = _group_by(key, (file for file in free if file.suffix.lower() in SUFFIXES))
        for name, paths in lost.items():
            if len(paths) == 1 and len(found[name]) == 1:
                files[paths[0]] = found[name][0]
                del free[found[name][0]]
    return Paired(files, tuple(sorted(free)))


def _parse_record(record: dict[str, Any], folder: Path) -> Expected:
    source = record.get("source")
    return Expected(
        path=_parse_path(record["path"], folder),
        source=_parse_path(source if isinstance(source, str) else record["path"], folder),
        source_sha256=record["source_sha256"],
        sha256=record["sha256"],
        format=_parse_text(record.get("format")),
        known=_parse_facts(record),
        mean=_parse_number(record.get("mean")),
        psnr=_parse_number(record.get("psnr")),
        small_rms=_parse_number(record.get("small_rms")),
    )


def _parse_facts(record: dict[str, Any]) -> CopyFacts | None:
    size, kinds = record.get("size"), record.get("metadata")
    pixels = _parse_text(record.get("pixels_sha256"))
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        return None
    if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        return None
    return CopyFacts((size[0], size[1]), tuple(kinds), pixels) if pixels and min(size) > 0 else None


def _parse_path(text: str, folder: Path) -> Path:
    """Return a relative path that stays below any folder it is put to."""
    path = Path(text)
    if not path.parts or path.is_absolute() or path.anchor or ".." in path.parts or "\0" in text:
        raise BadSetting(
            f"The manifest in {escape(folder)} names {escape(repr(text))}, outside its folder.",
            "Use the manifest that `tue protect` wrote.",
        )
    return path


def _parse_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _parse_number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _list_files(folder: Path) -> Iterable[Path]:
    """Yield every file below a folder but hidden ones and the manifest; no symlink is entered."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name != MANIFEST:
                yield Path(place, name)


def _exists(path: Path) -> bool:
    """Say whether there is anything at a place; what cannot be looked at counts as there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _group_by(key: Callable[[Path], str], paths: Iterable[Path]) -> dict[str, list[Path]]:
    grouped: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        grouped[key(path)].append(path)
    return grouped


def _fold_path(path: Path) -> str:
    return normalize_name(path.with_suffix("").as_posix()).casefold()


def _fold_name(path: Path) -> str:
    return normalize_name(path.name).casefold()


def _fold_stem(path: Path) -> str:
    return normalize_name(path.stem).casefold()
