"""Options of the command line: those made of a spec's declarations, and those that all share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, replace
from functools import wraps
from typing import Annotated, Any, Generic, TypeVar

import typer

from tue_cli.config import METHODS, RECIPES, TrainSettings
from tue_cli.declare import ADVANCED, RESEARCH
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.fields import Question, fill, list_questions

Spec = TypeVar("Spec")

PANELS = ("", ADVANCED, RESEARCH)
"""The panels of the help, in their order."""

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", metavar="")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v", "--verbose", count=True, help="Name every file.", metavar="", show_default=False
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, for scripts.", metavar="")
]
TrainMethod = Annotated[
    str | None,
    typer.Option(
        help=f"The method that will use the weights: {', '.join(METHODS)}. "
        f"Default: {TrainSettings().method}.",
        rich_help_panel=RESEARCH,
    ),
]


class Given(Generic[Spec]):
    """What was given of a spec on the command line."""

    def __init__(self, spec: type[Spec], given: dict[str, Any], typed: str) -> None:
        """`given`: values as the command line reads them, by the keys of the questions."""
        self._spec = spec
        self._given = given
        self.typed = typed
        """The command as it was typed, to be typed again."""

    def __getitem__(self, key: str) -> Any:
        """Return what was given for an option; None for nothing."""
        return self._given[key]

    def read_spec(self, **settled: Any) -> Spec:
        """Return the spec; `settled` takes the place of what was given, by the questions' keys.

        Raises:
            BadSetting: a value that cannot be read, or does not fit what else was chosen.
        """
        values = {}
        for question in list_questions(self._spec):
            value = settled.get(question.key, self._given[question.key])
            if value is not None:
                values[question.name] = question.typed.read(value) if question.typed else value
        return fill(self._spec, values)


def add_options(
    spec: type[Spec], *, undecided: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a kind of spec beside its own; it gets them as `given`.

    What is `undecided` has no default here: the command decides it.
    """
    parameters = {}
    # The panels of the help come in the order of their first options.
    for question in sorted(list_questions(spec), key=lambda q: PANELS.index(q.declared.panel)):
        if question.key in undecided:
            question = replace(question, default=None)
        parameters[question.key] = _make_parameter(question)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        kind = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=kind)
            for name, parameter in signature.parameters.items()
            if name != "given"
        ]

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            given = {key: values.pop(key) for key in parameters}
            typed = context.find_root().obj or "tue"
            command(given=Given(spec, given, typed), **values)

        context = inspect.Parameter("context", kind, annotation=typer.Context)
        every = [context, *parameters.values(), *own]
        run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return run

    return decorate


def _make_parameter(question: Question) -> inspect.Parameter:
    """Return the parameter of a command that asks a question."""
    said = question.declared
    kind: Any = question.typed.kind if question.typed else question.kind
    default: Any = inspect.Parameter.empty
    if question.default is not MISSING:
        default = question.default
        if question.is_repeated:
            default = [question.write(value) for value in default]
        elif question.typed and default is not None:
            default = question.typed.kind(question.typed.write(default))
    if said.is_argument:
        name = said.metavar or question.key.upper()
        info = typer.Argument(help=said.help, metavar=name, show_default=False)
    else:
        info = typer.Option(
            *question.flags,
            help=said.help,
            metavar="" if kind is bool else said.metavar,
            rich_help_panel=said.panel or None,
        )
    is_optional = default is None
    return inspect.Parameter(
        question.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if is_optional else kind, info],
    )


def choose_recipe(method: str | None, recipe: str | None) -> str:
    """Return the recipe that was asked for, by its name or by the method that takes its weights.

    Raises:
        BadSetting: a method that has no net, or takes no weights of that recipe.
    """
    if recipe is not None:
        fits = method is None or (method in METHODS and recipe in METHODS[method].recipes)
        if not fits and recipe in RECIPES:
            raise BadSetting(
                f"--method {method} does not use weights of --recipe {recipe}.",
                "Leave out one of the two options.",
            )
        return recipe
    method = method or TrainSettings().method
    refuse_unless(
        method in METHODS,
        f"There is no method {method!r}.",
        f"Choose one of: {', '.join(METHODS)}.",
    )
    if not METHODS[method].recipes:
        raise BadSetting(
            f"The method {method} needs no weights.",
            f"Run `tue protect --method {method}` right away.",
        )
    return METHODS[method].recipes[0]
