"""`tue verify`: pair, split, train victims on every arm, judge by the weakest link."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tue_cli import __version__
from tue_cli.errors import BadSetting
from tue_cli.events import Advanced, Event, Failed, Note, Started
from tue_cli.files.manifest import MANIFEST, read_manifest, sha256, shown
from tue_cli.jobs.evidence import (
    Arms,
    Pair,
    limited,
    loaded,
    original_of,
    others_pictures,
    paired,
    split,
    working_size,
)
from tue_cli.jobs.findings import done, facts_of, row_of, table_of, victim_name
from tue_cli.jobs.plan import refuse_seed
from tue_cli.jobs.reporting import refuse_report, reported
from tue_cli.jobs.trials import (
    FEWEST_EPOCHS,
    Book,
    Group,
    Trial,
    distinct,
    epochs_of,
    groups_of,
)
from tue_cli.settings import VerifySettings
from tue_cli.verdict import (
    FEWEST_PICTURES,
    inconclusive,
    verdict,
)

if TYPE_CHECKING:
    from tue_cli.engine import Machine
    from tue_cli.jobs.trying import Costs


@dataclass(frozen=True)
class VerifySpec:
    """What `tue verify` was asked for."""

    protected: Path
    original: Path
    settings: VerifySettings
    seconds: float | None = None
    """Choose `seen` so that the victims take about so long on this machine."""
    holdout: Path | None = None
    background: Path | None = None
    report: Path | None = None
    device: str = "auto"
    resume: bool = False
    command: str = ""


def verify(spec: VerifySpec) -> Generator[Event, None, None]:
    """Train victims on the copies and on their controls, and tell how much less they learned.

    Raises:
        BadSetting: unsuitable settings, no manifest, or originals that are not the copies'.
        OutputProblem: the report or the cache cannot be written.
    """
    _check(spec)
    from tue_cli.engine import machine
    from tue_cli.jobs.trying import fitting, probed, refuse_victims

    began = time.monotonic()
    computer = machine(spec.device)
    refuse_victims(spec.settings)
    manifest = read_manifest(spec.protected)
    radius, made = _made(spec.protected, manifest)
    failures: list[Failed] = []
    pool = ThreadPoolExecutor()
    try:
        pairs, train, held = yield from _divided(spec, manifest, pool, failures)
        if (reason := _too_little(pairs, train, held)) is not None:
            yield done(inconclusive(reason), {}, failures)
            return
        settings, size = spec.settings, spec.settings.size or working_size(train)
        book = Book(
            f"{__version__}, {computer.description}, {sha256(spec.protected / MANIFEST)}",
            resume=spec.resume,
        )
        costs = probed(settings, len({pair.label for pair in train}), size, computer)
        if spec.seconds is not None:
            # What was fitted once is taken again, so that --resume finds its victims.
            task = f"{settings} at {size} pixels in {spec.seconds} s"
            fitted = book.get(task) or fitting(spec.seconds, settings, costs)
            book.put(task, fitted)
            settings = replace(settings, seen=fitted)
        most = max(FEWEST_PICTURES, settings.seen // FEWEST_EPOCHS)
        if len(train) > most:
            yield Note(
                f"{most} of {len(train)} training pictures are used, drawn by content: more would "
                "take a larger --budget."
            )
            held = limited(held, max(1000, round(len(held) * most / len(train))), settings.seed)
            train = limited(train, most, settings.seed)
        spoiled: list[Failed] = []
        arms = loaded(
            train,
            held,
            size=size,
            radius=radius,
            seed=settings.seed,
            pool=pool,
            failed=spoiled.append,
        )
        yield from spoiled
        failures += spoiled
        whole = (_without(spoiled, some) for some in (pairs, train, held))
        if spoiled and (reason := _too_little(*whole)) is not None:
            yield done(inconclusive(reason), {}, failures)
            return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

    groups = groups_of(settings, len(arms.labels))
    setup = _setup(settings, arms, groups, computer)
    results = yield from _all_tried(spec, setup, distinct(groups), costs, arms, computer, book)
    chance = 1 / len(arms.classes)
    rows = [row_of(group, results, arms.tested(), chance) for group in groups]
    judged = verdict(rows, chance)
    setup |= {
        "time": f"{time.monotonic() - began:.0f} s",
        **made,
        "tue": __version__,
    }
    facts = facts_of(judged, rows, groups, results, chance) | {"setup": setup}
    yield table_of(rows, chance)
    finished = done(judged, facts, failures)
    if spec.report is not None:
        yield from reported(
            spec.report,
            manifest,
            spec.protected,
            lambda record: original_of(record, spec.original),
            result=finished.facts,
            embedding=book.get(f"{arms.digest()}/embedding"),
            command=spec.command,
        )
    yield finished


def _setup(
    settings: VerifySettings, arms: Arms, groups: Sequence[Group], computer: Machine
) -> dict[str, Any]:
    """Return the plan, for people."""
    epochs = epochs_of(len(arms.labels), settings.seen)
    return {
        "victims": ", ".join(victim_name(victim) for victim in settings.victims),
        "attackers": ", ".join(settings.attacks),
        "picture size": f"{arms.clean.shape[-1]} × {arms.clean.shape[-1]}",
        "training pictures": len(arms.labels),
        "held-out pictures": len(arms.test_labels),
        "classes": len(arms.classes),
        "epochs": f"{epochs} ({groups[0].trials['clean'][0].steps} steps)",
        "adversary steps": settings.adversary_steps,
        "seeds": settings.seeds,
        "seed": settings.seed,
        "device": computer.description,
    }


def _all_tried(
    spec: VerifySpec,
    setup: dict[str, Any],
    trials: Sequence[Trial],
    costs: Costs,
    arms: Arms,
    computer: Machine,
    book: Book,
) -> Generator[Event, None, dict[Trial, dict[str, Any]]]:
    """Train what the book does not know yet, and return what became of every victim."""
    from tue_cli.jobs.trying import embedding, tried

    digest = arms.digest()
    work = {trial: trial.steps * costs[trial.kind] for trial in trials}
    known = {trial: book.get(f"{digest}/{trial.key()}") for trial in trials}
    if spec.report is not None and book.get(f"{digest}/embedding") is None:
        known[trials[0]] = None
    missing = [trial for trial in trials if known[trial] is None]
    planned, spent, worked = sum(work[trial] for trial in missing), 0.0, 0.0
    yield Started("Training victims", len(trials), "victims", round(planned, 1), facts=setup)
    if len(missing) < len(trials):
        yield Note(f"{len(trials) - len(missing)} of {len(trials)} victims were trained before.")
    for number, trial in enumerate(missing, start=1 + len(trials) - len(missing)):
        began = time.monotonic()
        results, victim = yield from tried(trial, arms, computer)
        if spec.report is not None and trial == trials[0]:
            book.put(f"{digest}/embedding", embedding(victim, arms, computer))
        known[trial] = results
        book.put(f"{digest}/{trial.key()}", results)
        spent += time.monotonic() - began
        worked += work[trial]
        left = (planned - worked) * spent / worked
        yield Advanced(number, len(trials), results["rate"], round(left, 1))
    return {trial: results for trial, results in known.items() if results is not None}


def _check(spec: VerifySpec) -> None:
    settings = spec.settings
    refuse_seed(settings.seed)
    if settings.seeds < 1:
        raise BadSetting(f"{settings.seeds} seeds train no victim.", "Choose 1 or more.")
    if settings.seen < 1 or settings.adversary_steps < 1:
        raise BadSetting("A victim must see pictures, and an adversary take steps.", "Choose more.")
    if not 0 < settings.held_out < 1:
        raise BadSetting(
            f"A held-out share of {settings.held_out:g} cannot be.",
            "Choose more than 0, less than 1.",
        )
    if settings.size is not None and (settings.size < 32 or settings.size % 4):
        raise BadSetting(
            f"Victims cannot see pictures at {settings.size} pixels.",
            "Choose a multiple of 4 from 32.",
        )
    if spec.report is not None:
        refuse_report(spec.report)
    if not spec.protected.is_dir():
        raise BadSetting(
            f"{shown(spec.protected)} is no folder.", "Name a folder that `tue protect` wrote."
        )
    if not spec.original.is_dir():
        raise BadSetting(
            f"{shown(spec.original)} is no folder.",
            "Give --original the folder that was given to `tue protect`.",
        )


def _made(protected: Path, manifest: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the radius of the copies' noise and, for people, how they were made.

    Raises:
        BadSetting: the manifest does not say it.
    """
    run = manifest["run"]
    try:
        settings, weights = run["settings"], run["weights"]
        radius = float(settings["noise"]["radius"])
        if not 0 < radius <= 1:
            raise ValueError(radius)
        return radius, {
            "method": settings["method"],
            "radius": f"{radius * 255:g}/255",
            "weights": f"{weights['name']}, sha256 {weights['sha256']}",
        }
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise BadSetting(
            f"The manifest in {shown(protected)} does not say how its copies were made.",
            "Use the one that `tue protect` wrote.",
        ) from None


def _divided(
    spec: VerifySpec, manifest: dict[str, Any], pool: ThreadPoolExecutor, failures: list[Failed]
) -> Generator[Event, None, tuple[list[Pair], list[Pair], list[Pair]]]:
    """Return the copies with their originals, and all pictures to train on and to test on."""
    settings = spec.settings
    pairs, unpaired, others = paired(spec.protected, spec.original, manifest, pool)
    yield from unpaired
    failures += unpaired
    if others:
        yield Note(
            f"{others} of {len(pairs)} copies are not the files that tue wrote; they are measured "
            "as they are."
        )
    every = list(pairs)
    copies = {record["sha256"] for record in manifest["pictures"]}
    if spec.background is not None:
        known = {pair.sha256 for pair in pairs} | copies
        background = others_pictures(spec.background, pool, classes=False)
        background = [pair for pair in background if pair.sha256 not in known]
        if not background:
            raise BadSetting(
                f"{shown(spec.background)} holds these very pictures.",
                "Give --background other people's pictures.",
            )
        largest = max(
            (sum(p.label == label for p in pairs) for label in {p.label for p in pairs}), default=1
        )
        every += limited(background, largest, settings.seed)
    train, held = split(every, settings.held_out, settings.seed)
    if spec.holdout is not None:
        tested = others_pictures(spec.holdout, pool, classes=True)
        labels = {pair.label for pair in pairs}
        strange = sorted({pair.label for pair in tested} - labels)
        if strange:
            yield Note(f"--holdout has classes that the copies lack: {', '.join(strange[:5])}.")
        if lacking := sorted(labels - {pair.label for pair in tested}):
            yield Note(f"--holdout lacks classes, which are left out: {', '.join(lacking[:5])}.")
        contents = {pair.sha256 for pair in tested}
        if contents & copies - {pair.sha256 for pair in pairs}:
            raise BadSetting(
                f"{shown(spec.holdout)} holds protected copies.",
                "Victims are tested on clean pictures: give --holdout some.",
            )
        kept = [pair for pair in every if pair.sha256 not in contents]
        if len(kept) < len(every):
            yield Note(f"{len(every) - len(kept)} pictures are in --holdout too; none is learned.")
        background_held = [pair for pair in held if pair.copy is None]
        out = {id(pair) for pair in background_held}
        train = [pair for pair in kept if id(pair) not in out]
        held = [pair for pair in tested if pair.label in labels] + background_held
    # To be tested on a picture twice tells no more.
    held = list({(pair.label, pair.sha256): pair for pair in held}.values())
    return pairs, train, held


def _too_little(pairs: Sequence[Pair], train: Sequence[Pair], held: Sequence[Pair]) -> str | None:
    """Return why these pictures cannot tell anything, if they cannot."""
    learned, tested = {pair.label for pair in train}, {pair.label for pair in held}
    different = len({pair.sha256 for pair in pairs})
    if different < FEWEST_PICTURES:
        return (
            f"{different} different pictures with their originals are too few; {FEWEST_PICTURES} "
            "are the least that can tell anything"
        )
    if len({pair.label for pair in pairs} | learned) < 2:
        return (
            "all pictures are of one class, so there is nothing that a model could learn to tell "
            "apart; --background DIR takes other people's pictures as a second class"
        )
    if len(learned & tested) < 2:
        return "fewer than two classes have different pictures to learn and to be tested on"
    return None


def _without(failures: Sequence[Failed], pairs: Sequence[Pair]) -> list[Pair]:
    lost = {failure.path for failure in failures}
    return [pair for pair in pairs if not {pair.original, pair.copy} & lost]
