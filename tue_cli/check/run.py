"""`tue check`: copies held against their manifest, and what is left of the noise in them.

With d what the intact copy changed of the original, and d' what the file changes of it now,
<d', d> / <d, d> is left of the noise: 1 in the intact copy, 0 in the original, whatever else
recompression added. Whether that still protects is for `tue verify` to say.

A manifest does not hold d. Where the intact copy is not at hand, |d'| / |d| is an upper bound; both
are taken at 32 x 32 pixels, where recompression adds little and |d| is in the manifest.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tue_cli.check import summary
from tue_cli.check.summary import CheckPlan, CheckSummary
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.match import Expected, pair_files, read_expected
from tue_cli.dataset.memory import recall_originals, tell_recalled
from tue_cli.declare import argument, fixed, setting
from tue_cli.errors import BadSetting, ImageProblem, OutOfMemory
from tue_cli.events import Advanced, Checked, Done, Job, Note, Skipped, Started
from tue_cli.images import codec, residual
from tue_cli.images.codec import DecodedImage
from tue_cli.images.residual import CopyFacts
from tue_cli.text import escape

PIXELS_AT_ONCE = 64_000_000
"""Decoded at once, at most; a larger picture is decoded alone."""
UNKNOWN_PIXELS = 12_000_000
"""Assumed for a picture whose size the manifest does not tell."""


@dataclass(frozen=True)
class CheckSpec:
    """What `tue check` was asked for."""

    folder: Path = argument("The folder of copies to check.", metavar="PROTECTED")
    original: Path | None = setting(
        None,
        "The originals, with which tue also measures how much of the noise is left in changed "
        "copies. Default: where `tue protect` found them.",
    )
    manifest: Path | None = setting(
        None,
        "The folder that `tue protect` wrote, or its manifest, if PROTECTED holds only downloaded "
        "copies. Default: PROTECTED.",
    )
    listed: int | None = fixed(10, "pictures in the table, the worst first; None: all")
    jobs: int = fixed(0, "threads; 0: one per processor")


def check(spec: CheckSpec) -> Job[CheckSummary]:
    """Check every copy, yielding what became of it; the consumer may stop at any event.

    Raises:
        TueError: before any work for what cannot work.
    """
    began = time.monotonic()
    _refuse(spec)
    place = spec.manifest or spec.folder
    home, expected = read_expected(place)
    recalled = None
    if spec.original is None:
        sources = ((copy.source.as_posix(), copy.source_sha256) for copy in expected)
        recalled = recall_originals(place, sources)
        spec = replace(spec, original=recalled)
    paired = pair_files(expected, spec.folder)
    for file in paired.extra:
        yield Skipped(spec.folder / file, "extra", "This file is not in the manifest.")
    yield Started("Checking", len(expected), "pictures", None, CheckPlan(home))
    threads = spec.jobs or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="copies")
    checked: list[Checked] = []
    try:
        for result in check_ahead(
            expected, paired.files, _CopyChecker(spec, home), pool, 2 * threads
        ):
            checked.append(result)
            yield result
            rate = len(checked) / max(time.monotonic() - began, 1e-3)
            left = len(expected) - len(checked)
            yield Advanced(len(checked), len(expected), rate, left / rate)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    yield from summary.build_tables(checked, spec.listed)
    if recalled and any(result.state in summary.TOUCHED for result in checked):
        yield Note(tell_recalled(recalled))
    yield from summary.suggest_next_steps(checked, has_originals=spec.original is not None)
    found = summary.summarize(
        checked,
        extra=len(paired.extra),
        folder=spec.folder,
        manifest=home,
        seconds=round(time.monotonic() - began, 3),
    )
    yield Done(found, said=tuple(summary.describe(found, lists_all=spec.listed is None)))


class _CopyChecker:
    """Checks one copy, from any thread."""

    def __init__(self, spec: CheckSpec, home: Path) -> None:
        self._spec = spec
        self._home = home

    def __call__(self, copy: Expected, file: Path | None) -> Checked:
        """Say what became of a copy that lies at `file` now; never raises for a bad picture."""
        place = self._spec.folder / (file or copy.path)
        checked = Checked(place, "missing", copy.path.as_posix())
        if file is None:
            return checked
        if file.with_suffix("") != copy.path.with_suffix(""):
            checked = replace(checked, notes=(f"found as {file.as_posix()}",))
        try:
            return self._compare(checked, copy)
        except (ImageProblem, MemoryError) as error:
            problem = error if isinstance(error, ImageProblem) else OutOfMemory()
            notes = (*checked.notes, problem.message)
            return replace(checked, state="unreadable", reason=problem.reason, notes=notes)

    def _compare(self, checked: Checked, copy: Expected) -> Checked:
        """Return the state of a file that is there, and what is known of it."""
        data = codec.read(checked.path)
        if sha256(data) == copy.sha256:
            return replace(checked, state="intact")
        found = codec.decode(data)
        now = residual.collect_facts(found)
        whole = None if copy.known else self._read_intact(copy)
        known = copy.known or (residual.collect_facts(whole) if whole else None)
        lost = tuple(sorted(set(known.metadata) - set(now.metadata))) if known else ()
        notes = list(checked.notes)
        if copy.format and found.format != copy.format:
            notes.append(f"now {found.format}, was {copy.format}")
        if lost:
            notes.append(f"lost {', '.join(lost)}")
        checked = replace(checked, lost=lost, notes=tuple(notes))
        if known and now.pixels_sha256 == known.pixels_sha256:
            return replace(checked, state="metadata-gone" if lost else "rewritten", survival=1.0)
        return self._measure(checked, copy, found, known, whole)

    def _measure(
        self,
        checked: Checked,
        copy: Expected,
        found: DecodedImage,
        known: CopyFacts | None,
        whole: DecodedImage | None,
    ) -> Checked:
        """Return the state of a file whose pixels have changed, and what is left of the noise."""
        named, original = self._find_original(copy)
        size, now = known.size if known else None, residual.get_size(found.pixels)
        if size is None and original is not None:
            size = residual.get_size(original.pixels)
        state, notes = "recompressed" if size else "changed", list(checked.notes)
        # A picture that was rotated by its orientation tag has its sides swapped: the same size.
        if size and now not in (size, size[::-1]):
            state = "resized"
            notes.append("now {} × {}, was {} × {}".format(*now, *size))
        checked = replace(checked, state=state, original=named)
        if original is not None:
            left = residual.measure_residual(original, found, whole or self._read_intact(copy))
            if left is None:
                notes.append("does not match the original: cropped, edited, or another picture")
            else:
                notes.extend(["rotated"] if left.turned else [])
                checked = _add_residual(checked, left, copy)
                # An older record has no hash of the pixels, but its figures identify them as well.
                if not known and (checked.mean, checked.psnr) == (copy.mean, copy.psnr):
                    checked = replace(checked, state="rewritten")
        return replace(checked, notes=tuple(notes))

    def _find_original(self, copy: Expected) -> tuple[str | None, DecodedImage | None]:
        """Return the state of the original, and the original itself if it is unchanged."""
        if self._spec.original is None:
            return None, None
        named = "missing"
        try:
            data = codec.read(self._spec.original / copy.source)
            named = "unchanged" if sha256(data) == copy.source_sha256 else "changed"
            return named, codec.decode(data) if named == "unchanged" else None
        except ImageProblem:
            return named, None

    def _read_intact(self, copy: Expected) -> DecodedImage | None:
        """Return the intact copy where the manifest's own folder still holds it."""
        try:
            data = codec.read(self._home / copy.path)
            return codec.decode(data) if sha256(data) == copy.sha256 else None
        except ImageProblem:
            return None


def _add_residual(checked: Checked, left: residual.NoiseResidual, copy: Expected) -> Checked:
    """Return what was found together with what is left of the noise."""
    checked = replace(checked, mean=round(left.mean, 3), psnr=round(left.psnr, 2))
    if left.survival is not None:
        return replace(checked, survival=round(left.survival, 3))
    at_most = None
    if copy.small_rms is not None and copy.small_rms > 0:
        # Cauchy-Schwarz; more than all of it cannot be left.
        at_most = round(min(1.0, left.small_rms / copy.small_rms), 3)
    return replace(checked, recorded_mean=copy.mean, recorded_psnr=copy.psnr, at_most=at_most)


def _refuse(spec: CheckSpec) -> None:
    """Raise BadSetting for what cannot be checked."""
    for folder in filter(None, (spec.folder, spec.original)):
        if not folder.is_dir():
            if folder.exists():
                raise BadSetting(f"{escape(folder)} is not a folder.", "Name the folder it is in.")
            raise BadSetting(f"{escape(folder)} does not exist.", "Check its spelling.")


def check_ahead(
    expected: Sequence[Expected],
    files: Mapping[Path, Path],
    inspect: Callable[[Expected, Path | None], Checked],
    pool: ThreadPoolExecutor,
    most: int,
) -> Iterator[Checked]:
    """Yield what became of each copy, in order; check as many ahead as memory allows."""
    coming: deque[tuple[Future[Checked], int]] = deque()
    pixels = 0
    for copy in expected:
        these = math.prod(copy.known.size) if copy.known else UNKNOWN_PIXELS
        while coming and (len(coming) == most or pixels + these > PIXELS_AT_ONCE):
            future, done = coming.popleft()
            pixels -= done
            yield future.result()
        coming.append((pool.submit(inspect, copy, files.get(copy.path)), these))
        pixels += these
    for future, _ in coming:
        yield future.result()
