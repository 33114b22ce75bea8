"""Copies and their originals: paired by the manifest, split into what is learned and tested."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.memory import recall_originals, tell_recalled
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.events import Event, Failed, Note
from tue_cli.images import codec
from tue_cli.storage.reading import is_below
from tue_cli.text import escape, format_count
from tue_cli.verify.request import VerifySpec

BACKGROUND = "/background"
"""The background's class; no folder has such a name."""


@dataclass(frozen=True)
class Pair:
    """A copy and its original, or a picture that has no copy and stays as it is."""

    original: Path
    copy: Path | None
    label: str
    sha256: str
    """Of the original's file: its content, by which pictures are split and drawn."""


def pair_copies(
    protected: Path, original: Path, manifest: dict[str, Any], pool: ThreadPoolExecutor
) -> tuple[list[Pair], list[Failed], int]:
    """Pair each copy with its original through the manifest, whatever has become of the copy since.

    Returns the pairs, what could not be paired and why, and how many copies are no longer the
    bytes that tue wrote.

    Raises:
        BadSetting: not one original is where the manifest says.
    """

    def pair_one(record: dict[str, Any]) -> tuple[Pair, bool] | Failed:
        copy, clean = protected / record["path"], find_original(record, original)
        if clean is None:
            return Failed(copy, "outside", "The manifest lists a file outside the folder.")
        try:
            digest = sha256(codec.read(clean))
        except ImageProblem as problem:
            return Failed(clean, "no-original", problem.message)
        if digest != record["source_sha256"]:
            return Failed(clean, "changed", "The original has changed since it was protected.")
        try:
            same = sha256(codec.read(copy)) == record["sha256"]
        except ImageProblem as problem:
            return Failed(copy, "no-copy", problem.message)
        return Pair(clean, copy, normalize_name(record["label"]), digest), same

    pairs: list[Pair] = []
    failures: list[Failed] = []
    others = 0
    for result in pool.map(pair_one, manifest["pictures"]):
        if isinstance(result, Failed):
            failures.append(result)
            continue
        pair, same = result
        pairs.append(pair)
        others += not same
    if not pairs and failures:
        raise BadSetting(
            f"The originals do not match the copies: of {format_count(len(failures), 'original')}, "
            f"none was found unchanged. For example, {escape(failures[0].path)}: "
            f"{failures[0].message}",
            "Give --original the folder that was given to `tue protect`.",
        )
    return pairs, failures, others


def locate_originals(
    spec: VerifySpec, manifest: dict[str, Any]
) -> Generator[Event, None, VerifySpec]:
    """Return the request with the folder of the originals, found again where it names none.

    Raises:
        BadSetting: they are not where `tue protect` found them, or it was not run by this user.
    """
    if spec.original is not None:
        return spec
    sources = ((str(r.get("source", r["path"])), r["source_sha256"]) for r in manifest["pictures"])
    recalled = recall_originals(spec.protected, sources)
    if recalled is None:
        raise BadSetting(
            f"The originals of {escape(spec.protected)} are not known, or are no longer there.",
            "Add --original FOLDER, with the folder that was given to `tue protect`.",
        )
    yield Note(tell_recalled(recalled))
    return replace(spec, original=recalled)


def find_original(record: dict[str, Any], original: Path | None) -> Path | None:
    """Return where the original of a manifest's picture lies below `original`; None where the
    manifest points out of that folder, or out of its own, or no folder is known.
    """
    if original is None:
        return None
    source = str(record.get("source", record["path"]))
    return original / source if is_below(source) and is_below(record["path"]) else None


def list_clean_images(folder: Path, pool: ThreadPoolExecutor, *, classes: bool) -> list[Pair]:
    """Return clean pictures below a folder: one class a subfolder, or all of them background.

    Raises:
        BadSetting: it is no folder, or holds no picture.
    """
    if not folder.is_dir():
        option = "--holdout" if classes else "--background"
        raise BadSetting(
            f"{option} {escape(folder)} is not a folder.", "Name a folder of pictures."
        )
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in codec.SUFFIXES
        and (not classes or len(path.relative_to(folder).parts) > 1)
    ]

    def pair_one(path: Path) -> Pair | None:
        label = normalize_name(path.relative_to(folder).parts[0]) if classes else BACKGROUND
        try:
            return Pair(path, None, label, sha256(codec.read(path)))
        except ImageProblem:
            return None

    pairs = [pair for pair in pool.map(pair_one, found) if pair is not None]
    if not pairs:
        raise BadSetting(
            f"{escape(folder)} has no readable picture{' in a subfolder' if classes else ''}.",
            "Name a folder with one subfolder per class." if classes else "Name another folder.",
        )
    return pairs


def shuffle_by_class(pairs: Iterable[Pair], seed: int) -> dict[str, list[list[Pair]]]:
    """Return each class's pictures in an order that only seed and content decide.

    Pictures of one content stand together, as one group: a split must not part them.
    """
    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.label, pair.sha256].append(pair)

    def rank(key: tuple[str, str]) -> bytes:
        return hashlib.sha256(f"{seed}/{key[1]}".encode()).digest()

    classes: dict[str, list[list[Pair]]] = defaultdict(list)
    for key in sorted(groups, key=rank):
        classes[key[0]].append(sorted(groups[key], key=lambda pair: pair.original.as_posix()))
    return {name: classes[name] for name in sorted(classes)}


def split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pictures to train on and those held out, by content, `share` of every class.

    A content that is in two classes is not learned in one where it is held out in the other.
    Classes with a single content are left out: they cannot be both learned and tested.
    """
    train: list[Pair] = []
    held: list[Pair] = []
    for groups in shuffle_by_class(pairs, seed).values():
        if len(groups) < 2:
            continue
        count = min(len(groups) - 1, max(1, round(share * len(groups))))
        held += [pair for group in groups[:count] for pair in group]
        train += [pair for group in groups[count:] for pair in group]
    contents = {pair.sha256 for pair in held}
    return [pair for pair in train if pair.sha256 not in contents], held


def limit_pairs(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """Return about `most` pictures, each class in its proportion but never gone."""
    if len(pairs) <= most:
        return list(pairs)
    kept: list[Pair] = []
    for groups in shuffle_by_class(pairs, seed).values():
        every = [pair for group in groups for pair in group]
        kept += every[: max(1, round(most * len(every) / len(pairs)))]
    return kept
