"""The manifest, which makes a finished run auditable: how it is written, and how it is read.

Anybody may have written one: what decides must be sound, and what only tells is left out if not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from tue_cli.errors import BadSetting
from tue_cli.storage.reading import (
    MOST_STATE,
    explain_error,
    is_below,
    is_name,
    parse_json,
    read_file,
)
from tue_cli.text import escape

MANIFEST = "tue-manifest.json"
SCHEMA = 1
FIELDS = ("path", "source_sha256", "sha256", "label", "key")
"""What every picture's record has, in text."""

Record = dict[str, Any]

_TIMES = re.compile(rb'^ "(finished|seconds)": .*$', re.M)
"""What of a manifest depends on the clock."""


@dataclass(frozen=True)
class Clusters:
    """The groups of similar pictures that a run found, to which later pictures are assigned."""

    groups: int
    """So many were asked for."""
    centres: Mapping[str, tuple[float, ...]]
    """Class -> its centre, in the features of the run's surrogate."""

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Return what a manifest that `read_manifest` has read says of them."""
        return cls(found["groups"], {name: tuple(row) for name, row in found["centres"].items()})

    def list_lines(self) -> Iterator[Record]:
        """Yield the lines that tell them in a journal."""
        for number, (label, centre) in enumerate(self.centres.items()):
            of = len(self.centres)
            own: Record = {"label": label, "centre": list(centre), "number": number, "of": of}
            yield {"groups": self.groups, **own}


def sha256(what: Path | bytes) -> str:
    """The SHA-256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(what, bytes):
        return hashlib.sha256(what).hexdigest()
    with what.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(output: Path) -> dict[str, Any]:
    """The manifest of a finished run: schema, run, keys, summary, pictures, seconds, finished,
    and `clusters` where it found some.

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
            f"{escape(output)} has no {MANIFEST}.",
            "Name a folder in which `tue protect` has finished.",
        ) from None
    except (OSError, ValueError) as error:
        raise explain_damage(path, explain_error(error)) from error
    # Not isinstance: true is a whole number to Python.
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise explain_damage(path, "tue did not write it")
    if manifest["schema"] != SCHEMA:
        raise BadSetting(
            f"{escape(path)} has schema {manifest['schema']}; this version of tue reads {SCHEMA}.",
            "Use the version that wrote it, or protect again, into another folder with -o.",
        )
    run, keys, pictures = (manifest.get(name) for name in ("run", "keys", "pictures"))
    is_sound = is_run(run) and are_keys(keys) and _are_clusters(manifest.get("clusters"))
    if not (is_sound and isinstance(pictures, list)):
        raise explain_damage(path, "parts of it are missing or of the wrong kind")
    if not all(is_record(entry) for entry in pictures):
        raise explain_damage(path, "a picture's entry is incomplete, or leads outside the folder")
    manifest["pictures"] = [drop_invalid(entry) for entry in pictures]
    manifest["summary"] = _clean_summary(manifest.get("summary"))
    return manifest


def format_manifest(
    run: Mapping[str, Any],
    keys: Mapping[str, str],
    summary: Mapping[str, Any],
    pictures: Iterable[Record],
    seconds: float,
    clusters: Clusters | None = None,
) -> bytes:
    """Return the manifest of a run that finishes now.

    Only `seconds` and `finished` depend on the clock; a number that is not finite becomes null.
    """
    manifest = {
        "schema": SCHEMA,
        "run": run,
        "keys": keys,
        "summary": summary,
        "pictures": list(pictures),
        "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if clusters is not None:
        manifest["clusters"] = {"groups": clusters.groups, "centres": clusters.centres}
    text = json.dumps(replace_infinite(manifest), sort_keys=True, indent=1, allow_nan=False) + "\n"
    return text.encode("ascii")


def is_written(manifest: bytes, output: Path) -> bool:
    """Say whether an output's manifest says the same as this one, whenever it was written."""
    try:
        former = read_file(output / MANIFEST, MOST_STATE)
    except OSError:
        return False
    return _TIMES.sub(b"", former) == _TIMES.sub(b"", manifest)


def is_record(entry: Any) -> bool:
    """Whether this is a picture's entry, of a copy that lies below the output."""
    return (
        isinstance(entry, dict)
        and all(is_name(entry.get(name)) for name in FIELDS)
        and is_below(entry["path"])
    )


def is_run(run: Any) -> bool:
    """Whether these are the settings of a run, as far as anything asks for them."""
    return isinstance(run, dict) and isinstance(run.get("engine", ""), str)


def is_centre(entry: Any) -> bool:
    """Say whether this is a line of `Clusters.list_lines`."""
    numbers = [entry.get(name) for name in ("groups", "number", "of")]
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and is_name(entry.get("label"))
        and _is_point(entry.get("centre"))
    )


def _are_clusters(found: Any) -> bool:
    if found is None:
        return True
    centres = found.get("centres") if isinstance(found, dict) else None
    return (
        isinstance(centres, dict)
        and type(found.get("groups")) is int
        and all(is_name(name) and _is_point(row) for name, row in centres.items())
        and len(set(map(len, centres.values()))) == 1
    )


def _is_point(row: Any) -> bool:
    return isinstance(row, list) and all(value is not None and _is_number(value) for value in row)


def are_keys(keys: Any) -> bool:
    """Whether these are classes and their codes."""
    return isinstance(keys, dict) and all(is_name(text) for pair in keys.items() for text in pair)


def drop_invalid(record: Record) -> Record:
    """A record without the fields that only tell something and are of the wrong kind."""
    return {
        name: value
        for name, value in record.items()
        if name not in _TELLING or _TELLING[name](value)
    }


def _clean_summary(found: Any) -> dict[str, Any]:
    """A summary without such failures as are of the wrong kind."""
    summary: dict[str, Any] = found if isinstance(found, dict) else {}
    listed = summary.get("failed")
    if listed is None:
        return summary
    failed = filter(is_failure, listed if isinstance(listed, list) else ())
    return {**summary, "failed": list(failed)}


def is_changed(record: dict[str, Any]) -> bool:
    """Say whether a copy differs from its original: one in which no noise can hide may not."""
    return bool(record["sha256"] != record["source_sha256"])


def is_failure(found: Any) -> bool:
    """Say whether this tells which picture failed, and why."""
    names = ("path", "reason", "message")
    return isinstance(found, dict) and all(isinstance(found.get(name), str) for name in names)


def _is_number(value: Any) -> bool:
    # A whole number beyond any float would be an error in every sum.
    return value is None or (type(value) in (int, float) and abs(value) < 1e300)


def _is_size(value: Any) -> bool:
    return _is_list_of(value, int) and len(value) == 2 and all(0 < side < 1 << 31 for side in value)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(part) is kind for part in value)


_TELLING: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("source", "format", "pixels_sha256"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("largest", "mean", "psnr", "ssim", "survival", "delta_e"), _is_number),
    **dict.fromkeys(("small_rms", "bytes", "seconds"), _is_number),
    **dict.fromkeys(("metadata", "notes"), lambda value: _is_list_of(value, str)),
    "size": _is_size,
    "worst_tile": lambda value: _is_list_of(value, int) and len(value) == 3,
}
"""Fields of a record that decide nothing, and which values they may have."""


def replace_infinite(value: Any) -> Any:
    """`value` as strict JSON can say it: the PSNR of an unchanged picture is infinite."""
    if isinstance(value, dict):
        return {name: replace_infinite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def describe_differences(former: dict[str, Any], run: dict[str, Any]) -> str:
    """What differs between two runs' settings, the first few, as half a sentence; or nothing."""
    before, now = _flatten(former), _flatten(run)
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if "settings.method" in names:  # which brings another noise along
        names = [name for name in names if not name.startswith("settings.noise.")]
    if "weights.name" in names:
        names = [name for name in names if name != "weights.sha256"]
    names.sort(key=lambda name: (not name.startswith("settings."), name))
    parts = [_tell_change(name, before.get(name), now.get(name)) for name in names]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


_CALLED = {"gray_ratio": "gray", "score_ratio": "score", "weights name": "weights"}
"""Settings that people know by another name."""


def _tell_change(name: str, before: Any, now: Any) -> str:
    """Return how a setting was and is, as a person gives it."""
    called = name.removeprefix("settings.").removeprefix("noise.").replace(".", " ")
    called = _CALLED.get(called, called.replace("_", " "))
    if called == "data" or called.endswith("sha256"):
        return f"{called.removesuffix(' sha256')} changed"
    is_radius = called.endswith("radius")
    return f"{_shorten(called)} {_tell_value(before, is_radius)} → {_tell_value(now, is_radius)}"


def _tell_value(value: Any, is_radius: bool) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value * 255 if is_radius else value:.6g}"
    return "not set" if value is None else _shorten(str(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def explain_damage(path: Path, why: str) -> BadSetting:
    """The error to raise where a manifest or a journal cannot be read."""
    return BadSetting(
        f"{escape(path)} cannot be read: {escape(why)}.",
        "Move it away and run `tue protect` again, with --existing overwrite or another -o.",
    )
