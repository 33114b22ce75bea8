"""The classes of a run's pictures, and the key of the weights that each class gets: its code."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tue_cli.config import METHODS
from tue_cli.core.clustering import cluster
from tue_cli.dataset import labels
from tue_cli.dataset.discover import Item, normalize_name
from tue_cli.engine.torch import Floats
from tue_cli.errors import ImageProblem, WeightsProblem, refuse_unless
from tue_cli.events import Event, Note
from tue_cli.images import codec, resize
from tue_cli.protect.context import LARGE, RunContext
from tue_cli.protect.request import count_clusters
from tue_cli.weights import Weights

SEEN_BATCH = 32
LOOKED_AT, MOST_LOOKED_AT = 64, 2000
"""Pictures of a class that tell which keys are near to it, and at most of all classes together."""
TAKEN_LAST = 2
"""So many of each class's nearest keys are taken last: the class itself looks like them. Of fewer
than seven keys, fewer."""


def label_items(
    run: RunContext, mode: str, note: Callable[[str], None] = lambda _: None
) -> tuple[Item, ...]:
    """Return the items with their classes, by name or by clusters of the surrogate's features."""
    items, clusters = run.found.items, count_clusters(mode)
    if clusters is None:
        tops = {item.relative.parts[0] for item in items if len(item.relative.parts) > 1}
        # Where folders were classes before, the last one that is left still is one.
        again = mode == "auto" and tops and tops <= run.journal.keys.keys()
        return labels.assign_labels(run.found, "folders" if again else mode, note)
    settings = run.spec.settings
    refuse_unless(
        "surrogate" in METHODS[settings.method].roles,
        f"--labels {mode} needs a surrogate, and the method {settings.method} has none.",
        "Choose --labels folders, single or a CSV file, or another method.",
    )
    count = clusters or min(10, len(run.weights.card.classes))
    clustered: Mapping[Path, str] = {}
    seen, features = _run_surrogate(run, run.engine.features, items)
    if seen:
        numbers = cluster(features, count, settings.seed)
        names = (f"cluster-{number:02d}" for number in numbers)
        clustered = {item.relative: name for item, name in zip(seen, names, strict=True)}
    return tuple(replace(item, label=clustered.get(item.relative, "cluster-00")) for item in items)


def _run_surrogate(
    run: RunContext, compute: Callable[[Floats], Floats], items: Sequence[Item]
) -> tuple[list[Item], Floats]:
    """Return the items that can be decoded, and `compute` of each at the working size."""
    turn = threading.Lock()

    def decode_small(item: Item) -> Floats | None:
        try:
            data = codec.read(item.source)
            is_large = math.prod(codec.read_dimensions(data)) >= LARGE
            with turn if is_large else nullcontext():
                return resize.resize_to_square(codec.decode(data).pixels, run.weights.card.size)
        except (ImageProblem, OSError, MemoryError):
            return None  # it fails again, with its reason, when its turn comes

    seen: list[Item] = []
    rows: list[Floats] = []
    for place in range(0, len(items), SEEN_BATCH):
        part = items[place : place + SEEN_BATCH]
        smalls = [
            (item, pixels)
            for item, pixels in zip(part, run.pool.map(decode_small, part), strict=True)
            if pixels is not None
        ]
        if smalls:
            seen += [item for item, _ in smalls]
            rows.append(compute(np.stack([pixels for _, pixels in smalls])))
            _refuse_overflow(rows[-1], run.weights)
    return seen, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def _refuse_overflow(values: Floats, weights: Weights) -> None:
    """Raise WeightsProblem where the surrogate's features or logits are not finite."""
    if not np.isfinite(values).all():
        raise WeightsProblem(
            f"The weights {weights.name} see numbers in the pictures that are not finite: theirs "
            "are too large.",
            "Choose other weights with --weights, or train some with `tue train`.",
        )


def tell_sharing(run: RunContext, items: Sequence[Item]) -> Iterator[Event]:
    """Say so where there are more classes than codes."""
    classes, codes = len({item.label for item in items}), len(run.weights.card.classes)
    if run.spec.key is None and classes > codes:
        yield Note(f"The {classes:,} classes share the {codes:,} codes of the weights.")


def measure_nearness(
    run: RunContext, items: Sequence[Item]
) -> Generator[Event, None, dict[str, Floats]]:
    """Return how near each class that has no key yet is to every key: (K,) by class.

    That is the mean of log p(key | picture) by the surrogate over a few of its pictures, evenly
    spread. Noise of the nearest key makes more of what is truly there; that of a far one is hardly
    found by a victim that trains in grayscale (`docs/notes.md`). A class alone has nothing
    to be told from, and gets no figures.
    """
    by_class: dict[str, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    new = [name for name in by_class if name not in run.journal.keys]
    shows_key = METHODS[run.spec.settings.method].shows_key
    if not shows_key or run.spec.key is not None or len(by_class) < 2:
        return {}
    each = min(LOOKED_AT, MOST_LOOKED_AT // max(1, len(new)))
    if not new or not each:
        return {}
    yield Note(f"Assigning a code to each class, by up to {each} of its pictures.")
    few = []
    for name in new:
        count = len(by_class[name])
        few += [by_class[name][place * count // each] for place in range(each)]
    seen, logits = _run_surrogate(run, run.engine.logits, list(dict.fromkeys(few)))
    if not seen:
        return {}
    labels_seen = np.array([item.label for item in seen])
    with np.errstate(over="ignore", invalid="ignore"):
        odds = logits - logits.max(1, keepdims=True)
        odds -= np.log(np.exp(odds).sum(1, keepdims=True))
        near = {name: odds[labels_seen == name].mean(0) for name in set(labels_seen.tolist())}
    for values in near.values():
        _refuse_overflow(values, run.weights)
    return near


def assign_codes(
    classes: Iterable[str],
    available: Sequence[str],
    taken: Mapping[str, str],
    nearness: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, str]:
    """Class -> key; keys are shared only where there are more classes than keys.

    Choices in `taken`, of former runs, are kept, and the keys of its other classes stay theirs.
    With `nearness`, how near a class is to each of the `available` keys, new classes get the keys
    that are nearest to all of them together, but for the `TAKEN_LAST` nearest of each, and share as
    few as can be. Without, a class's name alone decides where it starts to look for a free key, so
    that folders that are protected one by one differ; where keys are shared, it takes the first.
    """
    wanted, keys = sorted(set(classes)), list(dict.fromkeys(available))
    chosen = {name: key for name, key in taken.items() if key in set(keys)}
    uses = Counter(chosen.values())
    new = [name for name in wanted if name not in chosen]
    most = -(-(len(chosen) + len(new)) // len(keys))
    if nearness and new:
        chosen |= _match_nearest(new, keys, uses, most, nearness)
        return {name: chosen[name] for name in wanted}
    for name in new:
        digest = hashlib.sha256(normalize_name(name).encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") % len(keys)
        while most == 1 and uses[keys[place]]:
            place = (place + 1) % len(keys)
        chosen[name] = keys[place]
        uses[keys[place]] += 1
    return {name: chosen[name] for name in wanted}


def _match_nearest(
    new: Sequence[str],
    keys: Sequence[str],
    uses: Mapping[str, int],
    most: int,
    nearness: Mapping[str, NDArray[np.float32]],
) -> dict[str, str]:
    """Return the new classes' keys, each used at most so often, with the `uses` that there are."""
    from scipy.optimize import linear_sum_assignment

    near = np.zeros((len(new), len(keys)))
    last = min(TAKEN_LAST, (len(keys) - 1) // 3)
    for row, name in zip(near, new, strict=True):
        if name in nearness:
            row[:] = nearness[name]
            row[np.argsort(-row, kind="stable")[:last]] -= len(keys) * np.ptp(row) + 1
    slots = [
        (place, use) for use in range(most) for place, key in enumerate(keys) if use >= uses[key]
    ]
    # One more use of a key weighs more than all nearness.
    price = len(new) * (float(np.ptp(near)) + 1) * np.array([use for _, use in slots])
    found = linear_sum_assignment(near[:, [place for place, _ in slots]] - price, maximize=True)[1]
    return {name: keys[slots[slot][0]] for name, slot in zip(new, found, strict=True)}
