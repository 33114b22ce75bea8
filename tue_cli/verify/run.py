"""`tue verify`: pair, split, train victims on every arm, judge by the weakest link."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tue_cli.attacks.filters import LEARNED
from tue_cli.attacks.registry import ATTACKS
from tue_cli.config import BUDGETS, PRETRAINED_PACKAGE, VerifySettings
from tue_cli.dataset.manifest import read_manifest
from tue_cli.errors import PackageMissing, is_installed, require
from tue_cli.events import Advanced, Done, Event, Failed, Job, Note, Started, make_plain
from tue_cli.protect.context import describe_tool
from tue_cli.report.write import write_report
from tue_cli.text import escape, format_size
from tue_cli.verify.dataset import CROPPED_FROM, VictimDataset
from tue_cli.verify.pairs import find_original, locate_originals
from tue_cli.verify.request import VerifySpec, format_victim, read_provenance
from tue_cli.verify.result import (
    VerifyPlan,
    VerifyResult,
    VerifySetup,
    describe,
    describe_attack,
    describe_input,
    describe_question,
    make_row,
    make_table,
    summarize,
)
from tue_cli.verify.split import (
    adapt_settings,
    choose_working_size,
    explain_shortage,
    load_datasets,
    split_pairs,
)
from tue_cli.verify.stats import Row, compare_with_standard, judge_rows, make_inconclusive
from tue_cli.verify.trials import (
    Group,
    Trial,
    TrialCache,
    adapt_to_photographs,
    build_groups,
    find_missing,
    is_tried,
    list_unique_trials,
)

if TYPE_CHECKING:
    from tue_cli.engine.torch import ComputeDevice
    from tue_cli.verify.restored import Restored
    from tue_cli.verify.trainer import Costs, Filtering

ONE_SEED = (
    "each figure comes from one victim, and its interval covers only the choice of test pictures; "
    "--seeds 3 also shows how much victims differ"
)


@dataclass(frozen=True)
class VictimWork:
    """What victims are trained on, and how."""

    settings: VerifySettings
    folds: tuple[VictimDataset, ...]
    """The pictures, or each fold of them."""
    pictures: tuple[int, str]
    """How many different ones decide how sure the result is, and what they are called."""
    costs: Costs
    filtering: Filtering
    computer: ComputeDevice
    cache: TrialCache
    """Of the victims that are finished."""
    restored: tuple[Restored, ...]
    """The folds as the attacker that restores pictures has them, where it is tried."""
    learning: float
    """Seconds that it learns in each fold."""

    @property
    def arms(self) -> VictimDataset:
        """The first fold, which has the classes of all."""
        return self.folds[0]

    def select_folds(self, degrade: str) -> Sequence[VictimDataset]:
        """Return what victims are trained and tested on after a filter, in each fold."""
        return [fold.arms for fold in self.restored] if degrade == LEARNED else self.folds


def verify(spec: VerifySpec) -> Job[VerifyResult]:
    """Train victims on the copies and on their controls, and tell how much less they learned.

    Raises:
        BadSetting: unsuitable settings, no manifest, or originals that are not the copies'.
        OutputProblem: the report or the cache cannot be written.
        PackageMissing: torch, or what an attacker or victim needs that was asked for by name.
        WeightsProblem: pretrained weights are damaged, or of no architecture that tue has.
    """
    require("torch")
    spec = yield from _leave_out_attackers(spec)
    spec = yield from _leave_out_victims(spec)
    spec.validate()
    from tue_cli.engine.torch import choose_device
    from tue_cli.verify.pretrained import identify_victim
    from tue_cli.verify.trainer import refuse_victims

    began = time.monotonic()
    computer = choose_device(spec.device)
    refuse_victims(spec.settings)
    known = tuple(identify_victim(victim) for victim in spec.settings.victims)
    spec = replace(spec, settings=replace(spec.settings, victims=known))
    manifest = read_manifest(spec.protected)
    radius, made = read_provenance(spec.protected, manifest)
    spec = yield from locate_originals(spec, manifest)
    failures: list[Failed] = []
    pool = ThreadPoolExecutor()
    try:
        work = yield from _load_work(spec, manifest, radius, computer, pool, failures)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(work, str):
        judged = make_inconclusive(work)
        result = summarize(judged, VerifySetup(None, None, made), failed=len(failures))
        yield from _write_page(spec, manifest, result)
        yield Done(result, (*describe(judged), *_name_report(spec)))
        return

    settings, arms = work.settings, work.arms
    groups = build_groups(settings, len(arms.labels))
    plan = _plan(work, groups)
    results = yield from _train_victims(spec, plan, list_unique_trials(groups), work)
    chance, rows = 1 / len(arms.classes), _make_rows(work, groups, results)
    judged = judge_rows(rows, chance)
    if settings.seeds == settings.folds == 1 and judged.is_conclusive:
        judged = replace(judged, reasons=(*judged.reasons, ONE_SEED))
    setup = VerifySetup(plan, f"{time.monotonic() - began:.0f} s", made)
    attacks = [
        describe_attack(row, group, results, chance=chance, epochs=group.epochs)
        for row, group in zip(rows, groups, strict=True)
    ]
    if arms.others is not None and judged.is_conclusive:
        told = describe_question(attacks[0], len(arms.classes))
        judged = replace(judged, reasons=(told, *judged.reasons))
    if work.restored and judged.is_conclusive:
        judged = replace(judged, reasons=(*judged.reasons, work.restored[0].describe()))
    result = summarize(judged, setup, failed=len(failures), attacks=attacks, chance=chance)
    yield make_table(rows, chance, recall=arms.others is not None)
    yield from _write_page(spec, manifest, result, work.cache.get(f"{arms.digest()}/embedding"))
    yield Done(result, (*describe(judged), *_name_report(spec)))


def _make_rows(
    work: VictimWork, groups: Sequence[Group], results: Mapping[Trial, Mapping[str, Any]]
) -> list[Row]:
    """Return every attacker on every kind of victim, to be judged."""
    chance, rows = 1 / len(work.arms.classes), []
    for group in groups:
        first, *others = work.select_folds(group.attack.filter)
        tested = first.count_tested(*others)
        rows.append(make_row(group, results, tested=tested, chance=chance, pictures=work.pictures))
    return compare_with_standard(rows)


def _name_report(spec: VerifySpec) -> Iterator[str]:
    if spec.report is not None:
        yield f"Report: {escape(spec.report)}"


def _leave_out_attackers(spec: VerifySpec) -> Generator[Event, None, VerifySpec]:
    """Drop the attackers of a budget that this installation lacks a package for.

    Raises:
        PackageMissing: the attackers are no budget's, so each was asked for by name.
    """
    attacks = spec.settings.attacks
    missing = find_missing(attacks)
    for name in missing:
        problem = PackageMissing(ATTACKS[name].package)
        if all(attacks != budget.attacks for budget in BUDGETS.values()):
            raise problem
        yield Note(f"The attacker {name} is omitted. {problem}")
    kept = tuple(name for name in attacks if name not in missing)
    return replace(spec, settings=replace(spec.settings, attacks=kept))


def _leave_out_victims(spec: VerifySpec) -> Generator[Event, None, VerifySpec]:
    """Drop the pretrained victims of a budget where their package is not installed.

    Raises:
        PackageMissing: the victims are no budget's, so each was asked for by name.
    """
    victims = spec.settings.victims
    missing = [
        v for v in victims if v.start and not v.weights and not is_installed(PRETRAINED_PACKAGE)
    ]
    if missing:
        problem = PackageMissing(PRETRAINED_PACKAGE)
        if all(victims != budget.victims for budget in BUDGETS.values()):
            raise problem
        names = " and ".join(format_victim(victim) for victim in missing)
        yield Note(f"The victims {names} are omitted. {problem}")
    kept = tuple(victim for victim in victims if victim not in missing)
    if kept and all(victim.start == "probe" for victim in kept):
        idle = [name for name in spec.settings.attacks if not is_tried(name, kept[0], kept)]
        if idle:
            yield Note(
                f"The attackers {', '.join(idle)} are omitted: they change pictures during "
                "training, but a probe computes the features of each picture only once."
            )
    return replace(spec, settings=replace(spec.settings, victims=kept))


def _load_work(
    spec: VerifySpec,
    manifest: dict[str, Any],
    radius: float,
    computer: ComputeDevice,
    pool: ThreadPoolExecutor,
    failures: list[Failed],
) -> Generator[Event, None, VictimWork | str]:
    """Return what there is to train, or why that could not tell anything."""
    from tue_cli.verify.restored import plan_restorer, prepare_restored
    from tue_cli.verify.trainer import count_used, fit_settings, measure_costs, measure_filters

    pictures = yield from split_pairs(spec, manifest, pool, failures)
    if (reason := explain_shortage(pictures)) is not None:
        return reason
    settings, size = spec.settings, spec.settings.size or choose_working_size(pictures.train)
    if size >= CROPPED_FROM:
        settings = adapt_to_photographs(settings)
    settings = yield from adapt_settings(settings, pictures)
    # The manifest also holds times, which another run of `tue protect` changes.
    copies = sorted(f"{entry['path']} {entry['sha256']}" for entry in manifest["pictures"])
    cache = TrialCache(f"{describe_tool()}, {computer.description}, {copies}", resume=spec.resume)
    costs = measure_costs(settings, len({pair.label for pair in pictures.train}), size, computer)
    filtering = measure_filters(settings, pictures.train, size, radius)
    restorer, count = plan_restorer(settings, manifest, size, computer), len(pictures.train)
    if spec.seconds is not None:
        seconds = yield from restorer.reserve_time(spec.seconds, settings.folds)
        task = f"{settings} at {size} pixels in {spec.seconds} s"
        settings = fit_settings(settings, task, seconds, costs, filtering, count, cache)
    if count > (most := count_used(settings.seen)):
        yield Note(
            f"{most:,} of {count:,} training pictures are used; a larger --budget uses more."
        )
        pictures = pictures.limit(most, settings.seed)
    known = len(failures)
    folds = load_datasets(
        pictures, size=size, radius=radius, seed=settings.seed, pool=pool, failures=failures
    )
    yield from failures[known:]
    if isinstance(folds, str):
        return folds
    settings, restored = yield from prepare_restored(settings, folds, restorer)
    counted, learning = pictures.count_pictures(), restorer.seconds
    return VictimWork(
        settings, folds, counted, costs, filtering, computer, cache, restored, learning
    )


def _write_page(
    spec: VerifySpec,
    manifest: dict[str, Any],
    result: VerifyResult,
    embedding: dict[str, Any] | None = None,
) -> Iterator[Event]:
    """Write the page, where one was asked for."""
    if spec.report is not None:
        yield from write_report(
            spec.report,
            manifest,
            spec.protected,
            lambda record: find_original(record, spec.original),
            result=make_plain(result),
            embedding=embedding,
            command=spec.command,
        )


def _plan(work: VictimWork, groups: Sequence[Group]) -> VerifyPlan:
    settings, arms = work.settings, work.arms
    recall = f"recall of your class among {len(arms.classes)}"
    return VerifyPlan(
        measured="accuracy" if arms.others is None else recall,
        victims=", ".join(format_victim(victim) for victim in settings.victims),
        attackers=", ".join(settings.attacks),
        picture_size=describe_input(arms),
        memory=format_size(sum(part.count_bytes() for part in work.folds)),
        training_pictures=len(arms.labels),
        held_out_pictures=sum(len(part.test_labels) for part in work.folds),
        classes=len(arms.classes),
        epochs=f"{groups[0].epochs} ({groups[0].trials['clean'][0].steps} steps)",
        adversary_steps=settings.adversary_steps,
        seeds=settings.seeds or 1,
        folds=settings.folds,
        seed=settings.seed,
        device=work.computer.description,
    )


def _train_victims(
    spec: VerifySpec, plan: VerifyPlan, trials: Sequence[Trial], work: VictimWork
) -> Generator[Event, None, dict[Trial, dict[str, Any]]]:
    """Train what the cache does not know yet, and return what became of every victim."""
    from tue_cli.verify.trainer import compute_embedding, train_victim

    cache, computer, count = work.cache, work.computer, len(work.folds)
    digests = [arms.digest() for arms in work.folds]
    digest = digests[0]
    seconds = {trial: trial.steps * work.costs[trial.kind] for trial in trials}
    keys = {trial: f"{digests[trial.fold]}/{trial.make_key()}" for trial in trials}
    learning = [trial for trial in trials if trial.degrade == LEARNED]
    for trial in learning:
        keys[trial] += f"/{work.restored[trial.fold].learned.make_key()}"
    known = {trial: cache.get(keys[trial]) for trial in trials}
    wants_map = spec.report is not None and cache.get(f"{digest}/embedding") is None
    if wants_map and not is_installed("sklearn"):
        yield Note(f"The report has no map of features. {PackageMissing('sklearn')}")
        wants_map = False
    if wants_map:
        known[trials[0]] = None
    missing = [trial for trial in trials if known[trial] is None]
    for trial, more in work.filtering.estimate(missing, len(work.arms.labels)).items():
        seconds[trial] += more
    # The first of a fold learns to restore, for all.
    for trial in {one.fold: one for one in reversed(learning) if one in missing}.values():
        seconds[trial] += work.learning
    planned, spent, worked = sum(seconds[trial] for trial in missing), 0.0, 0.0
    yield Started("Training", len(trials), "victims", round(planned, 1), plan)
    if len(missing) < len(trials):
        yield Note(f"{len(trials) - len(missing)} of {len(trials)} victims are already finished.")
    for number, trial in enumerate(missing, start=1 + len(trials) - len(missing)):
        began = time.monotonic()
        arms = work.select_folds(trial.degrade)[trial.fold]
        results, victim = yield from train_victim(trial, arms, computer, count)
        if wants_map and trial == trials[0]:
            cache.put(f"{digest}/embedding", compute_embedding(victim, arms, computer))
        known[trial] = results
        cache.put(keys[trial], results)
        spent += time.monotonic() - began
        worked += seconds[trial]
        left = (planned - worked) * spent / worked
        yield Advanced(number, len(trials), results["rate"], round(left, 1))
    return {trial: results for trial, results in known.items() if results is not None}
