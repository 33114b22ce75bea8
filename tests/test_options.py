"""Options, help, forms and equivalent commands: all made of one declaration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tue_cli.check.run import CheckSpec
from tue_cli.cli import app
from tue_cli.config import (
    BUDGETS,
    METHODS,
    RECIPES,
    STRENGTHS,
    TRAINING_NOISE,
    TRAININGS,
    AdversarySettings,
    ProtectSettings,
    VictimSettings,
)
from tue_cli.errors import BadSetting
from tue_cli.fields import change, fill, format_command, get_value, list_questions
from tue_cli.noise import EmNoise, RemNoise, SteppedNoise, TueNoise
from tue_cli.options import Given, choose_recipe
from tue_cli.protect.request import ProtectSpec
from tue_cli.train.export import ExportSpec
from tue_cli.train.run import TrainSpec
from tue_cli.verify.request import VerifySpec

SPECS: dict[str, type] = {
    "protect": ProtectSpec,
    "train": TrainSpec,
    "verify": VerifySpec,
    "check": CheckSpec,
    "export": ExportSpec,
}
PROTECT = ProtectSpec((Path("photos"),))
TRAIN = TrainSpec(Path("in"), Path("w.safetensors"))
VERIFY = VerifySpec(Path("out"), Path("in"))


def parse(command: str) -> Any:
    """Return the spec that the command line makes of a command."""
    group: Any = typer.main.get_command(app)
    _, name, *arguments = shlex.split(command)
    read = dict(group.commands[name].make_context(name, arguments).params)
    given: Given[Any] = Given(SPECS[name], read, "")
    settled = {"recipe": choose_recipe(read["method"], read["recipe"])} if name == "train" else {}
    return given.read_spec(**settled)


def leaves(record: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field that is no record itself, by dotted name, of all records there may be."""
    for field in fields(record):
        part = field.metadata.get("part")
        if part is None:
            yield prefix + field.name, field
            continue
        for inner in {type(made) for made in [field.default, *part.among.values()]}:
            yield from leaves(inner, f"{prefix}{field.name}.")


@pytest.mark.parametrize("name", SPECS)
def test_every_field_is_in_the_help_once_or_declared_as_fixed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)  # read once, when it is imported
    text = CliRunner().invoke(app, [name, "--help"]).output
    questions = {question.name: question for question in list_questions(SPECS[name])}
    of_training = ("train", "settings.noise.gray_ratio")  # which is on pictures in colour
    for dotted, field in leaves(SPECS[name]):
        has_option = "declared" in field.metadata and (name, dotted) != of_training
        assert (dotted in questions) == has_option
    for question in questions.values():
        said = question.declared
        called = (said.metavar or question.key.upper()) if said.is_argument else question.flags[-1]
        found = re.findall(rf"^│[ *]+{re.escape(called)} .*", text, re.MULTILINE)
        assert len(found) == 1 and said.help in found[0]


EM = ProtectSettings(method="em", noise=EmNoise(radius=5 / 255, samples=2))
REM = replace(TRAININGS["paper"], method="rem", noise=RemNoise(inner_radius=3.3 / 255))
EVERYTHING: list[tuple[str, Any]] = [
    ("protect", PROTECT),
    (
        "protect",
        ProtectSpec(
            (Path("a b"), Path("c")),
            Path("out"),
            labels="cluster:4",
            settings=ProtectSettings(
                noise=TueNoise(radius=4 / 255, steps=20, score_ratio=0.0), smooth=1 / 3
            ),
            format="webp",
            quality=90,
            device="cpu",
            backend="torch",
            include=("*.jpg", "a b/**"),
            exclude=("-draft*", "--x", "Übung/"),
            no_recursive=True,
            existing="overwrite",
            retry_failed=True,
            mark=True,
            dry_run=True,
            watch=True,
            report=Path("r.html"),
            jobs=2,
        ),
    ),
    ("protect", replace(PROTECT, settings=EM, weights="mine", key="cat")),
    *(
        ("protect", replace(PROTECT, strength=name, settings=settings))
        for name, settings in STRENGTHS.items()
    ),
    (
        "protect",
        replace(
            PROTECT,
            strength="strong",
            settings=ProtectSettings(noise=TueNoise(radius=6 / 255, steps=3), smooth=0.0),
        ),
    ),
    ("protect", replace(PROTECT, strength="strong", settings=EM)),
    *(
        ("protect", replace(PROTECT, settings=ProtectSettings(name, METHODS[name].noise)))
        for name in METHODS
    ),
    ("train", TRAIN),
    (
        "train",
        replace(
            TRAIN,
            settings=replace(
                TRAININGS["packaged"],
                width=8,
                rate=0.123456789,
                adversary=AdversarySettings(radius=2 / 255, steps=1),
                seed=3,
            ),
            preset="packaged",
            max_seconds=5400.0,
            resume=True,
            limit=5,
        ),
    ),
    ("train", replace(TRAIN, settings=REM)),
    *(
        (
            "train",
            replace(TRAIN, settings=replace(REM, method=name, noise=TRAINING_NOISE[name])),
        )
        for name in RECIPES
    ),
    ("verify", VERIFY),
    (
        "verify",
        replace(
            VERIFY,
            settings=replace(
                BUDGETS["standard"],
                attacks=("std", "gray"),
                victims=(VictimSettings("vgg16", 64), VictimSettings()),
                seeds=5,
                size=48,
            ),
            budget="standard",
            holdout=Path("h"),
            background=Path("b"),
            report=Path("r.html"),
            resume=True,
        ),
    ),
    ("verify", replace(VERIFY, budget="10m")),
    ("check", CheckSpec(Path("out"))),
    ("check", CheckSpec(Path("out"), Path("in"), Path("m"))),
    ("export", ExportSpec()),
    ("export", ExportSpec("mine", Path("w.onnx"))),
]


@pytest.mark.parametrize(("name", "spec"), EVERYTHING)
def test_the_equivalent_command_reads_as_the_same_spec(name: str, spec: Any) -> None:
    assert parse(format_command(name, spec)) == spec


def test_a_command_says_only_what_is_not_as_it_would_be_anyway() -> None:
    assert format_command("protect", PROTECT) == "tue protect photos"
    assert format_command("verify", VERIFY) == "tue verify out --original in"
    assert format_command("train", TRAIN) == "tue train in -o w.safetensors"
    rem = change(PROTECT, "settings.method", "rem")
    assert format_command("protect", rem) == "tue protect photos --method rem"
    timed = replace(TRAIN, max_seconds=90)
    assert format_command("train", timed) == "tue train in -o w.safetensors --max-time 90s"


@given(levels=st.floats(1, 255), rate=st.floats(1e-9, 1e3))
def test_numbers_are_written_as_exactly_as_they_are_read(levels: float, rate: float) -> None:
    asked = {question.name: question for question in list_questions(TrainSpec)}
    for name, value in (("settings.noise.radius", levels / 255), ("settings.rate", rate)):
        question = asked[name]
        assert question.read(question.write(value)) == value


@pytest.mark.parametrize("name", METHODS)
def test_an_option_that_a_method_has_not_is_refused(name: str) -> None:
    own = {field.name for field in fields(METHODS[name].noise)}
    for question in list_questions(ProtectSpec):
        *path, last = question.name.split(".")
        if path != ["settings", "noise"]:
            continue
        given = {"paths": (Path("in"),), "settings.method": name, question.name: 1}
        if last in own:
            assert get_value(fill(ProtectSpec, given), question.name) == 1
            continue
        with pytest.raises(BadSetting, match=f"The method {name} has no {question.flags[0]}"):
            fill(ProtectSpec, given)


def test_a_method_s_options_begin_from_what_it_publishes() -> None:
    tap = parse("tue protect in --method tap --radius 4").settings.noise
    assert isinstance(tap, SteppedNoise)
    assert (tap.radius, tap.steps, tap.travel) == (4 / 255, 250, 12.5)
    trained = parse("tue train in -o w.safetensors --method tap")
    assert trained.settings.method == "clean"
    assert parse("tue train in -o w.safetensors").settings == TRAININGS["paper"]


def test_what_was_changed_is_kept_where_another_choice_has_it_too() -> None:
    spec = change(PROTECT, "settings.noise.radius", 4 / 255)
    spec = change(change(spec, "settings.noise.gray_ratio", 0.5), "settings.seed", 9)
    em = change(spec, "settings.method", "em")
    assert em.settings == ProtectSettings("em", EmNoise(radius=4 / 255), seed=9)
    verify = change(change(VERIFY, "settings.seeds", 7), "budget", "full")
    assert verify.settings == replace(BUDGETS["full"], seeds=7)


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_sets_radius_and_smooth_and_numbers_win(name: str) -> None:
    plain = parse(f"tue protect photos --strength {name}").settings
    assert plain == STRENGTHS[name]
    noise = plain.noise
    assert isinstance(noise, TueNoise)
    told = parse(f"tue protect photos --strength {name} --smooth 0.4 --steps 3").settings
    assert told == replace(plain, smooth=0.4, noise=replace(noise, steps=3))
    other = parse(f"tue protect photos --strength {name} --method lsp").settings
    assert other.noise == METHODS["lsp"].noise and other.smooth == plain.smooth


def test_another_strength_keeps_what_was_changed_in_its_noise() -> None:
    spec = change(PROTECT, "settings.noise.steps", 3)
    strong = change(spec, "strength", "strong")
    assert strong.settings.noise == TueNoise(STRENGTHS["strong"].noise.radius, steps=3)
    assert change(strong, "strength", "normal") == spec
    em = change(change(PROTECT, "settings.method", "em"), "strength", "strong")
    assert em.settings.noise == METHODS["em"].noise


def test_strengths_differ_in_what_they_set_alone() -> None:
    assert STRENGTHS[PROTECT.strength] == ProtectSettings()
    radii = [settings.noise.radius for settings in STRENGTHS.values()]
    assert radii == sorted(radii) and len(set(radii)) == 3
