"""How a setting is declared: its default, and with it all that the faces say and ask of it.

The command line, the forms and the equivalent command are made of these declarations alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from tue_cli.errors import BadSetting

ADVANCED = "Advanced"
"""The panel of the help for what most people leave as it is."""
RESEARCH = "Research methods"
"""The help's panel of options that only comparing methods needs."""


@dataclass(frozen=True)
class Declaration:
    """What a setting means, and how a person gives it."""

    help: str
    flags: tuple[str, ...] = ()
    """Its options, where they are not called as the field is."""
    typed: str = ""
    """How it is typed, where that is not how it is held: a name in `fields.TYPED`."""
    unit: str = ""
    choices: tuple[str, ...] = ()
    panel: str = ""
    metavar: str | None = None
    source: str = ""
    """Where its default comes from."""
    is_argument: bool = False
    in_form: bool = True


@dataclass(frozen=True)
class Part:
    """A record within a record: always the same one, or one that another field chooses."""

    by: str
    """The field beside it that chooses it."""
    among: Mapping[str, Any]
    """The records to choose from."""
    has_others: bool
    """Whether the other field may say more than names of these; the default serves them."""
    retold: Mapping[str, Declaration]
    """What is declared otherwise here than in the record, by field."""
    without: tuple[str, ...]
    """Fields that have no option here."""

    def choose(self, name: str, what: str) -> Any:
        """Return the record of a name, or None where the default serves it.

        Raises:
            BadSetting: there is none of that name.
        """
        if name not in self.among and not self.has_others:
            raise BadSetting(
                f"There is no {what} {name!r}.", f"Choose one of: {', '.join(self.among)}."
            )
        return self.among.get(name)


def setting(
    default: Any,
    text: str,
    *flags: str,
    typed: str = "",
    unit: str = "",
    choices: tuple[str, ...] = (),
    panel: str = "",
    metavar: str | None = None,
    source: str = "",
    in_form: bool = True,
) -> Any:
    """Declare a field that has an option; with `MISSING` for a default it must be given."""
    said = Declaration(text, flags, typed, unit, choices, panel, metavar, source, in_form=in_form)
    return field(default=default, metadata={"declared": said})


def argument(
    text: str,
    default: Any = MISSING,
    *,
    typed: str = "",
    metavar: str | None = None,
    in_form: bool = True,
) -> Any:
    """Declare a field that is given by its place on the command line."""
    said = Declaration(text, typed=typed, metavar=metavar, is_argument=True, in_form=in_form)
    return field(default=default, metadata={"declared": said})


def fixed(default: Any, text: str, *, source: str = "") -> Any:
    """Declare a field that no option changes; a preset or a job may."""
    return field(default=default, metadata={"text": text, "source": source})


def part(
    default: Any,
    *,
    by: str = "",
    among: Mapping[str, Any] | None = None,
    has_others: bool = False,
    retold: Mapping[str, Declaration] | None = None,
    without: tuple[str, ...] = (),
) -> Any:
    """Declare a field that is a record itself."""
    made = Part(by, among or {}, has_others, retold or {}, without)
    return field(default=default, metadata={"part": made})


def redeclare(record: type, name: str, default: Any, source: str) -> Any:
    """Declare a field as another record does, but for its default and where that comes from."""
    known = next(known for known in fields(record) if known.name == name)
    if "declared" not in known.metadata:
        return fixed(default, known.metadata["text"], source=source)
    return field(
        default=default, metadata={"declared": replace(known.metadata["declared"], source=source)}
    )
