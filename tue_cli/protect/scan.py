"""What lies in a folder before anything is done to it: pictures, classes, a run to go on with."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tue_cli.config import METHODS, ProtectSettings
from tue_cli.dataset import discover
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.output import choose_default_output
from tue_cli.dataset.records import read_book, read_unfinished
from tue_cli.errors import ImageProblem
from tue_cli.events import Advanced, Done, Event, Job, Note
from tue_cli.images import codec
from tue_cli.images.header import read_header
from tue_cli.protect.labels import count_groups, label_by_name
from tue_cli.protect.request import ProtectSpec
from tue_cli.weights import NETLESS, index

GLANCED = 40
"""Pictures whose headers are read, evenly spread."""
TELL_SECONDS = 0.1


@dataclass(frozen=True)
class ScanSpec:
    """Which folder to look through, and how it would be protected."""

    folder: Path
    output: Path | None = None
    labels: str = "auto"


@dataclass(frozen=True)
class FormerRun:
    """What a former run left in the output."""

    done: int
    """Copies that it made."""
    is_finished: bool
    run: Mapping[str, Any]
    """What decided their bytes, as the journal or manifest has it."""

    def resume(self, spec: ProtectSpec) -> ProtectSpec:
        """Return `spec` with the settings that this run had, as far as it tells them."""
        run = self.run
        try:
            settings = run["settings"]
            noise, said = METHODS[settings["method"]].noise, settings["noise"]
            noise = replace(noise, **{own.name: said[own.name] for own in fields(noise)})
            return replace(
                spec,
                settings=ProtectSettings(**{**settings, "noise": noise}),
                weights=_name_weights(run["weights"]["name"]),
                format=run["format"],
                quality=run["quality"],
            )
        except (LookupError, TypeError):
            return spec


@dataclass(frozen=True)
class ScanSummary:
    """What a folder holds."""

    folder: Path
    output: Path
    pictures: int
    bytes: int
    formats: Mapping[str, int]
    """Kind of file -> how many, the most first."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of a few, the smallest first."""
    ignored: Mapping[str, int]
    refused: Mapping[str, int]
    """Why pictures cannot be protected -> how many of those that were looked at."""
    classes: Mapping[str, int]
    """As a run would take them; empty where it is to find them itself."""
    former: FormerRun | None


def scan_folder(spec: ScanSpec) -> Job[ScanSummary]:
    """Tell what a folder holds, from names and a few headers; nothing is decoded or written.

    Raises:
        BadSetting: the folder cannot be protected, or not with these labels.
        NothingToDo: it holds no picture.
    """
    yield from _walk_folder(spec.folder)
    output = spec.output or choose_default_output((spec.folder,))
    found = discover.discover((spec.folder,), output)
    notes: list[str] = []
    book = read_book(output)
    records = book.records.values()
    clustered = count_groups(spec.labels, records, book.clusters) is not None
    items = found.items
    if not clustered:
        items = label_by_name(found, spec.labels, records, notes.append)
    yield from (Note(text) for text in notes)
    sizes, refused = yield from _sample_sizes(items)
    refused += Counter(reason for _, reason, _ in found.refused)
    classes = Counter(item.label for item in items)
    yield Done(
        ScanSummary(
            folder=spec.folder,
            output=output,
            pictures=len(items) + len(found.refused),
            bytes=sum(map(_count_bytes, items)),
            formats=dict(Counter(_name_format(item.source) for item in items).most_common()),
            sizes=tuple(sorted(sizes, key=lambda size: size[0] * size[1])),
            ignored=dict(Counter(reason for _, reason in found.ignored).most_common()),
            refused=dict(refused.most_common()),
            classes={} if clustered else dict(sorted(classes.items())),
            former=_read_former(output),
        )
    )


def count_images(folder: Path) -> int:
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
            sizes.append(read_header(item.source).size)
        except ImageProblem as problem:
            refused[problem.reason] += 1
        yield Advanced(len(items), 0, 0.0)
    return sizes, refused


def _read_former(output: Path) -> FormerRun | None:
    """Return what former runs left in the output: how far one came, or that one is finished."""
    if (left := read_unfinished(output)) is not None:
        run, records = left
        return FormerRun(len(records), False, run)
    if (output / MANIFEST).is_file():
        whole = read_manifest(output)
        return FormerRun(len(whole["pictures"]), True, whole["run"])
    return None


def _name_weights(name: str) -> str | None:
    """Return what to ask for to get weights of that name; None for what comes unasked."""
    return None if name in (NETLESS, index()["default"]) else name


def _count_bytes(item: discover.Item) -> int:
    try:
        return item.source.stat().st_size
    except OSError:
        return 0


def _name_format(path: Path) -> str:
    suffix = path.suffix.lower().lstrip(".")
    jpeg = dict.fromkeys(("jpg", "jpe", "jfif", "pjpeg", "pjp"), "JPEG")
    return {**jpeg, "tif": "TIFF", "": "no ending"}.get(suffix, suffix.upper())
