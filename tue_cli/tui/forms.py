"""Forms made of a spec's declarations: a line each to fill in, its help below, its fault beside."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Label, Select

from tue_cli.errors import BadSetting
from tue_cli.fields import Question, change, get_value, list_questions

YES_NO = ("yes", "no")


class Field(Vertical):
    """One field: its name, a place to type or choose, its unit, its help."""

    def __init__(self, question: Question, text: str) -> None:
        super().__init__(classes="field")
        self.question = question
        self._first = text

    def compose(self) -> ComposeResult:
        """Lay the field out."""
        question, said = self.question, self.question.declared
        choices = YES_NO if question.kind is bool else said.choices
        with Horizontal():
            yield Label(question.title, classes="name")
            if choices:
                known = choices if self._first in choices else (*choices, self._first)
                yield Select(
                    [(choice, choice) for choice in known],
                    value=self._first,
                    allow_blank=False,
                    compact=True,
                )
            else:
                yield Input(self._first, compact=True, placeholder="–", select_on_focus=False)
            yield Label(question.unit, classes="unit")
        yield Label(said.help, classes="help", markup=False)
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

    def __init__(self, spec: Any, *, first: str | tuple[str, ...] = "") -> None:
        """`first`: how the names of the fields begin that stand above the others."""
        super().__init__(can_focus=False)
        self._spec = spec
        self._first = first

    def compose(self) -> ComposeResult:
        """Lay the fields out, research last; those that another choice has not are hidden."""
        asked = [q for q in list_questions(type(self._spec)) if q.declared.in_form]

        def place(question: Question) -> tuple[bool, bool]:
            return bool(question.declared.panel), not question.name.startswith(self._first)

        for question in sorted(asked, key=place):
            value = get_value(self._spec, question.name)
            field = Field(question, "" if value is MISSING else question.write(value))
            field.display = value is not MISSING
            yield field

    def get_field(self, name: str) -> Field:
        """Return the field of a dotted name."""
        return next(field for field in self.query(Field) if field.question.name == name)

    def read(self, spec: Any) -> Any:
        """Return `spec` with what is filled in; None where a field cannot be read, which says so.

        Fields that are as they were stay what they are, however exactly they can be written.
        """
        sound = True
        for field in self.query(Field):
            fault, question = "", field.question
            value = get_value(spec, question.name)
            if value is not MISSING and field.text != question.write(value):
                try:
                    changed = change(spec, question.name, question.read(field.text.strip()))
                except BadSetting as error:
                    fault, sound = str(error), False
                else:
                    if question.chooses:
                        self._refill(spec, changed)
                    spec = changed
            field.blame(fault)
        return spec if sound else None

    def _refill(self, former: Any, spec: Any) -> None:
        """Show the fields that `spec` has, with what differs from the former one's filled in."""
        for field in self.query(Field):
            before, now = (get_value(of, field.question.name) for of in (former, spec))
            field.display = now is not MISSING
            if now not in (before, MISSING):
                field.fill(field.question.write(now))

    @on(Input.Changed)
    @on(Select.Changed)
    def _handle_change(self, event: Input.Changed | Select.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(self))

    @on(Input.Submitted)
    def _go_to_next(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()
