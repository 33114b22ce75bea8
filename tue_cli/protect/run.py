"""`tue protect`: pictures in, protected copies out; decoding and encoding beside the engine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tue_cli.dataset.labels import describe_scope
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.memory import remember_copies, remember_originals
from tue_cli.dataset.output import is_output
from tue_cli.dataset.records import read_failures, read_unfinished
from tue_cli.events import Done, Event, Failed, Job, Note, Started
from tue_cli.protect.codes import choose_codes, record_codes
from tue_cli.protect.context import RunContext, keep_secret_of, open_run, tell_found
from tue_cli.protect.forecast import check_space, forecast
from tue_cli.protect.labels import Labelled, label_items
from tue_cli.protect.pipeline import Pipeline
from tue_cli.protect.plan import Task, describe_plan, plan_tasks
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import (
    ProtectForecast,
    ProtectSummary,
    count_left_alone,
    describe,
    describe_forecast,
    tell_left_alone,
)
from tue_cli.report.write import write_report
from tue_cli.text import escape


def protect(
    spec: ProtectSpec, wants: Callable[[Path], bool] | None = None
) -> Job[ProtectForecast | ProtectSummary]:
    """Protect pictures, yielding what happens; the consumer may stop at any event.

    Args:
        spec: what was asked for.
        wants: which originals to look at, where not at all of them. The others keep their copies
            and their entries in the manifest.

    Raises:
        TueError: before any work for what cannot work, during it for a full disk.
    """
    began = time.monotonic()
    with open_run(spec) as run:
        if spec.retry_failed and not run.failures:
            yield _tell_none_failed(run)
            return
        yield from tell_found(run if wants is None else _narrow(run, wants))
        notes: list[str] = []
        labelled = yield from label_items(run, spec.labels, notes.append)
        scope = describe_scope({i.label for i in labelled.items}) if labelled.items else ()
        yield from (Note(text) for text in (*notes, *scope))
        if spec.dry_run:
            codes = yield from choose_codes(run, labelled.items)
            plan = yield from forecast(run, plan_tasks(run, labelled.items, codes))
            yield Done(plan, tuple(describe_forecast(plan)))
            return
        tasks, work = yield from _write_copies(run, labelled, wants)
        yield from work.notes.tell()
        yield from (Note(text) for text in work.list_warnings())
        yield from (Note(text) for text in tell_left_alone(work.counts))
        manifest = run.output / MANIFEST
        remember_copies(run.output)
        remember_originals(run.output, ((t.item.source, t.item.relative) for t in tasks))
        report = spec.report if manifest.is_file() else None
        if report is not None:
            sources = {task.relative.as_posix(): task.item.source for task in tasks}
            yield from write_report(
                report,
                read_manifest(run.output),
                run.output,
                lambda record: sources.get(record["path"]),
                command=spec.command,
            )
        result = ProtectSummary(
            protected=work.counts["Saved"],
            already_done=work.counts["done"],
            already_protected=count_left_alone(work.counts),
            failed=work.counts["Failed"],
            reasons=Counter(failure["reason"] for failure in work.failures),
            output=run.output,
            manifest=manifest,
            seconds=round(time.monotonic() - began, 3),
            engine_seconds=round(work.engine_seconds, 3),
            scope=scope,
            notes=work.notes.count(),
        )
        again = wants is not None
        yield Done(result, tuple(describe(result, spec.paths, report, again=again)))


def _narrow(run: RunContext, wants: Callable[[Path], bool]) -> RunContext:
    """Return the run without what was found beside the pictures, but for what is wanted."""
    refused = tuple(entry for entry in run.found.refused if wants(entry[0]))
    return replace(run, found=replace(run.found, ignored=(), refused=refused))


def _write_copies(
    run: RunContext, labelled: Labelled, wants: Callable[[Path], bool] | None
) -> Generator[Event, None, tuple[Sequence[Task], Pipeline]]:
    """Write a copy of every picture and the manifest; return what was to be done, and what was.

    Where all pictures are left alone, and nothing was ever written, nothing is.
    """
    with run.journal:
        try:
            run = yield from keep_secret_of(run)
            codes = yield from choose_codes(run, labelled.items)
            tasks = plan_tasks(run, labelled.items, codes)
            record_codes(run, codes)
            if labelled.clusters:
                run.journal.record_classes(labelled.clusters, labelled.given)
            wanted = tasks
            if wants is not None:
                run = _narrow(replace(run, failures=_list_failures(run, tasks)), wants)
                wanted = tuple(task for task in tasks if wants(task.item.source))
            yield from check_space(run, wanted)
            total = len(wanted) + len(run.found.refused)
            yield Started("Protecting", total, "pictures", None, describe_plan(run, tasks))
            work = Pipeline(run)
            for path, reason, message in run.found.refused:
                work.count(Failed(path, reason, message))
                run.journal.record_failure(work.failures[-1])
            for event in work.run(wanted, total):
                if isinstance(event, Failed):
                    run.journal.record_failure(work.failures[-1])
                yield event
            if count_left_alone(work.counts) < work.counts.total() or is_output(run.output):
                run.journal.finish(_summarize(run, wanted, work))
            return tasks, work
        finally:
            # Threads that write are over before the folder is let go.
            run.pool.shutdown(wait=True, cancel_futures=True)


def _list_failures(run: RunContext, tasks: Sequence[Task]) -> tuple[dict[str, str], ...]:
    """Return what failed in the last run, and is still there."""
    there = {path.as_posix() for path, _, _ in run.found.refused}.union(*(t.names for t in tasks))
    failures = read_failures(run.output)
    return run.failures or tuple(failure for failure in failures if failure["path"] in there)


def _summarize(run: RunContext, tasks: Sequence[Task], work: Pipeline) -> dict[str, Any]:
    """Return what the manifest says of the run, and the failures that it did not try again."""
    tried = {path.as_posix() for path, _, _ in run.found.refused}
    if run.failures:
        tried = tried.union(*(task.names for task in tasks))
    kept = [failure for failure in run.failures if failure["path"] not in tried]
    return {"failed": sorted([*work.failures, *kept], key=lambda failure: failure["path"])}


def _tell_none_failed(run: RunContext) -> Done[ProtectForecast | ProtectSummary]:
    """Return the end of a run that was to try failures again, where there are none."""
    where = escape(run.output)
    said = f"Nothing to do: no picture failed in the last run that finished in {where}."
    if not os.path.lexists(run.output / MANIFEST):
        said = f"Nothing to do: no run has finished in {where}."
    if read_unfinished(run.output) is not None:
        said += " A run was stopped; leave out --retry-failed to continue it."
    if run.spec.dry_run:
        return Done(ProtectForecast(True, 0, 0, 0, {}, None, None, None), (said,))
    manifest = run.output / MANIFEST
    return Done(ProtectSummary(0, 0, 0, {}, run.output, manifest, 0.0, 0.0), (said,))
