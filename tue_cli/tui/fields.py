"""The fields of a spec as a form asks for them, by dotted names such as `settings.noise.steps`.

Help, units and choices come from the fields' own metadata; nothing here knows a widget.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tue_cli.attacks.registry import attacks_named
from tue_cli.config import VictimSettings
from tue_cli.errors import BadSetting
from tue_cli.verify.request import format_victim, victims_named

Record = TypeVar("Record")

LEVELS = 255
_HINTS: dict[type, dict[str, Any]] = {}
"""Types by field: reading them takes long, and a form asks at every key."""


@dataclass(frozen=True)
class Asked:
    """One field, ready to be asked for."""

    name: str
    title: str
    text: str
    """The value as it is typed; empty for none."""
    help: str
    unit: str
    choices: tuple[str, ...]
    kind: type
    optional: bool


def asked(spec: Any, name: str) -> Asked:
    """Return how to ask for a field of `spec`."""
    owner, last = _owner(spec, name)
    kind, optional = _kind(type(owner), last)
    field = next(field for field in dataclasses.fields(owner) if field.name == last)
    in_levels = last == "radius"
    unit = str(field.metadata.get("unit", ""))
    return Asked(
        name=name,
        title=_title(name),
        text=_written(getattr(owner, last), in_levels=in_levels),
        help=str(field.metadata.get("help", "")),
        unit="levels of 255" if in_levels else "" if unit == "1" else unit,
        choices=tuple(field.metadata.get("choices", ())),
        kind=kind,
        optional=optional,
    )


def answered(spec: Record, name: str, text: str) -> Record:
    """Return `spec` with a field set to what was typed.

    Raises:
        BadSetting: it is no value for this field.
    """
    return _replaced(spec, name.split("."), _read(asked(spec, name), text.strip()))


def _replaced(record: Record, path: list[str], value: Any) -> Record:
    first, *rest = path
    if rest:
        value = _replaced(getattr(record, first), rest, value)
    return replace(record, **{first: value})  # type: ignore[type-var]


def _owner(spec: Any, name: str) -> tuple[Any, str]:
    """Return the record that holds a field, and the field's own name in it."""
    *path, last = name.split(".")
    for part in path:
        spec = getattr(spec, part)
    return spec, last


def _kind(record: type, name: str) -> tuple[type, bool]:
    """Return a field's type, and whether it may be None."""
    if record not in _HINTS:
        _HINTS[record] = typing.get_type_hints(record)
    kind = _HINTS[record][name]
    if isinstance(kind, types.UnionType):
        return next(part for part in kind.__args__ if part is not types.NoneType), True
    return typing.get_origin(kind) or kind, False


def _title(name: str) -> str:
    """Return a field's name as a person reads it; whose it is, where there are several."""
    *path, last = name.split(".")
    owner = path[-1] if path and path[-1] in ("adversary",) else ""
    return f"{owner} {last.replace('_', ' ')}".strip()


def _written(value: Any, *, in_levels: bool) -> str:
    if value is None:
        return ""
    if in_levels:
        return f"{round(value * LEVELS, 3):g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(format_victim(v) if isinstance(v, VictimSettings) else v for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(field: Asked, text: str) -> Any:
    """Return the value that a text stands for."""
    if not text:
        if field.optional:
            return None
        remedy = f"It is the {field.help}." if field.help else "Fill it in."
        raise BadSetting(f"{field.title} is empty.", remedy)
    if field.kind is bool:
        return text == "yes"
    if field.kind is Path:
        return Path(text).expanduser()
    if field.name.endswith("victims"):
        return victims_named(text)
    if field.kind is tuple:
        return attacks_named(part.strip() for part in text.split(",") if part.strip())
    if field.kind not in (int, float):
        return text
    try:
        number = field.kind(text)
    except ValueError:
        whole = "a whole number" if field.kind is int else "a number"
        raise BadSetting(f"{field.title}: {text!r} is not {whole}.", "Write digits.") from None
    return number / LEVELS if field.unit == "levels of 255" else number
