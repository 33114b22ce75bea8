"""What lies in a folder before anything is done to it: pictures, classes, a run to go on with."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tue_cli.dataset import discover, labels
from tue_cli.dataset.journal import read_unfinished
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.errors import PictureProblem
from tue_cli.events import Advanced, Done, Event, Note
from tue_cli.images import codec

GLANCED = 40
"""Pictures whose headers are read, evenly spread."""
TELL_SECONDS = 0.1


@dataclass(frozen=True)
class ScanSpec:
    """Which folder to look through, and how it would be protected."""

    folder: Path
    output: Path | None = None
    labels: str = "auto"


def scan_folder(spec: ScanSpec) -> Generator[Event, None, None]:
    """Tell what a folder holds, from names and a few headers; nothing is decoded or written.

    Raises:
        BadSetting: the folder cannot be protected, or not with these labels.
        NothingToDo: it holds no picture.
    """
    yield from _walk_folder(spec.folder)
    output = spec.output or discover.default_output((spec.folder,))
    found = discover.discover((spec.folder,), output)
    notes: list[str] = []
    clustered = spec.labels.partition(":")[0] == "cluster"
    items = found.items if clustered else labels.assign_labels(found, spec.labels, notes.append)
    yield from (Note(text) for text in notes)
    sizes, refused = yield from _sample_sizes(items)
    refused += Counter(reason for _, reason, _ in found.refused)
    classes = Counter(item.label for item in items)
    yield Done(
        {
            "folder": str(spec.folder),
            "output": str(output),
            "pictures": len(items) + len(found.refused),
            "bytes": sum(map(_bytes, items)),
            "formats": dict(Counter(_format(item.source) for item in items).most_common()),
            "sizes": sorted(sizes, key=lambda size: size[0] * size[1]),
            "glanced": min(len(items), GLANCED),
            "ignored": dict(Counter(reason for _, reason in found.ignored).most_common()),
            "refused": dict(refused.most_common()),
            "classes": {} if clustered else dict(sorted(classes.items())),
            **_former(output),
        }
    )


def count_pictures(folder: Path) -> int:
    """Return how many pictures lie in a folder itself, by their names."""
    try:
        with os.scandir(folder) as entries:
            return sum(Path(entry.name).suffix.lower() in codec.SUFFIXES for entry in entries)
    except OSError:
        return 0


def _walk_folder(folder: Path) -> Generator[Event, None, None]:
    """Say how many pictures there are so far, so that a walk through a whole disk can be left."""
    count, told = 0, time.monotonic()
    for _, _, names in os.walk(folder):
        count += sum(Path(name).suffix.lower() in codec.SUFFIXES for name in names)
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            yield Advanced(count, 0, 0.0)
    yield Advanced(count, 0, 0.0)


def _sample_sizes(
    items: Sequence[discover.Item],
) -> Generator[Event, None, tuple[list[tuple[int, int]], Counter[str]]]:
    """Return the sizes of a few pictures, and how many cannot be protected, by reason."""
    # By its name, each is known; by its header, a few are.
    refused = Counter(
        "unsupported" for item in items if item.source.suffix.lower() in codec.UNSUPPORTED
    )
    sizes = []
    for item in items[:: max(1, -(-len(items) // GLANCED))]:
        if item.source.suffix.lower() in codec.UNSUPPORTED:
            continue
        try:
            sizes.append(codec.read_dimensions(codec.read(item.source)))
        except PictureProblem as problem:
            refused[problem.reason] += 1
        yield Advanced(len(items), 0, 0.0)
    return sizes, refused


def _former(output: Path) -> dict[str, Any]:
    """Return what former runs left in the output: how far one came, or that one is finished."""
    if (left := read_unfinished(output)) is not None:
        run, records = left
        return {"unfinished": {"done": len(records), "run": run}}
    if (output / MANIFEST).is_file():
        whole = read_manifest(output)
        return {"finished": {"done": len(whole["pictures"]), "run": whole["run"]}}
    return {}


def _bytes(item: discover.Item) -> int:
    try:
        return item.source.stat().st_size
    except OSError:
        return 0


def _format(path: Path) -> str:
    suffix = path.suffix.lower().lstrip(".")
    jpeg = dict.fromkeys(("jpg", "jpe", "jfif", "pjpeg", "pjp"), "JPEG")
    return {**jpeg, "tif": "TIFF", "": "no ending"}.get(suffix, suffix.upper())
