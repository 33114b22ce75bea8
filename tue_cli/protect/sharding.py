"""What is sent to workers, and what they do before pictures are protected: count and look.

A worker is a process that computes on one thread, or on a GPU, wherever it runs. So the bytes do
not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from tue_cli.dataset import parquet, shards
from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.labels import OWNER, list_top_folders
from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.output import WORK, find_output
from tue_cli.dataset.remote import Place, Stored
from tue_cli.dataset.secret import Secret
from tue_cli.dataset.shards import Sample
from tue_cli.errors import ImageProblem, TueError, refuse_unless
from tue_cli.images import codec, resize
from tue_cli.protect.codes import average_odds
from tue_cli.protect.context import BATCH, choose_weights
from tue_cli.protect.copier import Copier, open_copier
from tue_cli.protect.plan import change_suffix, explain_taken
from tue_cli.protect.request import ProtectSpec
from tue_cli.storage.reading import is_below
from tue_cli.text import escape

LAYOUTS = {".tar": "tar", ".parquet": "parquet"}
_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
PART = 256
"""Pictures of a folder in one unit of work."""
PARTS = "parts"
"""The folder of the manifest's parts, in the work folder of the output."""


@dataclass(frozen=True)
class Shard:
    """A unit of work: a file of samples, or some files of a folder."""

    source: int
    """Which of the recipe's sources it lies in."""
    name: str
    """Below that source; empty for the source itself."""
    path: str
    """Below the output, and what people are told."""
    kind: str
    """`tar`, `parquet` or `folder`."""
    size: int
    version: str
    files: tuple[tuple[str, int, str], ...] = ()
    """Of a folder: name, bytes and label of each picture."""
    again: bool = False
    """Whether to write it even if it is finished."""
    stale: tuple[str, ...] = ()
    """Parts of the manifest that the new one replaces."""

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """Return a shard from the form in which it was sent."""
        files = tuple((name, size, label) for name, size, label in told["files"])
        return cls(**{**told, "files": files, "stale": tuple(told["stale"])})

    @property
    def mark(self) -> str:
        """What stands for the shard's content."""
        told = json.dumps([self.path, self.kind, self.size, self.version, self.files])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """What every worker needs to know."""

    sources: tuple[Place, ...]
    target: Place
    spec: ProtectSpec
    secret: Secret
    keys: Mapping[str, str] = field(default_factory=dict)
    """Class -> code."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """What decides the copies' bytes; empty until it is known."""

    def name_part(self, shard: Shard, failed: int = 0) -> str:
        """Return the name of the manifest's part for a shard, which says what it was made from."""
        told = json.dumps([dict(self.run), shard.mark], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return f"{shard.path}.{digest}{'.failed' if failed else ''}.parquet"


@dataclass
class Outcome:
    """What came of a shard."""

    path: str
    state: str
    """`done`; `finished` or, without some pictures, `incomplete` (before); `failed`; or `fatal`:
    the run cannot go on."""
    reason: str = ""
    message: str = ""
    protected: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    """Picture, reason and message of each that could not be protected."""
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By part of the work: read, decode, engine, encode, write."""


def open_alone(spec: ProtectSpec, secret: Secret, former: str | None = None) -> Copier:
    """Open weights and an engine on one thread.

    Raises:
        TueError: as `choose_weights` and `choose_engine` say.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    copier = open_copier(spec, choose_weights(spec), secret, former)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return copier


def scan_labels(told: Mapping[str, Any], *, recipe: Recipe) -> dict[str, Any]:
    """Return a shard's `mark`, the `counts` of its pictures by label, and whether it is `whole`.

    What is wrong with one that could not be read to its end is told when it is protected.
    """
    shard, labels = Shard.read(told), recipe.spec.labels
    counts: Counter[str] = Counter()
    is_whole = False
    with suppress(Exception), recipe.sources[shard.source].open(shard.name) as file:
        if shard.kind == "parquet":
            found = parquet.list_parquet_labels(file, labels)
            counts.update(label for label in found if label is not None)
        else:
            for sample in shards.read_tar(file, labels):
                if sample.pictures and sample.label is not None:
                    counts[sample.label] += len(sample.pictures)
        is_whole = True
    return {"mark": shard.mark, "whole": is_whole, "counts": counts}


def inspect_classes(
    told: Mapping[str, Any], *, recipe: Recipe, former: str | None
) -> dict[str, Any]:
    """Return an engine's kind and description, and by new class how near it is to every code, (K,).

    Where it cannot be opened, return `problem`: the message and the remedy of the error.

    Args:
        told: `shards`, in which to look; `labels`, which classes each has, by its mark; and
            `wanted`, how many pictures of which class.
        recipe: of the run.
        former: the kind of engine of former runs, if there were any.
    """
    try:
        copier = open_alone(recipe.spec, recipe.secret, former)
        near = _measure_nearness(copier, recipe, told) if told["wanted"] else {}
    except TueError as error:
        return {"problem": [error.message, error.remedy]}
    return {
        "kind": copier.engine.kind,
        "description": copier.engine.description,
        "near": {name: values.tolist() for name, values in near.items()},
    }


def _measure_nearness(copier: Copier, recipe: Recipe, told: Mapping[str, Any]) -> dict[str, Any]:
    wanted: Counter[str] = Counter(told["wanted"])
    labels: list[str] = []
    smalls = []
    for shard in map(Shard.read, told["shards"]):
        here = set(wanted) & set(told["labels"][shard.mark])
        with suppress(Exception):
            for sample in read_samples(recipe, shard):
                for data in sample.pictures:
                    if data is None or wanted[sample.label or ""] <= 0:
                        continue
                    with suppress(ImageProblem, MemoryError):
                        shown = codec.decode(data).shown
                        smalls.append(resize.resize_to_square(shown, copier.weights.card.size))
                        labels.append(sample.label or "")
                        wanted[sample.label or ""] -= 1
                if all(wanted[label] <= 0 for label in here):
                    break
    if not smalls:
        return {}
    logits = [
        copier.engine.logits(np.stack(smalls[place : place + BATCH]))
        for place in range(0, len(smalls), BATCH)
    ]
    return average_odds(labels, np.concatenate(logits), copier.weights)


def read_samples(recipe: Recipe, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard.

    Raises:
        BadShard: as its reader says.
    """
    source, labels = recipe.sources[shard.source], recipe.spec.labels
    if shard.kind == "folder":
        yield from _read_folder(source, shard)
        return
    with source.open(shard.name) as file:
        if shard.kind == "tar":
            yield from shards.read_tar(file, labels)
        else:
            yield from parquet.read_parquet(file, labels)


def _read_folder(source: Place, shard: Shard) -> Iterator[Sample]:
    for name, size, label in shard.files:
        data, problem = None, None
        try:
            data = source.read(name, codec.MAX_BYTES) if size <= codec.MAX_BYTES else None
        except OSError as error:
            if source.protocol != "file":  # the store may be back when the command is run again
                raise
            problem = ImageProblem("unreadable", f"The file cannot be read: {error.strerror}.")
        yield Sample(name, (data,), (name,), label, None, problem)


@dataclass(frozen=True)
class Listing:
    """What lies in the sources."""

    shards: tuple[Shard, ...]
    refused: tuple[tuple[str, str, str], ...]
    """Path, reason and message of what cannot be protected."""
    ignored: int
    """Files that are neither shards nor pictures, or pictures beside shards."""
    copies: int = 0
    """Files in outputs of earlier runs."""

    def count_labels(self, *, single: bool) -> dict[str, Mapping[str, int]]:
        """Return what is known of the labels without opening a file: by shard, pictures by label.

        Where all pictures are of a `single` class, that is all that there is to know.
        """
        if single:
            return {shard.mark: {OWNER: 1} for shard in self.shards}
        return {
            shard.mark: Counter(label for _, _, label in shard.files)
            for shard in self.shards
            if shard.kind == "folder"
        }


def list_shards(sources: Sequence[Place], spec: ProtectSpec) -> Listing:
    """Return the shards of all sources; where one has none, parts of its folders of pictures.

    Raises:
        TueError: a source cannot be listed.
        BadSetting: a source is an output, or two shards would have one place.
    """
    units: list[Shard] = []
    refused: list[tuple[str, str, str]] = []
    ignored = copies = 0
    for number, source in enumerate(sources):
        files, inside = _leave_out_outputs(source)
        copies += inside
        pictures = []
        before = len(units)
        for file in files:
            path = file.name or PurePosixPath(urlsplit(source.url).path).name
            kind = LAYOUTS.get(PurePosixPath(path).suffix.lower())
            if not is_below(path):
                refused.append((path, "unsafe", "The name leads outside the output."))
            elif kind is not None:
                units.append(Shard(number, file.name, path, kind, file.size, file.version))
            elif path.lower().endswith(_PACKED):
                message = "The tar file is compressed; decompress it first."
                refused.append((path, "unsupported", message))
            elif PurePosixPath(path).suffix.lower() in codec.SUFFIXES and file.name:
                pictures.append(file)
            else:
                ignored += 1
        if len(units) == before:
            parts, crowded = _list_parts(number, pictures, spec)
            units += parts
            refused += [(name, "in-the-way", explain_taken().message) for name in crowded]
        else:
            ignored += len(pictures)
    twice = [path for path, count in Counter(unit.path for unit in units).items() if count > 1]
    refuse_unless(
        not twice,
        f"Several inputs have a shard named {escape(twice[0] if twice else '')}.",
        "Protect them one after the other, into different outputs.",
    )
    return Listing(tuple(units), tuple(refused), ignored, copies)


def _leave_out_outputs(source: Place) -> tuple[list[Stored], int]:
    """Return the files that are in no output of an earlier run, and how many are."""
    files = source.list_files()
    outputs = tuple({found for file in files if (found := find_output(file.name)) is not None})
    refuse_unless(
        "" not in outputs,
        f"{source.shown} is the output of an earlier run.",
        f"Name the originals instead. If there are no copies in it, remove {MANIFEST} and {WORK}.",
    )
    outside = [file for file in files if not file.name.startswith(outputs)]
    signs = sum(find_output(file.name) is not None for file in files)
    return outside, len(files) - len(outside) - signs


def _list_parts(
    number: int, pictures: Sequence[Stored], spec: ProtectSpec
) -> tuple[list[Shard], list[str]]:
    """Return the parts of a folder of pictures, and the pictures without a place of their own."""
    places = {file.name: PurePosixPath(file.name) for file in pictures}
    ends = {
        name: change_suffix(place, spec.format).as_posix().lower() for name, place in places.items()
    }
    uses = Counter(ends.values())
    tops = list_top_folders(Path(name) for name in places)
    by_folder = spec.labels == "folders" or (spec.labels == "auto" and len(tops) > 1)
    groups: dict[str, list[tuple[str, int, str, str]]] = {}
    for file in pictures:
        place = places[file.name]
        top = place.parts[0] if len(place.parts) > 1 else ""
        label = normalize_name(top) if by_folder and top else OWNER
        if uses[ends[file.name]] == 1:
            groups.setdefault(top, []).append((file.name, file.size, label, file.version))
    parts = []
    for top, held in groups.items():
        for start in range(0, len(held), PART):
            few = held[start : start + PART]
            path = f"{top}/{start // PART:05d}".lstrip("/")
            files = tuple((name, size, label) for name, size, label, _ in few)
            versions = hashlib.sha256(json.dumps([entry[3] for entry in few]).encode()).hexdigest()
            size = sum(entry[1] for entry in few)
            parts.append(Shard(number, "", path, "folder", size, versions, files))
    return parts, [name for name, end in ends.items() if uses[end] > 1]
