"""What a run works with, opened once: pictures, weights, engine, threads, the output's journal."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tue_cli
from tue_cli import __version__
from tue_cli.config import METHODS, TrainSettings
from tue_cli.dataset import discover
from tue_cli.dataset.journal import Journal
from tue_cli.dataset.match import KnownCopies, find_known_copies
from tue_cli.dataset.output import WORK, choose_default_output, find_folder_modes
from tue_cli.dataset.records import read_failures, read_former_run
from tue_cli.dataset.secret import (
    SECRET,
    Secret,
    describe_problem,
    keep_secret,
    make_secret,
    read_secret,
)
from tue_cli.dataset.selection import WHOLE
from tue_cli.engine.select import choose_engine
from tue_cli.engine.torch import Engine
from tue_cli.errors import WeightsProblem
from tue_cli.events import Event, Failed, Note
from tue_cli.protect.request import ProtectSpec
from tue_cli.text import escape, format_ignored
from tue_cli.weights import Weights, load, make_netless

BATCH = 32
"""Pictures the engine takes at once; fixed, because another batch size may round differently."""
ALGORITHM = 4
"""To be raised by hand with every change after which the same picture, code, secret, weights and
settings give other bytes. Copies of a former one stay as they are; each record holds its own."""
LARGE = 64_000_000
"""From so many pixels on, a picture is worked on beside no other such: it bounds the memory."""
KEYS = tuple(f"{number:03d}" for number in range(1000))
"""Keys where no weights bring theirs."""


@dataclass(frozen=True)
class RunContext:
    """A run that is open, for a plan, a preview or the copies."""

    spec: ProtectSpec
    found: discover.Found
    weights: Weights
    engine: Engine
    pool: ThreadPoolExecutor
    threads: int
    """How many of them the pool has."""
    journal: Journal
    """What is known of the output; whoever writes there enters it."""
    secret: Secret
    """What codes and noise depend on; a new one that is kept nowhere yet if there is none."""
    copies: KnownCopies
    """What may lie among the pictures, and is not protected again."""
    failures: tuple[dict[str, str], ...]
    """What failed in the last run, where this one takes only some of the pictures."""

    @property
    def output(self) -> Path:
        """Where the copies go."""
        return self.journal.output


def open_engine(spec: ProtectSpec, weights: Weights, pictures: int, former: str | None) -> Engine:
    """Open the engine for a number of pictures.

    `former` is the kind of engine that made what is there already.

    Raises:
        TueError: as `choose_engine` says.
    """
    return choose_engine(
        weights,
        spec.settings.method,
        spec.settings.noise,
        seed=spec.settings.seed,
        backend=spec.backend,
        device=spec.device,
        batch=BATCH,
        pictures=pictures,
        former=former,
    )


@contextmanager
def open_run(spec: ProtectSpec) -> Iterator[RunContext]:
    """Check what was asked for, find the pictures, and open all that a run works with.

    Nothing is written, and the output is not locked.

    Raises:
        TueError: for what cannot work.
    """
    spec.validate()
    output = spec.output or choose_default_output(spec.paths)
    found = discover.discover(spec.paths, output, spec.selection)
    weights = choose_weights(spec)
    former = read_former_run(output).get("engine")
    engine = open_engine(spec, weights, len(found.items), former)
    originals = discover.find_source_folders(found.items)
    modes = find_folder_modes((item.source, item.relative) for item in found.items)
    journal = Journal(
        output, describe_run(spec, weights, engine.kind), spec.existing, originals, modes
    )
    journal.recall()
    copies = find_known_copies(spec.paths, journal.copies)
    is_part = spec.retry_failed or spec.selection != WHOLE
    failures = read_failures(output) if is_part else ()
    threads = spec.jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        secret = _find_secret(output) or make_secret()
        yield RunContext(
            spec, found, weights, engine, pool, threads, journal, secret, copies, failures
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _find_secret(output: Path) -> Secret | None:
    """Return the secret of this output alone, if it has one, or else the user's."""
    for folder in (output / WORK, None):
        with suppress(OSError):
            if (found := read_secret(folder)) is not None:
                return found
    return None


def keep_secret_of(run: RunContext) -> Generator[Event, None, RunContext]:
    """Keep the run's secret where none is kept yet; return the run with the one that is.

    Where the user's data folder cannot be used, it is kept in the output, which must be entered.
    """
    if (found := _find_secret(run.output)) is not None:
        return replace(run, secret=found)
    try:
        return replace(run, secret=keep_secret(run.secret))
    except OSError as error:
        run.journal.keep(SECRET, run.secret.format().encode())
        yield Note(
            f"{describe_problem(error)} This output has one of its own, in "
            f"{escape(run.output / WORK)}: do not publish that folder."
        )
        return run


def tell_found(run: RunContext) -> Iterator[Event]:
    """Yield what was found and is not to be protected."""
    found = run.found
    yield from (Note(text) for text in run.copies.problems)
    for path, reason, message in found.refused:
        yield Failed(path, reason, message)
    ignored: defaultdict[str, list[str]] = defaultdict(list)
    for path, reason in found.ignored:
        ignored[reason].append(escape(path))
    for reason, names in sorted(ignored.items()):
        yield Note(f"{format_ignored(len(names), reason)}.", tuple(names))


def choose_weights(spec: ProtectSpec) -> Weights:
    """Return the weights of a run; a method without nets needs none.

    Raises:
        WeightsProblem: none are to be found, or they were trained for what does not serve here.
    """
    name, method = spec.settings.method, METHODS[spec.settings.method]
    if not method.recipes and spec.weights is None:
        return make_netless(name, KEYS, TrainSettings().size)
    weights = load(spec.weights)
    if method.recipes and weights.card.method not in method.recipes:
        own = method.recipes[0]
        option = f"--method {own}" if own in METHODS else f"--recipe {own}"
        raise WeightsProblem(
            f"The method {name} needs weights of the recipe {own}; {weights.name} has the recipe "
            f"{weights.card.method}.",
            f"Train some with `tue train DATA {option} -o {own}.safetensors`, and add --weights "
            f"{own}.safetensors.",
        )
    return weights


def describe_run(spec: ProtectSpec, weights: Weights, engine: str) -> dict[str, Any]:
    """Return what decides the copies' bytes and, with `tool` and `algorithm`, who made them.

    `engine` is the kind of one.
    """
    return {
        "tool": describe_tool(),
        "algorithm": ALGORITHM,
        "engine": engine,
        "weights": {"name": weights.name, "sha256": weights.sha256},
        "settings": asdict(spec.settings),
        "format": spec.format,
        "quality": spec.quality,
        **({"mark": True} if spec.mark else {}),
        **({"strip": spec.strip} if spec.strip != "none" else {}),
    }


@cache
def describe_tool() -> dict[str, str]:
    """Return the version and the sha256 of tue's own sources."""
    state = hashlib.sha256()
    root = Path(tue_cli.__file__).parent
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {"version": __version__, "sha256": state.hexdigest()}
