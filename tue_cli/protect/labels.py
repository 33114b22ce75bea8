"""The classes of a run's pictures, and what the surrogate sees in them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tue_cli.config import METHODS
from tue_cli.core.clustering import find_centres, find_nearest
from tue_cli.dataset import labels
from tue_cli.dataset.discover import Found, Item
from tue_cli.dataset.manifest import MANIFEST, Clusters, Record, explain_damage, sha256
from tue_cli.dataset.records import Given, get_source
from tue_cli.engine.torch import Floats
from tue_cli.errors import ImageProblem, WeightsProblem, refuse_unless
from tue_cli.events import Advanced, Event, Started
from tue_cli.images import codec, resize
from tue_cli.protect.context import LARGE, RunContext
from tue_cli.protect.request import count_clusters
from tue_cli.text import format_count
from tue_cli.weights import Weights

SEEN_BATCH = 32


@dataclass(frozen=True)
class Labelled:
    """The pictures of a run with their classes."""

    items: tuple[Item, ...]
    clusters: Clusters | None = None
    """The clusters that their classes are, if they are."""
    given: Mapping[str, Given] = field(default_factory=dict)
    """Place of an original -> its class, of those that were assigned to a cluster only now."""


def label_items(
    run: RunContext, mode: str, note: Callable[[str], None] = lambda _: None
) -> Generator[Event, None, Labelled]:
    """Return the items with their classes, by name or by clusters of the surrogate's features.

    With `auto` and `cluster`, what former runs recorded stays: a picture that has a class keeps it,
    and new pictures are assigned to the clusters that there are. Nothing is written. Progress is
    yielded where pictures are decoded.
    """
    records = run.journal.records.values()
    groups = count_groups(mode, records, run.journal.clusters)
    if groups is not None:
        return (yield from _label_by_clusters(run, mode, groups, note))
    return Labelled(label_by_name(run.found, mode, records, note))


def count_groups(mode: str, records: Iterable[Record], known: Clusters | None) -> int | None:
    """Return how many clusters are asked for, 0 for as many as there are; None for no clusters.

    `auto` goes on with the clusters that former runs found, where these are all classes.
    """
    if mode == "auto" and known and {r["label"] for r in records} <= known.centres.keys():
        return 0
    return count_clusters(mode)


def label_by_name(
    found: Found, mode: str, records: Iterable[Record], note: Callable[[str], None]
) -> tuple[Item, ...]:
    """Return the pictures with their classes; `auto` keeps those that former runs recorded."""
    recorded = {get_source(record): record["label"] for record in records}
    if mode != "auto" or not recorded:
        return labels.assign_labels(found, mode, note)
    return _label_as_before(found, recorded, note)


def _label_as_before(
    found: Found, recorded: Mapping[str, str], note: Callable[[str], None]
) -> tuple[Item, ...]:
    """Return the items with the classes that former runs recorded; new ones with that of `auto`."""
    items = found.items
    tops = labels.list_top_folders(item.relative for item in items)
    # Where folders were classes before, the last one that is left still is one.
    mode = "folders" if len(tops) > 1 or (tops and tops <= set(recorded.values())) else "single"
    named = labels.assign_labels(found, mode, note)
    kept = [recorded.get(item.relative.as_posix(), item.label) for item in named]
    others = sum(item.label != label for item, label in zip(named, kept, strict=True))
    if others and any(item.relative.as_posix() not in recorded for item in items):
        get = "get the class of their subfolder" if mode == "folders" else "form one class"
        note(
            f"{format_count(others, 'picture')} {'keeps' if others == 1 else 'keep'} the class of "
            f"an earlier run; new pictures {get}. With --labels {mode}, all pictures {get}, and "
            "the copies whose class changes are made again."
        )
    return tuple(replace(item, label=label) for item, label in zip(named, kept, strict=True))


def _label_by_clusters(
    run: RunContext, mode: str, groups: int, note: Callable[[str], None]
) -> Generator[Event, None, Labelled]:
    """Return the items with their clusters: former ones, or new ones where others were asked for.

    Args:
        run: the run, with what former ones recorded.
        mode: as it was typed.
        groups: how many clusters; 0 for as many as there are, or as the weights have classes.
        note: tells what a person should know.
    """
    settings, known = run.spec.settings, run.journal.clusters
    refuse_unless(
        "surrogate" in METHODS[settings.method].roles,
        f"--labels {mode} needs a surrogate, and the method {settings.method} has none.",
        "Choose --labels folders, single or a CSV file, or another method.",
    )
    if known and groups not in (0, known.groups):
        note(
            f"--labels {mode} makes new groups; there were {known.groups} before. The copies whose "
            "class changes are made again."
        )
        known = None
    names = _recall_clusters(run, known) if known else {}
    new = [item for item in run.found.items if item.relative not in names]
    digests: dict[Path, str] = {}
    seen: list[Item] = []
    if new:
        yield Started("Grouping", len(new), "pictures")
        parts = iterate_surrogate(run, run.engine.features, new, digests)
        seen, features = yield from _tell_progress(parts, len(new))
    if seen:
        known = known or _find_clusters(
            features, groups or min(10, len(run.weights.card.classes)), settings.seed
        )
        called, centres = list(known.centres), np.array(list(known.centres.values()))
        if centres.shape[1] != features.shape[1]:
            raise explain_damage(run.output / MANIFEST, "its clusters were made with other weights")
        nearest = find_nearest(features, centres)
        names |= {item.relative: called[n] for item, n in zip(seen, nearest, strict=True)}
    given = {
        item.relative.as_posix(): Given(names[item.relative], digests[item.relative])
        for item in seen
    }
    items = tuple(
        # What cannot be decoded fails later, with its reason.
        replace(item, label=names.get(item.relative, f"{labels.CLUSTER}00"))
        for item in run.found.items
    )
    return Labelled(items, known, given)


def _find_clusters(features: Floats, groups: int, seed: int) -> Clusters:
    """Return new clusters; each centre as it is recorded, in six digits."""
    rows = find_centres(features, groups, seed).tolist()
    centres = {
        f"{labels.CLUSTER}{number:02d}": tuple(float(f"{value:.6g}") for value in row)
        for number, row in enumerate(rows)
    }
    return Clusters(groups, centres)


def _recall_clusters(run: RunContext, known: Clusters) -> dict[Path, str]:
    """Return the recorded cluster of each item that has one; nothing is decoded.

    An original is the one that was recorded if its copy has its time. Where that does not tell, it
    is read, and its content decides.
    """
    given = {k: v for k, v in run.journal.given.items() if v.label in known.centres}
    by_content = {one.source_sha256: one.label for one in given.values()}
    copies = {get_source(record): path for path, record in run.journal.records.items()}

    def recall(item: Item) -> str | None:
        place = item.relative.as_posix()
        with suppress(OSError, ImageProblem, MemoryError):
            if place in given and place in copies:
                copy = (run.output / copies[place]).lstat()
                if copy.st_mtime_ns == item.source.stat().st_mtime_ns:
                    return given[place].label
            return by_content.get(sha256(codec.read(item.source)))
        return None

    found = zip(run.found.items, run.pool.map(recall, run.found.items), strict=True)
    return {item.relative: label for item, label in found if label is not None}


def run_surrogate(
    run: RunContext,
    compute: Callable[[Floats], Floats],
    items: Sequence[Item],
    digests: dict[Path, str] | None = None,
) -> tuple[list[Item], Floats]:
    """Return the items that can be decoded, and `compute` of each, as `iterate_surrogate` does."""
    return _join(list(iterate_surrogate(run, compute, items, digests)))


def _tell_progress(
    parts: Iterator[tuple[list[Item], Floats]], total: int
) -> Generator[Event, None, tuple[list[Item], Floats]]:
    """Return what all parts hold together; tell after each how many of `total` items are done."""
    began, found = time.monotonic(), []
    for part in parts:
        found.append(part)
        done = min(total, len(found) * SEEN_BATCH)
        rate = done / max(1e-9, time.monotonic() - began)
        yield Advanced(done, total, rate, (total - done) / rate)
    return _join(found)


def _join(parts: Sequence[tuple[list[Item], Floats]]) -> tuple[list[Item], Floats]:
    rows = [values for items, values in parts if items]
    every = [item for items, _ in parts for item in items]
    return every, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def iterate_surrogate(
    run: RunContext,
    compute: Callable[[Floats], Floats],
    items: Sequence[Item],
    digests: dict[Path, str] | None = None,
) -> Iterator[tuple[list[Item], Floats]]:
    """Yield for each batch those items that can be decoded, and `compute` of them as one array.

    Pictures are resized to the working size. Their hashes are added to `digests`, by their places.
    """
    turn = threading.Lock()

    def decode_small(item: Item) -> Floats | None:
        try:
            data = codec.read(item.source)
            if digests is not None:
                digests[item.relative] = sha256(data)
            is_large = math.prod(codec.read_dimensions(data)) >= LARGE
            with turn if is_large else nullcontext():
                return resize.resize_to_square(codec.decode(data).shown, run.weights.card.size)
        except (ImageProblem, OSError, MemoryError):
            return None  # it fails again, with its reason, when its turn comes

    for place in range(0, len(items), SEEN_BATCH):
        part = items[place : place + SEEN_BATCH]
        smalls = [
            (item, pixels)
            for item, pixels in zip(part, run.pool.map(decode_small, part), strict=True)
            if pixels is not None
        ]
        values = np.empty((0, 0), np.float32)
        if smalls:
            values = compute(np.stack([pixels for _, pixels in smalls]))
            refuse_overflow(values, run.weights)
        yield [item for item, _ in smalls], values


def refuse_overflow(values: Floats, weights: Weights) -> None:
    """Raise WeightsProblem where the surrogate's features or logits are not finite."""
    if not np.isfinite(values).all():
        raise WeightsProblem(
            f"With the weights {weights.name}, networks compute numbers that are not finite, "
            "because the weights are too large.",
            "Choose other weights with --weights, or train some with `tue train`.",
        )
