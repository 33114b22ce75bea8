"""What `tue protect` does with each picture, decided before any work: its key and its place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tue_cli.dataset.discover import Item, fold_path, refuse_collisions
from tue_cli.engine.torch import Floats
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.images import codec
from tue_cli.protect.codes import assign_codes
from tue_cli.protect.context import RunContext
from tue_cli.text import escape

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


def plan_tasks(
    run: RunContext, items: Sequence[Item], near: Mapping[str, Floats] | None = None
) -> tuple[Task, ...]:
    """Give every picture its key, as former runs did, and its place in the journal's output.

    Args:
        run: the run, with the keys of former ones.
        items: its pictures with their classes.
        near: how near each new class is to every key, where that decides.
    """
    keys = _choose_keys(run, {item.label for item in items}, near)
    tasks = tuple(
        Task(item, _change_suffix(item.relative, run.spec.format), keys[item.label])
        for item in items
    )
    tasks = _find_places(tasks, run.output)
    if run.spec.existing == "error":
        _refuse_existing(run.output, tasks)
    return tasks


def _choose_keys(
    run: RunContext, classes: Collection[str], near: Mapping[str, Floats] | None
) -> dict[str, str]:
    """Return each class's key: the one that was asked for, or an automatic choice."""
    available, key = run.weights.card.classes, run.spec.key
    if key is None:
        return assign_codes(classes, available, run.journal.keys, near)
    refuse_unless(
        key in available,
        f"--key must be a class of the weights {run.weights.name}, not {key!r}.",
        f"Choose one of: {', '.join(available)}.",
    )
    refuse_unless(
        len(classes) <= 1,
        f"--key is for one class, but there are {len(classes)} classes.",
        "Add --labels single, or leave out --key.",
    )
    return dict.fromkeys(classes, key)


def _find_places(tasks: Sequence[Task], output: Path) -> tuple[Task, ...]:
    """Return the tasks with those marked that have no place of their own.

    A file whose name says that it cannot be protected gives way, such as a raw file beside its
    JPEG. Two others in one place raise BadSetting.
    """
    refuse_collisions((replace(t.item, relative=t.relative) for t in tasks), output)
    taken = Counter(fold_path(task.relative) for task in tasks)

    def has_place(task: Task) -> bool:
        gives_way = task.item.source.suffix.lower() in codec.UNSUPPORTED
        return not gives_way or taken[fold_path(task.relative)] == 1

    return tuple(replace(task, has_place=has_place(task)) for task in tasks)


def select_pending(run: RunContext, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that have no copy yet, where no original has changed since."""
    if run.spec.existing == "overwrite":
        return list(tasks)

    def has_copy(task: Task) -> bool:
        record = run.journal.records.get(task.relative.as_posix(), {})
        same = (record.get("label"), record.get("key")) == (task.item.label, task.key)
        return same and os.path.lexists(run.output / task.relative)

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
                f"{escape(output / task.relative)} exists already.",
                "Choose another folder with -o, or use --existing skip or overwrite.",
            )
