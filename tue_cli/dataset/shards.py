"""Shards of a data set, read sample by sample, and written again with other pictures, all else as
it was: tar files in WebDataset's layout; `parquet.py` has the other kind.

Anybody may have written one: names that lead elsewhere, links and what would fill the memory are
refused.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Protocol, Self

from tue_cli.dataset.discover import normalize_name
from tue_cli.errors import ImageProblem
from tue_cli.images import codec
from tue_cli.storage.reading import parse_json
from tue_cli.text import escape

FIELD: Final = "field:"
"""What --labels begins with where it names the column or key that has the labels."""
USUAL_LABELS: Final = ("label", "cls", "class", "labels", "class_name")
"""Columns of Parquet and keys of JSON that are taken for the label, the first that is there."""
MOST_HEADER: Final = 1 << 20
"""Bytes of a long name or of the further headers of a tar's member."""
MOST_SAMPLE: Final = 2 * codec.MAX_BYTES
"""Bytes of all members of a sample."""
MOST_LABEL: Final = 1_000
"""Characters of a label."""


class BadShard(Exception):
    """A shard that cannot be used: `reason` is a short stable word, `message` a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Sample:
    """What belongs together in a shard: the members of a tar with one name, or a row."""

    name: str
    pictures: tuple[bytes | None, ...]
    """The bytes of each; None for a row that has none."""
    names: tuple[str, ...]
    """What each picture is called."""
    label: str | None
    rest: Any
    """All of it, for the writer."""
    problem: ImageProblem | None = None
    """Why its picture could not be read."""


class Writer(Protocol):
    """Writes a shard; a context manager that finishes the file."""

    def write(self, sample: Sample, copies: Sequence[tuple[bytes, str]]) -> None:
        """Add a sample, with each picture and its name in the place of the former one."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class _StrictInfo(tarfile.TarInfo):
    """A member's header. Python takes a damaged one in the middle for the end of the file."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next header, or raise BadShard where the file is damaged."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two blocks of zeros, the true end
        except tarfile.HeaderError as error:
            raise BadShard(
                "not-a-tar", f"This is not a tar file, or it is damaged: {error}."
            ) from None

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        """Refuse what would be read into memory whole, whatever its size."""
        is_plain = self.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        if not is_plain and self.size > MOST_HEADER:
            raise BadShard("unsafe", "A header is larger than a megabyte.")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _refuse_sparse(self, *_: object) -> Any:
        """Refuse a sparse file before its map is read, which may be of any length."""
        raise BadShard("unsafe", "A member is a sparse file.")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def read_tar(file: BinaryIO, labels: str) -> Iterator[Sample]:
    """Yield the samples of a tar file in their order.

    The pictures of a sample are its members with a picture's extension right behind the first dot
    of the name: of `7.jpg` and `7.seg.png`, the first. Where it has none, it is every picture. The
    label is the text of `.cls`, or in `.json` under a usual key or the one that `labels` names.

    Raises:
        BadShard: no tar, a damaged one, or one with unsafe members.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictInfo) as tar:
            yield from _group(_read_members(tar), labels)
            _refuse_more(tar)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise BadShard("not-a-tar", f"This is not a tar file, or it is damaged: {error}.") from None


def _read_members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # they would be kept to the end
        parts = PurePosixPath(member.name).parts
        is_safe = parts and not member.name.startswith("/") and ".." not in parts
        if not is_safe or re.search(r"[\0\\]|^[A-Za-z]:", member.name):
            raise BadShard("unsafe", f"The name of a member is unsafe: {escape(member.name[:80])}.")
        if member.isdir():
            yield member, b""
            continue
        if not member.isreg():
            raise BadShard("unsafe", f"{escape(member.name)} is a link or a device.")
        if member.size > codec.MAX_BYTES:
            raise BadShard("unsafe", f"{escape(member.name)} is larger than a picture can be.")
        opened = tar.extractfile(member)
        assert opened is not None
        data = opened.read()
        if len(data) != member.size:
            raise BadShard("not-a-tar", "The tar file is incomplete: its end is missing.")
        yield member, data


def _refuse_more(tar: tarfile.TarFile) -> None:
    """Raise BadShard where more follows the end, as in two tars in one file: it would be lost."""
    while block := tar.fileobj.read(1 << 16):
        if block.strip(b"\0"):
            raise BadShard(
                "not-a-tar", "More follows the end of the tar file: it is damaged, or several."
            )


def split_name(name: str) -> tuple[str, str]:
    """Return the name of a member's sample and its extension, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return f"{folder}{slash}{base}", extension.lower()


def _group(members: Iterator[tuple[tarfile.TarInfo, bytes]], labels: str) -> Iterator[Sample]:
    """Yield the samples: members in succession whose names are equal to the first dot."""
    held: list[tuple[tarfile.TarInfo, bytes]] = []
    current, size = "", 0
    for member, data in members:
        name = split_name(member.name)[0]
        if held and (name != current or member.isdir() or held[0][0].isdir()):
            yield _make_sample(current, held, labels)
            held, size = [], 0
        current, size = name, size + len(data)
        if size > MOST_SAMPLE:
            raise BadShard("unsafe", f"The sample {escape(name)} is too large.")
        held.append((member, data))
    if held:
        yield _make_sample(current, held, labels)


def _make_sample(name: str, held: list[tuple[tarfile.TarInfo, bytes]], labels: str) -> Sample:
    extensions = [split_name(member.name)[1] for member, _ in held]
    files = [n for n, (member, _) in enumerate(held) if not member.isdir()]
    places = [n for n in files if f".{extensions[n]}" in codec.SUFFIXES]
    places = places or [n for n in files if _last(extensions[n]) in codec.SUFFIXES]
    members = {extensions[n]: held[n][1] for n in files}
    return Sample(
        name=name,
        pictures=tuple(held[n][1] for n in places),
        names=tuple(held[n][0].name for n in places),
        label=_find_tar_label(members, labels),
        rest=(held, places),
    )


def _last(extension: str) -> str:
    return f".{extension.rpartition('.')[2]}"


def _find_tar_label(members: dict[str, bytes], labels: str) -> str | None:
    keys = (labels.removeprefix(FIELD),) if labels.startswith(FIELD) else USUAL_LABELS
    wanted = keys[0].lower() if labels.startswith(FIELD) else "cls"
    if wanted in members:
        return format_label(members[wanted].decode("utf-8", "replace"))
    if "json" in members:
        try:
            told = parse_json(members["json"])
        except ValueError:
            return None
        if isinstance(told, dict):
            return next((format_label(told[key]) for key in keys if key in told), None)
    return None


def format_label(value: Any) -> str | None:
    """Return a label as the name of a class; None for what is none."""
    if not isinstance(value, bool | int | str):
        return None
    label = normalize_name(str(value).strip())
    return label if 0 < len(label) <= MOST_LABEL else None


class TarWriter:
    """Writes a tar file whose members have the headers of the original's."""

    def __init__(self, place: Path) -> None:
        self._tar = tarfile.open(place, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def write(self, sample: Sample, copies: Sequence[tuple[bytes, str]]) -> None:
        """Add a sample with its pictures replaced."""
        held, places = sample.rest
        replaced = dict(zip(places, copies, strict=True))
        for number, (member, former) in enumerate(held):
            data, name = replaced.get(number, (former, member.name))
            member.name, member.size = name, len(data)
            for header in ("size", "path"):
                member.pax_headers.pop(header, None)
            self._tar.addfile(member, io.BytesIO(data))
            self._tar.members = []  # type: ignore[attr-defined]


def explain_no_label(labels: str) -> ImageProblem:
    """Return the problem of a picture without a label."""
    where = f"under {labels.removeprefix(FIELD)}" if labels.startswith(FIELD) else "(.cls, .json)"
    return ImageProblem(
        "no-label", f"The picture has no label {where}; add one, or use --labels single."
    )
