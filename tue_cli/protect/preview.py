"""A few of somebody's own pictures, protected to be looked at, and what the whole run would take.

They go through the very pipeline of `tue protect`, into a folder of their own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from tue_cli.dataset import discover
from tue_cli.dataset.journal import Journal, former_run
from tue_cli.engine.select import engine_for
from tue_cli.events import Done, Event, Failed, Looked, Note, Saved, Started
from tue_cli.images.thumbnails import full_difference, make_thumbnails
from tue_cli.protect.pipeline import BATCH, Pipeline
from tue_cli.protect.plan import (
    ProtectSpec,
    Task,
    check,
    label_items,
    plan_tasks,
    select_pending,
    weights_for,
)
from tue_cli.protect.run import describe_run

LOOKED_AT = 3
TRIED = 9
"""Pictures that may be tried where some cannot be protected."""


def preview(spec: ProtectSpec, scratch: Path) -> Generator[Event, None, None]:
    """Protect three of the pictures into `scratch`, show them, and tell time and visibility.

    Raises:
        TueError: as `tue protect` would.
    """
    check(spec)
    output = spec.output or discover.default_output(spec.paths)
    found = discover.discover(spec.paths, output)
    weights = weights_for(spec)
    engine = engine_for(
        weights,
        spec.settings.method,
        spec.settings.noise,
        seed=spec.settings.seed,
        backend=spec.backend,
        device=spec.device,
        batch=BATCH,
        pictures=len(found.items),
        former=former_run(output).get("engine"),
    )
    threads = spec.jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        former = Journal(output, describe_run(spec, weights, engine), "skip")
        former.recall()
        # Clusters and near keys need many pictures decoded, and three look the same without.
        clustered = spec.labels.partition(":")[0] == "cluster"
        named = replace(spec, labels="single") if clustered else spec
        items = label_items(named, found, weights, engine, pool, former, [])
        tasks = plan_tasks(named, items, weights, former)
        left = select_pending(spec, tasks, former)
        yield Started("Looking", LOOKED_AT, "pictures", facts={"engine": engine.description})
        qualities: list[float] = []
        tried, spent = 0, 0.0
        places = _pick_evenly(tasks, TRIED)
        with Journal(scratch, {}, "overwrite") as journal:
            while tried < len(places) and len(qualities) < LOOKED_AT:
                few = places[tried : tried + LOOKED_AT - len(qualities)]
                tried += len(few)
                work = Pipeline(spec, scratch, weights, engine, journal, pool, threads)
                began = time.monotonic()
                events = list(work.run(few, len(few)))
                spent += time.monotonic() - began - work.engine_seconds
                for event in events:
                    if isinstance(event, Saved) and event.source is not None:
                        qualities.append(event.facts["psnr"])
                        event = _load_preview(event, event.source, scratch)
                    if isinstance(event, Looked | Failed):
                        yield event
        if not qualities:
            yield Note("None of the pictures that were tried can be protected.")
        # Timed once more: the first batch of a process is slow.
        began, side = time.monotonic(), weights.card.size
        engine.perturb(np.zeros((1, 3, side, side), np.float32), np.zeros(1, np.int64), [0])
        a_batch = time.monotonic() - began
        seconds = -(-len(left) // engine.batch) * a_batch + len(left) * spent / max(1, tried)
        yield Done(
            {
                "pictures": len(left),
                "already_done": len(tasks) - len(left),
                "seconds": round(seconds, 1),
                "psnr": round(statistics.fmean(qualities), 1) if qualities else None,
                "engine": engine.description,
                "weights": weights.name,
            }
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load_preview(saved: Saved, source: Path, scratch: Path) -> Looked:
    views = make_thumbnails(source, saved.path, saved.facts)
    difference = scratch / f"{saved.path.stem}-difference.png"
    difference.write_bytes(full_difference(source, saved.path))
    facts = {**saved.facts, "difference": str(difference), "note": views.note}
    return Looked(source, saved.path, views.before, views.after, views.difference, facts)


def _pick_evenly(tasks: Sequence[Task], most: int) -> list[Task]:
    """Return at most so many, evenly spread, the first of them farthest apart."""
    most = min(most, len(tasks))
    places = [round(number * (len(tasks) - 1) / max(1, most - 1)) for number in range(most)]
    first = [places[0], places[most // 2], places[-1]]
    return [tasks[place] for place in dict.fromkeys([*first, *places])]
