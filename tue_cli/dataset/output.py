"""The output folder of a run: made, locked, written below, and left without what became empty.

It is held open, so that what is written lands in that very folder, wherever its name leads by now.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tue_cli.dataset.manifest import MANIFEST
from tue_cli.errors import BadSetting, OutputBusy, OutputProblem
from tue_cli.storage.atomic import SCRATCH, Folder, Identity, is_link
from tue_cli.text import escape

WORK = ".tue"
"""Where a run keeps its state in the output."""
JOURNAL = "journal.jsonl"
PLAN = "plan.json"
"""What a run over shards decided, in the work folder."""

_LOCK = "lock"
_SIGN = re.compile(
    rf"(?:^|/)({re.escape(MANIFEST)}|{re.escape(WORK)}/(?:{re.escape(JOURNAL)}|{re.escape(PLAN)}))$"
)
_FATAL = {errno.ENOSPC, errno.EROFS, errno.ELOOP, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""What of a file system's errors no other copy escapes either."""


def choose_default_output(paths: Sequence[Path]) -> Path:
    """The folder `<name>-protected` beside the one folder given, or beside the files' folder.

    Raises BadSetting where there is no such one folder.
    """
    are_folders = [os.path.isdir(path) for path in paths]  # noqa: PTH112 - never raises
    folders = {
        os.path.abspath(path if is_folder else path.parent)  # noqa: PTH100 - resolves no symlink
        for path, is_folder in zip(paths, are_folders, strict=True)
    }
    if len(folders) != 1 or (len(paths) > 1 and any(are_folders)):
        raise BadSetting("There are several inputs.", "Name a folder for their copies with -o.")
    folder = Path(folders.pop())
    if not folder.name:
        raise BadSetting(
            f"{escape(folder)} has no folder beside it for the copies.",
            "Name a folder for them with -o.",
        )
    return folder.with_name(f"{folder.name}-protected")


def find_output(name: str) -> str | None:
    """Return the folder, with its slash, that a file's name says to be an output of a run."""
    found = _SIGN.search(name)
    return name[: found.start(1)] if found else None


def is_output(folder: Path) -> bool:
    """Whether a run has written its copies here, finished or not."""
    # lexists, for it does not raise where the folder cannot be entered.
    return any(map(os.path.lexists, (folder / MANIFEST, folder / WORK / JOURNAL)))


def explain_output_error(error: OSError, output: Path) -> OutputProblem:
    """The error to raise when writing below `output` failed with `error`."""
    where = escape(output)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return OutputProblem(
            f"The disk of {where} is full.",
            "Free some space and run the same command again; finished pictures are kept.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return OutputProblem(
            f"The output folder {where} is not writable.",
            "Change its permissions, or choose another folder with -o.",
        )
    if error.errno == errno.EROFS:
        return OutputProblem(
            f"The output folder {where} is on a read-only disk.", "Choose another folder with -o."
        )
    if error.errno == errno.ELOOP:
        return explain_link(Path(error.filename or output))
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputProblem(
            f"The output folder {where} is not a folder: something else has its name.",
            "Move it away, or choose another folder with -o.",
        )
    return OutputProblem(
        f"The output folder {where} cannot be written: {error.strerror or error}.",
        "Choose another folder with -o.",
    )


def explain_link(path: Path) -> OutputProblem:
    """The error to raise where a link stands in the place of a file or folder of the output."""
    return OutputProblem(
        f"{escape(path)} is a link; tue never follows links inside its output.",
        "Remove it, or choose another folder with -o.",
    )


def refuse_links(output: Path, folders: Iterable[Path]) -> None:
    """Raise OutputProblem where one of these folders below `output`, or what tue keeps there, is
    a link.
    """
    places = {Path(MANIFEST), Path(WORK), *(Path(WORK, name) for name in (JOURNAL, _LOCK))}
    for folder in folders:
        places |= {folder, *folder.parents}
    for place in sorted(places - {Path()}):
        with contextlib.suppress(OSError):
            if is_link((output / place).lstat()):
                raise explain_link(output / place)


def find_folder_modes(files: Iterable[tuple[Path, Path]]) -> dict[Path, int]:
    """Return the permissions of the originals' folders, by the places of their copies' folders.

    The owner may always write; of folders with one place, what all permit is taken. Others may not
    write where the sticky bit, which copies' folders have not, kept them from removing files.

    Args:
        files: the originals, each with the place of its copy below the output.
    """
    modes: dict[Path, int] = {}
    pairs = {
        pair for source, place in files for pair in zip(place.parents, source.parents, strict=False)
    }
    for place, folder in pairs:
        with contextlib.suppress(OSError):
            found = folder.stat().st_mode
            found = (found & ~0o022 if found & stat.S_ISVTX else found) & 0o777
            modes[place] = modes.get(place, 0o777) & (found | 0o700)
    return modes


class OutputFolder:
    """An output folder, held by one run at a time; a context manager."""

    def __init__(
        self,
        path: Path,
        originals: Collection[Identity] = (),
        modes: Mapping[Path, int] | None = None,
    ) -> None:
        """No copy is put into one of the folders `originals`, whatever leads there.

        `modes` are the permissions of folders that are made, by their places below this one.
        """
        self.path = path
        self.refused: set[str] = set()
        """What the file system refused to do, as `Folder.refused` has it."""
        self.is_lost = False
        """Whether something that was written in was removed or replaced meanwhile."""
        self.work: Folder
        """The folder of the run's state, while the output is held."""
        self._folder: Folder
        self._is_held = False
        self._originals = originals
        self._modes = modes or {}
        # Held from entering to leaving, and let go in reverse.
        self._stack = contextlib.ExitStack()
        self._places: dict[Path, Identity] = {}

    def __enter__(self) -> Self:
        """Make the folder, hold it and lock it.

        Raises:
            OutputProblem: it cannot be written, a link is in the way, another run is using it.
        """
        try:
            self._claim()
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise explain_output_error(PermissionError(errno.EACCES, "not writable"), self.path)
            _call_quietly(self._clear_scratch)
        except BaseException:
            self.leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let the folder go; what was written stays, and what this run made empty does not."""
        self._is_held = False
        self._stack.close()

    def call_on_leaving(self, action: Callable[[], object]) -> None:
        """Have something done before the folder is let go, whatever the file system says to it."""
        self._stack.callback(_call_quietly, action)

    def _claim(self) -> None:
        # A run that leaves removes its empty folders, perhaps between our making and our locking.
        for attempts_left in reversed(range(5)):
            try:
                self._hold()
                return
            except BlockingIOError:
                raise OutputBusy(
                    f"Another run of tue is using {escape(self.path)}.",
                    "Wait until it has finished, or choose another folder with -o.",
                ) from None
            except OSError as error:
                self.leave()
                if attempts_left and isinstance(error, FileNotFoundError | FileExistsError):
                    continue
                raise explain_output_error(error, self.path) from error

    def _hold(self) -> None:
        hold = self._stack
        for folder in reversed((self.path, *self.path.parents)):
            if not folder.exists():
                self.call_on_leaving(folder.rmdir)
        mode = self._make()
        self._folder = hold.enter_context(Folder(self.path))
        self._folder.set_mode(mode)
        self._is_held = True
        self.refused = self._folder.refused
        if self._folder.identity in self._originals:
            raise self.lose(self.path)
        refuse_links(self.path, ())
        self.call_on_leaving(lambda: self._folder.rmdir(WORK))
        self.work = hold.enter_context(self._folder.enter(Path(WORK), make=True))
        hold.callback(self.work.unlock, _LOCK, self.work.lock(_LOCK))
        self.call_on_leaving(self._clear_scratch)

    def _make(self) -> int | None:
        """Make the folder where it is missing, and return which permissions it should get."""
        mode = self._modes.get(Path())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(0o777 if mode is None else mode)
        except FileExistsError:
            self.path.mkdir(exist_ok=True)  # raises where this is no folder
            return None
        return mode

    def _clear_scratch(self) -> None:
        for name in self.work.list_names():
            if name.startswith(SCRATCH):
                with contextlib.suppress(OSError):
                    self.work.unlink(name)

    def write(
        self,
        data: bytes,
        relative: Path,
        like: os.stat_result | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> None:
        """Put a file in its place, whole, with the permissions and the time of `like`.

        Raises:
            OutputProblem: the disk is full, a link is in the way, a folder was removed or replaced;
                nothing else can be written either.
            OSError: this file cannot be written.
        """
        try:
            with self._enter(relative.parent) as place:
                place.write(data, relative.name, aside=self.work, like=like, attributes=attributes)
        except OSError as error:
            self.refuse_loss()
            if error.errno in _FATAL:
                raise explain_output_error(error, self.path) from error
            raise

    def _enter(self, relative: Path) -> Folder:
        """Enter a folder for copies, made where it is missing, and check that it is one still."""
        known = self._places.get(relative)
        try:
            place = self._folder.enter(relative, make=known is None, modes=self._modes)
        except FileNotFoundError:
            raise self.lose(self.path / relative) from None
        if place.identity in self._originals or known not in (None, place.identity):
            place.close()
            raise self.lose(self.path / relative)
        self._places[relative] = place.identity
        return place

    def sha256(self, relative: Path) -> str | None:
        """Return the hash of the file at a place; None where there is no readable regular file.

        A plan asks too, which does not hold the folder.
        """
        try:
            with contextlib.ExitStack() as stack:
                folder = self._folder if self._is_held else stack.enter_context(Folder(self.path))
                place = stack.enter_context(folder.enter(relative.parent))
                return place.sha256(relative.name)
        except (OSError, ValueError):  # the latter for a name that no system can have
            return None

    def refuse_loss(self) -> None:
        """Raise OutputProblem where what this run works in is no longer in its place."""
        for folder in (self._folder, self.work):
            if not folder.is_in_place():
                raise self.lose(folder.path)

    def lose(self, path: Path) -> OutputProblem:
        """Remember that something is no longer in its place, and return the error to raise."""
        self.is_lost = True
        return OutputProblem(
            f"{escape(path)} was removed or replaced while tue was writing.",
            "Find out why, then run the same command again; the remaining copies are kept.",
        )

    def restore(self, text: str, name: str) -> None:
        """Write a file of the run's state anew where it was lost; does nothing where it was not."""
        if self.is_lost:
            with self._folder.enter(Path(WORK), make=True) as work:
                if work.read_status(name) is None:
                    work.write(text.encode(), name)


def _call_quietly(action: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        action()
