"""What runs recorded in an output, as its manifest and its journal have it.

Anybody may have written them: what is no entry is ignored, or refused where it would decide.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.manifest import (
    MANIFEST,
    Clusters,
    Record,
    are_keys,
    drop_invalid,
    explain_damage,
    is_centre,
    is_failure,
    is_record,
    is_run,
    read_manifest,
)
from tue_cli.dataset.output import JOURNAL, WORK, explain_output_error
from tue_cli.storage.lines import TooManyOdd, read_lines
from tue_cli.storage.reading import NotAFile, TooLarge, explain_error, is_name


class Given(NamedTuple):
    """The class that a picture was given, and the hash of the picture."""

    label: str
    source_sha256: str


@dataclass
class Book:
    """What all runs of the same settings recorded, oldest first."""

    records: dict[str, Record] = field(default_factory=dict)
    """Place of a copy -> its latest record."""
    keys: dict[str, str] = field(default_factory=dict)
    """Class -> key."""
    clusters: Clusters | None = None
    given: dict[str, Given] = field(default_factory=dict)
    """Place of an original -> its class; since `clusters` were found, where there are any."""
    _former: dict[str, list[Record]] = field(default_factory=dict)
    _listed: set[str] = field(default_factory=set)
    _coming: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def begin(self, entry: Mapping[str, Any]) -> None:
        """Take up a run and, where it is a manifest's, all that the manifest lists."""
        keys: Mapping[str, str] = entry.get("keys", {})
        self.keys.update({normalize_name(name): key for name, key in keys.items()})
        if (found := entry.get("clusters")) is not None:
            self.set_clusters(Clusters.read(found))
        for record in entry.get("pictures", ()):
            self.add(record)
            self._listed.add(record["path"])

    def add(self, entry: Record) -> None:
        """Take up a line of a journal."""
        if is_record(entry):
            path, label = entry["path"], normalize_name(entry["label"])
            entry = {**entry, "label": label}
            self.records[path] = entry
            self.keys[label] = entry["key"]
            self.given[get_source(entry)] = Given(label, entry["source_sha256"])
            self._former.setdefault(path, []).append(entry)
        elif "failed" in entry:
            return  # it tells nothing of a copy or a class
        elif is_centre(entry):
            if entry["number"] == 0:
                self._coming = {}
            self._coming[entry["label"]] = tuple(entry["centre"])
            # Some are missing where a run was killed before it began with the copies.
            is_whole = len(self._coming) == entry["of"]
            if is_whole and len(set(map(len, self._coming.values()))) == 1:
                self.set_clusters(Clusters(entry["groups"], self._coming))
        else:
            self.given[entry["source"]] = Given(entry["label"], entry["source_sha256"])

    def set_clusters(self, clusters: Clusters | None) -> None:
        """Take up new clusters, after which former classes of pictures say nothing."""
        if clusters != self.clusters:
            self.clusters = clusters
            self.given.clear()

    def list_classes(self) -> Iterator[Record]:
        """Yield the lines of a journal that tell the clusters, and the class of each picture."""
        yield from self.clusters.list_lines() if self.clusters else ()
        yield from map(format_given, self.given.items())

    def needs_hash(self, path: str) -> bool:
        """Say whether `choose` needs to know what lies in a copy's place."""
        return path not in self._listed or len(self._former[path]) > 1

    def choose(self, path: str, digest: str | None, ours: Container[str | None]) -> Record | None:
        """Return the record of a copy that the last run did not make; None: it was never there.

        A kill may have come between the record and the copy, so the record that fits the file is
        preferred; where none does, that of the manifest, whose copy was there for sure.

        Args:
            path: the place of the copy.
            digest: the hash of the file that lies there; None for no file.
            ours: the hashes of all copies that ever lay there.
        """
        former = self._former[path]
        for record in reversed(former):
            if record["sha256"] == digest:
                return record
        if path in self._listed:
            return former[0]
        # Without a file, none may ever have been there; with one, somebody changed it.
        return None if digest is None or digest in ours else former[-1]


def get_source(record: Record) -> str:
    """Return the place of a copy's original, below the folder that was given."""
    source: str = record.get("source") or record["path"]
    return source


def format_given(entry: tuple[str, Given]) -> Record:
    """Return the line of a journal that tells a picture's class."""
    source, (label, digest) = entry
    return {"source": source, "label": label, "source_sha256": digest}


def read_former_run(output: Path) -> dict[str, Any]:
    """What decided the bytes of the copies that were last written here; empty where there are none.

    Raises BadSetting where a manifest cannot be read.
    """
    runs = [entry["run"] for entry in read_entries(output) if "run" in entry]
    return runs[-1] if runs else {}


def read_records(output: Path) -> Iterator[Record]:
    """Yield the record of each copy that runs have written here, finished or not, oldest first.

    Raises BadSetting where a manifest or a journal cannot be read, OutputProblem where the folder
    cannot be.
    """
    for entry in read_entries(output):
        yield from filter(is_record, entry.get("pictures", (entry,)))


def read_book(output: Path) -> Book:
    """Return what runs recorded here, whatever their settings.

    Raises BadSetting where a manifest or a journal cannot be read, OutputProblem where the folder
    cannot be.
    """
    book = Book()
    for entry in read_entries(output):
        if "run" in entry:
            book.begin(entry)
        else:
            book.add(entry)
    return book


def read_failures(output: Path) -> tuple[dict[str, str], ...]:
    """Return what failed last: `path`, `reason`, `message`; or nothing.

    That is what failed in the last run that finished, or in those that were stopped since, but for
    pictures that these protected. Raises as `read_book` does.
    """
    last: list[dict[str, str]] = []
    if os.path.lexists(output / MANIFEST):
        last = read_manifest(output)["summary"].get("failed") or []
    found = {failure["path"]: failure for failure in last}
    for entry in read_journal(output):
        if "failed" in entry:
            found[entry["failed"]["path"]] = entry["failed"]
        elif is_record(entry):
            for place in {entry["path"], get_source(entry)}:
                found.pop(place, None)
    return tuple(found.values())


def read_unfinished(output: Path) -> tuple[dict[str, Any], list[Record]] | None:
    """What a run that was stopped left here: its settings and its records; None where none did.

    Nothing is written or locked. Raises OutputProblem where the folder cannot be read.
    """
    run: dict[str, Any] | None = None
    records: dict[str, Record] = {}
    for entry in read_journal(output):
        if is_record(entry):
            records[entry["path"]] = entry
        else:
            run = entry.get("run", run)
    return None if run is None else (run, list(records.values()))


def read_entries(output: Path) -> Iterator[dict[str, Any]]:
    """Yield runs and lines, oldest first: the manifest as a run with its `pictures`, then the
    journal's readable lines.
    """
    if os.path.lexists(output / MANIFEST):
        manifest = read_manifest(output)
        yield {name: manifest.get(name) for name in ("run", "keys", "clusters", "pictures")}
    yield from read_journal(output)


def read_journal(output: Path) -> Iterator[dict[str, Any]]:
    """Yield a journal's runs and lines, oldest first; none where there is no journal.

    Raises BadSetting where it is too large, or most of it is no entries.
    """
    path = output / WORK / JOURNAL
    try:
        yield from read_lines(path, _parse_entry)
    except FileNotFoundError:
        return
    except (NotAFile, TooLarge, TooManyOdd) as error:
        raise explain_damage(path, explain_error(error)) from error
    except OSError as error:
        raise explain_output_error(error, output) from error


def _parse_entry(line: Any) -> dict[str, Any] | None:
    """A run, a record, a failure, a centre or a picture's class of a journal; None for none."""
    if is_record(line):
        return drop_invalid(line)
    if not isinstance(line, dict):
        return None
    if is_run(line.get("run")):
        keys = line.get("keys")
        return {"run": line["run"], "keys": keys if are_keys(keys) else {}}
    if "failed" in line:
        return line if is_failure(line["failed"]) else None
    names = ("source", "label", "source_sha256")
    is_class = all(is_name(line.get(name)) for name in names)
    return line if is_class or is_centre(line) else None
