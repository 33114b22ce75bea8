"""What the scripts in benchmarks/ share: rows, and victims that are trained once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import protection, script, unseen
from benchmarks.codes import mix_codes
from benchmarks.rows import RESULTS, Rows, make_key, read_rows
from tue_cli.core.batches import Images
from tue_cli.weights import build, load


def test_rows_of_two_processes_are_found_by_both(tmp_path: Path) -> None:
    one, two = (Rows(tmp_path / "rows.jsonl") for _ in range(2))
    one.add("cell", {"a": 1}, seed=0, n=1, seconds=0.0, accuracy=0.5)
    two.add("cell", {"a": 2}, seed=0, n=1, seconds=0.0, failed="no memory")
    assert two.find("cell", {"a": 1}) and one.is_missing("cell", {"a": 2})
    # The last one counts.
    two.add("cell", {"a": 1}, seed=0, n=1, seconds=0.0, accuracy=0.25)
    assert (one.find("cell", {"a": 1}) or {})["accuracy"] == 0.25
    assert len(one.read_written()) == 3
    # What an earlier run has in another folder is known too.
    assert not Rows(tmp_path / "new" / "rows.jsonl", done=tmp_path).is_missing("cell", {"a": 1})


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "half')
    Rows(path).add("cell", {}, seed=0, n=1, seconds=0.0)
    assert [row["cell"] for row in read_rows(path)] == ["cell"]
    assert not Rows(path).is_missing("cell", {})


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_say_what_was_measured_and_where(path: Path) -> None:
    rows = list(read_rows(path))
    assert len(rows) == len(path.read_text().splitlines())
    for row in rows:
        assert {"seed", "n", "seconds", "hardware", "commit"} <= row.keys()
        assert row["key"] == make_key({"cell": row["cell"], **row["settings"]})
        assert "curve" not in row


@pytest.mark.slow
def test_victims_of_protection_are_trained_once(
    toy: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number, (pixels, label) in enumerate(zip(toy.pixels, toy.labels, strict=True)):
        part = "train" if number < 36 else "val"
        place = tmp_path / "data" / part / "abc"[int(label)] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place)
    words = ["--data", str(tmp_path / "data"), "--classes", "3", "--weights", "cifar10"]
    words += ["--arms", "clean,random", "--sizes", "16", "--epochs", "2", "--width", "4"]
    words += ["--adversary", "0,4", "--adversary-steps", "1", "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["protection.py", *words])
    script.run(protection.parse_arguments(), protection.measure)
    table = capsys.readouterr().out
    rows = list(read_rows(tmp_path / "out" / "protection.jsonl"))
    assert [row["settings"]["arm"] for row in rows] == ["clean", "random"] * 2
    assert [row["robust_train"] is None for row in rows] == [True, True, False, False]
    assert all(row["command"].startswith("python -m benchmarks.protection") for row in rows)
    script.run(protection.parse_arguments(), protection.measure)
    assert list(read_rows(tmp_path / "out" / "protection.jsonl")) == rows
    assert capsys.readouterr().out == table


def test_a_mixed_code_looks_to_the_surrogate_like_the_mean_of_two(tmp_path: Path) -> None:
    weights = load("cifar10")
    mixed = load(str(mix_codes(weights, tmp_path / "mixed.safetensors")))
    assert len(mixed.card.classes) == 45
    assert mixed.card.classes[9] == "automobile+bird"
    roles = ("surrogate", "score")
    pixels = torch.rand(4, 3, 32, 32)
    pure, pairs = (build(each, roles)["surrogate"].eval() for each in (weights, mixed))
    with torch.no_grad():
        expected = pure(pixels)[:, [1, 2]].mean(1)
        torch.testing.assert_close(pairs(pixels)[:, 9], expected)


@pytest.mark.parametrize(("settings", "score"), [({}, 50.0), ({"classes": 100}, 45.45)])
def test_chance_is_that_of_as_many_classes_as_the_row_says(
    settings: dict[str, int], score: float
) -> None:
    common = {"attack": "std", "victim": "resnet18:1", "size": 32, "ten": 0, "seed": 0}
    rows = [
        {"settings": {**common, **settings, "arm": arm}, "accuracy": value, "robust_train": None}
        for arm, value in (("clean", 0.12), ("cifar10", 0.11 if not settings else 0.07))
    ]
    (row,) = unseen.average_columns(rows, "cifar10").values()
    assert row["score"] == score


@pytest.mark.slow
def test_victims_tell_as_many_classes_apart_as_asked_for_from_several_folders(
    toy: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number, (pixels, label) in enumerate(zip(toy.pixels, toy.labels, strict=True)):
        part = "train" if number < 36 else "val"
        data = "one" if int(label) == 0 else "two"
        place = tmp_path / data / part / "abc"[int(label)] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place)
    words = ["--data", str(tmp_path / "one"), "--data", str(tmp_path / "two"), "--classes", "3"]
    words += ["--arms", "cifar10@mixed,cifar10@content2", "--columns", "std", "--tens", "0"]
    words += ["--controls", "clean", "--victim", "resnet18:0.0625", "--per-class", "9"]
    words += ["--seen", "54", "--seeds", "0", "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["unseen.py", *words])
    script.run(unseen.parse_arguments(), unseen.measure)
    table = capsys.readouterr().out
    rows = list(read_rows(tmp_path / "out" / "unseen.jsonl"))
    assert [row["settings"]["arm"] for row in rows] == ["clean", *words[7].split(",")]
    assert {(row["settings"]["data"], row["settings"]["classes"]) for row in rows} == {
        ("one+two", 3)
    }
    script.run(unseen.parse_arguments(), unseen.measure)
    assert list(read_rows(tmp_path / "out" / "unseen.jsonl")) == rows
    assert capsys.readouterr().out == table
