"""`tue protect`: pictures in, protected copies out; decoding and encoding beside the engine."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import tue_cli
from tue_cli import __version__
from tue_cli.config import METHODS
from tue_cli.dataset import discover
from tue_cli.dataset.journal import Journal, former_run
from tue_cli.dataset.manifest import read_manifest
from tue_cli.engine.select import engine_for
from tue_cli.engine.torch import Engine
from tue_cli.errors import PictureProblem
from tue_cli.events import Done, Event, Failed, Note, Started
from tue_cli.images import codec, encode, resize
from tue_cli.protect.pipeline import ALGORITHM, BATCH, Pipeline
from tue_cli.protect.plan import (
    ProtectSpec,
    Task,
    check,
    label_items,
    measure_nearness,
    plan_tasks,
    select_pending,
    weights_for,
)
from tue_cli.report.write import write_report
from tue_cli.weights import Weights


def protect(spec: ProtectSpec) -> Generator[Event, None, None]:
    """Protect pictures, yielding what happens; the consumer may stop at any event.

    Raises:
        TueError: before any work for what cannot work, during it for a full disk.
    """
    began = time.monotonic()
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
    for path, reason, message in found.refused:
        yield Failed(path, reason, message)
    for reason, count in sorted(Counter(reason for _, reason in found.ignored).items()):
        yield Note(f"Left aside: {count} × {reason}.")
    threads = spec.jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        notes: list[str] = []
        originals = discover.find_source_folders(found.items)
        journal = Journal(output, describe_run(spec, weights, engine), spec.existing, originals)
        journal.recall()
        items = label_items(spec, found, weights, engine, pool, journal, notes)
        yield from (Note(text) for text in notes)
        if spec.dry_run:
            near = yield from measure_nearness(spec, items, weights, engine, pool, journal)
            tasks = plan_tasks(spec, items, weights, journal, near)
            left = select_pending(spec, tasks, journal)
            seconds = _estimate(left, weights, engine, spec, threads)
            facts = _facts(spec, output, weights, engine, tasks)
            yield Started("Would protect", len(left), "pictures", seconds, facts)
            yield Done(
                {
                    "dry_run": True,
                    "pictures": len(left),
                    "already_done": len(tasks) - len(left),
                    "estimated_seconds": seconds,
                }
            )
            return
        with journal:
            try:
                near = yield from measure_nearness(spec, items, weights, engine, pool, journal)
                tasks = plan_tasks(spec, items, weights, journal, near)
                facts = _facts(spec, output, weights, engine, tasks)
                total = len(tasks) + len(found.refused)
                yield Started("Protecting", total, "pictures", None, facts)
                work = Pipeline(spec, output, weights, engine, journal, pool, threads)
                for path, reason, message in found.refused:
                    work.count(Failed(path, reason, message))
                yield from work.run(tasks, total)
                manifest = journal.finish(work.summary())
            finally:
                # Threads that write are over before the folder is let go.
                pool.shutdown(wait=True, cancel_futures=True)
        yield from (Note(text) for text in work.warnings())
        if spec.report is not None:
            sources = {task.relative.as_posix(): task.item.source for task in tasks}
            yield from write_report(
                spec.report,
                read_manifest(output),
                output,
                lambda record: sources.get(record["path"]),
                command=spec.command,
            )
        yield Done(
            {
                "protected": work.counts["Saved"],
                "already_done": work.counts["Skipped"],
                "failed": work.counts["Failed"],
                "reasons": dict(Counter(failure["reason"] for failure in work.failures)),
                "output": str(output),
                "manifest": str(manifest),
                "seconds": round(time.monotonic() - began, 3),
                "engine_seconds": round(work.engine_seconds, 3),
            }
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def describe_run(spec: ProtectSpec, weights: Weights, engine: Engine) -> dict[str, Any]:
    """Return what decides the copies' bytes and, with `tool` and `algorithm`, who made them."""
    return {
        "tool": describe_tool(),
        "algorithm": ALGORITHM,
        "engine": engine.kind,
        "weights": {"name": weights.name, "sha256": weights.sha256},
        "settings": asdict(spec.settings),
        "format": spec.format,
        "quality": spec.quality,
    }


def _facts(
    spec: ProtectSpec, output: Path, weights: Weights, engine: Engine, tasks: Sequence[Task]
) -> dict[str, Any]:
    return {
        "output": str(output),
        "weights": weights.name,
        "method": spec.settings.method,
        "engine": engine.description,
        "radius": METHODS[spec.settings.method].promise(spec.settings.noise.radius),
        "keys": {task.item.label: task.key for task in tasks},
    }


def _estimate(
    tasks: Sequence[Task], weights: Weights, engine: Engine, spec: ProtectSpec, threads: int
) -> float | None:
    """Return about how long the run will take, from one batch and one picture of the run."""
    for task in tasks:
        began = time.monotonic()
        try:
            picture = codec.decode(codec.read(task.item.source))
            small = resize.resize_to_square(picture.pixels, weights.card.size)
            encode.encode(
                picture,
                resize.add_upsampled(small * 0, picture.pixels, 1.0),
                format=spec.format,
                quality=spec.quality,
            )
        except (PictureProblem, MemoryError):
            continue
        a_picture = time.monotonic() - began
        began = time.monotonic()
        engine.perturb(np.stack([small] * BATCH), np.zeros(BATCH, np.int64), [0] * BATCH)
        a_batch = time.monotonic() - began
        return round(-(-len(tasks) // BATCH) * a_batch + len(tasks) * a_picture / threads, 1)
    return None


def describe_tool() -> dict[str, str]:
    """Return the version and the sha256 of tue's own sources."""
    state = hashlib.sha256()
    root = Path(tue_cli.__file__).parent
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {"version": __version__, "sha256": state.hexdigest()}
