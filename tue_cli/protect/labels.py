"""The classes of a run's pictures, and what the surrogate sees in them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from tue_cli.config import METHODS
from tue_cli.core.clustering import cluster
from tue_cli.dataset import labels
from tue_cli.dataset.discover import Item
from tue_cli.engine.torch import Floats
from tue_cli.errors import ImageProblem, WeightsProblem, refuse_unless
from tue_cli.images import codec, resize
from tue_cli.protect.context import LARGE, RunContext
from tue_cli.protect.request import count_clusters
from tue_cli.weights import Weights

SEEN_BATCH = 32


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
    seen, features = run_surrogate(run, run.engine.features, items)
    if seen:
        numbers = cluster(features, count, settings.seed)
        names = (f"cluster-{number:02d}" for number in numbers)
        clustered = {item.relative: name for item, name in zip(seen, names, strict=True)}
    return tuple(replace(item, label=clustered.get(item.relative, "cluster-00")) for item in items)


def run_surrogate(
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
            refuse_overflow(rows[-1], run.weights)
    return seen, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def refuse_overflow(values: Floats, weights: Weights) -> None:
    """Raise WeightsProblem where the surrogate's features or logits are not finite."""
    if not np.isfinite(values).all():
        raise WeightsProblem(
            f"The weights {weights.name} see numbers in the pictures that are not finite: theirs "
            "are too large.",
            "Choose other weights with --weights, or train some with `tue train`.",
        )
