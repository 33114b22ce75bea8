"""The journal that makes a run resumable, and the manifest that makes it auditable.

All that is known about one output folder: which run holds it, which copies in it are ours, which
are done, which key every class got. No picture is opened here; a copy is its bytes' sha256.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from tue_cli.errors import BadSetting, OutputProblem
from tue_cli.storage.atomic import SCRATCH, Folder, Identity, identity_of, is_link
from tue_cli.storage.reading import (
    MOST_STATE,
    NotAFile,
    TooLarge,
    is_below,
    is_name,
    open_regular,
    parse_json,
    read_file,
    why,
)
from tue_cli.text import printable

MANIFEST = "tue-manifest.json"
WORK = ".tue"
SCHEMA = 1
EXISTING = ("skip", "overwrite", "error")

_JOURNAL = "journal.jsonl"
_LOCK = "lock"
_MAKER = ("tool", "algorithm")
"""What of a run tells who made its copies, and does not decide whether another may go on."""
_FATAL = {errno.ENOSPC, errno.EROFS, errno.ELOOP, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""What of a file system's errors no other copy escapes either."""
_LONGEST_LINE, _MOST_ODD = 1_000_000, 1_000
"""Bytes of a journal's line, which has about a thousand, and its lines that are no entries."""
_FIELDS = ("path", "source_sha256", "sha256", "label", "key")

Record = dict[str, Any]


def sha256(what: Path | bytes) -> str:
    """The SHA-256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(what, bytes):
        return hashlib.sha256(what).hexdigest()
    with what.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_output(folder: Path) -> bool:
    """Whether a run has written its copies here, finished or not."""
    # lexists, for it does not raise where the folder cannot be entered.
    return any(map(os.path.lexists, (folder / MANIFEST, folder / WORK / _JOURNAL)))


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a finished run: schema, run, keys, summary, pictures, seconds, finished.

    `output` is the folder of the run, or a manifest by itself.
    Raises BadSetting where there is none, or none that this version can read.
    """
    path = output if os.path.isfile(output) else output / MANIFEST  # noqa: PTH113 - never raises
    try:
        data = read_file(path, MOST_STATE)
        # Millions of lists would take gigabytes to be told from a manifest.
        nested = data.count(b"[") + data.count(b"{") > 50_000 + len(data) // 25
        begins = re.match(rb"(\xef\xbb\xbf)?\s*\{", data)
        manifest = parse_json(data) if begins and not nested else None
    except FileNotFoundError:
        raise BadSetting(
            f"{printable(output)} has no {MANIFEST}.",
            "Name a folder that `tue protect` has finished.",
        ) from None
    except (OSError, ValueError) as error:
        raise _corrupt(path, why(error)) from error
    # Not isinstance: true is a whole number to Python.
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise _corrupt(path, "it is not a manifest of tue")
    if manifest["schema"] != SCHEMA:
        raise BadSetting(
            f"{printable(path)} has schema {manifest['schema']}; this version reads {SCHEMA}.",
            "Use the version of tue that wrote it, or choose another output with -o.",
        )
    run, keys, pictures = (manifest.get(name) for name in ("run", "keys", "pictures"))
    if not (_is_run(run) and _are_keys(keys) and isinstance(pictures, list)):
        raise _corrupt(path, "parts of it are missing or of the wrong kind")
    if not all(_is_record(entry) for entry in pictures):
        raise _corrupt(path, "a picture's entry is incomplete, or leads outside the folder")
    manifest["pictures"] = [_drop_invalid(entry) for entry in pictures]
    manifest["summary"] = _summary(manifest.get("summary"))
    return manifest


def former_run(output: Path) -> dict[str, Any]:
    """What decided the bytes of the copies that were last written here; empty where there are none.

    Raises BadSetting where a manifest cannot be read.
    """
    runs = [entry["run"] for entry in Journal(output, {}, "skip").entries() if "run" in entry]
    return runs[-1] if runs else {}


def read_unfinished(output: Path) -> tuple[dict[str, Any], list[Record]] | None:
    """What a run that was stopped left here: its settings and its records; None where none did.

    Nothing is written or locked. Raises OutputProblem where the folder cannot be read.
    """
    run: dict[str, Any] | None = None
    records: dict[str, Record] = {}
    for entry in _lines(output / WORK / _JOURNAL):
        if _is_record(entry):
            records[entry["path"]] = entry
        else:
            run = entry["run"]
    return None if run is None else (run, list(records.values()))


def output_problem(error: OSError, output: Path) -> OutputProblem:
    """The error to raise when writing below `output` failed with `error`."""
    where = printable(output)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return OutputProblem(
            f"The disk that holds {where} is full.",
            "Free some space and run the same command again: finished pictures are kept.",
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
        return link_in_the_way(Path(error.filename or output))
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputProblem(
            f"Something that is not a folder stands in the place of the output folder {where}.",
            "Move it away, or choose another folder with -o.",
        )
    return OutputProblem(
        f"The output folder {where} cannot be written: {error.strerror or error}.",
        "Choose another folder with -o.",
    )


def link_in_the_way(path: Path) -> OutputProblem:
    """The error to raise where a link stands in the place of a file or folder of the output."""
    return OutputProblem(
        f"{printable(path)} is a link; tue follows no links inside an output.",
        "Remove it, or choose another folder with -o.",
    )


def refuse_links(output: Path, folders: Iterable[Path]) -> None:
    """Raise OutputProblem where one of these folders below `output`, or what tue keeps there, is
    a link.
    """
    places = {Path(MANIFEST), Path(WORK), *(Path(WORK, name) for name in (_JOURNAL, _LOCK))}
    for folder in folders:
        places |= {folder, *folder.parents}
    for place in sorted(places - {Path()}):
        with contextlib.suppress(OSError):
            if is_link((output / place).lstat()):
                raise link_in_the_way(output / place)


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
    ) -> None:
        """`run` holds the settings that decide the copies' bytes, as JSON can say them.

        Its fields `tool` and `algorithm` only tell: runs that differ in them go on from each other.
        No copy is put into one of the folders `originals`, whatever leads there.

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
        self.records: dict[str, Record] = {}
        """Relative posix path -> record, of this run and of former ones with equal settings."""
        self.keys: dict[str, str] = {}
        """Class -> key, likewise; what is added here goes into the manifest."""
        self.refused: set[str] = set()
        """What the output's file system refused to do, as `Folder.refused` has it."""
        self._run: dict[str, Any] = json.loads(_line(run))
        self._existing = existing
        self._originals = originals
        # Held from entering to leaving, and let go in reverse.
        self._folder: Folder
        self._work: Folder
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._guard = threading.Lock()
        self._places: dict[Path, Identity] = {}
        self._lost = False
        self._ours: dict[str, set[str]] = {}
        self._sure: set[str] = set()
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        """Claim the folder and recall what is in it."""
        self._claim()
        try:
            if not os.access(self.output, os.W_OK | os.X_OK):
                raise output_problem(PermissionError(errno.EACCES, "not writable"), self.output)
            _suppressed(self._clear_scratch)
            self.recall()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go, finished or to be resumed."""
        self._leave()

    def is_done(self, relative: Path, *, source_sha256: str, label: str, key: str) -> bool:
        """Whether a copy of this very source, label and key is in place, whole."""
        path = relative.as_posix()
        record = self.records.get(path)
        wanted = (source_sha256, label, key)
        if record is None or (record["source_sha256"], record["label"], record["key"]) != wanted:
            return False
        if self._hash(relative) != record["sha256"]:
            return False
        self._sure.add(path)
        return True

    def owns(self, relative: Path) -> bool:
        """Whether the file at this place is, byte for byte, one that a run of ours wrote."""
        ours = self._ours.get(relative.as_posix())
        return ours is not None and self._hash(relative) in ours

    def save(self, record: Record, data: bytes, like: os.stat_result | None = None) -> None:
        """Record a finished picture and put its copy in place; to be called from any thread.

        The copy gets the permissions and the time of `like`. A number in the record that is not
        finite becomes null.

        Raises:
            OutputProblem: the disk is full, the output was removed or replaced, a link is in the
                way; no other copy can be written either.
            OSError: this copy cannot be written.
        """
        record = _finite(record)
        if not _is_record(record):
            raise ValueError(f"a record needs the strings {', '.join(_FIELDS)}: {record}")
        with self._guard:
            self.refuse_loss()
            try:
                self._append(record)
            except OSError as error:
                raise output_problem(error, self.output) from error
            self.records[record["path"]] = record
            self.keys[record["label"]] = record["key"]
            self._ours.setdefault(record["path"], set()).add(record["sha256"])
            self._sure.add(record["path"])
        relative = Path(record["path"])
        try:
            with self._entered(relative.parent) as place:
                place.write(data, relative.name, aside=self._work, like=like)
        except OSError as error:
            self.refuse_loss()
            if error.errno in _FATAL:
                raise output_problem(error, self.output) from error
            raise

    def refuse_loss(self) -> None:
        """Raise OutputProblem where what this run works in is no longer in its place."""
        try:
            lost = self._missing()
        except OSError as error:
            raise output_problem(error, self.output) from error
        if lost is not None:
            self._lost = True
            raise _lost(lost)

    def _missing(self) -> Path | None:
        for folder in (self._folder, self._work):
            if not folder.is_in_place():
                return folder.path
        if self._file is not None:
            status = self._work.status(_JOURNAL)
            if status is None or identity_of(status) != identity_of(os.fstat(self._file.fileno())):
                return self._work.path / _JOURNAL
        return None

    def _append(self, record: Record) -> None:
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = open(self._work.open(_JOURNAL, flags), "ab")  # noqa: PTH123, SIM115
            # A kill may have left half a line; it must not swallow the next one.
            start = "\n" if self._file.seek(0, os.SEEK_END) else ""
            self._file.write(f"{start}{_line({'run': self._run})}\n".encode())
            self._work.sync()
        self._file.write(f"{_line(record)}\n".encode())
        self._file.flush()
        with self._work.tolerate("syncing"):
            os.fsync(self._file.fileno())

    def _entered(self, relative: Path) -> Folder:
        """Enter a folder for copies, made where it is missing, and check that it is one still."""
        known = self._places.get(relative)
        try:
            place = self._folder.inside(relative, make=known is None)
        except FileNotFoundError:
            self._lost = True
            raise _lost(self.output / relative) from None
        if place.identity in self._originals or known not in (None, place.identity):
            place.close()
            self._lost = True
            raise _lost(self.output / relative)
        self._places[relative] = place.identity
        return place

    def finish(self, summary: dict[str, Any]) -> Path:
        """Write the manifest, remove everything else that is not a copy, and let the folder go.

        `summary` may list `failed`: records of `path`, `reason`, `message`. A record whose copy
        never came into place is left out. Only `seconds` and `finished` depend on the clock.
        """
        self.refuse_loss()
        doubtful = {entry["path"] for entry in summary.get("failed", ())}
        sure = self._sure - doubtful
        pictures = [
            record
            for path, record in sorted(self.records.items())
            if path in sure or self._hash(Path(path)) == record["sha256"]
        ]
        manifest = {
            "schema": SCHEMA,
            "run": self._run,
            "keys": self.keys,
            "summary": _finite(summary),
            "pictures": pictures,
            "seconds": round(time.monotonic() - self._since, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n"
        try:
            self._folder.write(text.encode("ascii"), MANIFEST, aside=self._work)
            _suppressed(self._close)
            with contextlib.suppress(FileNotFoundError):
                self._work.unlink(_JOURNAL)
        except OSError as error:
            raise output_problem(error, self.output) from error
        self._leave()
        return self.output / MANIFEST

    def _claim(self) -> None:
        """Make the folder, hold it and lock it."""
        # A run that leaves removes its empty folders, perhaps between our making and our locking.
        for attempts_left in reversed(range(5)):
            try:
                self._hold()
                return
            except BlockingIOError:
                self._leave()
                raise OutputProblem(
                    f"Another run of tue is using {printable(self.output)}.",
                    "Wait until it has finished, or choose another folder with -o.",
                ) from None
            except OSError as error:
                self._leave()
                if attempts_left and isinstance(error, FileNotFoundError | FileExistsError):
                    continue
                raise output_problem(error, self.output) from error
            except OutputProblem:
                self._leave()
                raise

    def _hold(self) -> None:
        hold = self._stack
        for folder in reversed((self.output, *self.output.parents)):
            if not folder.exists():
                hold.callback(_suppressed, folder.rmdir)
        self.output.mkdir(parents=True, exist_ok=True)
        self._folder = hold.enter_context(Folder(self.output))
        self.refused = self._folder.refused
        if self._folder.identity in self._originals:
            raise _lost(self.output)
        refuse_links(self.output, ())
        hold.callback(_suppressed, lambda: self._folder.rmdir(WORK))
        self._work = hold.enter_context(self._folder.inside(Path(WORK), make=True))
        hold.callback(self._work.unlock, _LOCK, self._work.lock(_LOCK))
        hold.callback(_suppressed, self._restore)
        hold.callback(_suppressed, self._clear_scratch)
        hold.callback(_suppressed, self._close)

    def recall(self) -> None:
        """Read what former runs recorded, and decide whether this run may go on from it.

        Entering does so; called alone it is for a plan: nothing is written or locked.
        """
        books: dict[str, tuple[dict[str, Record], dict[str, str]]] = {}
        records, keys = self.records, self.keys
        wanted = _select_deciding(self._run)
        last = wanted
        for entry in self.entries():
            if _is_record(entry):
                records[entry["path"]] = entry
                keys[entry["label"]] = entry["key"]
                self._ours.setdefault(entry["path"], set()).add(entry["sha256"])
            else:
                last = drop_foreign_noise(_select_deciding(entry["run"]), wanted)
                records, keys = books.setdefault(_line(last), ({}, {}))
                keys.update(entry.get("keys", {}))
        self.records, self.keys = books.get(_line(wanted), ({}, {}))
        if not self._ours:
            return
        where = printable(self.output)
        if self._existing == "error":
            raise BadSetting(
                f"{where} already holds {len(self._ours)} protected copies.",
                "Use --existing skip to go on from them, or choose another folder with -o.",
            )
        if self._existing == "skip" and last != wanted:
            raise BadSetting(
                f"{where} holds copies made with other settings: {differences(last, wanted)}.",
                "Use --existing overwrite to replace them, or choose another folder with -o.",
            )

    def entries(self) -> Iterator[dict[str, Any]]:
        """Runs and records, oldest first: the manifest's, then the journal's readable lines."""
        if os.path.lexists(self.output / MANIFEST):
            manifest = read_manifest(self.output)
            yield {"run": manifest["run"], "keys": manifest["keys"]}
            yield from manifest["pictures"]
        yield from _lines(self.output / WORK / _JOURNAL)

    def _hash(self, relative: Path) -> str | None:
        """The hash of the file at a place; None where there is no readable regular file."""
        try:
            with self._folder.inside(relative.parent) as place:
                return place.sha256(relative.name)
        except (OSError, ValueError):  # the latter for a name that no system can have
            return None

    def _clear_scratch(self) -> None:
        for name in self._work.names():
            if name.startswith(SCRATCH):
                with contextlib.suppress(OSError):
                    self._work.unlink(name)

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _restore(self) -> None:
        """Where the journal was removed and copies are left, write it anew: they stay known."""
        if not (self._lost and self.records):
            return
        lines = (_line({"run": self._run}), *map(_line, self.records.values()))
        text = "".join(f"{line}\n" for line in lines)
        with self._folder.inside(Path(WORK), make=True) as work:
            if work.status(_JOURNAL) is None:
                work.write(text.encode(), _JOURNAL)

    def _leave(self) -> None:
        """Let the folder go; what was recorded stays, and what this run made empty does not."""
        self._stack.close()


def _suppressed(action: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        action()


def _lines(journal: Path) -> Iterator[dict[str, Any]]:
    """A journal's runs and records, oldest first; none where there is no journal.

    A line that is neither, such as the half of one that a kill leaves, is passed over. Raises
    BadSetting where there are more of those than any kills leave, or the journal is too large.
    """
    odd = 0
    try:
        with open_regular(journal, MOST_STATE) as file:
            while line := file.readline(_LONGEST_LINE):
                entry = _parse_line(line)
                if entry is not None:
                    yield entry
                    continue
                odd += 1
                if odd > _MOST_ODD:
                    raise _corrupt(journal, f"more than {_MOST_ODD:,} lines of it are no entries")
    except FileNotFoundError:
        return
    except (NotAFile, TooLarge) as error:
        raise _corrupt(journal, why(error)) from error
    except OSError as error:
        raise output_problem(error, journal.parent.parent) from error


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """A run or a record of a journal; None for what is neither."""
    if line.isspace():
        return None
    with contextlib.suppress(ValueError):
        entry = parse_json(line)
        if _is_record(entry):
            return _drop_invalid(entry)
        if isinstance(entry, dict) and _is_run(entry.get("run")):
            return {"run": entry["run"]}
    return None


def _select_deciding(run: dict[str, Any]) -> dict[str, Any]:
    """What of a run must be the same for another to go on from it."""
    return {name: value for name, value in run.items() if name not in _MAKER}


def drop_foreign_noise(former: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return what a former run said, without such fields of its noise as this run's has not.

    Runs once held the fields of every method, of which all but its own's decide nothing.
    """
    settings, own = former.get("settings"), run.get("settings")
    if not (isinstance(settings, dict) and isinstance(own, dict)):
        return former
    noise, known = settings.get("noise"), own.get("noise")
    if not (isinstance(noise, dict) and isinstance(known, dict)):
        return former
    kept = {name: value for name, value in noise.items() if name in known}
    return {**former, "settings": {**settings, "noise": kept}}


def _lost(path: Path) -> OutputProblem:
    return OutputProblem(
        f"{printable(path)} was removed or replaced while tue was writing.",
        "Find out why, then run the same command again; the remaining copies are kept.",
    )


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _is_record(entry: Any) -> bool:
    """Whether this is a picture's entry, of a copy that lies below the output."""
    return (
        isinstance(entry, dict)
        and all(is_name(entry.get(name)) for name in _FIELDS)
        and is_below(entry["path"])
    )


def _is_run(run: Any) -> bool:
    return isinstance(run, dict) and isinstance(run.get("engine", ""), str)


def _are_keys(keys: Any) -> bool:
    return isinstance(keys, dict) and all(is_name(text) for pair in keys.items() for text in pair)


def _drop_invalid(record: Record) -> Record:
    """A record without the fields that only tell something and are of the wrong kind."""
    return {
        name: value
        for name, value in record.items()
        if name not in _TELLING or _TELLING[name](value)
    }


def _summary(found: Any) -> dict[str, Any]:
    """A summary without such failures as are of the wrong kind."""
    summary: dict[str, Any] = found if isinstance(found, dict) else {}
    listed = summary.get("failed")
    if listed is None:
        return summary
    failed = [
        entry
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("path", "reason", "message"))
    ]
    return {**summary, "failed": failed}


def _is_number(value: Any) -> bool:
    # A whole number beyond any float would be an error in every sum.
    return value is None or (type(value) in (int, float) and abs(value) < 1e300)


def _is_size(value: Any) -> bool:
    return _is_list_of(value, int) and len(value) == 2 and all(0 < side < 1 << 31 for side in value)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(part) is kind for part in value)


_TELLING: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("source", "format", "pixels_sha256"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("largest", "mean", "psnr", "ssim", "survival", "small_rms"), _is_number),
    **dict.fromkeys(("bytes", "seconds"), _is_number),
    **dict.fromkeys(("metadata", "notes"), lambda value: _is_list_of(value, str)),
    "size": _is_size,
}
"""Fields of a record that decide nothing, and which values they may have."""


def _finite(value: Any) -> Any:
    """`value` as strict JSON can say it: the PSNR of an unchanged picture is infinite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def differences(former: dict[str, Any], run: dict[str, Any]) -> str:
    """What differs between two runs' settings, the first few, as half a sentence; or nothing."""
    before, now = _flat(former), _flat(run)
    parts = [
        f"{_short(name)} was {_short(repr(before.get(name)))} and is now "
        f"{_short(repr(now.get(name)))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _corrupt(path: Path, why: str) -> BadSetting:
    return BadSetting(
        f"{printable(path)} cannot be read: {printable(why)}.",
        "Move it away and run again with --existing overwrite, or choose another folder with -o.",
    )
