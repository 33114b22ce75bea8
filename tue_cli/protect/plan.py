"""What `tue protect` does with each picture, decided before any work: its code and its place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import TypeVar

from tue_cli.config import METHODS
from tue_cli.dataset.discover import Item, find_crowded, fold_path, make_absolute
from tue_cli.dataset.labels import list_top_folders
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.secret import mark_class, read_codes
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.events import Failed
from tue_cli.images import codec
from tue_cli.protect.context import RunContext
from tue_cli.protect.request import count_clusters
from tue_cli.protect.result import ClassPlan, ProtectPlan
from tue_cli.text import escape, format_count

P = TypeVar("P", bound=PurePath)

TOGETHER = 256
"""Pictures that a thread looks at in one go, where each takes little."""
TIME_STEP_NS = 2_000_000_000
"""How exactly FAT keeps the time of a copy."""
SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp")


@dataclass(frozen=True)
class Task:
    """One picture and all that was decided about it."""

    item: Item
    relative: Path
    """Where the copy goes, below the output."""
    key: str
    has_place: bool = True
    """False where its copy would take another's place."""

    @property
    def names(self) -> frozenset[str]:
        """What a manifest that lists failures may call it: a folder that it lies in, too."""
        source = self.item.source
        places = (self.relative, self.item.relative, source, *source.parents)
        return frozenset(place.as_posix() for place in places)


def plan_tasks(
    run: RunContext, items: Sequence[Item], codes: Mapping[str, str]
) -> tuple[Task, ...]:
    """Give every picture the code of its class, and its place in the journal's output."""
    tasks = tuple(
        Task(item, change_suffix(item.relative, run.spec.format), codes[item.label])
        for item in items
    )
    tasks = _find_places(tasks, run.output)
    if run.spec.existing == "error":
        _refuse_existing(run.output, tasks)
    if run.spec.retry_failed:
        failed = {failure["path"] for failure in run.failures}
        tasks = tuple(task for task in tasks if failed & task.names)
    return tasks


def _find_places(tasks: Sequence[Task], output: Path) -> tuple[Task, ...]:
    """Return the tasks with those marked that have no place of their own.

    A file that often lies beside a JPEG of the same name, such as a raw file, gives way to it. Of
    others that need one place, none gets it: which came first would change as a folder grows.
    """
    taken = Counter(fold_path(task.relative) for task in tasks)
    crowded = find_crowded([task.relative for task in tasks if not _yields(task)], output)

    def has_place(task: Task) -> bool:
        if _yields(task):
            return taken[fold_path(task.relative)] == 1
        return task.relative not in crowded

    return tuple(replace(task, has_place=has_place(task)) for task in tasks)


def _yields(task: Task) -> bool:
    return task.item.source.suffix.lower() in codec.YIELDING


def select_pending(run: RunContext, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that have no copy of their original as it is now.

    A copy is the one that was recorded if its size is, and its time that of the original. Where
    that does not tell, both are read.
    """
    if run.spec.existing == "overwrite":
        return list(tasks)

    def has_copy(task: Task) -> bool:
        record = run.journal.records.get(task.relative.as_posix(), {})
        label, key, source = task.item.label, task.key, task.item.source
        if (record.get("label"), record.get("key")) != (label, key):
            return False
        try:
            copy = (run.output / task.relative).lstat()
            apart = abs(copy.st_mtime_ns - source.stat().st_mtime_ns)
            if apart <= TIME_STEP_NS and copy.st_size == record.get("bytes"):
                return True
            digest = sha256(codec.read(source))
        except (OSError, ImageProblem, MemoryError):
            return False
        return run.journal.is_done(task.relative, source_sha256=digest, label=label, key=key)

    def select_part(start: int) -> list[Task]:
        return [task for task in tasks[start : start + TOGETHER] if not has_copy(task)]

    return list(chain.from_iterable(run.pool.map(select_part, range(0, len(tasks), TOGETHER))))


def find_obstacle(run: RunContext, task: Task) -> Failed | None:
    """Return why a copy cannot go to its place: what is there is not tue's own. None if it can."""
    place = run.output / task.relative
    if (
        run.spec.existing == "overwrite"
        or not task.has_place
        or not os.path.lexists(place)
        or run.journal.owns(task.relative)
    ):
        return None
    return Failed(
        task.item.source,
        "in-the-way",
        f"{escape(place)} is not a copy that tue wrote, or has changed since, so it is kept. "
        "Move it away, or use --existing overwrite.",
    )


def explain_taken() -> ImageProblem:
    """Return the problem of a picture that gives way to another."""
    return ImageProblem(
        "in-the-way",
        "Another picture's copy would have the same name; rename the picture.",
    )


def change_suffix(relative: P, form: str) -> P:
    """Return where a copy goes: another format changes the extension, and only then."""
    suffix = relative.suffix.lower()
    if form == "keep" and suffix == ".gif":
        form = "png"
    fits = form == "keep" or suffix == SUFFIX[form]
    if fits or (form == "jpeg" and suffix in JPEG_SUFFIXES):
        return relative
    return relative.with_suffix(SUFFIX[form])


def _refuse_existing(output: Path, tasks: Sequence[Task]) -> None:
    """Raise BadSetting where a copy's place is taken."""
    for task in tasks:
        if os.path.lexists(output / task.relative):
            raise BadSetting(
                f"{escape(output / task.relative)} exists already.",
                "Choose another folder with -o, or use --existing skip or overwrite.",
            )


def describe_plan(run: RunContext, tasks: Sequence[Task]) -> ProtectPlan:
    """Return what was decided before the first picture."""
    settings = run.spec.settings
    keys = {task.item.label: task.key for task in tasks}
    settled = _list_settled(run, keys)
    counts = Counter(task.item.label for task in tasks)
    return ProtectPlan(
        output=run.output,
        weights=run.weights.name,
        method=settings.method,
        engine=run.engine.description,
        radius=METHODS[settings.method].describe_bound(settings.noise.radius),
        keys=keys,
        labels=_describe_labels(run, [task.item for task in tasks], len(keys)),
        classes=tuple(
            ClassPlan(name, counts[name], keys[name], name not in settled) for name in sorted(keys)
        ),
    )


def _list_settled(run: RunContext, codes: Mapping[str, str]) -> set[str]:
    """Return the classes whose codes stay: asked for, or recorded here or for other folders."""
    if run.spec.key is not None:
        return set(codes)
    settled = codes.keys() & run.journal.keys.keys()
    new = codes.keys() - settled
    if new and count_clusters(run.spec.labels) is None:
        chosen = read_codes()
        marks = {name: mark_class(run.secret, run.weights.sha256, name) for name in new}
        settled |= {name for name, mark in marks.items() if chosen.get(mark) == codes[name]}
    return settled


def _describe_labels(run: RunContext, items: Sequence[Item], classes: int) -> str:
    """Return what a class is in a run, in words."""
    spec, known = run.spec, run.journal.clusters
    goes_on = spec.labels == "auto" and known and {i.label for i in items} <= known.centres.keys()
    if goes_on or count_clusters(spec.labels) is not None:
        return f"{format_count(classes, 'group')} of similar pictures"
    if spec.labels not in ("auto", "folders", "single"):
        return f"from {escape(Path(spec.labels).name)} ({classes:,})"
    tops = list_top_folders(item.relative for item in items)
    if spec.labels == "single" or not {item.label for item in items} & tops:
        return "one, all pictures"
    folders = [path for path in spec.paths if path.is_dir()]
    if len(folders) > 1:
        return f"each folder given ({classes:,})"
    return f"each subfolder of {escape(make_absolute(folders[0]).name)} ({classes:,})"
