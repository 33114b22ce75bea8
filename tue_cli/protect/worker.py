"""A worker: protects shards, one after the other, and says what came of each."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Self

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
from tue_cli.protect.plan import change_suffix
from tue_cli.protect.sharding import PARTS, Outcome, Recipe, Shard, open_alone, read_samples
from tue_cli.text import escape

HELD = 1 << 28
"""A group of samples is closed at so many bytes."""
_PARTS_OF_WORK = ("decode", "engine", "encode", "write")


class _FolderWriter:
    """Writes each copy as a file of its own."""

    def __init__(self, target: Place) -> None:
        self._target = target

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, sample: Sample, copies: Sequence[tuple[bytes, str]]) -> None:
        for data, name in copies:
            self._target.write(name, data)


_MAKE_ROOM = "Finished shards are kept. Make room, and run the same command again."


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
            if not shard.again and self._is_finished(shard):
                outcome.state = "finished"
            else:
                self._protect(shard, outcome)
        except BadShard as error:
            outcome = Outcome(shard.path, "failed", error.reason, error.message)
        except TueError as error:
            outcome = Outcome(shard.path, "fatal", error.remedy, error.message)
        except OSError as error:  # of the output: those of sources are translated
            message = f"The output cannot be written: {explain(error)}."
            outcome = Outcome(shard.path, "fatal", _MAKE_ROOM, message)
        except MemoryError:
            problem = OutOfMemory()
            outcome = Outcome(shard.path, "failed", problem.reason, problem.message)
        except Exception as error:  # whatever a damaged shard makes a reader raise
            message = f"It cannot be protected: {type(error).__name__}: {explain(error)}."
            outcome = Outcome(shard.path, "failed", "unreadable", message)
        return asdict(outcome)

    def _is_finished(self, shard: Shard) -> bool:
        """Say whether the shard is there: another worker that died may have written it."""
        names = (self._recipe.name_part(shard, failed) for failed in (0, 1))
        return any(self._recipe.target.exists(f"{WORK}/{PARTS}/{name}") for name in names)

    def _protect(self, shard: Shard, outcome: Outcome) -> None:
        target, spent = self._recipe.target, defaultdict[str, float](float)
        rows: list[dict[str, Any]] = []
        with target.make_scratch() as scratch:
            with self._open_writer(shard, scratch) as writer:
                for group in _group(self._read(shard, spent)):
                    self._copy_group(group, writer, rows, outcome, spent)
            if not rows:
                raise BadShard("no-pictures", "It contains no pictures.")
            began = time.monotonic()
            if shard.kind != "folder":
                outcome.bytes = scratch.stat().st_size
                target.put(scratch, shard.path)
        # Last, since it says that the shard is finished.
        name = self._recipe.name_part(shard, len(outcome.failed))
        with target.make_scratch() as scratch:
            parquet.write_part(scratch, rows, {"run": self._recipe.run, "shard": asdict(shard)})
            target.put(scratch, f"{WORK}/{PARTS}/{name}")
        for stale in shard.stale:
            if stale != name:
                target.remove(f"{WORK}/{PARTS}/{stale}")
        spent["write"] += time.monotonic() - began
        outcome.seconds = {part: round(value, 4) for part, value in spent.items()}

    def _read(self, shard: Shard, spent: defaultdict[str, float]) -> Iterator[Sample]:
        """Yield the samples, and count how long reading takes."""
        samples = read_samples(self._recipe, shard)
        while True:
            began = time.monotonic()
            with _translate_reading():
                sample = next(samples, None)
            spent["read"] += time.monotonic() - began
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
        self,
        group: Sequence[Sample],
        writer: Any,
        rows: list[dict[str, Any]],
        outcome: Outcome,
        spent: defaultdict[str, float],
    ) -> None:
        """Protect and write samples; one with a picture that cannot be protected is left out."""
        times = [time.monotonic()]
        every = [[_One(sample, n) for n in range(len(sample.pictures))] for sample in group]
        ones = [one for held in every for one in held]
        self._map(self._prepare, ones)
        times.append(time.monotonic())
        ready = [one for one in ones if one.ready is not None]
        if ready:
            found = self._copier.perturb(
                [one.ready for one in ready if one.ready], [one.code for one in ready]
            )
            for one, delta in zip(ready, found, strict=True):
                one.delta = delta
        times.append(time.monotonic())
        self._map(self._finish, ready)
        times.append(time.monotonic())
        for sample, held in zip(group, every, strict=True):
            problems = [one for one in held if one.problem is not None]
            if not problems:
                writer.write(sample, [(one.data, one.name) for one in held])
            self._tell(sample, held, problems, rows, outcome)
        times.append(time.monotonic())
        for part, first, last in zip(
            ("decode", "engine", "encode", "write"), times, times[1:], strict=False
        ):
            spent[part] += last - first

    def _map(self, act: Callable[[_One], None], ones: Sequence[_One]) -> None:
        for _ in (self._pool.map if self._pool else map)(act, ones):
            pass

    def _prepare(self, one: _One) -> None:
        """Decode a picture, or find out why it cannot be protected."""
        spec = self._recipe.spec
        try:
            if not one.data:
                raise ImageProblem("not-a-picture", "The picture is empty, or too large.")
            one.code = self._find_code(one.sample.label)
            sniff.refuse_raw(PurePosixPath(one.name).suffix, one.data)
            picture = codec.decode(one.data)
            if mark.has_mark(picture.metadata.xmp):
                one.is_kept = True
                return
            name = (
                change_suffix(PurePosixPath(one.name), spec.format).as_posix() if one.name else ""
            )
            place = PurePosixPath(
                name or f"copy.{choose_kind(picture.format, spec.format).lower()}"
            )
            one.ready = self._copier.prepare(picture, sha256(one.data), place)
            one.name = name
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
                source=one.sample.names[one.place] or one.sample.name,
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

    def _tell(
        self,
        sample: Sample,
        held: Sequence[_One],
        problems: Sequence[_One],
        rows: list[dict[str, Any]],
        outcome: Outcome,
    ) -> None:
        """Add what came of a sample's pictures to the manifest's part and the outcome."""
        for one in held:
            name = one.sample.names[one.place] or sample.name
            if problems:
                problem = one.problem or problems[0].problem
                assert problem is not None
                reason, message = problem.reason, problem.message
                outcome.failed.append((name, reason, message))
                rows.append(
                    {"state": "failed", "source": name, "reason": reason, "message": message}
                )
            elif one.is_kept:
                outcome.kept += 1
                rows.append(
                    {"state": "kept", "source": name, "reason": MARKED[0], "message": MARKED[1]}
                )
            else:
                outcome.protected += 1
                rows.append({"state": "protected", **one.record})


class _One:
    """A picture on its way through a worker."""

    def __init__(self, sample: Sample, place: int) -> None:
        self.sample, self.place = sample, place
        self.data: bytes = sample.pictures[place] or b""
        self.name = sample.names[place]
        self.code = ""
        self.is_kept = False
        self.ready: Prepared | None = None
        self.delta: Any = None
        self.record: dict[str, Any] = {}
        self.problem: ImageProblem | None = None


@contextmanager
def _translate_reading() -> Iterator[None]:
    """Turn what a store raises while a shard is read into a problem of the shard."""
    try:
        yield
    except (BadShard, TueError, MemoryError):
        raise
    except Exception as error:  # the stores' errors have no class in common but this
        raise BadShard("unreadable", f"It cannot be read: {explain(error)}.") from None


def _group(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples in groups that fill a batch of the engine, or as much memory as there is."""
    group: list[Sample] = []
    count = held = pixels = 0
    for sample in samples:
        group.append(sample)
        for data in sample.pictures:
            count += 1
            held += len(data or b"")
            with suppress(ImageProblem):
                pixels += math.prod(codec.read_dimensions(data or b""))
        if count >= BATCH or held >= HELD or pixels >= LARGE:
            yield group
            group, count, held, pixels = [], 0, 0, 0
    if group:
        yield group
