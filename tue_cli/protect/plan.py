"""What `tue protect` decides before any work: checked settings, classes, keys and places."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tue_cli.config import DEVICE, DEVICES, METHODS, ProtectSettings, TrainSettings
from tue_cli.core.clustering import cluster
from tue_cli.dataset import discover, labels
from tue_cli.dataset.journal import EXISTING, Journal
from tue_cli.declare import argument, fixed, part, setting
from tue_cli.engine.select import BACKENDS, refuse_unknown
from tue_cli.engine.torch import Engine, Floats
from tue_cli.errors import BadSetting, PictureProblem, WeightsProblem
from tue_cli.events import Event, Note
from tue_cli.images import codec, resize
from tue_cli.noise import Noise
from tue_cli.report.write import refuse_report
from tue_cli.text import printable
from tue_cli.weights import Weights, load, netless

SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp")
SEEN_BATCH = 32
LARGE = 64_000_000
"""From so many pixels on, a picture is worked on beside no other such: it bounds the memory."""
LOOKED_AT = 64
"""Pictures of a class that tell which keys are near to it."""
KEYS = tuple(f"{number:03d}" for number in range(1000))
"""Keys where no weights bring theirs."""


@dataclass(frozen=True)
class ProtectSpec:
    """What `tue protect` was asked for."""

    paths: tuple[Path, ...] = argument(
        "Folders (with all they hold) and files; - reads a list from stdin, one path a line or "
        "separated by NUL.",
        typed="paths",
        metavar="PATHS",
        in_form=False,
    )
    output: Path | None = setting(
        None,
        "Where the copies go; default <folder>-protected.",
        "-o",
        "--output",
        typed="folder",
        metavar="<path>",
    )
    labels: str = setting(
        "auto",
        "What a class is: folders (a subfolder each), single (all pictures), cluster or cluster:N "
        "(pictures that look alike), FILE.csv (columns path,class); auto takes folders where there "
        "are several, else single.",
        in_form=False,
    )
    key: str | None = setting(None, "Key of the weights for a run with one class.")
    settings: ProtectSettings = part(ProtectSettings())
    weights: str | None = setting(None, "Name of packaged weights, or a file.")
    device: str = setting("auto", DEVICE, choices=DEVICES)
    backend: str = setting(
        "auto",
        "What computes: torch, onnx (ONNX Runtime, which has --device directml too), or auto: what "
        "is faster here, and in a folder that was begun what began it.",
        choices=BACKENDS,
    )
    format: str = setting(
        "keep", "keep, png, jpeg or webp.", choices=("keep", "png", "jpeg", "webp")
    )
    quality: int | None = setting(
        None, "1 to 100 for JPEG, WebP and AVIF; default: the source's, or better."
    )
    existing: str = setting(
        "skip", "Where a copy exists: skip what is done, overwrite, or error.", choices=EXISTING
    )
    dry_run: bool = setting(
        False, "Write nothing; tell the plan and the time.", "-n", "--dry-run", in_form=False
    )
    report: Path | None = setting(None, "Write a page with some of the pictures: FILE.html.")
    command: str = fixed("", "the command as it was typed")
    jobs: int = setting(0, "Threads that decode and encode; 0: one a processor.")


@dataclass(frozen=True)
class Task:
    """One picture and all that was decided about it."""

    item: discover.Item
    relative: Path
    """Where the copy goes, below the output."""
    key: str
    has_place: bool = True
    """False where its copy, if it can have one against its name, would meet another's."""


def check(spec: ProtectSpec) -> None:
    """Raise BadSetting for a setting that cannot work."""
    if spec.settings.method not in METHODS:
        raise BadSetting(
            f"There is no method {spec.settings.method!r}.", f"Choose one of {', '.join(METHODS)}."
        )
    refuse_noise(spec.settings.noise, METHODS[spec.settings.method].noise)
    if not 0 <= spec.settings.smooth <= 1:
        raise BadSetting(f"A smooth of {spec.settings.smooth} cannot be.", "Choose 0 to 1.")
    refuse_seed(spec.settings.seed)
    if spec.format not in codec.FORMATS:
        raise BadSetting(
            f"There is no format {spec.format!r}.", f"Choose {', '.join(sorted(codec.FORMATS))}."
        )
    if spec.quality is not None and not 1 <= spec.quality <= 100:
        raise BadSetting(f"A quality of {spec.quality} cannot be.", "Choose 1 to 100.")
    if spec.existing not in EXISTING:
        raise BadSetting(
            f"--existing {spec.existing} is unknown.", f"Choose one of {', '.join(EXISTING)}."
        )
    refuse_unknown(spec.backend)
    _refuse_unknown_labels(spec.labels)
    if spec.report is not None:
        refuse_report(spec.report)
    if spec.jobs < 0:
        raise BadSetting(f"{spec.jobs} jobs cannot be.", "Choose 1 or more.")


def refuse_noise(noise: Noise, published: Noise) -> None:
    """Raise BadSetting for noise that cannot be made, or is not of the published one's method."""
    if type(noise) is not type(published):
        raise BadSetting(
            f"{type(noise).__name__} is not the noise of this method.",
            f"Give {type(published).__name__}.",
        )
    noise.refuse()


def refuse_size(size: int) -> None:
    """Raise BadSetting for a working size that nets cannot take."""
    if size < 16 or size % 4:
        raise BadSetting(
            f"A working size of {size} pixels cannot be.", "Choose a multiple of 4 from 16."
        )


def refuse_seed(seed: int) -> None:
    """Raise BadSetting for a seed that a random generator does not take."""
    if not 0 <= seed < 2**63:
        raise BadSetting(f"A seed of {seed} cannot be.", "Choose a whole number from 0.")


def weights_for(spec: ProtectSpec) -> Weights:
    """Return the weights of a run; a method without nets needs none.

    Raises:
        WeightsProblem: none are to be found, or they were trained for what does not serve here.
    """
    name, method = spec.settings.method, METHODS[spec.settings.method]
    if not method.recipes and spec.weights is None:
        return netless(name, KEYS, TrainSettings().size)
    weights = load(spec.weights)
    if method.recipes and weights.card.method not in method.recipes:
        own = method.recipes[0]
        option = f"--method {own}" if own in METHODS else f"--recipe {own}"
        raise WeightsProblem(
            f"The weights {weights.name} were trained for {weights.card.method!r}, and {name} "
            f"takes those of {own!r}.",
            f"Make some with `tue train DATA {option} -o {own}.safetensors`, and give them by "
            "--weights.",
        )
    return weights


def _clusters(mode: str) -> int | None:
    """Return how many clusters `cluster[:N]` asks for, 0 for no number; None for another mode."""
    kind, _, number = mode.partition(":")
    if kind != "cluster":
        return None
    if not number:
        return 0
    if not number.isdecimal() or int(number) < 1:
        raise BadSetting(f"--labels {mode} names no number.", "Write cluster:N with N from 1.")
    return int(number)


def _refuse_unknown_labels(mode: str) -> None:
    known = _clusters(mode) is not None or mode in ("auto", "folders", "single")
    if not known and not os.path.isfile(mode):  # noqa: PTH113 - False for a name too long
        raise BadSetting(
            f"--labels {mode!r} is neither a mode nor a file.",
            "Choose auto, folders, single, cluster, cluster:N or a CSV file.",
        )


def label_items(
    spec: ProtectSpec,
    found: discover.Found,
    weights: Weights,
    engine: Engine,
    pool: ThreadPoolExecutor,
    journal: Journal,
    notes: list[str],
) -> tuple[discover.Item, ...]:
    """Return the items with their classes, by name or by what the surrogate sees in them."""
    clusters = _clusters(spec.labels)
    if clusters is None:
        tops = {item.relative.parts[0] for item in found.items if len(item.relative.parts) > 1}
        # Where folders were classes before, the last one that is left still is one.
        again = spec.labels == "auto" and tops and tops <= journal.keys.keys()
        return labels.assign_labels(found, "folders" if again else spec.labels, notes.append)
    if "surrogate" not in METHODS[spec.settings.method].roles:
        raise BadSetting(
            f"--labels {spec.labels} looks through a surrogate's eyes, and {spec.settings.method} "
            "has none.",
            "Choose folders, single or a CSV file, or another method.",
        )

    count = clusters or min(10, len(weights.card.classes))
    clustered: Mapping[Path, str] = {}
    seen, features = _run_surrogate(engine.features, found.items, weights, pool)
    if seen:
        numbers = cluster(features, count, spec.settings.seed)
        names = (f"cluster-{number:02d}" for number in numbers)
        clustered = {item.relative: name for item, name in zip(seen, names, strict=True)}
    return tuple(
        replace(item, label=clustered.get(item.relative, "cluster-00")) for item in found.items
    )


def _run_surrogate(
    see: Callable[[Floats], Floats],
    items: Sequence[discover.Item],
    weights: Weights,
    pool: ThreadPoolExecutor,
) -> tuple[list[discover.Item], Floats]:
    """Return the items that can be decoded, and what `see` makes of each at the working size."""
    turn = threading.Lock()

    def small(item: discover.Item) -> Floats | None:
        try:
            data = codec.read(item.source)
            is_large = math.prod(codec.read_dimensions(data)) >= LARGE
            with turn if is_large else nullcontext():
                return resize.resize_to_square(codec.decode(data).pixels, weights.card.size)
        except (PictureProblem, OSError, MemoryError):
            return None  # it fails again, with its reason, when its turn comes

    seen: list[discover.Item] = []
    rows: list[Floats] = []
    for place in range(0, len(items), SEEN_BATCH):
        part = items[place : place + SEEN_BATCH]
        smalls = [
            (item, pixels)
            for item, pixels in zip(part, pool.map(small, part), strict=True)
            if pixels is not None
        ]
        if smalls:
            seen += [item for item, _ in smalls]
            rows.append(see(np.stack([pixels for _, pixels in smalls])))
            _refuse_overflow(rows[-1], weights)
    return seen, np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def _refuse_overflow(values: Floats, weights: Weights) -> None:
    """Raise WeightsProblem where what the surrogate makes of pictures is not finite."""
    if not np.isfinite(values).all():
        raise WeightsProblem(
            f"The weights {weights.name} see numbers in the pictures that are not finite: theirs "
            "are too large.",
            "Choose other weights with --weights, or make some with `tue train`.",
        )


def measure_nearness(
    spec: ProtectSpec,
    items: Sequence[discover.Item],
    weights: Weights,
    engine: Engine,
    pool: ThreadPoolExecutor,
    journal: Journal,
) -> Generator[Event, None, dict[str, Floats]]:
    """Return how near each class that has no key yet is to every key: (K,) by class.

    That is the mean of log p(key | picture) by the surrogate over a few of its pictures, evenly
    spread. Noise of the nearest key makes more of what is truly there; that of a far one is hardly
    found by a victim that trains in grey (`benchmarks/README.md`). A class alone has nothing to be
    told from, and gets no figures.
    """
    by_class: dict[str, list[discover.Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    new = [name for name in by_class if name not in journal.keys]
    shows_key = METHODS[spec.settings.method].shows_key
    if not shows_key or spec.key is not None or len(by_class) < 2:
        return {}
    if not 0 < len(new) <= len(weights.card.classes):
        return {}
    yield Note(f"Choosing keys by up to {LOOKED_AT} pictures of each class.")
    few = []
    for name in new:
        count = len(by_class[name])
        few += [by_class[name][place * count // LOOKED_AT] for place in range(LOOKED_AT)]
    seen, logits = _run_surrogate(engine.logits, list(dict.fromkeys(few)), weights, pool)
    if not seen:
        return {}
    labels_seen = np.array([item.label for item in seen])
    with np.errstate(over="ignore", invalid="ignore"):
        odds = logits - logits.max(1, keepdims=True)
        odds -= np.log(np.exp(odds).sum(1, keepdims=True))
        near = {name: odds[labels_seen == name].mean(0) for name in set(labels_seen.tolist())}
    for values in near.values():
        _refuse_overflow(values, weights)
    return near


def plan_tasks(
    spec: ProtectSpec,
    items: Sequence[discover.Item],
    weights: Weights,
    journal: Journal,
    near: Mapping[str, Floats] | None = None,
) -> tuple[Task, ...]:
    """Give every picture its key, as former runs did, and its place in the journal's output."""
    classes = {item.label for item in items}
    available = weights.card.classes
    if spec.key is None:
        keys = labels.assign_codes(classes, available, journal.keys, near)
    elif spec.key not in available:
        raise BadSetting(
            f"The weights {weights.name} have no key {spec.key!r}.",
            f"Choose one of {', '.join(available)}.",
        )
    elif len(classes) > 1:
        raise BadSetting(
            f"One key cannot serve {len(classes)} classes.", "Use --key with --labels single."
        )
    else:
        keys = dict.fromkeys(classes, spec.key)
    tasks = tuple(
        Task(item, _change_suffix(item.relative, spec.format), keys[item.label]) for item in items
    )
    tasks = _placed(tasks, journal.output)
    if spec.existing == "error":
        _refuse_existing(journal.output, tasks)
    return tasks


def _placed(tasks: Sequence[Task], output: Path) -> tuple[Task, ...]:
    """Tell the tasks that have no place of their own; raise BadSetting for pictures without one.

    Whose name says that it cannot be protected gives way, such as a raw file beside its JPEG.
    """
    discover.refuse_collisions((replace(t.item, relative=t.relative) for t in tasks), output)
    taken = Counter(discover.fold_path(task.relative) for task in tasks)

    def has_place(task: Task) -> bool:
        gives_way = task.item.source.suffix.lower() in codec.UNSUPPORTED
        return not gives_way or taken[discover.fold_path(task.relative)] == 1

    return tuple(replace(task, has_place=has_place(task)) for task in tasks)


def select_pending(spec: ProtectSpec, tasks: Sequence[Task], journal: Journal) -> list[Task]:
    """Return the tasks that have no copy yet, where no original has changed since."""
    if spec.existing == "overwrite":
        return list(tasks)

    def has_copy(task: Task) -> bool:
        record = journal.records.get(task.relative.as_posix(), {})
        same = (record.get("label"), record.get("key")) == (task.item.label, task.key)
        return same and os.path.lexists(journal.output / task.relative)

    return [task for task in tasks if not has_copy(task)]


def _change_suffix(relative: Path, form: str) -> Path:
    """Return where a copy goes: another format changes the extension, and only then."""
    suffix = relative.suffix.lower()
    fits = form == "keep" or suffix == SUFFIX[form]
    if fits or (form == "jpeg" and suffix in JPEG_SUFFIXES):
        return relative
    return relative.with_suffix(SUFFIX[form])


def _refuse_existing(output: Path, tasks: Sequence[Task]) -> None:
    """Raise BadSetting where a copy's place is taken."""
    for task in tasks:
        if os.path.lexists(output / task.relative):
            raise BadSetting(
                f"{printable(output / task.relative)} exists.",
                "Choose another output, or --existing skip or overwrite.",
            )
