"""A few of somebody's own pictures, protected to be looked at, and what the whole run would take.

They go through the very pipeline of `tue protect`, into a folder of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tue_cli.dataset.journal import Journal
from tue_cli.events import (
    Done,
    Event,
    Failed,
    Job,
    Looked,
    Note,
    Saved,
    Skipped,
    Started,
    make_plain,
)
from tue_cli.images.thumbnails import make_thumbnails, render_difference
from tue_cli.protect.codes import choose_codes
from tue_cli.protect.context import RunContext, open_run
from tue_cli.protect.labels import label_items
from tue_cli.protect.pipeline import Pipeline
from tue_cli.protect.plan import Task, plan_tasks, select_pending
from tue_cli.protect.request import ProtectSpec, count_clusters
from tue_cli.protect.result import CopyRecord, PreviewSummary
from tue_cli.text import escape

LOOKED_AT = 3
TRIED = 9
"""Pictures that may be tried where some cannot be protected."""


def preview(spec: ProtectSpec, scratch: Path) -> Job[PreviewSummary]:
    """Protect three of the pictures into `scratch`, show them, and tell time and visibility.

    Raises:
        TueError: as `tue protect` would.
    """
    with open_run(spec) as run:
        # Clusters and near keys need many pictures decoded, and three look the same without.
        mode = spec.labels if count_clusters(spec.labels) is None else "single"
        items = (yield from label_items(run, mode)).items
        codes = yield from choose_codes(run, items, look=False)
        tasks = plan_tasks(run, items, codes)
        left = select_pending(run, tasks)
        yield Started("Looking", LOOKED_AT, "pictures")
        qualities, a_picture = yield from _protect_few(run, tasks, scratch)
        if not qualities:
            yield Note("None of the pictures that were tried can be protected.")
        # Timed once more: the first batch of a process is slow.
        began, side = time.monotonic(), run.weights.card.size
        pixels, mask = (np.zeros((1, count, side, side), np.float32) for count in (3, 2))
        run.engine.perturb(pixels, np.zeros(1, np.int64), [0], mask)
        a_batch = time.monotonic() - began
        seconds = -(-len(left) // run.engine.batch) * a_batch + len(left) * a_picture
        yield Done(
            PreviewSummary(
                pictures=len(left),
                already_done=len(tasks) - len(left),
                seconds=round(seconds, 3),
                psnr=round(statistics.fmean(qualities), 1) if qualities else None,
                engine=run.engine.description,
            )
        )


def _protect_few(
    run: RunContext, tasks: Sequence[Task], scratch: Path
) -> Generator[Event, None, tuple[list[float], float]]:
    """Show a few copies; return their PSNR, and the seconds that one took beside its noise."""
    qualities: list[float] = []
    tried, spent = 0, 0.0
    places = _pick_evenly(tasks, TRIED)
    with Journal(scratch, {}, "overwrite") as journal:
        aside = replace(run, journal=journal)
        while tried < len(places) and len(qualities) < LOOKED_AT:
            few = places[tried : tried + LOOKED_AT - len(qualities)]
            tried += len(few)
            work = Pipeline(aside)
            began = time.monotonic()
            events = list(work.run(few, len(few)))
            spent += time.monotonic() - began - work.engine_seconds
            for event in events:
                if isinstance(event, Saved):
                    qualities.append(event.copy.psnr)
                    yield _load_preview(event, scratch)
                elif isinstance(event, Failed):
                    yield event
                elif isinstance(event, Skipped):
                    yield Note(f"{escape(event.path.name)}: {event.message}")
    return qualities, spent / max(1, tried)


def _load_preview(saved: Saved[CopyRecord], scratch: Path) -> Looked:
    assert saved.source is not None
    views = make_thumbnails(saved.source, saved.path, make_plain(saved.copy))
    difference = scratch / f"{saved.path.stem}-difference.png"
    difference.write_bytes(render_difference(saved.source, saved.path))
    return Looked(
        source=saved.source,
        path=saved.path,
        before=views.before,
        after=views.after,
        difference=views.difference,
        full_difference=difference,
        note=views.note,
    )


def _pick_evenly(tasks: Sequence[Task], most: int) -> list[Task]:
    """Return at most so many, evenly spread, the first of them farthest apart."""
    most = min(most, len(tasks))
    places = [round(number * (len(tasks) - 1) / max(1, most - 1)) for number in range(most)]
    first = [places[0], places[most // 2], places[-1]]
    return [tasks[place] for place in dict.fromkeys([*first, *places])]
