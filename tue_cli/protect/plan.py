"""What `tue protect` does with each picture, decided before any work: its code and its place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tue_cli.dataset.discover import Item, fold_path, refuse_collisions
from tue_cli.errors import BadSetting
from tue_cli.images import codec
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
        Task(item, _change_suffix(item.relative, run.spec.format), codes[item.label])
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
