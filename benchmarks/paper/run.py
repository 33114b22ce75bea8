"""The paper's tables, measured: victim after victim, the most telling first.

Several runs may share one folder at once: each takes what no other has in hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper.cells import Cell
from benchmarks.paper.cifar import detect_cifar, extract_images
from benchmarks.paper.figures import COLOURS, draw_effects, draw_map, render
from benchmarks.paper.layout import TABLES, Bench
from benchmarks.paper.settings import BenchSettings
from benchmarks.paper.tables import (
    NOTE,
    Results,
    ResultTable,
    format_markdown,
    make_grid,
    summarize,
)
from benchmarks.rows import Rows, describe_hardware, format_command
from tue_cli.dataset.output import explain_output_error
from tue_cli.declare import fixed
from tue_cli.errors import BadSetting, is_installed, require
from tue_cli.events import Advanced, Done, Event, Job, Note, Saved, Started, Table
from tue_cli.protect.request import refuse_seed, refuse_size
from tue_cli.storage.reading import MOST_STATE, read_file
from tue_cli.text import escape
from tue_cli.train.checkpoint import write_output
from tue_cli.verify.trials import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.paper.cache import BenchCache, Dataset, Levels
    from tue_cli.engine.torch import ComputeDevice

CELL = "paper"
"""What the rows of victims are called."""


@dataclass(frozen=True)
class BenchSpec:
    """What was asked for."""

    data: tuple[Path, ...]
    output: Path
    tables: tuple[str, ...]
    settings: BenchSettings
    device: str = fixed("auto", "where it is computed")
    dry_run: bool = False
    """Measure nothing: tell how much there is to do, and write the tables of what is known."""


@dataclass(frozen=True)
class _Run:
    """The work on one dataset."""

    plan: Bench
    tables: Sequence[ResultTable]
    rows: Rows
    cache: BenchCache
    dataset: Dataset
    computer: ComputeDevice

    def is_known(self, cell: Cell, trial: Trial) -> bool:
        """Say whether somebody has trained a victim."""
        return not self.rows.is_missing(CELL, cell.describe(self.plan.data, trial))

    def list_missing(self) -> list[tuple[str, Cell, Trial]]:
        """Return the victims that nobody has trained yet."""
        return [entry for entry in self.plan.list_victims() if not self.is_known(*entry[1:])]

    def collect_results(self) -> Results:
        """Return what is known of each cell."""
        found = {
            key: [
                row
                for trial in cell.list_trials()
                if (row := self.rows.find(CELL, cell.describe(self.plan.data, trial)))
            ]
            for key, cell in self.plan.cells.items()
        }
        return {key: summarize(rows) for key, rows in found.items() if rows}


@dataclass(frozen=True)
class BenchPlan:
    """What a bench begins with, in words."""

    data: str
    known: str
    device: str
    output: Path


@dataclass(frozen=True)
class BenchSummary:
    """How long a bench took."""

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
    require("torch", "sklearn")
    if "1" in spec.tables and not spec.dry_run and not is_installed("matplotlib"):
        raise BadSetting(
            "The figures need matplotlib, which is not installed.",
            "Install it with: pip install matplotlib",
        )
    from tue_cli.engine.torch import choose_device

    computer = choose_device(spec.device)
    began = time.monotonic()
    for folder in spec.data:
        run = yield from _open(spec, folder, computer)
        if not spec.dry_run:
            yield from _measure(run)
        results = run.collect_results()
        saved = _write_tables(run)
        for table in run.tables:
            yield Table(table.title, (table.corner, *table.columns), make_grid(table, results))
        yield from saved
        if "1" in spec.tables and not spec.dry_run:
            yield from _write_figures(run, run.tables[spec.tables.index("1")])
    yield Done(
        BenchSummary(round(time.monotonic() - began, 1)),
        (NOTE.replace("\\", ""), f"The tables and their rows are in {spec.output}."),
    )


def _open(spec: BenchSpec, folder: Path, computer: ComputeDevice) -> Generator[Event, None, _Run]:
    """Read a dataset, and say what of the work on it is done."""
    import torch

    from benchmarks.paper.cache import BenchCache, acquire_lock, load_dataset

    if kept := detect_cifar(folder):
        with acquire_lock(spec.output, f"{kept}-data", wait=True):
            yield from extract_images(folder, spec.output / "data" / kept)
        folder = spec.output / "data" / kept
    dataset, failures = load_dataset(folder, spec.settings)
    yield from failures
    with acquire_lock(spec.output, "settings", wait=True):
        _claim(spec)
    where = describe_hardware(
        threads=torch.get_num_threads(),
        dtype=str(computer.dtype).removeprefix("torch."),
        device=computer.description,
    )
    facts = {"hardware": where, "command": format_command()}
    plan = Bench(spec.settings, dataset.name, dataset.make_key())
    tables = [TABLES[name](plan) for name in spec.tables]
    rows = Rows(spec.output / "rows.jsonl", facts=facts)
    cache = BenchCache(spec.output, dataset, computer, spec.device)
    run = _Run(plan, tables, rows, cache, dataset, computer)
    total = len(plan.list_victims())
    told = BenchPlan(
        data=f"{dataset.name}: {len(dataset.labels)} pictures, {len(dataset.test)} to test",
        known=f"{total - len(run.list_missing())} of {total}",
        device=computer.description,
        output=spec.output,
    )
    yield Started(f"Measuring on {dataset.name}", total, "victims", None, told)
    return run


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
                f"{escape(spec.output)} holds the results of another preset, size or seed.",
                "Choose another output with -o.",
            )
    except OSError as error:
        raise explain_output_error(error, spec.output) from None
    write_output(wanted.encode(), place)


def _measure(run: _Run) -> Iterator[Event]:
    """Train the victims that are missing; after each, the tables on disk are up to date."""
    total, begun = len(run.plan.list_victims()), time.monotonic()
    whole = _count_passes(run)
    waiting = False
    while missing := run.list_missing():
        for key, cell, trial in missing:
            rate = yield from _try(run, key, cell, trial)
            if rate is not None:
                break
        else:
            if not waiting:
                yield Note("Another bench is at work on all that is left.")
            waiting = True
            time.sleep(1)
            continue
        _write_tables(run)
        rest = _count_passes(run)
        left = rest * (time.monotonic() - begun) / (whole - rest)
        yield Advanced(total - len(run.list_missing()), total, rate, round(left, 1))


def _try(run: _Run, key: str, cell: Cell, trial: Trial) -> Generator[Event, None, float | None]:
    """Train one victim, write its row, and return the pictures a second that it saw.

    None where another bench has it in hand, or what it needs.
    """
    from benchmarks.paper.cache import acquire_lock

    with acquire_lock(run.cache.folder, key) as mine:
        if not mine or run.is_known(cell, trial):
            return None
        # Who makes an arm's pictures takes long; who only loads them does not.
        made = run.cache.has_images(cell.arm)
        with acquire_lock(run.cache.folder, run.cache.make_name(cell.arm), wait=made) as alone:
            if not alone:
                return None
            pixels, weights = yield from run.cache.make_images(cell.arm)
        return (yield from _train_victim(run, cell, trial, pixels, weights))


def _train_victim(
    run: _Run, cell: Cell, trial: Trial, pixels: Levels, weights: str | None
) -> Generator[Event, None, float]:
    from benchmarks.victims import list_figures
    from tue_cli.verify.trainer import train_victim

    begun = time.monotonic()
    result, _ = yield from train_victim(trial, run.dataset.make_arms(pixels), run.computer)
    run.rows.add(
        CELL,
        cell.describe(run.plan.data, trial),
        arm=cell.arm.name,
        dataset=run.dataset.name,
        pictures=len(run.dataset.labels),
        weights_sha256=weights,
        **list_figures(result),
        wall_seconds=round(time.monotonic() - begun, 1),
        seed=trial.seed,
        n=1,
    )
    rate: float = result["rate"]
    return rate


def _count_passes(run: _Run) -> float:
    """Return about how much is left, with what must be made for it, in passes."""
    made: set[str] = set()
    work = 0.0
    for _, cell, _ in run.list_missing():
        training, noise = cell.arm.count_passes()
        passes = cell.count_passes()
        if not run.cache.has_images(cell.arm) and run.cache.make_name(cell.arm) not in made:
            passes += training + noise * len(run.dataset.labels)
        made.add(run.cache.make_name(cell.arm))
        work += passes
    return work


def _write_tables(run: _Run) -> list[Saved[None]]:
    """Write the tables of what is known, in Markdown."""
    from benchmarks.paper.cache import acquire_lock

    folder = run.cache.folder
    with acquire_lock(folder, "tables", wait=True):
        results = run.collect_results()
        return [
            _save_file(format_markdown(table, results).encode(), folder / f"{table.name}.md")
            for table in run.tables
        ]


def _write_figures(run: _Run, table: ResultTable) -> Iterator[Event]:
    """Draw the paper's figures, each where what it shows was measured."""
    from benchmarks.paper.cache import acquire_lock

    results, folder = run.collect_results(), run.cache.folder
    drawings: dict[str, Figure] = {}
    if any(results.get(place.key) for (row, _), place in table.places.items() if row == "4/255"):
        drawings["figure-1"] = draw_effects(table, results)
    arms = {name: run.plan.make_arm(name) for name in COLOURS}
    # The paper does not say by whose features: here they are those of a net trained on clean
    # pictures.
    eyes = run.plan.make_arm("TAP")
    if all(run.cache.has_images(arm) for arm in (*arms.values(), eyes)):
        every = dict.fromkeys(arms, run.dataset.pixels)
        for name, arm in arms.items():
            with acquire_lock(folder, run.cache.make_name(arm), wait=True):
                every[name], _ = yield from run.cache.make_images(arm)
        with acquire_lock(folder, run.cache.make_name(eyes), wait=True):
            points = yield from run.cache.map_images(eyes, every)
        drawings["figure-2"] = draw_map(points, f"t-SNE of {len(points['clean'])} pictures, thrice")
    mark = table.name.removeprefix("table-1-")
    with acquire_lock(folder, "tables", wait=True):
        saved = [
            _save_file(render(figure, kind), folder / f"{name}-{mark}.{kind}")
            for name, figure in drawings.items()
            for kind in ("svg", "png")
        ]
    yield from saved


def _save_file(content: bytes, path: Path) -> Saved[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(content, path)
    return Saved(None, path, len(content), None)
