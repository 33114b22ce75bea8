"""`docs/json.md`, held against the records that it describes and against what commands print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tue_cli.check.summary import CheckPlan, CheckSummary
from tue_cli.cli import app
from tue_cli.dataset.secret import SecretSummary
from tue_cli.doctor import DoctorSummary
from tue_cli.engine.onnx_graph.parity import Parity
from tue_cli.events import SCHEMA, Checked, Done, Failed, Metric, Note, Saved, Skipped, Started
from tue_cli.protect.collection import CollectionPlan, CollectionSummary, ShardRecord
from tue_cli.protect.result import (
    CopyRecord,
    ProtectForecast,
    ProtectPlan,
    ProtectSummary,
    WatchSummary,
)
from tue_cli.train.result import ExportSummary, TrainPlan, TrainSummary
from tue_cli.verify.result import VerifyPlan, VerifyResult

PAGE = (Path(__file__).parent.parent / "docs" / "json.md").read_text(encoding="utf-8")
EVENTS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (Started, Metric, Saved, Skipped, Failed, Checked, Note, Done)
}
RECORDS: dict[str, type] = {
    "started of tue protect": ProtectPlan,
    "started of tue check": CheckPlan,
    "started of tue verify": VerifyPlan,
    "started of tue train": TrainPlan,
    "started of tue protect URL": CollectionPlan,
    "saved of tue protect": CopyRecord,
    "saved of tue protect URL": ShardRecord,
    "done of tue protect": ProtectSummary,
    "done of tue protect URL": CollectionSummary,
    "done of tue protect -n": ProtectForecast,
    "done of tue protect --watch": WatchSummary,
    "done of tue check": CheckSummary,
    "done of tue verify": VerifyResult,
    "done of tue train": TrainSummary,
    "done of tue export": ExportSummary,
    "done of tue secret": SecretSummary,
    "done of tue doctor": DoctorSummary,
}
"""What stands among the fields of an event, by the command that says it."""


@dataclass(frozen=True)
class Said:
    """One field, as JSON has it."""

    hint: Any
    may_miss: bool


def fields_of(record: type, *, may_miss: bool = False) -> dict[str, Said]:
    """The fields of a record by their names in JSON, with those that stand among them."""
    hints = get_type_hints(record, localns={"Parity": Parity})
    said: dict[str, Said] = {}
    for part in fields(record):
        hint, mark = hints[part.name], part.metadata.get("json")
        if mark == "among":
            for inner in filter(is_dataclass, get_args(hint) or (hint,)):
                assert isinstance(inner, type)
                missing = may_miss or NoneType in get_args(hint)
                for name, one in fields_of(inner, may_miss=missing).items():
                    said.setdefault(name, one)
        elif mark != "unsaid":
            name = part.metadata.get("name", part.name)
            said[name] = Said(hint, may_miss or mark == "optional")
    return said


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def inside(hint: Any) -> Any:
    """The record in a field: itself, one or None, or several."""
    hint = next((part for part in get_args(hint) if is_union(hint) and part is not NoneType), hint)
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def spell(hint: Any) -> str:
    """A type in words."""
    words = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}
    parts = get_args(hint)
    if is_union(hint):
        return " or ".join("null" if part is NoneType else spell(part) for part in parts)
    if get_origin(hint) is tuple:
        count = "" if parts[1] is Ellipsis else f"{len(parts)} "
        return f"array of {count}{plural(spell(parts[0]))}"
    if get_origin(hint) is not None:
        return f"object of {plural(spell(parts[1]))}"
    return "object" if is_dataclass(hint) else words[hint]


def plural(words: str) -> str:
    first, *rest = words.split(" ")
    return " ".join([f"{first}s", *rest])


def table_of(
    record: type, before: str = "", known: set[type] | None = None
) -> Iterator[tuple[str, str]]:
    """The rows of a record's table: each field's name and its type, with what is inside it.

    What is inside a record is told once, where that comes first.
    """
    known = set() if known is None else known
    for name, said in fields_of(record).items():
        hint = said.hint
        if said.may_miss:
            kinds = [part for part in get_args(hint) if part is not NoneType]
            hint = kinds[0] if is_union(hint) else hint
        yield f"{before}{name}", spell(hint) + (", or missing" if said.may_miss else "")
        if is_dataclass(inside(hint)) and inside(hint) not in known:
            known.add(inside(hint))
            several = "[]" if get_origin(hint) is tuple else ""
            yield from table_of(inside(hint), f"{before}{name}{several}.", known)


def sections() -> dict[str, list[tuple[str, str]]]:
    """The page's tables: heading -> name and type of each row."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, text in re.findall(r"^###+ (.+)\n((?:(?!#).*\n)*)", PAGE, re.M):
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|(?: [^|]+)? \|$", text, re.M)
        if rows:
            found[heading.replace("`", "")] = rows
    return found


def test_the_page_has_every_field_with_its_type() -> None:
    expected = {name: list(table_of(kind)) for name, kind in {**EVENTS, **RECORDS}.items()}
    assert sections() == {heading: rows for heading, rows in expected.items() if rows}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read from JSON is of a type."""
    parts = get_args(hint)
    if is_union(hint):
        return any(fits(value, part) for part in parts)
    if hint is NoneType:
        return value is None
    if get_origin(hint) is tuple:
        kinds = [parts[0]] * len(value) if parts[1] is Ellipsis else list(parts)
        return isinstance(value, list) and all(map(fits, value, kinds)) and len(value) == len(kinds)
    if get_origin(hint) is not None:
        return isinstance(value, Mapping) and all(fits(part, parts[1]) for part in value.values())
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return isinstance(value, dict) and has_fields(value, fields_of(hint))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (str if hint is Path else hint)


def has_fields(value: Mapping[str, Any], said: Mapping[str, Said]) -> bool:
    lacking = {name for name, one in said.items() if name not in value and not one.may_miss}
    assert not lacking and value.keys() <= said.keys(), (lacking, value.keys() - said.keys())
    for name, part in value.items():
        assert fits(part, said[name].hint), (name, part)
    return True


def check_event(event: dict[str, Any], command: str) -> str:
    """Hold an event against its records; return its name."""
    name, schema = str(event.pop("event")), event.pop("schema")
    assert schema == SCHEMA
    said = fields_of(EVENTS[name])
    # A report, weights and a graph are saved without a copy's record.
    kinds = [f"{name} of {command}", f"{name} of {command.removesuffix(' -n')}"]
    beside = next((RECORDS[kind] for kind in kinds if kind in RECORDS), None)
    if beside is not None and not (name == "saved" and event["source"] is None):
        said = {**fields_of(beside), **said}
    assert has_fields(event, said)
    return name


def test_the_examples_are_events() -> None:
    checked = []
    for command, block in re.findall(r"^\$ (tue .+)\n((?:\{.*\n)+)", PAGE, re.M):
        words = command.split()
        command = "tue protect -n" if "-n" in words else " ".join(words[:2])
        checked.append(command)
        for line in block.splitlines():
            check_event(json.loads(line), command)
    assert set(checked) == {f"tue {name}" for name in COMMANDS}


COMMANDS = ("protect", "protect -n", "check", "verify", "train", "export")


def names_of(command: str, *arguments: object) -> list[str]:
    """The events of a command but for notes, in order; all are held against their records."""
    words = [*command.split()[1:], *map(str, arguments), "--json"]
    ran = CliRunner().invoke(app, words)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines, ran.output
    names = dict.fromkeys(check_event(line, command) for line in lines)
    return [name for name in names if name != "note"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that look different, a hundred pictures each, and one that is none."""
    draws = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("json") / "photos"
    for shade, name in ((80, "dark"), (170, "light")):
        (root / name).mkdir(parents=True)
        for number in range(104):
            pixels = draws.normal(shade, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "dark" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.mark.slow
def test_what_every_command_prints_is_what_the_page_says(
    folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    copies, weights = tmp_path / "copies", tmp_path / "w.safetensors"
    protect = (folder, "-o", copies, "--weights", tiny_weights, "--steps", 1, "--score", 0)
    assert names_of("tue protect -n", *protect) == ["failed", "started", "done"]
    page = ("--report", tmp_path / "page.html")
    said = names_of("tue protect", *protect, *page)
    assert said == ["started", "saved", "failed", "done"]
    assert names_of("tue protect", *protect) == ["started", "skipped", "failed", "done"]

    with Image.open(copies / "light" / "0.png") as image:
        image.convert("L").save(copies / "light" / "0.jpg")
    (copies / "light" / "0.png").unlink()
    (copies / "light" / "1.png").write_bytes(b"")
    (copies / "light" / "2.png").unlink()
    (copies / "more.png").write_bytes(b"")
    said = names_of("tue check", copies, "--original", folder)
    assert said == ["skipped", "started", "checked", "done"]

    quick = ("--budget", "1s", "--attacks", "std", "--victim", "resnet18:0.0625", "--size", 32)
    said = names_of("tue verify", copies, "--original", folder, *quick, *page)
    assert said == ["failed", "started", "metric", "saved", "done"]
    few = ("--holdout", folder, "--budget", "1s")
    assert names_of("tue verify", copies, "--original", folder, *few)[-1] == "done"

    small = ("--width", 4, "--score-width", 4, "--steps", 1, "--score-steps", 1, "--size", 16)
    training = (*small, "--batch", 8, "--noise-steps", 1, "--adversary-steps", 1, "--limit", 8)
    said = names_of("tue train", folder, "-o", weights, *training)
    assert said == ["started", "metric", "saved", "done"]
    assert names_of("tue export", weights) == ["saved", "done"]
