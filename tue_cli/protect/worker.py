"""A worker: protects shards, one after the other, and says what came of each."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tue_cli.dataset import parquet, shards
from tue_cli.dataset.labels import OWNER
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.match import MARKED
from tue_cli.dataset.output import WORK
from tue_cli.dataset.remote import Place, explain
from tue_cli.dataset.shards import BadShard, Sample
from tue_cli.errors import ImageProblem, OutOfMemory, TueError
from tue_cli.events import make_plain
from tue_cli.images import codec, mark, sniff
from tue_cli.images.coding import choose_kind
from tue_cli.protect.context import BATCH, LARGE
from tue_cli.protect.copier import Prepared, describe_copy
from tue_cli.protect.plan import change_suffix, explain_taken
from tue_cli.protect.sharding import PARTS, Outcome, Recipe, Shard, open_alone, read_samples
from tue_cli.text import escape

HELD = 1 << 28
"""A group of samples is closed at so many bytes."""
T = TypeVar("T")


class _FolderWriter:
    """Writes each copy as a file of its own."""

    def __init__(self, target: Place) -> None:
        self._target = target

    def write(self, sample: Sample, copies: Sequence[tuple[bytes, str]]) -> None:
        for data, name in copies:
            self._target.write(name, data)


class Worker:
    """Protects shards, one after the other; what it holds in memory does not grow with them."""

    def __init__(self, recipe: Recipe, threads: int = 1) -> None:
        self._recipe = recipe
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._problem: TueError | None = None
        recipe.target.clear_scratch()
        try:
            self._copier = open_alone(recipe.spec, recipe.secret, recipe.run["engine"])
            self._refuse_difference()
        except TueError as error:
            self._problem = error

    def _refuse_difference(self) -> None:
        """Raise TueError where this machine would write other bytes than the run is to."""
        weights, wanted = self._copier.weights, self._recipe.run["weights"]["sha256"]
        if weights.sha256 != wanted:
            raise TueError(
                f"The weights {weights.name} of a worker differ from those of the run.",
                "Put the same file at the same path on every machine.",
            )
        kind = self._copier.engine.kind
        if kind != self._recipe.run["engine"]:
            raise TueError(
                f"A worker computes with {escape(kind)}, the run with "
                f"{escape(self._recipe.run['engine'])}; the bytes of their copies would differ.",
                "Use machines of one kind, or name --backend and --device.",
            )

    def __call__(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Protect a shard and return its `Outcome` as a mapping."""
        shard = Shard.read(told)
        outcome = Outcome(shard.path, "done")
        try:
            if self._problem is not None:
                raise self._problem
            outcome.state = self._find_state(shard)
            if outcome.state == "done":
                self._protect(shard, outcome)
        except BadShard as error:
            outcome = Outcome(shard.path, "failed", error.reason, error.message)
        except TueError as error:
            outcome = Outcome(shard.path, "fatal", error.remedy, error.message)
        except OSError as error:  # of the output: those of sources are translated
            message = f"The output cannot be written: {explain(error)}."
            remedy = "Finished shards are kept. Make room, and run the same command again."
            outcome = Outcome(shard.path, "fatal", remedy, message)
        except MemoryError:
            problem = OutOfMemory()
            outcome = Outcome(shard.path, "failed", problem.reason, problem.message)
        except Exception as error:  # whatever a damaged shard makes a reader raise
            message = f"It cannot be protected: {type(error).__name__}: {explain(error)}."
            outcome = Outcome(shard.path, "failed", "unreadable", message)
        return asdict(outcome)

    def _find_state(self, shard: Shard) -> str:
        """Return `done` for a shard that is to be made; another worker, which died, may have."""
        for failed, state in enumerate(() if shard.again else ("finished", "incomplete")):
            name = self._recipe.name_part(shard, failed)
            if self._recipe.target.exists(f"{WORK}/{PARTS}/{name}"):
                return state
        return "done"

    def _protect(self, shard: Shard, outcome: Outcome) -> None:
        target = self._recipe.target
        rows: list[dict[str, Any]] = []
        with target.make_scratch() as scratch:
            with self._open_writer(shard, scratch) as writer:
                for group in group_items(
                    self._read(shard, outcome), lambda sample: sample.pictures
                ):
                    self._copy_group(group, writer, rows, outcome)
            if not rows:
                raise BadShard("no-pictures", "It contains no pictures.")
            if shard.kind != "folder":
                outcome.bytes = scratch.stat().st_size
                with _count(outcome, "write"):
                    target.put(scratch, shard.path)
        # Last, since it says that the shard is finished.
        name = self._recipe.name_part(shard, len(outcome.failed))
        with _count(outcome, "write"), target.make_scratch() as scratch:
            parquet.write_part(scratch, rows, {"run": self._recipe.run, "shard": asdict(shard)})
            target.put(scratch, f"{WORK}/{PARTS}/{name}")
            for stale in shard.stale:
                if stale != name:
                    target.remove(f"{WORK}/{PARTS}/{stale}")
        outcome.seconds = {part: round(value, 4) for part, value in outcome.seconds.items()}

    def _read(self, shard: Shard, outcome: Outcome) -> Iterator[Sample]:
        """Yield the samples, and count how long reading takes."""
        samples = read_samples(self._recipe, shard)
        while True:
            with _count(outcome, "read"), _translate_reading():
                sample = next(samples, None)
            if sample is None:
                return
            yield sample

    @contextmanager
    def _open_writer(self, shard: Shard, scratch: Path) -> Iterator[Any]:
        if shard.kind == "folder":
            yield _FolderWriter(self._recipe.target)
        elif shard.kind == "tar":
            with shards.TarWriter(scratch) as tar:
                yield tar
        else:
            with (
                _translate_reading(),
                self._recipe.sources[shard.source].open(shard.name) as file,
            ):
                layout = parquet.read_layout(file)
            with parquet.ParquetWriter(scratch, *layout) as rows:
                yield rows

    def _copy_group(
        self, group: Sequence[Sample], writer: Any, rows: list[dict[str, Any]], outcome: Outcome
    ) -> None:
        """Protect and write samples; one with a picture that cannot be protected is left out."""
        every = [[_One(sample, n) for n in range(len(sample.pictures))] for sample in group]
        # One sample may have more pictures than are to be held decoded at once.
        for ones in group_items((one for held in every for one in held), lambda one: [one.data]):
            with _count(outcome, "decode"):
                self._map(self._prepare, ones)
            ready = [one for one in ones if one.ready is not None]
            with _count(outcome, "engine"):
                self._perturb(ready)
            with _count(outcome, "encode"):
                self._map(self._finish, ready)
        for sample, held in zip(group, every, strict=True):
            _refuse_same_names(held)
            problems = [one for one in held if one.problem is not None]
            if not problems:
                with _count(outcome, "write"):
                    writer.write(sample, [(one.data, one.name) for one in held])
            _tell(held, problems, rows, outcome)

    def _perturb(self, ready: Sequence[_One]) -> None:
        """Make the noise of pictures."""
        if ready:
            found = self._copier.perturb(
                [one.ready for one in ready if one.ready], [one.code for one in ready]
            )
            for one, delta in zip(ready, found, strict=True):
                one.delta = delta

    def _map(self, act: Callable[[_One], None], ones: Sequence[_One]) -> None:
        for _ in (self._pool.map if self._pool else map)(act, ones):
            pass

    def _prepare(self, one: _One) -> None:
        """Decode a picture, or find out why it cannot be protected."""
        spec = self._recipe.spec
        try:
            if one.sample.problem is not None:
                raise one.sample.problem
            if not one.data:
                raise ImageProblem("not-a-picture", "The picture is empty, or too large.")
            one.code = self._find_code(one.sample.label)
            sniff.refuse_raw(PurePosixPath(one.name).suffix, one.data)
            picture = codec.decode(one.data)
            if mark.has_mark(picture.metadata.xmp):
                one.is_kept = True
                return
            kind = choose_kind(picture.format, spec.format).lower()
            place = change_suffix(PurePosixPath(one.name or f"copy.{kind}"), spec.format)
            one.ready = self._copier.prepare(picture, sha256(one.data), place)
            if one.name:
                # No more than that, for a sample's members belong together by the rest of it.
                one.name = one.name.removesuffix(PurePosixPath(one.name).suffix) + place.suffix
        except ImageProblem as error:
            one.problem = error
        except MemoryError:
            one.problem = OutOfMemory()

    def _finish(self, one: _One) -> None:
        """Encode a picture with its noise."""
        assert one.ready is not None and one.delta is not None
        try:
            copy = self._copier.finish(one.ready, one.delta)
            record = describe_copy(
                one.ready,
                copy,
                path=one.name or one.sample.name,
                source=one.source,
                label="" if one.sample.label is None else one.sample.label,
                key=one.code,
            )
            one.record, one.data = make_plain(record), copy.encoded.data
        except ImageProblem as error:
            one.problem = error
        except MemoryError:
            one.problem = OutOfMemory()
        one.ready = one.delta = None

    def _find_code(self, label: str | None) -> str:
        """Return the code of a picture's class.

        Raises:
            ImageProblem: it has none.
            BadShard: nobody knew of the class when the codes were assigned.
        """
        if self._recipe.spec.key is not None:
            return self._recipe.spec.key
        if self._recipe.spec.labels == "single":
            label = OWNER
        if label is None:
            raise shards.explain_no_label(self._recipe.spec.labels)
        if label not in self._recipe.keys:
            raise BadShard(
                "unplanned",
                f"Its class {escape(label)} has no code, since it could not be read when codes "
                "were assigned. Run the same command again.",
            )
        return self._recipe.keys[label]


class _One:
    """A picture on its way through a worker."""

    def __init__(self, sample: Sample, place: int) -> None:
        self.sample, self.place = sample, place
        self.data: bytes = sample.pictures[place] or b""
        self.name = sample.names[place]
        self.source = self.name or sample.name
        self.code = ""
        self.is_kept = False
        self.ready: Prepared | None = None
        self.delta: Any = None
        self.record: dict[str, Any] = {}
        self.problem: ImageProblem | None = None


def _tell(
    held: Sequence[_One], problems: Sequence[_One], rows: list[dict[str, Any]], outcome: Outcome
) -> None:
    """Add what came of a sample's pictures to the manifest's part and the outcome."""
    for one in held:
        if problems:
            problem = one.problem or problems[0].problem
            assert problem is not None
            told = {"reason": problem.reason, "message": problem.message}
            outcome.failed.append((one.source, problem.reason, problem.message))
            rows.append({"state": "failed", "source": one.source, **told})
        elif one.is_kept:
            told = {"reason": MARKED[0], "message": MARKED[1]}
            rows.append({"state": "kept", "source": one.source, **told})
        else:
            outcome.protected += 1
            rows.append({"state": "protected", **one.record})


def _refuse_same_names(held: Sequence[_One]) -> None:
    """Refuse the pictures of a sample that got a name that another has, too."""
    names = Counter(one.name.lower() for one in held)
    for one in held:
        is_new = one.name != one.sample.names[one.place]
        if is_new and names[one.name.lower()] > 1:
            one.problem = one.problem or explain_taken()


@contextmanager
def _count(outcome: Outcome, part: str) -> Iterator[None]:
    """Count the seconds that a part of the work takes."""
    began = time.monotonic()
    try:
        yield
    finally:
        spent = time.monotonic() - began
        outcome.seconds[part] = outcome.seconds.get(part, 0.0) + spent


@contextmanager
def _translate_reading() -> Iterator[None]:
    """Turn what a store raises while a shard is read into a problem of the shard."""
    try:
        yield
    except (BadShard, TueError, MemoryError):
        raise
    except Exception as error:  # the stores' errors have no class in common but this
        raise BadShard("unreadable", f"It cannot be read: {explain(error)}.") from None


def group_items(
    items: Iterable[T], list_pictures: Callable[[T], Sequence[bytes | None]]
) -> Iterator[list[T]]:
    """Yield items in groups whose pictures fill a batch of the engine, or the memory for one."""
    group: list[T] = []
    count = held = pixels = 0
    for item in items:
        group.append(item)
        for data in list_pictures(item):
            count += 1
            held += len(data or b"")
            with suppress(ImageProblem):
                pixels += math.prod(codec.read_dimensions(data or b""))
        if count >= BATCH or held >= HELD or pixels >= LARGE:
            yield group
            group, count, held, pixels = [], 0, 0, 0
    if group:
        yield group
