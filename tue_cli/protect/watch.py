"""`tue protect --watch`: protect what is there, then what is added or changed, until stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from tue_cli.dataset.discover import make_absolute
from tue_cli.errors import BadSetting, NothingToDo, OutputBusy, TueError, refuse_unless
from tue_cli.events import Done, Event, Job, Note, Started
from tue_cli.images.codec import SUFFIXES
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectForecast, ProtectSummary, WatchSummary
from tue_cli.protect.run import protect
from tue_cli.storage.atomic import Identity, get_identity
from tue_cli.text import escape

STEP_MS = 500
"""Changes are told when there was none for so long."""
GROUP_MS = 10_000
"""They are told after so long in any case, so that a steady stream of pictures is protected too."""
BUSY_SECONDS = 5.0
"""After so long, a run is tried again whose output another run was using."""

Signature = tuple[int, int] | None
"""Size and time of a file; None where there is none."""


def watch(spec: ProtectSpec) -> Job[ProtectForecast | ProtectSummary | WatchSummary]:
    """Protect pictures run by run, yielding the events of each; Ctrl-C ends it.

    The output is not locked between two runs.

    Raises:
        TueError: as `protect` does, but for what only a change in the folders may mend.
        KeyboardInterrupt: while pictures are protected, or before the first run has begun to.
    """
    _refuse(spec)
    began, rounds = time.monotonic(), _Rounds(spec)
    try:
        with closing(_Changes(spec.paths)) as changes:
            wanted: frozenset[Path] | None = None  # all
            while True:
                is_over, patience = yield from rounds.run(wanted, changes.unsettled)
                found = changes.wait(patience)
                if rounds.is_begun:
                    wanted = found | (frozenset() if is_over or wanted is None else wanted)
    except KeyboardInterrupt:
        if rounds.is_busy:
            raise
    result = replace(rounds.result, seconds=round(time.monotonic() - began, 3))
    yield Done(result, ("Stopped watching.",))


class _Rounds:
    """The runs of one watch, one after the other."""

    def __init__(self, spec: ProtectSpec) -> None:
        self._spec = spec
        self._told: set[str] = set()
        self.is_begun = False
        """Whether a run has looked at all pictures."""
        self.is_busy = True
        """Whether something is left undone if it ends now."""
        self.result = WatchSummary(runs=0, protected=0, failed=0, seconds=0.0)

    def run(
        self, wanted: Collection[Path] | None, unsettled: Collection[Path]
    ) -> Generator[Event | Done[ProtectForecast | ProtectSummary], None, tuple[bool, float | None]]:
        """Do one run; return whether it is over and, if not, after how many seconds to try again.

        None stands for the next change.

        Args:
            wanted: pictures, and folders with all that they hold; None for all.
            unsettled: files that are still being written.
        """
        spec = self._spec
        if self.is_begun:  # what was asked for of former copies and failures is done once
            spec = replace(spec, existing="skip", retry_failed=False)
        wants = None if wanted is None else _Wanted(self._spec.paths, wanted, unsettled)
        is_over, patience = True, None
        try:
            with closing(protect(spec, wants)) as job:
                for event in job:
                    if isinstance(event, Note):
                        yield from self._tell_once(event)
                        continue
                    if isinstance(event, Started):
                        self.is_busy = True
                    if isinstance(event, Done) and isinstance(event.result, ProtectSummary):
                        self.is_busy = False
                        self._count(event.result)
                    yield event
            self.is_begun = True
        except NothingToDo as error:
            yield Note(error.message)
        except (OutputBusy, BadSetting) as error:
            if not self.is_begun:
                raise
            is_over = False
            if isinstance(error, OutputBusy):
                patience = BUSY_SECONDS
                yield from self._tell_once(Note(f"{error.message} Waiting until it has finished."))
            else:
                yield Note(f"Nothing was protected. {error.message} {error.remedy}")
        self.is_busy = False
        folders = ", ".join(map(escape, self._spec.paths))
        yield from self._tell_once(Note(f"Watching {folders} for new pictures. Ctrl-C stops."))
        return is_over, patience

    def _count(self, result: ProtectSummary) -> None:
        self.result = replace(
            self.result,
            runs=self.result.runs + 1,
            protected=self.result.protected + result.protected,
            failed=self.result.failed + result.failed,
        )

    def _tell_once(self, note: Note) -> Iterator[Event]:
        if note.message not in self._told:
            self._told.add(note.message)
            yield note


class _Wanted:
    """Says whether a run is to look at an original."""

    def __init__(
        self, folders: Collection[Path], wanted: Collection[Path], unsettled: Collection[Path]
    ) -> None:
        self._folders = {folder: _resolve(folder) for folder in folders}
        self._wanted = frozenset(wanted)
        self._unsettled = frozenset(unsettled)

    def __call__(self, source: Path) -> bool:
        """`source` is as it was found, below a folder as that was given."""
        for folder, resolved in self._folders.items():
            if source.is_relative_to(folder):
                place = resolved / source.relative_to(folder)
                is_wanted = place in self._wanted or not self._wanted.isdisjoint(place.parents)
                if is_wanted and place not in self._unsettled:
                    return True
        return False


class _Changes:
    """What changes below some folders, from now on; files are told once they are whole."""

    def __init__(self, folders: Collection[Path]) -> None:
        self._folders = {folder: _identify(folder) for folder in folders}
        self._stream = self._watch()
        self.unsettled: set[Path] = set()
        """Files and folders that changed, and may still do so."""
        next(self._stream)  # watched from here on

    def close(self) -> None:
        """Watch no longer."""
        self._stream.close()

    def wait(self, seconds: float | None) -> frozenset[Path]:
        """Return pictures that were added or changed, and folders that were added.

        Returns none after so many seconds, or never without them.

        Raises:
            BadSetting: one of the folders is gone.
            KeyboardInterrupt: Ctrl-C.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            before = {place: _sign(place) for place in self.unsettled}
            changed = next(self._stream)
            self._refuse_loss()
            self.unsettled |= changed
            settled = {p for p, sign in before.items() if p not in changed and sign == _sign(p)}
            self.unsettled -= settled
            if there := frozenset(place for place in settled if _sign(place) is not None):
                return there
        return frozenset()

    def _refuse_loss(self) -> None:
        for folder, identity in self._folders.items():
            if _identify(folder) != identity:
                raise BadSetting(
                    f"{escape(folder)} was removed or renamed, and can no longer be watched.",
                    "Run the command again with the folder as it is called now.",
                )

    def _watch(self) -> Generator[set[Path], None, None]:
        """Yield what changed, every `STEP_MS` or so; first nothing, when watching has begun."""
        from watchfiles import Change, watch

        try:
            for changes in watch(
                *map(_resolve, self._folders),
                watch_filter=None,
                debounce=GROUP_MS,
                step=STEP_MS,
                rust_timeout=STEP_MS,
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ):
                yield {
                    Path(name)
                    for change, name in changes
                    if change != Change.deleted and _may_matter(Path(name), change == Change.added)
                }
        except (OSError, RuntimeError) as error:
            _explain_watch_error(error)


def _may_matter(place: Path, is_new: bool) -> bool:
    """Say whether a change may be that of a picture, or of a folder that came with some."""
    if place.name.startswith("."):
        return False
    if place.is_dir():
        return is_new  # a folder changes with each of its files, which are told by themselves
    return place.suffix.lower() in SUFFIXES or not place.suffix


def _sign(place: Path) -> Signature:
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _identify(folder: Path) -> Identity | None:
    try:
        return get_identity(folder.stat())
    except OSError:
        return None


def _resolve(folder: Path) -> Path:
    """Return a folder without links, as the operating system tells of changes in it."""
    return Path(os.path.realpath(make_absolute(folder)))


def _explain_watch_error(error: Exception) -> NoReturn:
    raise TueError(
        f"The folder cannot be watched: {error}.",
        "Set WATCHFILES_FORCE_POLLING=1, so that tue looks for changes itself.",
    ) from error


def _refuse(spec: ProtectSpec) -> None:
    """Raise BadSetting for what cannot be watched."""
    refuse_unless(
        not spec.dry_run,
        "--watch and --dry-run exclude each other.",
        "Leave out one of the two.",
    )
    for path in spec.paths:
        refuse_unless(
            os.path.lexists(path), f"{escape(path)} does not exist.", "Check its spelling."
        )
        refuse_unless(
            path.is_dir(),
            f"--watch is for folders, and {escape(path)} is a file.",
            "Name the folder it is in.",
        )
