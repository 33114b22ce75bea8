"""The journal that makes a run resumable: which copies in an output are ours, and which are done.

No picture is opened here; a copy is its bytes' sha256.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tue_cli.dataset.manifest import (
    FIELDS,
    MANIFEST,
    Clusters,
    Record,
    describe_differences,
    drop_foreign_noise,
    format_manifest,
    is_changed,
    is_record,
    is_written,
    replace_infinite,
)
from tue_cli.dataset.output import JOURNAL, WORK, OutputFolder, explain_output_error
from tue_cli.dataset.records import Book, Given, read_entries
from tue_cli.errors import BadSetting
from tue_cli.storage.atomic import Identity
from tue_cli.storage.lines import LineFile, format_line
from tue_cli.text import escape, format_count

EXISTING = ("skip", "overwrite", "error")

KEYS_OF_LINE = 1_000
"""Classes with their codes in one line of the journal."""
_MAKER = ("tool", "algorithm")
"""What of a run tells who made its copies, and does not decide whether another may go on."""


class Journal:
    """What is known about one output folder, held by one run at a time; a context manager.

    Entering makes the folder, locks it and reads what former runs left. Each finished picture is
    one `record` of at least `path` (its relative posix path), `source_sha256`, `sha256` (of the
    copy), `label` and `key`, all strings; beside these, only `seconds` may depend on the clock.

    A record is written *before* its copy is moved into place, and counts only where the copy's
    hash agrees, so that a kill at any moment costs one picture and claims nothing false.
    """

    def __init__(
        self,
        output: Path,
        run: dict[str, Any],
        existing: str,
        originals: Collection[Identity] = (),
        modes: Mapping[Path, int] | None = None,
    ) -> None:
        """`run` holds the settings that decide the copies' bytes, as JSON can say them.

        Its fields `tool` and `algorithm` only tell: runs that differ in them go on from each other.
        No copy is put into one of the folders `originals`, whatever leads there. `modes` are the
        permissions of folders that are made, by their places below the output.

        `existing` is `skip` (a former run must have had the same settings), `overwrite` (copies of
        other settings are known as ours, but not as done) or `error` (no former run may have
        recorded anything). Entering raises BadSetting where this does not hold, and OutputProblem
        where the folder cannot be written, a link is in the way, or another run is using it.
        """
        if existing not in EXISTING:
            raise BadSetting(
                f"--existing {existing} is unknown.", f"Choose one of: {', '.join(EXISTING)}."
            )
        self.output = output
        self.copies: dict[str, int | None] = {}
        """sha256 of every copy that former runs recorded, of any settings -> bytes, if known."""
        self._book = Book()
        self._run: dict[str, Any] = json.loads(format_line(run))
        self._existing = existing
        self._folder = OutputFolder(output, originals, modes)
        self._lines: LineFile | None = None
        self._unsaid: list[Record] = []
        self._guard = threading.Lock()
        self._ours: dict[str, set[str]] = {}
        self._sure: set[str] = set()
        self._since = time.monotonic()

    @property
    def records(self) -> dict[str, Record]:
        """Relative posix path -> record, of this run and of former ones with equal settings."""
        return self._book.records

    @property
    def keys(self) -> dict[str, str]:
        """Class -> key, likewise; what is added here before the first copy is known to later runs,
        however this one ends.
        """
        return self._book.keys

    @property
    def clusters(self) -> Clusters | None:
        """The clusters that runs with equal settings found last."""
        return self._book.clusters

    @property
    def given(self) -> Mapping[str, Given]:
        """Place of an original -> the class that it was given, as `Book.given` has it."""
        return self._book.given

    @property
    def refused(self) -> set[str]:
        """What the output's file system refused to do, as `Folder.refused` has it."""
        return self._folder.refused

    def __enter__(self) -> Self:
        """Claim the folder and recall what is in it."""
        with contextlib.ExitStack() as leaving:
            leaving.enter_context(self._folder)
            self._folder.call_on_leaving(self._restore)
            self._folder.call_on_leaving(self._close)
            self.recall()
            leaving.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go, finished or to be resumed."""
        self._folder.leave()

    def is_done(self, relative: Path, *, source_sha256: str, label: str, key: str) -> bool:
        """Whether a copy of this very source, label and key is in place, whole."""
        path = relative.as_posix()
        record = self.records.get(path)
        wanted = (source_sha256, label, key)
        if record is None or (record["source_sha256"], record["label"], record["key"]) != wanted:
            return False
        if self._folder.sha256(relative) != record["sha256"]:
            return False
        self._sure.add(path)
        return True

    def owns(self, relative: Path) -> bool:
        """Whether the file at this place is, byte for byte, one that a run of ours wrote."""
        ours = self._ours.get(relative.as_posix())
        return ours is not None and self._folder.sha256(relative) in ours

    def record_classes(self, clusters: Clusters, given: Mapping[str, Given]) -> None:
        """Take up the clusters of this run and the classes of new pictures.

        They are recorded with the first copy, before it.
        """
        book = Book(clusters=None if clusters == self.clusters else clusters, given=dict(given))
        self._unsaid += book.list_classes()
        self._book.set_clusters(clusters)
        self._book.given.update(given)

    def save(
        self,
        record: Record,
        data: bytes,
        like: os.stat_result | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> None:
        """Record a finished picture and put its copy in place; to be called from any thread.

        The copy gets the permissions and the time of `like`, and extended `attributes`. A number in
        the record that is not finite becomes null.

        Raises:
            OutputProblem: the disk is full, the output was removed or replaced, a link is in the
                way; no other copy can be written either.
            OSError: this copy cannot be written.
        """
        record = replace_infinite(record)
        if not is_record(record):
            raise ValueError(f"a record needs the strings {', '.join(FIELDS)}: {record}")
        with self._guard:
            self._append(record)
            self._book.add(record)
            self._ours.setdefault(record["path"], set()).add(record["sha256"])
            self._sure.add(record["path"])
        self._folder.write(data, Path(record["path"]), like, attributes)

    def record_failure(self, failure: Mapping[str, str]) -> None:
        """Record what failed, `path`, `reason` and `message`, for runs that try it again.

        Raises:
            OutputProblem: the journal cannot be written.
        """
        with self._guard:
            self._append({"failed": dict(failure)})

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of the output's own, for the user alone, that stays when a run finishes.

        Raises:
            OutputProblem: it cannot be written.
        """
        try:
            self._folder.work.write(data, name, mode=0o600)
        except OSError as error:
            raise explain_output_error(error, self.output) from error

    def refuse_loss(self) -> None:
        """Raise OutputProblem where what this run works in is no longer in its place."""
        self._folder.refuse_loss()
        try:
            is_lost = self._lines is not None and not self._lines.is_in_place()
        except OSError as error:
            raise explain_output_error(error, self.output) from error
        if is_lost:
            raise self._folder.lose(self.output / WORK / JOURNAL)

    def _list_beginning(self) -> Iterator[Record]:
        """Yield the lines that begin a run in the journal: its settings, and the codes."""
        keys = list(self.keys.items())
        for start in range(0, len(keys) or 1, KEYS_OF_LINE):
            yield {"run": self._run, "keys": dict(keys[start : start + KEYS_OF_LINE])}

    def _append(self, *entries: Record) -> None:
        self.refuse_loss()
        try:
            if self._lines is None:
                self._lines = LineFile(self._folder.work, JOURNAL)
                self._lines.append(*self._list_beginning())
            self._lines.append(*self._unsaid, *entries)
            self._unsaid.clear()
        except OSError as error:
            raise explain_output_error(error, self.output) from error

    def finish(self, summary: dict[str, Any]) -> Path:
        """Write the manifest, remove everything else that is not a copy, and let the folder go.

        `summary` may list `failed`: records of `path`, `reason`, `message`. A record whose copy
        never came into place is left out; one whose copy was changed or removed since stays. Only
        `seconds` and `finished` depend on the clock; a manifest that says the same stays as it is.
        """
        self.refuse_loss()
        doubtful = {entry["path"] for entry in summary.get("failed", ())}
        sure = self._sure - doubtful
        listed = (self._choose(path, path in sure) for path in sorted(self.records))
        pictures = [record for record in listed if record is not None]
        seconds = round(time.monotonic() - self._since, 3)
        data = format_manifest(self._run, self.keys, summary, pictures, seconds, self.clusters)
        try:
            if not is_written(data, self.output):
                self._folder.write(data, Path(MANIFEST))
            with contextlib.suppress(OSError):
                self._close()
            with contextlib.suppress(FileNotFoundError):
                self._folder.work.unlink(JOURNAL)
        except OSError as error:
            raise explain_output_error(error, self.output) from error
        self._folder.leave()
        return self.output / MANIFEST

    def _choose(self, path: str, is_sure: bool) -> Record | None:
        """Return the record that the manifest lists of a copy."""
        forgets = self._existing == "overwrite"
        if is_sure or not (forgets or self._book.needs_hash(path)):
            return self.records[path]
        digest = self._folder.sha256(Path(path))
        if forgets and digest is None:
            return None
        return self._book.choose(path, digest, self._ours[path])

    def recall(self) -> None:
        """Read what former runs recorded, and decide whether this run may go on from it.

        Entering does so; called alone it is for a plan: nothing is written or locked.
        """
        books: dict[str, Book] = {}
        wanted = _select_deciding(self._run)
        last, book = wanted, Book()
        for entry in read_entries(self.output):
            if "run" in entry:
                last = drop_foreign_noise(_select_deciding(entry["run"]), wanted)
                book = books.setdefault(format_line(last), Book())
                book.begin(entry)
            else:
                book.add(entry)
            for record in entry.get("pictures", (entry,)):
                if is_record(record):
                    self._ours.setdefault(record["path"], set()).add(record["sha256"])
                    if is_changed(record):
                        self.copies[record["sha256"]] = record.get("bytes")
        self._book = books.get(format_line(wanted), Book())
        if not self._ours:
            return
        where = escape(self.output)
        if self._existing == "error":
            raise BadSetting(
                f"{where} already contains {format_count(len(self._ours), 'protected copy')}.",
                "Use --existing skip to keep them, or choose another folder with -o.",
            )
        if self._existing == "skip" and last != wanted:
            changes = describe_differences(last, wanted)
            raise BadSetting(
                f"The copies in {where} were made with other settings: {changes}.",
                "Use --existing overwrite to replace them, or choose another folder with -o.",
            )

    def _close(self) -> None:
        if self._lines is not None:
            lines, self._lines = self._lines, None
            lines.close()

    def _restore(self) -> None:
        """Where the journal was removed and copies are left, write it anew: they stay known."""
        if self._folder.is_lost and self.records:
            classes = self._book.list_classes()
            entries = (*self._list_beginning(), *classes, *self.records.values())
            self._folder.restore("".join(f"{format_line(entry)}\n" for entry in entries), JOURNAL)


def _select_deciding(run: dict[str, Any]) -> dict[str, Any]:
    """What of a run must be the same for another to go on from it."""
    return {name: value for name, value in run.items() if name not in _MAKER}
