"""The classes of a run's pictures, and the key of the weights that each class gets: its code."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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
from tue_cli.errors import BadSetting, ImageProblem, WeightsProblem, refuse_unless
from tue_cli.events import Event, Note
from tue_cli.images import codec, resize
from tue_cli.protect.context import LARGE, RunContext
from tue_cli.protect.request import count_clusters
from tue_cli.text import format_count
from tue_cli.weights import Weights

SEEN_BATCH = 32
LOOKED_AT = 64
"""Pictures of a class that tell which keys are near to it."""
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


def measure_nearness(
    run: RunContext, items: Sequence[Item]
) -> Generator[Event, None, dict[str, Floats]]:
    """Return how near each class that has no key yet is to every key: (K,) by class.

    That is the mean of log p(key | picture) by the surrogate over a few of its pictures, evenly
    spread. Noise of the nearest key makes more of what is truly there; that of a far one is hardly
    found by a victim that trains in grayscale (`benchmarks/README.md`). A class alone has nothing
    to be told from, and gets no figures.
    """
    by_class: dict[str, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    new = [name for name in by_class if name not in run.journal.keys]
    shows_key = METHODS[run.spec.settings.method].shows_key
    if not shows_key or run.spec.key is not None or len(by_class) < 2:
        return {}
    if not 0 < len(new) <= len(run.weights.card.classes):
        return {}
    yield Note(f"Assigning a code to each class, by up to {LOOKED_AT} of its pictures.")
    few = []
    for name in new:
        count = len(by_class[name])
        few += [by_class[name][place * count // LOOKED_AT] for place in range(LOOKED_AT)]
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
    """Class -> key, each key used once.

    Choices in `taken`, of former runs, are kept, and the keys of its other classes stay theirs.
    With `nearness`, how near a class is to each of the `available` keys, new classes get the keys
    that are nearest to all of them together, but for the `TAKEN_LAST` nearest of each. Without,
    where a class starts to look for a free key depends on its name alone, so that folders that are
    protected one by one differ.

    Raises BadSetting where there are too few keys.
    """
    wanted, keys = sorted(set(classes)), list(dict.fromkeys(available))
    chosen = {name: key for name, key in taken.items() if key in set(keys)}
    used = set(chosen.values())
    new = [name for name in wanted if name not in chosen]
    if len(new) > len(keys) - len(used):
        former = len(chosen.keys() - set(wanted))
        reserved = f" (and {former:,} more in this output)" if former else ""
        raise BadSetting(
            f"Each class needs a code of its own: {format_count(len(wanted), 'class')}{reserved}, "
            f"but only {format_count(len(keys), 'code')}.",
            "Make fewer classes with --labels cluster:N or --labels single, choose another output "
            "with -o, or train weights with more classes (`tue train`).",
        )
    if nearness and new:
        from scipy.optimize import linear_sum_assignment

        free = [place for place, key in enumerate(keys) if key not in used]
        near = np.zeros((len(new), len(keys)))
        last = min(TAKEN_LAST, (len(keys) - 1) // 3)
        for row, name in zip(near, new, strict=True):
            if name in nearness:
                row[:] = nearness[name]
                row[np.argsort(-row, kind="stable")[:last]] -= len(keys) * np.ptp(row) + 1
        places = linear_sum_assignment(near[:, free], maximize=True)[1]
        chosen |= {name: keys[free[place]] for name, place in zip(new, places, strict=True)}
        return {name: chosen[name] for name in wanted}
    for name in new:
        digest = hashlib.sha256(normalize_name(name).encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") % len(keys)
        while keys[place] in used:
            place = (place + 1) % len(keys)
        chosen[name] = keys[place]
        used.add(keys[place])
    return {name: chosen[name] for name in wanted}
