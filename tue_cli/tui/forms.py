"""Forms made of a spec's fields: one line each to fill in, its help below, its fault beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Select

from tue_cli.errors import BadSetting
from tue_cli.tui.fields import Asked, answered, asked

YES_NO = ("yes", "no")


class Field(Vertical):
    """One field: its name, a place to type or choose, its unit, its help."""

    def __init__(self, field: Asked) -> None:
        super().__init__(classes="field")
        self.field = field

    def compose(self) -> ComposeResult:
        """Lay the field out."""
        field = self.field
        choices = YES_NO if field.kind is bool else field.choices
        with Horizontal():
            yield Label(field.title, classes="name")
            if choices:
                known = choices if field.text in choices else (*choices, field.text)
                yield Select(
                    [(choice, choice) for choice in known],
                    value=field.text,
                    allow_blank=False,
                    compact=True,
                )
            else:
                yield Input(field.text, compact=True, placeholder="–", select_on_focus=False)
            yield Label(field.unit, classes="unit")
        yield Label(field.help, classes="help", markup=False)
        yield Label("", classes="fault", markup=False)

    @property
    def text(self) -> str:
        """What was typed or chosen."""
        chosen = self.query(Select)
        return str(chosen.first().value) if chosen else self.query_one(Input).value

    def fill(self, text: str) -> None:
        """Put another value in."""
        if chosen := self.query(Select):
            chosen.first().value = text
        else:
            self.query_one(Input).value = text

    def blame(self, fault: str) -> None:
        """Say what is wrong with it; nothing where nothing is."""
        self.query_one(".fault", Label).update(fault)
        self.set_class(bool(fault), "-faulty")


class Form(VerticalScroll):
    """The fields of a spec that a person may change."""

    class Changed(Message):
        """Something else is filled in; `spec` is None where it cannot be read."""

        def __init__(self, form: Form) -> None:
            super().__init__()
            self.form = form

    def __init__(self, spec: Any, names: Sequence[str], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, can_focus=False)
        self._spec = spec
        self._names = names

    def compose(self) -> ComposeResult:
        """Lay the fields out."""
        for name in self._names:
            yield Field(asked(self._spec, name))

    def field(self, name: str) -> Field:
        """Return the field of a dotted name."""
        return next(field for field in self.query(Field) if field.field.name == name)

    def read(self, spec: Any) -> Any:
        """Return `spec` with what is filled in; None where a field cannot be read, which says so.

        Fields that are as they were stay what they are, however exactly they can be written.
        """
        sound = True
        for field in self.query(Field):
            fault = ""
            if field.text != asked(spec, field.field.name).text:
                try:
                    spec = answered(spec, field.field.name, field.text)
                except BadSetting as error:
                    fault, sound = str(error), False
            field.blame(fault)
        return spec if sound else None

    @on(Input.Changed)
    @on(Select.Changed)
    def _changed(self, event: Input.Changed | Select.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self))

    @on(Input.Submitted)
    def _next(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()
