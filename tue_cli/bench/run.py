"""`tue bench`: the paper's tables, measured: victim after victim, the most telling first.

Several benches may run in one folder at once: each takes what no other has in hand.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tue_cli import __version__
from tue_cli.bench.cells import Cell
from tue_cli.bench.cifar import detect_cifar, extract_images
from tue_cli.bench.figures import COLOURS, Drawing, draw_map, protective_effects
from tue_cli.bench.layout import TABLES, Bench
from tue_cli.bench.tables import NOTE, Results, ResultTable, data, grid, markdown
from tue_cli.config import DEVICES, BenchSettings, setting
from tue_cli.dataset.manifest import output_problem
from tue_cli.errors import BadSetting, require
from tue_cli.events import Advanced, Done, Event, Job, Note, Saved, Started, Table
from tue_cli.protect.request import refuse_seed, refuse_size
from tue_cli.storage.reading import MOST_STATE, read_file
from tue_cli.text import printable
from tue_cli.train.checkpoint import write_output
from tue_cli.verify.trials import Trial

if TYPE_CHECKING:
    from tue_cli.bench.cache import BenchCache, Dataset, Levels
    from tue_cli.engine.torch import ComputeDevice


@dataclass(frozen=True)
class BenchSpec:
    """What `tue bench` was asked for."""

    data: tuple[Path, ...]
    output: Path
    tables: tuple[str, ...]
    settings: BenchSettings
    device: str = setting("auto", "where it is computed", choices=DEVICES)
    dry_run: bool = False
    """Measure nothing: tell how much there is to do, and write the tables of what is known."""


@dataclass(frozen=True)
class BenchPlan:
    """What a bench begins with, in words."""

    data: str
    known: str
    device: str
    output: Path


@dataclass(frozen=True)
class BenchSummary:
    """What was measured: name of a table -> the table."""

    tables: dict[str, Any]
    seconds: float


def bench(spec: BenchSpec) -> Job[BenchSummary]:
    """Measure what the tables want and is not in the folder yet, and write the tables.

    Raises:
        BadSetting: no such table, or data that cannot be measured on.
        OutputProblem: the folder cannot be written.
    """
    if unknown := [name for name in spec.tables if name not in TABLES]:
        raise BadSetting(f"There is no table {unknown[0]!r}.", f"Choose from {', '.join(TABLES)}.")
    refuse_seed(spec.settings.seed)
    refuse_size(spec.settings.size)
    require("torch")
    from tue_cli.bench.cache import BenchCache, acquire_lock, load_dataset
    from tue_cli.engine.torch import machine

    computer = machine(spec.device)
    began = time.monotonic()
    written: dict[str, Any] = {}
    for folder in spec.data:
        if kept := detect_cifar(folder):
            with acquire_lock(spec.output, f"{kept}-data", wait=True):
                yield from extract_images(folder, spec.output / "data" / kept)
            folder = spec.output / "data" / kept
        dataset, failures = load_dataset(folder, spec.settings)
        yield from failures
        with acquire_lock(spec.output, "settings", wait=True):
            _claim(spec)
        shelf = BenchCache(spec.output, dataset, computer, spec.device)
        plan = Bench(spec.settings, dataset.name, dataset.key())
        sheets = [TABLES[name](plan) for name in spec.tables]
        entries = plan.ordered()
        missing = _missing(plan, shelf)
        to_do = BenchPlan(
            data=f"{dataset.name}: {len(dataset.labels)} pictures, {len(dataset.test)} to test",
            known=f"{len(entries) - len(missing)} of {len(entries)}",
            device=computer.description,
            output=spec.output,
        )
        yield Started(f"Measuring on {dataset.name}", len(entries), "victims", None, to_do)
        if not spec.dry_run:
            yield from _measure(plan, shelf, dataset, computer, sheets)
        with acquire_lock(spec.output, "tables", wait=True):
            results = _results(plan, shelf)
            saved = [
                event for sheet in sheets for event in _write_table(sheet, results, spec.output)
            ]
        for sheet in sheets:
            yield Table(sheet.title, (sheet.corner, *sheet.columns), grid(sheet, results))
            written[sheet.name] = data(sheet, results)
        yield from saved
        if "1" in spec.tables and not spec.dry_run:
            yield from _figures(plan, sheets[spec.tables.index("1")], shelf, dataset)
    yield Done(
        BenchSummary(written, round(time.monotonic() - began, 1)),
        (NOTE.replace("\\", ""), f"The tables and cells are in {spec.output}."),
    )


def _claim(spec: BenchSpec) -> None:
    """Keep the settings in the folder; tables of others would take their place.

    Raises:
        BadSetting: the folder has the results of other settings, or two datasets have one name.
        OutputProblem: the folder cannot be written.
    """
    names = [path.resolve().name for path in spec.data]
    if len(set(names)) < len(names):
        raise BadSetting("Two of the folders have one name.", "Measure them one by one.")
    place, wanted = spec.output / "settings.json", json.dumps(asdict(spec.settings), indent=1)
    try:
        spec.output.mkdir(parents=True, exist_ok=True)
        if place.exists() and read_file(place, MOST_STATE) != wanted.encode():
            raise BadSetting(
                f"{printable(spec.output)} holds the results of another preset, size or seed.",
                "Choose another output with -o.",
            )
    except OSError as error:
        raise output_problem(error, spec.output) from None
    write_output(wanted.encode(), place)


def _measure(
    plan: Bench,
    shelf: BenchCache,
    dataset: Dataset,
    computer: ComputeDevice,
    sheets: Sequence[ResultTable],
) -> Iterator[Event]:
    """Train the victims that are missing; after each, the tables on disk are up to date."""
    from tue_cli.bench.cache import acquire_lock

    total, begun = len(plan.ordered()), time.monotonic()
    whole = _work(_missing(plan, shelf), shelf, len(dataset.labels))
    waiting = False
    while missing := _missing(plan, shelf):
        for key, cell, run in missing:
            with acquire_lock(shelf.folder, key) as mine:
                if not mine or str(run.seed) in _seeds(shelf, key):
                    continue
                # Who makes an arm's pictures takes long; who only loads them does not.
                made = shelf.has_pictures(cell.arm)
                with acquire_lock(shelf.folder, shelf.name(cell.arm), wait=made) as alone:
                    if not alone:
                        continue
                    pixels, weights = yield from shelf.pictures(cell.arm)
                rate = yield from _train_victim(
                    key, cell, run, pixels, weights, shelf, dataset, computer
                )
            break
        else:
            if not waiting:
                yield Note("Another bench is at work on all that is left.")
            waiting = True
            time.sleep(1)
            continue
        with acquire_lock(shelf.folder, "tables", wait=True):
            for sheet in sheets:
                list(_write_table(sheet, _results(plan, shelf), shelf.folder))
        missing = _missing(plan, shelf)
        rest = _work(missing, shelf, len(dataset.labels))
        left = rest * (time.monotonic() - begun) / (whole - rest)
        yield Advanced(total - len(missing), total, rate, round(left, 1))


def _train_victim(
    key: str,
    cell: Cell,
    run: Trial,
    pixels: Levels,
    weights: str | None,
    shelf: BenchCache,
    dataset: Dataset,
    computer: ComputeDevice,
) -> Generator[Event, None, float]:
    """Train one victim, keep what became of it, and return the pictures a second it saw."""
    from tue_cli.verify.trainer import train_victim

    begun = time.monotonic()
    result, _ = yield from train_victim(run, dataset.arms(pixels), computer)
    facts = {
        "arm": asdict(cell.arm),
        "victim": asdict(run) | {"seed": None},
        "data": {"name": dataset.name, "key": dataset.key(), "pictures": len(dataset.labels)},
        "weights_sha256": weights,
        "hardware": f"{platform.system()} {platform.machine()}, {computer.description}",
        "software": f"tue {__version__}",
    }
    wall = round(time.monotonic() - begun, 1)
    shelf.keep(key, run.seed, {**result, "wall_seconds": wall}, facts)
    rate: float = result["rate"]
    return rate


def _missing(plan: Bench, shelf: BenchCache) -> list[tuple[str, Cell, Trial]]:
    """Return the victims that nobody has trained yet."""
    return [entry for entry in plan.ordered() if str(entry[2].seed) not in _seeds(shelf, entry[0])]


def _work(missing: Sequence[tuple[str, Cell, Trial]], shelf: BenchCache, pictures: int) -> float:
    """Return about how much these victims take, with what must be made for them, in passes."""
    made: set[str] = set()
    work = 0.0
    for _, cell, _ in missing:
        training, noise = cell.arm.passes()
        passes = cell.passes()
        if not shelf.has_pictures(cell.arm) and shelf.name(cell.arm) not in made:
            passes += training + noise * pictures
        made.add(shelf.name(cell.arm))
        work += passes
    return work


def _seeds(shelf: BenchCache, key: str) -> set[str]:
    return set(shelf.cell(key).get("runs", {}))


def _results(plan: Bench, shelf: BenchCache) -> Results:
    found = {key: shelf.cell(key) for key in plan.cells}
    return {key: cell for key, cell in found.items() if cell}


def _write_table(sheet: ResultTable, results: Results, folder: Path) -> Iterator[Event]:
    """Write a table as Markdown and as JSON."""
    yield _save_file(markdown(sheet, results).encode(), folder / f"{sheet.name}.md")
    as_json = json.dumps(data(sheet, results), indent=1) + "\n"
    yield _save_file(as_json.encode(), folder / f"{sheet.name}.json")


def _figures(
    plan: Bench, sheet: ResultTable, shelf: BenchCache, dataset: Dataset
) -> Iterator[Event]:
    """Draw the paper's figures, each where what it shows was measured."""
    from tue_cli.bench.cache import acquire_lock

    results = _results(plan, shelf)
    drawings: dict[str, Drawing] = {}
    if any(results.get(place.key) for (row, _), place in sheet.places.items() if row == "4/255"):
        drawings["figure-1"] = protective_effects(sheet, results)
    arms = {name: plan.arm(name) for name in COLOURS}
    if all(shelf.has_pictures(arm) for arm in (*arms.values(), plan.arm("TAP"))):
        every = dict.fromkeys(arms, dataset.pixels)
        for name, arm in arms.items():
            with acquire_lock(shelf.folder, shelf.name(arm), wait=True):
                every[name], _ = yield from shelf.pictures(arm)
        # The paper does not say through whose eyes: here it is a net trained on clean pictures.
        eyes = plan.arm("TAP")
        with acquire_lock(shelf.folder, shelf.name(eyes), wait=True):
            points = yield from shelf.mapped(eyes, every)
        drawings["figure-2"] = draw_map(points, f"t-SNE of {len(points['clean'])} pictures, thrice")
    mark = sheet.name.removeprefix("table-1-")
    with acquire_lock(shelf.folder, "tables", wait=True):
        saved = [
            _save_file(draw(), shelf.folder / f"{name}-{mark}.{kind}")
            for name, drawing in drawings.items()
            for kind, draw in (("svg", drawing.svg), ("png", drawing.png))
        ]
    yield from saved


def _save_file(content: bytes, path: Path) -> Saved[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(content, path)
    return Saved(None, path, len(content), None)
