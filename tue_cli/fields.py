"""The fields of a spec as they are asked for, by dotted names such as `settings.noise.steps`.

Options, forms and the equivalent command are made of this; nothing here knows typer or a widget.
"""

from __future__ import annotations

import os
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tue_cli.attacks.registry import parse_attacks
from tue_cli.dataset.selection import read_paths, read_patterns
from tue_cli.declare import Declaration, Part
from tue_cli.errors import BadSetting
from tue_cli.text import read_duration
from tue_cli.verify.request import format_victim, parse_victims

Record = TypeVar("Record")

LEVELS = 255


@dataclass(frozen=True)
class Typed:
    """How a person types what is held otherwise."""

    kind: Any
    """What the command line makes of the text before `read` does; a list of what is repeated."""
    read: Callable[[Any], Any]
    write: Callable[[Any], str]
    """Of what is repeated, one."""
    unit: str = ""


def _write_number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def _write_levels(radius: float) -> str:
    """Return the shortest number of levels that stands for a radius."""
    texts = (_write_number(round(radius * LEVELS, digits)) for digits in range(3, 17))
    exact = (text for text in texts if float(text) / LEVELS == radius)
    return next(exact, repr(radius * LEVELS))


def read_folder(text: str | Path) -> Path:
    """Return the folder that -o names.

    Raises:
        BadSetting: an empty name, which would be the folder that one is in.
    """
    if not str(text):
        raise BadSetting("The output folder -o is empty.", "Write . for the folder you are in.")
    return Path(text)


TYPED = {
    "levels": Typed(float, lambda levels: levels / LEVELS, _write_levels, "levels of 255"),
    "duration": Typed(str, read_duration, lambda seconds: f"{_write_number(seconds)}s"),
    "folder": Typed(str, read_folder, str),
    "paths": Typed(list[str], read_paths, str),
    "patterns": Typed(list[str], read_patterns, str),
    "attacks": Typed(
        str, lambda text: parse_attacks(name.strip() for name in text.split(",")), ",".join
    ),
    "victims": Typed(str, parse_victims, lambda found: ",".join(map(format_victim, found))),
}
"""Ways to type a value that `Declaration.typed` names."""


@dataclass(frozen=True)
class Question:
    """What there is to ask about one field of a kind of spec."""

    name: str
    declared: Declaration
    kind: type
    default: Any
    """`MISSING` where it must be given, None where another field's choice decides it."""
    is_optional: bool
    """Whether None is a value of the field."""
    chooses: bool
    """Whether a record beside it hangs on it."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Its options."""
        last = self.name.rpartition(".")[2]
        return self.declared.flags or (f"--{last.replace('_', '-')}",)

    @property
    def key(self) -> str:
        """Its longest option's name, as an argument of a function: no two of a spec are equal."""
        return self.flags[-1].removeprefix("--").replace("-", "_")

    @property
    def title(self) -> str:
        """The field's name as a person reads it."""
        return self.key.replace("_", " ")

    @property
    def typed(self) -> Typed | None:
        """How it is typed, where that is not how it is held."""
        return TYPED.get(self.declared.typed)

    @property
    def is_repeated(self) -> bool:
        """Whether it is given once for each of several values, which a tuple holds."""
        return self.typed is not None and typing.get_origin(self.typed.kind) is list

    @property
    def unit(self) -> str:
        """Its unit, for people."""
        return (self.typed.unit if self.typed else "") or self.declared.unit

    def write(self, value: Any) -> str:
        """Return a value as it is typed; empty for none."""
        if value is None:
            return ""
        if self.typed:
            return self.typed.write(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return _write_number(value) if isinstance(value, float) else str(value)

    def read(self, text: str) -> Any:
        """Return the value that a text stands for.

        Raises:
            BadSetting: it is no value for this field.
        """
        if not text:
            if self.is_optional:
                return None
            raise BadSetting(f"{self.title} is empty.", self.declared.help)
        kind = self.typed.kind if self.typed else self.kind
        if kind is bool:
            return text == "yes"
        if self.kind is Path:
            text = os.path.expanduser(text)  # noqa: PTH111 - never raises
        try:
            value = kind(text)
        except ValueError:
            whole = "a whole number" if kind is int else "a number"
            raise BadSetting(f"{self.title}: {text!r} is not {whole}.", "Write digits.") from None
        return self.typed.read(value) if self.typed else value


def list_questions(spec: type) -> tuple[Question, ...]:
    """Return what there is to ask for a kind of spec, with the fields of all that it may hold."""
    return _list_questions(spec)


@cache  # a form asks at every key
def _list_questions(spec: type) -> tuple[Question, ...]:
    return tuple(_walk([spec], "", None))


def _walk(owners: Sequence[Any], prefix: str, within: Part | None) -> Iterator[Question]:
    """Yield the questions about records of which one will be chosen, or about a type."""
    declared: dict[str, Field[Any]] = {}
    for owner in owners:
        declared |= {field.name: declared.get(field.name, field) for field in fields(owner)}
    by = {name: part.by for name, field in declared.items() if (part := field.metadata.get("part"))}
    # What chooses a record is asked before what that record holds.
    names = dict.fromkeys(part for name in declared for part in (by.get(name) or name, name))
    for name in names:
        field = declared[name]
        having = [owner for owner in owners if any(f.name == name for f in fields(owner))]
        found = [_get_value(owner, name) for owner in having]
        if part := field.metadata.get("part"):
            inner = dict.fromkeys([*part.among.values(), *([] if part.among else found)])
            yield from _walk(list(inner), f"{prefix}{name}.", part)
            continue
        said = field.metadata.get("declared")
        if said is None or (within and name in within.without):
            continue
        said = within.retold.get(name, said) if within else said
        first = having[0]
        kind, is_optional = _resolve_kind(first if isinstance(first, type) else type(first), name)
        is_common = len(having) == len(owners) and all(value == found[0] for value in found)
        default = found[0] if is_common else None
        yield Question(prefix + name, said, kind, default, is_optional, name in by.values())


def _get_value(owner: Any, name: str) -> Any:
    """Return a record's value, or a type's default."""
    if not isinstance(owner, type):
        return getattr(owner, name)
    return next(field.default for field in fields(owner) if field.name == name)


def _resolve_kind(record: type, name: str) -> tuple[type, bool]:
    kind = _resolve_hints(record)[name]
    if isinstance(kind, types.UnionType):
        return next(part for part in kind.__args__ if part is not types.NoneType), True
    return typing.get_origin(kind) or kind, False


@cache
def _resolve_hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def fill(spec: type[Record], given: Mapping[str, Any]) -> Record:
    """Return a spec of what was given, by dotted names; the rest is as declared.

    Raises:
        BadSetting: no such choice, or something was given for what the chosen record has not.
    """
    left = dict(given)
    made: Record = _fill(spec, left, "")
    if left:
        raise _explain_foreign(spec, next(iter(left)), given)
    return made


def _fill(record: Any, left: dict[str, Any], prefix: str) -> Any:
    values = {}
    given = {name: left[prefix + name] for name in _list_names(record) if prefix + name in left}
    for field in fields(record):
        name = prefix + field.name
        if part := field.metadata.get("part"):
            base = _get_value(record, field.name)
            own = _get_value(record, part.by) if part.by else None
            # What a record holds for its own choice may be a preset's.
            if part.by and (choice := given.get(part.by, own)) != own:
                base = part.choose(choice, _get_word(record, part.by)) or base
            values[field.name] = _fill(base, left, f"{name}.")
        elif name in left:
            values[field.name] = left.pop(name)
    return record(**values) if isinstance(record, type) else replace(record, **values)


def _list_names(record: Any) -> list[str]:
    return [field.name for field in fields(record)]


def _get_word(record: Any, name: str) -> str:
    """Return what a field is called where it is typed."""
    said = next(field.metadata["declared"] for field in fields(record) if field.name == name)
    return said.flags[-1].removeprefix("--") if said.flags else name


def _explain_foreign(spec: type, name: str, given: Mapping[str, Any]) -> BadSetting:
    """Return the error for an option that what was chosen has no use for."""
    asked = {question.name: question for question in list_questions(spec)}
    flag = asked[name].flags[-1]
    *path, _, last = name.split(".")
    owner: Any = spec
    for step in path:
        owner = _get_value(owner, step)
    inside = next(f.metadata["part"] for f in fields(owner) if f.name == name.split(".")[-2])
    chooser = asked[".".join([*path, inside.by])]
    having = [choice for choice, record in inside.among.items() if last in _list_names(record)]
    return BadSetting(
        f"The {chooser.key} {given.get(chooser.name, chooser.default)} has no {flag}.",
        f"Leave out {flag}. It is only for {', '.join(having)}.",
    )


def get_value(spec: Any, name: str) -> Any:
    """Return the value of a field, or `MISSING` where the record that was chosen has none."""
    for part in name.split("."):
        if not is_dataclass(spec) or part not in _list_names(spec):
            return MISSING
        spec = getattr(spec, part)
    return spec


def change(spec: Record, name: str, value: Any) -> Record:
    """Return `spec` with a field changed.

    Where it chooses a record, that one begins from its own defaults, with what was changed before.
    """
    first, _, rest = name.partition(".")
    if rest:
        value = change(getattr(spec, first), rest, value)
    made = _replace(spec, first, value)
    for field in fields(spec):  # type: ignore[arg-type]
        part = field.metadata.get("part")
        if part and part.by == first:
            record, word = getattr(spec, field.name), _get_word(spec, first)
            former = part.choose(getattr(spec, first), word) or field.default
            now = part.choose(value, word) or field.default
            made = _replace(made, field.name, _carry_over(record, former, now))
    return made


def _carry_over(record: Any, former: Any, now: Any) -> Any:
    """Return `now` with what was changed in `record`, which was `former`."""
    kept = {}
    for name in _list_names(record):
        value, usual, new = (getattr(one, name, MISSING) for one in (record, former, now))
        if MISSING in (new, value) or value == usual:
            continue
        alike = is_dataclass(value) and type(value) is type(usual) is type(new)
        kept[name] = _carry_over(value, usual, new) if alike else value
    return replace(now, **kept)


def _replace(record: Record, name: str, value: Any) -> Record:
    return replace(record, **{name: value})  # type: ignore[type-var]


def format_command(name: str, spec: Any) -> str:
    """Return the command that does what a spec says: what is not as it would be anyway."""
    asked = list_questions(type(spec))
    sure = [question for question in asked if question.default is MISSING or question.chooses]
    plain = fill(type(spec), {question.name: get_value(spec, question.name) for question in sure})
    places: list[str] = []
    options: list[str] = []
    for question in asked:
        value = get_value(spec, question.name)
        usual = question.default if question in sure else get_value(plain, question.name)
        if value in (MISSING, usual):
            continue
        each = value if question.is_repeated else (value,)
        if question.declared.is_argument:
            places += map(question.write, each)
        elif question.kind is bool:
            options.append(question.flags[0])
        else:
            options += [part for one in each for part in (question.flags[0], question.write(one))]
    return shlex.join(["tue", name, *places, *options])
