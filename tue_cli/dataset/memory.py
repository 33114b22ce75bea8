"""What the user's data folder remembers of outputs: where originals lie, what files are copies.

A manifest may be published, so it does not say where the user keeps pictures. An output is known by
its manifest's content, and so also after it was moved. A copy is known by its own content, wherever
it lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tue_cli.dataset.manifest import MANIFEST, is_changed, sha256
from tue_cli.dataset.records import read_records
from tue_cli.dataset.secret import find_folder, make_folder
from tue_cli.errors import TueError
from tue_cli.storage.atomic import Folder
from tue_cli.storage.lines import LineFile, read_lines
from tue_cli.storage.reading import explain_error, is_below, is_name
from tue_cli.text import escape

ORIGINALS: Final = "originals.jsonl"
"""The file of the places, beside the secret; only the user can read it."""
COPIES: Final = "copies.jsonl"
"""The file of the copies, likewise."""
DIGITS = 32
"""Of a copy's sha256 that are kept."""
LINE = 1_000
"""Copies in a line of the file, at most."""


def remember_originals(output: Path, pictures: Iterable[tuple[Path, Path]]) -> None:
    """Remember which folders the originals of a finished output lie in.

    Where there is no manifest, or the data folder cannot be written, do nothing.

    Args:
        output: the folder of the copies.
        pictures: each original, and its place below the folder of originals.
    """
    folders = sorted({folder for picture in pictures for folder in _find_above(*picture)})
    with suppress(OSError):
        digest = sha256(output / MANIFEST)
        if folders and _list_places(digest)[-1:] != [folders]:
            line = {"manifest": digest, "folders": folders}
            with Folder(make_folder()) as folder, LineFile(folder, ORIGINALS, 0o600) as file:
                file.append(line)


def remember_copies(output: Path) -> None:
    """Remember the copies of an output, so that they are known wherever they lie.

    What cannot be read is left out. Where the data folder cannot be written, do nothing.
    """
    (known, problem), new = recall_copies(), dict[str, int | None]()
    if problem:  # otherwise each run would add its copies again
        return
    with suppress(TueError):
        for record in read_records(output):
            if is_changed(record) and (digest := record["sha256"][:DIGITS]) not in known:
                new[digest] = record.get("bytes")
    if new:
        pairs = [list(pair) for pair in new.items()]
        lines = ({"copies": pairs[at : at + LINE]} for at in range(0, len(pairs), LINE))
        with (
            suppress(OSError),
            Folder(make_folder()) as folder,
            LineFile(folder, COPIES, 0o600) as file,
        ):
            file.append(*lines)


def recall_copies() -> tuple[Mapping[str, int | None], str]:
    """Return the remembered copies: the first `DIGITS` of their sha256 -> bytes, if known.

    Also return, in sentences, why there may be more; nothing where all was read.
    """
    copies: dict[str, int | None] = {}
    try:
        folder = find_folder()
    except OSError:  # without a home, nothing was remembered
        return copies, ""
    try:
        for line in read_lines(folder / COPIES, _parse_copies):
            copies.update(line)
    except (FileNotFoundError, NotADirectoryError):
        return copies, ""
    except OSError as error:
        return copies, (
            f"{escape(folder / COPIES)} cannot be read: {explain_error(error)}. So tue may not "
            "know copies of other outputs, and would protect them again. Make the file readable, "
            "or delete it."
        )
    return copies, ""


def recall_originals(manifest: Path, originals: Iterable[tuple[str, str]]) -> Path | None:
    """Return the remembered folder that has most originals of a manifest; None where none has any.

    At least one of them must be unchanged.

    Args:
        manifest: the file, or the folder that it lies in.
        originals: their places below that folder, and their sha256.
    """
    try:
        # Not Path.is_file: a name that is too long would be an error.
        is_file = os.path.isfile(manifest)  # noqa: PTH113
        places = _list_places(sha256(manifest if is_file else manifest / MANIFEST))
    except OSError:
        return None
    wanted = [(place, digest) for place, digest in originals if is_below(place)]
    best, most = None, 0
    for folder in dict.fromkeys(Path(folder) for found in reversed(places) for folder in found):
        there = [(folder / place, digest) for place, digest in wanted]
        there = [(path, digest) for path, digest in there if os.path.isfile(path)]  # noqa: PTH113
        if len(there) > most and any(map(_is_unchanged, there)):
            best, most = folder, len(there)
    return best


def tell_recalled(folder: Path) -> str:
    """Return where originals were found again, in a sentence."""
    return (
        f"The originals are in {escape(folder)}, where `tue protect` found them. "
        "--original names another folder."
    )


def _find_above(source: Path, relative: Path) -> list[str]:
    """Return the folder that a relative path leads from to a picture, if it does."""
    place, parts = source.absolute(), relative.parts
    if not parts or place.parts[-len(parts) :] != parts:
        return []
    return [str(place.parents[len(parts) - 1])]


def _list_places(digest: str) -> list[list[str]]:
    """Return the folders that were remembered for a manifest, latest last."""
    with suppress(OSError):
        lines = read_lines(find_folder() / ORIGINALS, _parse_places)
        return [folders for manifest, folders in lines if manifest == digest]
    return []


def _parse_places(line: Any) -> tuple[str, list[str]] | None:
    if not isinstance(line, dict) or not isinstance(line.get("manifest"), str):
        return None
    folders = line.get("folders")
    if not isinstance(folders, list) or not all(map(is_name, folders)):
        return None
    return line["manifest"], folders


def _parse_copies(line: Any) -> list[tuple[str, int | None]] | None:
    pairs = line.get("copies") if isinstance(line, dict) else None
    if not isinstance(pairs, list) or not all(map(_is_copy, pairs)):
        return None
    return [(digest, size) for digest, size in pairs]


def _is_copy(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:  # noqa: PLR2004
        return False
    digest, size = pair
    return isinstance(digest, str) and len(digest) == DIGITS and isinstance(size, int | None)


def _is_unchanged(original: tuple[Path, str]) -> bool:
    with suppress(OSError):
        return sha256(original[0]) == original[1]
    return False
