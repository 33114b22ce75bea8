"""`tue protect` of a data set by URL: shards in, protected shards out, on one machine or many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tue_cli.config import METHODS
from tue_cli.dataset.output import WORK
from tue_cli.dataset.remote import Place, expand
from tue_cli.dataset.shards import FIELD
from tue_cli.errors import NothingToDo, OutputProblem, refuse_unless, require
from tue_cli.events import Advanced, Done, Event, Failed, Job, Note, Saved, Started
from tue_cli.protect.collection_plan import (
    Known,
    describe_collection,
    open_secret,
    plan_codes,
    read_plan,
    refuse_output,
    refuse_places,
    to_url,
    write_plan,
)
from tue_cli.protect.context import choose_weights
from tue_cli.protect.distributed import Stage, open_workers
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.sharding import PARTS, Listing, Outcome, Recipe, Shard, list_shards
from tue_cli.protect.worker import Worker
from tue_cli.text import escape, format_count, format_duration
from tue_cli.weights import Weights


@dataclass(frozen=True)
class CollectionSpec:
    """What `tue protect` was asked for, where a URL was given or Ray."""

    sources: tuple[str, ...]
    output: str
    spec: ProtectSpec
    """All other settings; its paths are not used."""

    def validate(self) -> None:
        """Raise BadSetting for what cannot work."""
        spec = self.spec
        spec.validate()
        given = {
            "--watch": spec.watch,
            "--report": spec.report,
            "--retry-failed": spec.retry_failed,
            "--include": spec.include,
            "--exclude": spec.exclude,
            "--no-recursive": spec.no_recursive,
        }
        for option, value in given.items():
            refuse_unless(
                not value,
                f"{option} is for folders on this machine.",
                "Leave it out for URLs and --engine ray.",
            )
        refuse_unless(
            spec.labels in ("auto", "folders", "single") or spec.labels.startswith(FIELD),
            f"--labels {spec.labels} is for folders on this machine.",
            f"Choose auto, single or {FIELD}NAME.",
        )
        refuse_unless(
            spec.address is None or spec.engine == "ray",
            "--address is for --engine ray.",
            "Add --engine ray.",
        )


@dataclass(frozen=True)
class CollectionPlan:
    """What was decided before the first shard."""

    output: str
    weights: str
    method: str
    engine: str
    radius: str
    classes: int
    workers: int


@dataclass(frozen=True)
class ShardRecord:
    """What came of a shard."""

    shard: str
    """Below the output."""
    protected: int
    failed: int
    seconds: Mapping[str, float]
    """By part of the work."""


@dataclass(frozen=True)
class CollectionSummary:
    """What came of a run over shards."""

    shards: int
    """Written in this run."""
    already_done: int
    shards_failed: int
    protected: int
    """Pictures in the shards of this run."""
    failed: int
    """Pictures that were left out of the shards of this run."""
    reasons: Mapping[str, int]
    output: str
    seconds: float
    incomplete: int = 0
    """Finished shards of former runs that lack some of their pictures."""
    dry_run: bool = False


def _give_up(told: Mapping[str, Any]) -> dict[str, Any]:
    message = "Every worker that began it died, perhaps for lack of memory."
    return asdict(Outcome(told["path"], "failed", "worker-died", message))


PROTECT = Stage(Worker, _give_up)


def protect_collection(asked: CollectionSpec) -> Job[CollectionSummary]:
    """Protect the shards of a data set, yielding what happens; the consumer may stop at any event.

    Raises:
        TueError: before any work for what cannot work, during it for an output that is full.
    """
    began = time.monotonic()
    asked.validate()
    spec = asked.spec
    require("fsspec", "pyarrow")
    sources = tuple(Place(to_url(url)) for given in asked.sources for url in expand(given))
    target = Place(to_url(asked.output).rstrip("/"))
    refuse_places(sources, target)
    weights = choose_weights(spec)
    refuse_unless(
        spec.key is None or spec.key in weights.card.classes,
        f"--key must be a class of the weights {weights.name}, not {spec.key!r}.",
        f"Choose one of: {', '.join(weights.card.classes)}.",
    )
    found = list_shards(sources, spec)
    if not found.shards and not found.refused:
        where = ", ".join(place.shown for place in sources[:3])
        raise NothingToDo(
            f"What {where} contains lies in the outputs of earlier runs."
            if found.copies
            else f"There are no shards and no pictures in {where}.",
            "Name a folder with .tar files, .parquet files or pictures.",
        )
    known = read_plan(target)
    finished = target.list_own(PARTS) if known else set()
    recipe = Recipe(sources, target, spec, open_secret(keep=not spec.dry_run))
    refuse_output(recipe, known, weights)
    yield from (Failed(Path(path), reason, message) for path, reason, message in found.refused)
    if found.ignored:
        yield Note(
            f"{format_count(found.ignored, 'file')} ignored (not a shard, nor a picture in a "
            "source without shards)."
        )
    if found.copies:
        yield Note(
            f"{format_count(found.copies, 'file')} ignored (in the output of an earlier run)."
        )
    if spec.dry_run:
        yield _forecast(recipe, found, known, finished, weights)
        return
    # Before any work, so that an output that cannot be written is known by now. Where all is made
    # anew, codes that were chosen for other weights or by --key are too.
    known = Known() if known is None or spec.existing == "overwrite" else known
    write_plan(target, known)
    try:
        result = yield from _protect(recipe, found, known, finished, weights)
    finally:
        target.clear_scratch()  # of workers that were stopped
    result = replace(result, seconds=round(time.monotonic() - began, 3))
    yield Done(result, tuple(_describe(result)))


def _protect(
    recipe: Recipe, found: Listing, known: Known, finished: set[str], weights: Weights
) -> Generator[Event, None, CollectionSummary]:
    """Assign codes and protect what is not finished; return what came of it."""
    spec = recipe.spec
    if known.run:
        # Where all is finished, no worker is needed to see that.
        former = replace(recipe, run=known.run)
        pending, before, lacking = _select(former, found, finished)
        if not pending:
            return CollectionSummary(
                0, before, len(found.refused), 0, 0, {}, recipe.target.shown, 0.0, lacking
            )
    with open_workers(spec.engine, spec.jobs, spec.address, spec.device) as workers:
        recipe = yield from plan_codes(recipe, found, known, workers, weights)
        pending, before, lacking = _select(recipe, found, finished)
        plan = CollectionPlan(
            recipe.target.shown,
            weights.name,
            spec.settings.method,
            str(recipe.run["engine"]),
            METHODS[spec.settings.method].describe_bound(spec.settings.noise.radius),
            len(recipe.keys),
            min(workers.count, len(pending)),
        )
        yield Started("Protecting", len(pending), "shards", None, plan)
        result = CollectionSummary(
            0, before, len(found.refused), 0, 0, {}, recipe.target.shown, 0.0, lacking
        )
        arguments = {"recipe": recipe, "threads": workers.threads}
        told = [asdict(shard) for shard in pending]
        # So that workers end before what they run in, where the consumer stops.
        with closing(workers.run(PROTECT, arguments, told)) as outcomes:
            return (yield from _tell(outcomes, result, found, len(pending)))


def _select(recipe: Recipe, found: Listing, finished: set[str]) -> tuple[list[Shard], int, int]:
    """Return the shards to be made, how many are finished, and how many of these lack pictures."""
    by_path: dict[str, list[str]] = {}
    for name in finished:
        path = name.removesuffix(".parquet").removesuffix(".failed").rpartition(".")[0]
        by_path.setdefault(path, []).append(name)
    pending, before, with_failures = [], 0, 0
    for shard in found.shards:
        whole, lacking = recipe.name_part(shard), recipe.name_part(shard, 1)
        if recipe.spec.existing != "overwrite" and (whole in finished or lacking in finished):
            before += 1
            with_failures += lacking in finished
            continue
        again = recipe.spec.existing == "overwrite"
        stale = tuple(sorted(by_path.get(shard.path, ())))
        pending.append(replace(shard, again=again, stale=stale))
    return pending, before, with_failures


def _tell(
    outcomes: Iterator[Mapping[str, Any]], result: CollectionSummary, found: Listing, total: int
) -> Generator[Event, None, CollectionSummary]:
    """Yield what came of each shard, and return the sums.

    Raises:
        OutputProblem: a worker could not go on.
    """
    began = time.monotonic()
    reasons = Counter(reason for _, reason, _ in found.refused)
    # Their parts are of no interest to anybody.
    folders = {shard.path for shard in found.shards if shard.kind == "folder"}
    for done, told in enumerate(outcomes, 1):
        outcome = Outcome(**told)
        if outcome.state == "fatal":
            raise OutputProblem(outcome.message, outcome.reason)
        for picture, reason, message in outcome.failed:
            place = Path(picture) if outcome.path in folders else Path(outcome.path) / picture
            yield Failed(place, reason, message)
            reasons[reason] += 1
        if outcome.state == "failed":
            yield Failed(Path(outcome.path), outcome.reason, outcome.message)
            reasons[outcome.reason] += 1
            result = replace(result, shards_failed=result.shards_failed + 1)
        else:
            is_new = outcome.state == "done"
            result = replace(
                result,
                shards=result.shards + is_new,
                already_done=result.already_done + (not is_new),
                incomplete=result.incomplete + (outcome.state == "incomplete"),
                protected=result.protected + outcome.protected,
                failed=result.failed + len(outcome.failed),
            )
            record = ShardRecord(
                outcome.path, outcome.protected, len(outcome.failed), outcome.seconds
            )
            place = Path(outcome.path)
            yield Saved(place, place, outcome.bytes, record)
        rate = result.protected / (time.monotonic() - began)
        pace = done / (time.monotonic() - began)
        yield Advanced(done, total, rate, (total - done) / pace)
    return replace(result, reasons=dict(reasons.most_common()))


def _forecast(
    recipe: Recipe, found: Listing, known: Known | None, finished: set[str], weights: Weights
) -> Done[CollectionSummary]:
    """Return the end of a dry run."""
    if known and known.run:
        kind = known.run["engine"]
        run = describe_collection(recipe.spec, weights, recipe.secret, kind)
        recipe = replace(recipe, run=run)
    pending, before, _ = _select(recipe, found, finished)
    result = CollectionSummary(
        len(pending), before, len(found.refused), 0, 0, {}, recipe.target.shown, 0.0, 0, True
    )
    said = [f"{format_count(len(pending), 'shard')} to protect."]
    if before:
        said.append(f"Already done: {format_count(before, 'shard')}.")
    return Done(result, (*said, "Nothing was written."))


def _describe(result: CollectionSummary) -> Iterator[str]:
    """Yield what came of a run, in sentences."""
    if result.shards:
        yield (
            f"Protected {format_count(result.protected, 'picture')} in "
            f"{format_count(result.shards, 'shard')} in {format_duration(result.seconds)}."
        )
    elif result.already_done and not result.shards_failed:
        yield f"Nothing to do: {format_count(result.already_done, 'shard')} up to date."
    if result.shards and result.already_done:
        yield f"Already done: {format_count(result.already_done, 'shard')}."
    if result.failed:
        yield (
            f"Left out, because they could not be protected: "
            f"{format_count(result.failed, 'picture')}."
        )
    if result.shards_failed:
        yield f"Not protected: {format_count(result.shards_failed, 'shard')}."
    if result.incomplete:
        yield (
            f"Finished before, but without some of their pictures: "
            f"{format_count(result.incomplete, 'shard')}. The manifest in {WORK}/{PARTS} says why."
        )
    yield f"Shards: {escape(result.output)}"
