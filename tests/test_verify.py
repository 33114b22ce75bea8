"""`tue verify` from end to end, on pictures that are learned in seconds: figures and doubts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from tue_cli.cli import main
from tue_cli.config import BUDGETS, ProtectSettings, VerifySettings, VictimSettings
from tue_cli.dataset.manifest import MANIFEST, sha256
from tue_cli.engine.torch import choose_device
from tue_cli.errors import BadSetting, DeviceUnavailable, ExitCode, OutputProblem, PackageMissing
from tue_cli.events import Advanced, AnyEvent, Done, Failed, Metric, Note, Saved, Started, Table
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.run import protect
from tue_cli.report.write import SHOWN
from tue_cli.verify.request import VerifySpec, parse_victims
from tue_cli.verify.restored import choose_recipe
from tue_cli.verify.result import VerifyPlan, VerifyResult
from tue_cli.verify.run import verify
from tue_cli.weights import build, index, pack, read

EACH = 104
QUICK = VerifySettings(
    victims=(VictimSettings(width=4, batch=16, rate=0.05),), attacks=("std",), seen=850
)
"""Five epochs, enough to learn by."""
BRIEF = replace(QUICK, seen=340)
PLANNED = replace(QUICK, seen=10_000)
"""For what is over before a victim is trained."""


def pictures(
    folder: Path, classes: Iterable[str], each: int = EACH, *, seed: int = 0, side: int = 32
) -> Path:
    """Write square pictures, each class of a colour of its own under noise."""
    random = np.random.default_rng(seed)
    colours = np.array([(70, 90, 150), (190, 140, 80), (90, 200, 120)])
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(each):
            pixels = (
                colours[number] + random.normal(0, 25, (side, side, 3)) + random.normal(0, 12, 3)
            )
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{place}.png")
    return folder


def protected(folder: Path, output: Path, weights: Path) -> Path:
    settings = ProtectSettings(noise=TueNoise(steps=1))
    spec = ProtectSpec((folder,), output, weights=str(weights), settings=settings, device="cpu")
    list(protect(spec))
    return output


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> tuple[Path, Path]:
    """Originals of two classes, and the copies that `tue protect` made of them."""
    place = tmp_path_factory.mktemp("verify")
    originals = pictures(place / "in", ("cold", "warm"))
    return originals, protected(originals, place / "out", tiny_weights)


@pytest.fixture(autouse=True)
def _own_book(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def spec(folders: tuple[Path, Path]) -> VerifySpec:
    """Standard training, judged within seconds."""
    return VerifySpec(folders[1], folders[0], QUICK, device="cpu")


def originals_of(spec: VerifySpec) -> Path:
    assert spec.original is not None
    return spec.original


def again(folder: Path, place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return copies like those in a folder, with another manifest."""
    shutil.copytree(folder, place)
    manifest = json.loads((place / MANIFEST).read_text())
    change(manifest)
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


def run(spec: VerifySpec) -> tuple[list[AnyEvent], VerifyResult]:
    torch.manual_seed(len(str(spec)))  # which must not matter
    events = list(verify(spec))
    assert isinstance(events[-1], Done)
    return list(events), events[-1].result


def figures(result: VerifyResult) -> VerifyResult:
    """All that a clock cannot change."""
    attacks = tuple(replace(attack, seconds=0.0) for attack in result.attacks)
    return replace(result, attacks=attacks, setup=replace(result.setup, time=None))


def notes(events: list[AnyEvent]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Note))


def trained(events: list[AnyEvent]) -> int:
    return sum(isinstance(event, Advanced) for event in events)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_victims_and_resumes_to_the_same_figures(
    spec: VerifySpec, tmp_path: Path
) -> None:
    spec = replace(spec, settings=replace(BRIEF, attacks=("std", "early", "gray")))
    before = {path: sha256(path) for path in originals_of(spec).rglob("*.png")}
    events, whole = run(spec)
    assert trained(events) == 6  # early stopping has the same victims as standard training
    started = next(event for event in events if isinstance(event, Started))
    assert started.total == 6 and started.seconds is not None and started.seconds > 0
    assert {path: sha256(path) for path in originals_of(spec).rglob("*.png")} == before

    job = verify(spec)  # without --resume it begins anew
    seen: list[AnyEvent] = []
    for event in job:
        seen.append(event)
        if trained(seen) == 2 and isinstance(event, Metric):
            break
    job.close()
    events, resumed = run(replace(spec, resume=True))
    assert "2 of 6 victims are already finished" in notes(events)
    assert trained(events) == 4
    assert figures(resumed) == figures(whole)

    # Once more, for a page: nothing but the victim of its map is trained again.
    page = tmp_path / "report.html"
    events, reported = run(replace(spec, resume=True, report=page))
    assert "5 of 6 victims are already finished" in notes(events)
    assert trained(events) == 1 and figures(reported) == figures(whole)
    # So small a victim may learn too little on one processor and enough on another.
    is_sure = whole.status == "conclusive"
    answer = whole.headline if is_sure else '<h2 id="answer" class="big">Inconclusive</h2>'
    assert "t-SNE" in page.read_text() and answer in page.read_text()
    assert [event.path for event in events if isinstance(event, Saved)] == [page]

    # Copies that were made again are the same copies; others are other victims.
    same = again(spec.protected, tmp_path / "same", lambda manifest: manifest.update(seconds=9.0))
    events, repeated = run(replace(spec, protected=same, resume=True))
    assert trained(events) == 0 and figures(repeated) == figures(whole)
    other = again(spec.protected, tmp_path / "other", lambda manifest: None)
    shutil.copy(originals_of(spec) / "cold" / "0.png", other / "cold" / "0.png")
    events = []
    for event in verify(replace(spec, protected=other, resume=True)):
        events.append(event)
        if isinstance(event, Started):
            break
    assert "already finished" not in notes(events)

    # The peak of the curve is judged where a victim may stop early, its end where it may not.
    standard, early, gray = whole.attacks
    assert standard.curves == early.curves != gray.curves
    for arm in ("clean", "protected", "random"):
        (curve,) = standard.curves[arm]
        assert getattr(standard, arm).mean == pytest.approx(curve[-1], abs=1e-4)
        assert getattr(early, arm).mean == pytest.approx(max(curve), abs=1e-4)


@pytest.mark.slow
def test_photographs_are_learned_as_photographs_and_that_is_said(
    tmp_path: Path, tiny_weights: Path
) -> None:
    originals = pictures(tmp_path / "in", ("cold", "warm"), side=180)
    copies = protected(originals, tmp_path / "out", tiny_weights)
    victims = (VictimSettings(width=4),)
    settings = replace(QUICK, victims=victims, attacks=BUDGETS["quick"].attacks, seen=166)
    events, result = run(VerifySpec(copies, originals, settings, device="cpu"))
    plan = result.setup.plan
    assert plan is not None
    assert plan.picture_size == "128 × 128, random resized crops of squares of 144 × 144"
    # 166 to train on, three times, and 42 to test on.
    assert plan.memory == "34 MB"
    names = [attack.name for attack in result.attacks]
    assert names == ["std", "gray", "own-jpeg10"] and trained(events) == 9
    assert [event.plan for event in events if isinstance(event, Started)] == [plan]


@pytest.mark.slow
def test_the_same_command_gives_the_same_figures(spec: VerifySpec) -> None:
    spec = replace(spec, settings=BRIEF)
    (first, result), (second, again) = run(spec), run(spec)
    assert figures(result) == figures(again)
    assert trained(first) == trained(second) == 3
    assert [e for e in first if isinstance(e, Metric)] == [
        e for e in second if isinstance(e, Metric)
    ]


@pytest.mark.slow
def test_copies_that_protect_nothing_are_said_to(spec: VerifySpec, tmp_path: Path) -> None:
    plain = again(spec.protected, tmp_path / "plain", lambda manifest: None)
    for path in plain.rglob("*.png"):
        shutil.copy(originals_of(spec) / path.relative_to(plain), path)
    events, result = run(replace(spec, protected=plain))
    assert "208 of 208 copies changed since tue wrote them" in notes(events)
    assert result.status == "conclusive"
    assert result.weakest and result.weakest.low == result.weakest.value == 0
    (attack,) = result.attacks
    assert attack.clean == attack.protected and attack.clean.mean > 0.9
    table = next(event for event in events if isinstance(event, Table))
    assert len(table.rows[0]) == len(table.columns)


@pytest.mark.slow
def test_copies_that_teach_nothing_are_said_to(spec: VerifySpec, tmp_path: Path) -> None:
    useless = again(spec.protected, tmp_path / "useless", lambda manifest: None)
    for path in useless.rglob("*.png"):
        shade = 60 if path.parent.name == "warm" else 190
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(path)
    _, result = run(replace(spec, protected=useless))
    assert result.weakest and result.weakest.value > 50


@pytest.mark.slow
def test_a_control_that_learned_nothing_leaves_no_number(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    # Both classes are of the same colours: whatever a victim learns, it is no class.
    originals = pictures(tmp_path / "in", ("cold",), 2 * EACH)
    (originals / "warm").mkdir()
    for number in range(0, 2 * EACH, 2):
        path = originals / "cold" / f"{number}.png"
        path.rename(originals / "warm" / path.name)
    output = protected(originals, tmp_path / "out", tiny_weights)
    settings = replace(QUICK, seen=400)
    _, result = run(replace(spec, protected=output, original=originals, settings=settings))
    assert result.status == "inconclusive" and result.weakest is None
    assert "victims trained on the originals learned hardly more than chance" in result.headline
    assert result.attacks[0].protection is None


def begun(spec: VerifySpec) -> tuple[VerifyPlan, list[AnyEvent]]:
    """Return the plan of a run that is stopped before any victim is trained, and its events."""
    events: list[AnyEvent] = []
    job = verify(spec)
    for event in job:
        events.append(event)
        if isinstance(event, Started):
            break
    job.close()
    assert isinstance(events[-1], Started) and isinstance(events[-1].plan, VerifyPlan), events[-1]
    return events[-1].plan, events


@pytest.mark.slow
def test_few_pictures_are_each_tested_once_by_victims_that_never_saw_them(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    originals = pictures(tmp_path / "in", ("cold", "warm"), 30)
    for number in range(5):  # the same picture again is no other picture
        shutil.copy(originals / "cold" / "0.png", originals / "cold" / f"again-{number}.png")
    pictures(originals, ("rare",), 9, seed=2)
    output = protected(originals, tmp_path / "out", tiny_weights)
    few = replace(spec, protected=output, original=originals)
    plan, _ = begun(replace(few, settings=PLANNED))
    assert plan.seeds == 3
    few = replace(few, settings=replace(QUICK, seen=96, seeds=1))
    events, result = run(few)
    assert "fewer than 200 pictures" in notes(events) and "omitted: rare" in notes(events)
    made = result.setup.plan
    assert made is not None and (made.folds, made.seeds, made.classes) == (5, 1, 2)
    assert made.held_out_pictures == 60
    assert trained(events) == 3 * 5
    (attack,) = result.attacks
    assert {arm: len(curves) for arm, curves in attack.curves.items()} == dict.fromkeys(
        ("clean", "protected", "random"), 5
    )
    last = [curve[-1] for curve in attack.curves["clean"]]
    assert attack.clean.mean == pytest.approx(np.mean(last), abs=1e-4)
    events, resumed = run(replace(few, resume=True))
    assert trained(events) == 0 and figures(resumed) == figures(result)


def test_classes_of_too_few_pictures_are_refused(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    originals = pictures(tmp_path / "in", ("cold", "warm"), 9)
    output = protected(originals, tmp_path / "out", tiny_weights)
    events, result = run(replace(spec, protected=output, original=originals))
    assert result.status == "inconclusive" and not any(isinstance(e, Started) for e in events)
    assert "two classes must have 10 different pictures or more" in result.headline
    assert "%" not in result.headline and result.weakest is None


def test_a_picture_that_fails_leaves_the_folds_in_order(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    originals = pictures(tmp_path / "in", ("cold", "warm"), 12)
    output = protected(originals, tmp_path / "out", tiny_weights)
    (output / "cold" / "3.png").write_bytes(b"no picture")
    few = replace(spec, protected=output, original=originals, settings=PLANNED)
    plan, events = begun(few)
    assert plan.held_out_pictures == 23
    assert [e.path.name for e in events if isinstance(e, Failed)] == ["3.png"]


@pytest.fixture
def alone(spec: VerifySpec, tmp_path: Path, tiny_weights: Path) -> VerifySpec:
    """Copies of one class."""
    originals = pictures(tmp_path / "in", ("",), 40)
    output = protected(originals, tmp_path / "out", tiny_weights)
    return replace(spec, protected=output, original=originals)


def test_one_class_requires_a_background(alone: VerifySpec) -> None:
    _, result = run(alone)
    assert result.status == "inconclusive" and "--background DIR is required" in result.headline
    with pytest.raises(BadSetting, match="the same pictures as the copies"):
        run(replace(alone, background=originals_of(alone)))


def test_a_class_among_others_has_as_many_rivals_as_there_are_subfolders(
    alone: VerifySpec, tmp_path: Path
) -> None:
    others = pictures(tmp_path / "others", ("x", "owner", "z"), 50, seed=1)
    pictures(others, ("small",), 9, seed=2)
    settings = replace(PLANNED, attacks=("std", "labels", "early"))
    plan, events = begun(replace(alone, background=others, settings=settings))
    # A class of the background that is called as the user's own is another one.
    assert plan.classes == 4 and plan.measured == "recall of your class among 4"
    assert "omitted: small" in notes(events) and "labels is omitted" in notes(events)
    assert "early is omitted" in notes(events)
    assert plan.attackers == "std" and (plan.seeds, plan.folds) == (3, 5)
    # Each of 40, as many as there are of the user's own; of these alone all are tested.
    assert plan.training_pictures == 4 * 40 * 4 // 5 and plan.held_out_pictures == 40
    for path in list(others.rglob("*.png")):
        path.rename(others / f"{path.parent.name}-{path.name}")
    plan, _ = begun(replace(alone, background=others, settings=PLANNED))
    assert plan.classes == 2


@pytest.mark.slow
def test_one_class_of_photographs_meets_the_attackers_of_photographs(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    originals = pictures(tmp_path / "in", ("",), 12, side=170)
    output = protected(originals, tmp_path / "out", tiny_weights)
    others = pictures(tmp_path / "others", ("x",), 12, seed=1, side=170)
    attacks = BUDGETS["full"].attacks
    settings = replace(PLANNED, attacks=attacks, adversary_steps=1)
    spec = replace(spec, protected=output, original=originals, background=others)
    plan, events = begun(replace(spec, settings=settings))
    tried = plan.attackers.split(", ")
    assert {"own-jpeg30", "own-median"} <= set(tried) and "labels" not in tried
    assert "labels is omitted" in notes(events)


@pytest.mark.slow
def test_pretrained_victims_tell_the_recall_of_a_class_in_every_fold(
    alone: VerifySpec, tmp_path: Path, tiny_weights: Path
) -> None:
    place = tmp_path / "own.safetensors"
    shutil.copy(tiny_weights, place)
    (tuned,) = parse_victims(str(place))
    victims = tuple(replace(tuned, start=start, batch=16) for start in ("pretrained", "probe"))
    others = pictures(tmp_path / "others", ("x", "y"), 31, seed=1)
    # Of 101 pictures, the first fold trains on 80, in five batches, and the others on 81, in six.
    (others / "y" / "0.png").unlink()
    settings = replace(BRIEF, victims=victims, seeds=1)
    events, result = run(replace(alone, background=others, settings=settings))
    assert trained(events) == 2 * 3 * 5
    for attack in result.attacks:
        assert attack.others is not None and 0 <= attack.others.clean <= 1
        assert [len(attack.curves[arm]) for arm in ("clean", "protected")] == [5, 5]


@pytest.mark.slow
def test_recall_tells_what_copies_hide_and_leaves_the_others(
    alone: VerifySpec, tmp_path: Path
) -> None:
    # Red copies teach nothing of the blue pictures, which look more like those of x and y.
    random = np.random.default_rng(2)
    for path in sorted(alone.protected.rglob("*.png")):
        pixels = (250, 60, 10) + random.normal(0, 25, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    others = pictures(tmp_path / "others", ("", "x", "y"), 40, seed=1)
    for path in others.glob("*.png"):  # those that look like the user's own
        path.unlink()
    victims = tuple(replace(victim, rate=0.02) for victim in QUICK.victims)
    settings = replace(QUICK, victims=victims, seen=1100, seeds=1)  # 6 of 6 seeds pass
    _, result = run(replace(alone, background=others, settings=settings))
    (attack,) = result.attacks
    assert attack.others is not None and attack.floor == pytest.approx(1 / 3, abs=1e-4)
    assert attack.clean.mean > 0.8 and attack.protected.mean < 0.3
    assert attack.others.clean > 0.8 and attack.others.protected > 0.8
    assert result.weakest is not None and result.weakest.value > 80
    assert "your class is one of 3" in result.reasons[0]


def test_too_few_pictures_to_learn_to_restore_from_leave_that_attacker_out(
    spec: VerifySpec,
) -> None:
    plan, events = begun(replace(spec, settings=replace(PLANNED, attacks=("std", "pairs"))))
    # Of 21 test pictures of each class, a third.
    assert plan.attackers == "std"
    assert "pairs is omitted" in notes(events) and "There are 14." in notes(events)


def test_whoever_makes_pairs_takes_the_weights_of_the_copies_or_else_the_packaged_ones(
    spec: VerifySpec, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((spec.protected / MANIFEST).read_text())
    manifest["run"]["settings"]["noise"]["radius"] = 4 / 255
    assert choose_recipe(manifest, choose_device("cpu")).weights.name == index()["default"]
    monkeypatch.setenv("TUE_WEIGHTS", str(tiny_weights.parent))
    recipe = choose_recipe(manifest, choose_device("cpu"))
    assert recipe.weights.sha256 == manifest["run"]["weights"]["sha256"] == sha256(tiny_weights)
    assert recipe.settings.noise.radius == 4 / 255
    # Not what merely has the same name.
    manifest["run"]["weights"]["sha256"] = "0" * 64
    assert choose_recipe(manifest, choose_device("cpu")).weights.name == index()["default"]


@pytest.mark.slow
def test_copies_are_restored_by_what_a_net_learned_from_other_pictures(
    spec: VerifySpec, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUE_WEIGHTS", str(tiny_weights.parent))
    holdout = pictures(tmp_path / "held", ("cold", "warm"), 75, seed=3)
    settings = replace(BRIEF, attacks=("std", "pairs"))
    spec = replace(spec, holdout=holdout, settings=settings)
    before = {path: sha256(path) for path in holdout.rglob("*.png")}
    events, result = run(spec)
    assert {path: sha256(path) for path in holdout.rglob("*.png")} == before
    assert trained(events) == 6 and [attack.name for attack in result.attacks] == ["std", "pairs"]
    # Of 75 test pictures of each class, 25 are learned from, and the others are tested on.
    _, restored = result.attacks
    assert restored.curves != result.attacks[0].curves
    told = "the attacker pairs learned from 200 pairs, 4 of each of 50 pictures"
    assert result.status == "inconclusive" or any(told in reason for reason in result.reasons)

    events, again = run(replace(spec, resume=True))
    assert trained(events) == 0 and figures(again) == figures(result)


def test_whose_class_stands_among_others_is_attacked_with_the_others(
    alone: VerifySpec, tmp_path: Path
) -> None:
    others = pictures(tmp_path / "others", ("x", "y"), 50, seed=1)
    settings = replace(PLANNED, attacks=("std", "pairs"))
    plan, events = begun(replace(alone, background=others, settings=settings))
    # Of 80 pictures of the background, those that each fold trains on.
    assert plan.attackers == "std, pairs" and "omitted" not in notes(events)
    assert plan.held_out_pictures == 40


def test_pictures_to_be_tested_on_can_be_given(spec: VerifySpec, tmp_path: Path) -> None:
    holdout = pictures(tmp_path / "holdout", ("cold", "warm"), 30, seed=7)
    pictures(holdout, ("strange",), 2, seed=8)
    shutil.copy(originals_of(spec) / "cold" / "3.png", holdout / "cold" / "own.png")
    shutil.copy(holdout / "cold" / "1.png", holdout / "cold" / "twice.png")
    events: list[AnyEvent] = []
    for event in verify(replace(spec, holdout=holdout, settings=PLANNED)):
        events.append(event)
        if isinstance(event, Started):
            break
    assert isinstance(event, Started) and isinstance(event.plan, VerifyPlan)
    assert event.plan.training_pictures == 2 * EACH - 1
    assert event.plan.held_out_pictures == 61
    assert "strange" in notes(events) and "1 picture found in --holdout too" in notes(events)


def test_the_originals_or_their_copies_are_no_holdout(spec: VerifySpec) -> None:
    _, result = run(replace(spec, holdout=originals_of(spec)))
    assert result.status == "inconclusive" and "to train and to test with" in result.headline
    with pytest.raises(BadSetting, match="protected copies"):
        run(replace(spec, holdout=spec.protected))


def test_a_class_that_the_holdout_lacks_is_named(spec: VerifySpec, tmp_path: Path) -> None:
    holdout = pictures(tmp_path / "holdout", ("cold",), 10, seed=7)
    events, result = run(replace(spec, holdout=holdout))
    assert "they are not tested: warm" in notes(events)
    assert result.status == "inconclusive" and "--background" not in result.headline


def test_copies_that_cannot_be_read_no_longer_count(spec: VerifySpec, tmp_path: Path) -> None:
    damaged = again(spec.protected, tmp_path / "damaged", lambda manifest: None)
    for path in (damaged / "cold").iterdir():
        path.write_text("<html>")
    events, result = run(replace(spec, protected=damaged))
    assert result.status == "inconclusive" and trained(events) == 0
    assert result.failed == sum(isinstance(event, Failed) for event in events) > 50


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["run"].clear(),
        lambda manifest: manifest["run"].update(settings=7),
        lambda manifest: manifest["run"]["settings"].pop("noise"),
        lambda manifest: manifest["run"]["settings"].pop("method"),
        lambda manifest: manifest["run"]["settings"]["noise"].update(radius=None),
        lambda manifest: manifest["run"]["settings"]["noise"].update(radius=float("nan")),
        lambda manifest: manifest["run"]["settings"]["noise"].update(radius=10**400),
        lambda manifest: manifest["run"]["settings"]["noise"].update(radius=-1),
        lambda manifest: manifest["run"].update(weights=[]),
    ],
)
def test_a_manifest_that_lacks_how_it_was_made_is_refused_before_any_work(
    change: Callable[[dict[str, Any]], object], spec: VerifySpec, tmp_path: Path
) -> None:
    place = again(spec.protected, tmp_path / "hostile", change)
    with pytest.raises(BadSetting, match="does not say how the copies were made"):
        next(verify(replace(spec, protected=place)))


@pytest.mark.slow
def test_a_report_holds_no_picture_from_outside_the_folders(
    spec: VerifySpec, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(secret)

    def point_outside(manifest: dict[str, Any]) -> None:
        pictures = sorted(manifest["pictures"], key=lambda record: -record["delta_e"])
        for record in pictures[:SHOWN]:
            record["source"] = "../secret.png"
            record["source_sha256"] = sha256(secret)

    place = again(spec.protected, tmp_path / "hostile", point_outside)
    shutil.copytree(originals_of(spec), tmp_path / "in")
    page = tmp_path / "report.html"
    settings = replace(QUICK, seen=170)
    hostile = replace(spec, protected=place, original=tmp_path / "in", settings=settings)
    events, _ = run(replace(hostile, report=page))
    assert {event.reason for event in events if isinstance(event, Failed)} == {"outside"}
    assert "data:image" not in page.read_text()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"settings": replace(QUICK, seeds=0)}, BadSetting),
        ({"settings": replace(QUICK, seed=-1)}, BadSetting),
        ({"settings": replace(QUICK, seen=0)}, BadSetting),
        ({"settings": replace(QUICK, adversary_steps=0)}, BadSetting),
        ({"settings": replace(QUICK, held_out=1.0)}, BadSetting),
        ({"settings": replace(QUICK, size=30)}, BadSetting),
        ({"settings": replace(QUICK, size=33)}, BadSetting),
        ({"settings": replace(QUICK, victims=(VictimSettings("nosuch"),))}, BadSetting),
        ({"settings": replace(QUICK, victims=(VictimSettings(width=2),))}, BadSetting),
        ({"original": Path("nosuch")}, BadSetting),
        ({"protected": Path("nosuch")}, BadSetting),
        ({"report": Path("report.png")}, BadSetting),
        ({"report": Path("nosuch/report.html")}, OutputProblem),
        ({"device": "gpu"}, BadSetting),
        ({"device": "cuda:99"}, DeviceUnavailable),
    ],
)
def test_a_bad_setting_stops_the_run_before_any_work(
    changes: dict[str, Any], error: type[Exception], spec: VerifySpec
) -> None:
    with pytest.raises(error):
        next(verify(replace(spec, **changes)))


def test_a_cache_that_cannot_be_written_is_said_before_any_training(
    spec: VerifySpec, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OutputProblem, match="XDG_CACHE_HOME"):
        for event in verify(spec):
            assert not isinstance(event, Started | Metric)


@pytest.mark.slow
def test_what_is_damaged_in_the_cache_is_trained_again_and_no_more(spec: VerifySpec) -> None:
    short = replace(spec, settings=replace(QUICK, seen=170))
    _, result = run(short)
    (cache,) = (platformdirs.user_cache_path("tue") / "verify").iterdir()
    whole = cache.read_bytes()
    for damaged, lost in ((whole[:-20], 1), (whole[20:], 1), (bytes(1000) + whole[-20:], 3)):
        cache.write_bytes(damaged)
        events, again = run(replace(short, resume=True))
        assert trained(events) == lost and figures(again) == figures(result)
    events, again = run(replace(short, resume=True))
    assert trained(events) == 0 and figures(again) == figures(result)


@pytest.mark.slow
def test_a_budget_in_seconds_is_fitted_once_and_taken_again(spec: VerifySpec) -> None:
    settings = replace(QUICK, victims=(VictimSettings(width=4, batch=64),))
    timed = replace(spec, settings=settings, budget="0.5s")
    _, result = run(timed)
    events, again = run(replace(timed, resume=True))
    assert trained(events) == 0 and figures(again) == figures(result)
    # What was fitted to one task says nothing of another.
    more = replace(timed, resume=True, settings=replace(settings, attacks=("std", "at4")))
    started = next(event for event in verify(more) if isinstance(event, Started))
    assert started.total == 6


def tue(*arguments: object) -> int:
    """Return the exit code of a command that is run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.slow
def test_a_shell_gets_the_figures_and_exit_code_5_below_the_limit(
    spec: VerifySpec, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", spec.protected, "--original", originals_of(spec), "--device", "cpu"]
    command += ["--attacks", "std", "--victim", "resnet18:0.0625", "--budget", "1s"]
    assert tue(*command, "--json", "--fail-under", "100") == ExitCode.MISMATCH
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"started", "metric", "done"} <= {event["event"] for event in events}
    done = events[-1]
    assert done["event"] == "done" and done["chance"] == 0.5
    (attack,) = done["attacks"]
    for arm in ("clean", "protected", "random"):
        assert 0 <= attack[arm]["low"] <= attack[arm]["mean"] <= attack[arm]["high"] <= 1
    assert done["setup"]["training pictures"] + done["setup"]["held-out pictures"] == 2 * EACH
    assert tue(*command, "--resume") == 0
    said = capsys.readouterr().out
    assert done["headline"] in said and "standard training" in said


def test_where_nothing_can_be_said_no_limit_is_reached(
    spec: VerifySpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(manifest: dict[str, Any]) -> None:
        del manifest["pictures"][5:]

    place = again(spec.protected, tmp_path / "few", few)
    command = ["verify", place, "--original", originals_of(spec)]
    assert tue(*command, "--report", tmp_path / "page.html") == 0
    assert "Inconclusive" in capsys.readouterr().out
    assert "Inconclusive" in (tmp_path / "page.html").read_text()
    assert tue(*command, "--fail-under", 0) == ExitCode.MISMATCH


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fail-under", "nan"), "0 to 100"),
        (("--fail-under", "101"), "0 to 100"),
        (("--fail-under", "-1"), "0 to 100"),
        (("--budget", "0s"), "is not a time"),
        (("--budget", "soon"), "is not a time, and none of quick, standard, full"),
        (("--attacks", "nosuch"), "is unknown"),
        (("--attacks", ""), "is unknown"),
        (("--victim", "nosuch.pth"), "pretrained, probe, or FILE.safetensors"),
        (("--victim", ""), "There is no net"),
        (("--victim", "resnet18:0"), "is not an architecture"),
        (("--victim", "resnet18:-1"), "is not an architecture"),
        (("--victim", "resnet18:nan"), "is not an architecture"),
        (("--victim", "resnet18:wide"), "is not an architecture"),
        (("--victim", "resnet18:16"), "is not an architecture"),
        (("--victim", "resnet18:0.01"), "4 channels or more"),
        (("--seeds", "0"), "seeds"),
        (("--size", "31"), "multiple of 4"),
        (("--holdout", "nosuch"), "is not a folder"),
        (("--background", "nosuch"), "is not a folder"),
    ],
)
def test_errors_have_codes_and_remedies(
    arguments: tuple[str, ...], says: str, spec: VerifySpec, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        tue("verify", spec.protected, "--original", originals_of(spec), *arguments)
        == ExitCode.USAGE
    )
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_vgg_fits_the_smallest_pictures(spec: VerifySpec) -> None:
    settings = replace(QUICK, victims=(VictimSettings("vgg16", 4),), size=32)
    for event in verify(replace(spec, settings=settings)):
        if isinstance(event, Started):
            break
    assert isinstance(event, Started) and isinstance(event.plan, VerifyPlan)
    assert event.plan.victims == "vgg16:0.0625"


@pytest.mark.slow
def test_pretrained_victims_are_named_in_words_and_kept_by_their_weights(
    spec: VerifySpec, tiny_weights: Path, tmp_path: Path
) -> None:
    place = tmp_path / "own.safetensors"
    shutil.copy(tiny_weights, place)
    (tuned,) = parse_victims(str(place))
    tuned = replace(tuned, batch=16)
    victims = (*BRIEF.victims, tuned, replace(tuned, start="probe"))
    page = tmp_path / "page.html"
    spec = replace(spec, settings=replace(BRIEF, victims=victims, seeds=2), report=page)
    events, result = run(spec)
    named = "ResNet-18, weights from own.safetensors"
    assert [(attack.title, attack.victim) for attack in result.attacks] == [
        ("standard training", "resnet18:0.0625"),
        ("fine-tuning of a pretrained network", f"{named}, fine-tuned"),
        ("a linear probe of a pretrained network", f"{named}, frozen, linear probe"),
    ]
    # Of a probe one victim an arm, of the others one a seed.
    assert trained(events) == 3 * (2 + 2 + 1)
    phases = {event.phase for event in events if isinstance(event, Metric)}
    assert "protected, a linear probe of a pretrained network, seed 0" in phases
    assert named in page.read_text()
    again, same = run(replace(spec, resume=True))
    assert trained(again) == 0 and figures(same).attacks == figures(result).attacks
    other = build(read(tiny_weights, name="own"), ("score", "surrogate"))
    other["surrogate"].body[0][0].weight.data.neg_()  # type: ignore[index,union-attr]
    tensors = {
        f"{role}.{name}": value.detach().numpy()
        for role, net in other.items()
        for name, value in net.state_dict().items()
    }
    place.write_bytes(pack(read(tiny_weights, name="own").card, tensors))
    again, _ = run(replace(spec, resume=True))
    assert trained(again) == 3 * (2 + 1)


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what `pip install .` leaves to the extra `verify`."""

    class Absent:
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            if name in ("kornia", "sklearn"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return None

    for name in ("kornia", "sklearn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


@pytest.mark.slow
@pytest.mark.usefixtures("without_extra")
def test_an_attacker_without_its_package_is_left_out_of_a_budget_and_else_refused(
    spec: VerifySpec,
) -> None:
    with pytest.raises(PackageMissing, match="pip install kornia"):
        next(verify(replace(spec, settings=replace(QUICK, attacks=("std", "ueraser")))))
    settings = replace(QUICK, attacks=BUDGETS["standard"].attacks)
    job, events = verify(replace(spec, settings=settings)), list[AnyEvent]()
    while not events or not isinstance(events[-1], Started) or events[-1].plan is None:
        events.append(next(job))
    job.close()
    assert "ueraser is omitted" in notes(events) and "pip install kornia" in notes(events)
    assert isinstance(events[-1], Started) and isinstance(events[-1].plan, VerifyPlan)
    attackers = events[-1].plan.attackers.split(", ")
    # For `pairs`, there are too few pictures.
    assert attackers == [name for name in settings.attacks if name not in ("ueraser", "pairs")]


@pytest.mark.slow
@pytest.mark.usefixtures("without_extra")
def test_a_report_without_scikit_learn_has_no_map_and_says_why(
    spec: VerifySpec, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    events, result = run(replace(spec, settings=BRIEF, report=page))
    assert result.attacks and trained(events) == 3
    assert "no map of features" in notes(events) and "pip install scikit-learn" in notes(events)
    assert "What the victims learned" in page.read_text() and "t-SNE" not in page.read_text()
