"""The terminal app, driven as a person drives it: keys and mouse, real pictures, real weights."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import mark_slow
from PIL import Image
from textual.pilot import Pilot
from textual.theme import Theme
from textual.widgets import Button, Input, Select
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.config import (
    BUDGETS,
    ProtectSettings,
    TrainSettings,
    VerifySettings,
    VictimSettings,
)
from tue_cli.dataset.manifest import MANIFEST, read_manifest, sha256
from tue_cli.dataset.records import read_unfinished
from tue_cli.errors import BadSetting, ExitCode
from tue_cli.events import Advanced, Failed, Job, Record, Started
from tue_cli.fields import list_questions
from tue_cli.noise import Noise, RemNoise, TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectSummary
from tue_cli.protect.run import protect
from tue_cli.train.run import TrainSpec
from tue_cli.tui.app import DARK, LIGHT, TueApp
from tue_cli.tui.draft import Draft
from tue_cli.tui.folder import FolderScreen
from tue_cli.tui.forms import Field, Form
from tue_cli.tui.look import LookScreen
from tue_cli.tui.panels import Choice, Help
from tue_cli.tui.pictures import Triptych, View, load_sharp
from tue_cli.tui.result import ResultScreen
from tue_cli.tui.run import RunScreen
from tue_cli.tui.running import Runner
from tue_cli.tui.steps import FittedText, Step
from tue_cli.tui.strength import StrengthScreen
from tue_cli.tui.terminal import detect_graphics
from tue_cli.tui.training import TrainRun, TrainScreen
from tue_cli.tui.verifying import VerifyRun, VerifyScreen
from tue_cli.tui.watching import WatchScreen
from tue_cli.verify.request import VerifySpec

ASSETS = Path(__file__).parent.parent / "assets" / "photos"
QUICK = ProtectSettings(noise=TueNoise(steps=1))
SLOWER = ProtectSettings(noise=TueNoise(steps=8))
"""For runs that are caught between two batches."""
SNAPSHOTS = Path(__file__).parent / "snapshots"
SMALL, LARGE = (80, 24), (120, 40)
PATIENCE = 300.0
"""The longest wait for a claim, in seconds: a busy machine is slow, and not wrong."""

Drive = Callable[[TueApp, Pilot[int]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _own_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the colours of the terminal that runs the tests out of them."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLORFGBG", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs in two class folders, small enough to be quick."""
    folder = tmp_path / "photos"
    for source in sorted(ASSETS.rglob("*.*")):
        place = folder / source.relative_to(ASSETS)
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            image.thumbnail((64, 64))
            image.save(place)
    return folder


@pytest.fixture
def shipped(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny weights be the packaged ones."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    shutil.copy(tiny_weights, folder)
    entry = {"file": tiny_weights.name, "sha256": sha256(tiny_weights)}
    index = {"default": "tiny", "weights": {"tiny": entry}}
    (folder / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr("tue_cli.weights.SHIPPED", folder)


@pytest.fixture
def many(photos: Path) -> Path:
    """The same, and enough of them for several batches."""
    for number in range(70):
        shutil.copy(photos / "space" / "rocket.jpg", photos / "space" / f"rocket-{number:02}.jpg")
    return photos


def drive(app: TueApp, size: tuple[int, int], steps: Drive) -> None:
    """Run the app without a terminal and take the steps."""

    async def session() -> None:
        async with app.run_test(size=size) as pilot:
            await steps(app, pilot)

    asyncio.run(session())


async def until(pilot: Pilot[int], claim: Callable[[], Any]) -> None:
    """Wait for a claim to come true."""
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline, f"never came true; the screen says:\n{seen(pilot.app)}"
        await pilot.pause(0.1)  # reading the screen takes time from the job


async def reads(pilot: Pilot[int], *words: str) -> None:
    """Wait for words to be on the screen, all of them: parts of it are drawn one after another."""
    await until(pilot, lambda: all(word in seen(pilot.app) for word in words))


async def on_screen(pilot: Pilot[int], kind: type) -> Any:
    """Wait for a screen, and return it."""
    await until(pilot, lambda: isinstance(pilot.app.screen, kind))
    await pilot.pause()
    return pilot.app.screen


async def write(pilot: Pilot[int], name: str, text: str) -> None:
    """Type into a field of the form on the screen, by keys alone."""
    field = pilot.app.screen.query_one(Form).get_field(name).query_one(Input)
    while pilot.app.focused is not field:
        await pilot.press("tab")
    await pilot.press("end", *["backspace"] * len(field.value), *text)


def seen(app: Any) -> str:
    """Return what can be read on the screen, row by row."""
    rows: dict[float, list[tuple[float, str]]] = {}
    pattern = r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>'
    for x, y, text in re.findall(pattern, app.export_screenshot()):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text)))
    lines = ("".join(text for _, text in sorted(parts)) for _, parts in sorted(rows.items()))
    return "\n".join(lines).replace("\xa0", " ")


def copies(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and ".tue" not in path.parts
    }


def draft(folder: Path, weights: Path, **changes: Any) -> Draft:
    spec = ProtectSpec((folder,), weights=str(weights), settings=QUICK, device="cpu")
    return Draft(replace(spec, **changes), Path(f"{folder}-protected"))


@pytest.mark.slow
@pytest.mark.usefixtures("shipped")
def test_a_folder_is_protected_by_keys_alone(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    before = copies(photos)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await on_screen(pilot, FolderScreen)
        await until(pilot, lambda: "photos" in seen(app))
        await pilot.press("down", "enter")
        await reads(pilot, "6 pictures", "everyday 3, space 3")
        await pilot.press("ctrl+n")
        look = await on_screen(pilot, LookScreen)
        await until(pilot, lambda: len(look.query(Triptych)) == 3 and "PSNR 3" in seen(app))
        assert not (tmp_path / "photos-protected").exists()
        await pilot.press("ctrl+n")
        await on_screen(pilot, StrengthScreen)
        await write(pilot, "settings.noise.radius", "6")
        await write(pilot, "settings.noise.steps", "2")
        await until(pilot, lambda: "PSNR" in seen(app) and "about" in seen(app))
        await pilot.press("ctrl+n")
        result = await on_screen(pilot, ResultScreen)
        await reads(pilot, "protected")
        await pilot.press("y")
        assert app.clipboard == result.write_command()

    drive(app := TueApp(tmp_path), SMALL, steps)
    assert copies(photos) == before
    output = tmp_path / "photos-protected"
    assert copies(output).keys() == before.keys()
    run = read_manifest(output)["run"]
    assert run["settings"]["noise"]["steps"] == 2
    assert run["settings"]["noise"]["radius"] == 6 / 255
    assert run["weights"]["name"] == "tiny"
    # The command that was copied does the same, byte for byte.
    again = [*shlex.split(app.clipboard)[1:], "--weights", str(tiny_weights), "-o", "again"]
    subprocess.run([sys.executable, "-m", "tue_cli", *again], cwd=tmp_path, check=True)
    assert copies(tmp_path / "again") == copies(output)


@pytest.mark.slow
@pytest.mark.usefixtures("shipped")
def test_a_folder_is_protected_by_mouse_alone(photos: Path, tmp_path: Path) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await on_screen(pilot, FolderScreen)
        await until(pilot, lambda: "photos" in seen(app))
        await pilot.click("#tree", offset=(8, 1))
        await until(pilot, lambda: "6 pictures" in seen(app))
        await pilot.click("#single")
        await until(pilot, lambda: "1 class" in seen(app))
        await pilot.click("#next")
        await on_screen(pilot, LookScreen)
        await pilot.click("#next")
        strength = await on_screen(pilot, StrengthScreen)
        await until(pilot, lambda: "about" in seen(app))
        assert "--labels single" in strength.write_command()
        assert strength.query(Field).first().question.name == "strength"
        await pilot.click("#next")
        await on_screen(pilot, ResultScreen)
        await pilot.click("#again")
        await on_screen(pilot, FolderScreen)
        await until(pilot, lambda: "Already protected: 6 pictures" in seen(app))

    drive(TueApp(tmp_path), LARGE, steps)
    assert len(copies(tmp_path / "photos-protected")) == 6


@pytest.mark.slow
def test_a_run_that_is_stopped_is_offered_again_and_ends_equal(
    many: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    whole = ProtectSpec((many,), tmp_path / "whole", weights=str(tiny_weights), settings=SLOWER)
    list(protect(whole))
    output = tmp_path / "photos-protected"

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        run = RunScreen(draft(many, tiny_weights, settings=SLOWER))
        await app.push_screen(run)
        await until(pilot, lambda: len(run.query_one("#log").lines) > 2)  # type: ignore[attr-defined]
        await pilot.press("c")
        await until(pilot, lambda: not run.is_working)
        await pilot.pause()
        await reads(pilot, "Stopped")
        left = read_unfinished(output)
        assert left is not None and 0 < len(left[1]) < 76
        await pilot.press("escape")
        await on_screen(pilot, FolderScreen)
        await until(pilot, lambda: "A run was stopped here" in seen(app))
        await pilot.press("r")
        await on_screen(pilot, ResultScreen)
        assert str(tiny_weights) not in seen(app)

    app = TueApp(many)
    # A journal knows weights by their name, so they are where names are looked for.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUE_WEIGHTS", str(tiny_weights.parent))
        drive(app, SMALL, steps)
    assert copies(output) == copies(tmp_path / "whole")
    assert read_unfinished(output) is None


@pytest.mark.slow
def test_a_paused_run_waits_and_goes_on(many: Path, tiny_weights: Path) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        run = RunScreen(draft(many, tiny_weights, settings=SLOWER))
        await app.push_screen(run)
        log: Any = run.query_one("#log")
        await until(pilot, lambda: len(log.lines) > 2)
        await pilot.press("p")
        await reads(pilot, "Paused")
        there = -1
        while there < len(log.lines):  # the batch under way is finished first
            there = len(log.lines)
            await pilot.pause(1.0)
        assert there < 76 and "Paused" in seen(app)
        await pilot.press("p")
        await on_screen(pilot, ResultScreen)

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_leaving_asks_first_and_keeps_what_is_done(many: Path, tiny_weights: Path) -> None:
    app = TueApp()

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        run = RunScreen(draft(many, tiny_weights, settings=SLOWER, existing="error"))
        await app.push_screen(run)
        await until(pilot, lambda: len(run.query_one("#log").lines) > 2)  # type: ignore[attr-defined]
        await pilot.press("p", "ctrl+q")
        await on_screen(pilot, Choice)
        await reads(pilot, "Protecting is still running")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is run)
        await pilot.press("ctrl+q")
        await on_screen(pilot, Choice)
        await pilot.press("enter")
        await until(pilot, lambda: app.return_value is not None)

    drive(app, SMALL, steps)
    assert app.again is not None and app.again.startswith(f"tue protect {many}")
    assert "--existing" not in app.again
    assert app.return_value == ExitCode.INTERRUPTED
    left = read_unfinished(Path(f"{many}-protected"))
    assert left is not None and left[1]


def test_the_command_that_is_left_behind_goes_on_where_it_was_stopped(
    photos: Path, tiny_weights: Path
) -> None:
    training = TrainRun(TrainSpec(photos, photos.with_name("mine.safetensors")))
    assert training.write_resume_command() == f"{training.write_command()} --resume"
    verifying = VerifyRun(VerifySpec(photos, photos))
    assert verifying.write_resume_command() == f"{verifying.write_command()} --resume"
    for existing in ("error", "overwrite"):
        protecting = RunScreen(draft(photos, tiny_weights, existing=existing))
        again = protecting.write_resume_command()
        assert f"{again} --existing {existing}" == protecting.write_command()


@pytest.mark.slow
def test_pictures_that_fail_are_named_with_their_reasons(photos: Path, tiny_weights: Path) -> None:
    (photos / "space" / "page.jpg").write_text("<html>")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(RunScreen(draft(photos, tiny_weights)))
        await on_screen(pilot, ResultScreen)
        await reads(pilot, "page.jpg", "The content", "not protected")

    drive(TueApp(), SMALL, steps)


@pytest.mark.slow
def test_a_run_with_nothing_to_do_says_so_and_what_comes_next(
    photos: Path, tiny_weights: Path
) -> None:
    made = draft(photos, tiny_weights)
    list(made.protect())

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(RunScreen(made))
        await on_screen(pilot, ResultScreen)
        await reads(pilot, "nothing to do", "Next: press v", "at least 10 pictures")

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_an_error_is_a_panel_with_its_remedy_and_a_retry(
    photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    late = tmp_path / "late.safetensors"

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(RunScreen(draft(photos, late)))
        await on_screen(pilot, Choice)
        await reads(pilot, "There are no weights", "Name a file")
        assert "Traceback" not in seen(app)
        shutil.copy(tiny_weights, late)
        await pilot.click("#yes")
        await on_screen(pilot, ResultScreen)

    drive(TueApp(), SMALL, steps)


@pytest.mark.parametrize(
    ("fault", "said", "remedy"),
    [
        ("output is a file", "not a folder", "Move it away"),
        pytest.param(
            "folder is gone", "does not exist", "Check its spelling", marks=pytest.mark.slow
        ),
        pytest.param(
            "weights are damaged",
            "cannot be used as weights",
            "train it again",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_work_is_told_with_what_to_do(
    fault: str, said: str, remedy: str, photos: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "w.safetensors", tmp_path / "out"
    weights.write_bytes(b"junk" if fault == "weights are damaged" else tiny_weights.read_bytes())
    if fault == "output is a file":
        output.write_text("x")
    elif fault == "folder is gone":
        shutil.rmtree(photos)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(RunScreen(draft(photos, weights, output=output)))
        await on_screen(pilot, Choice)
        await reads(pilot, said, remedy, "Try again")

    drive(TueApp(tmp_path), SMALL, steps)


@pytest.mark.slow
def test_measuring_that_failed_is_tried_again(photos: Path, tiny_weights: Path) -> None:
    moved = photos.rename(photos.with_name("elsewhere"))

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(StrengthScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: "does not exist" in seen(app) and "Try again" in seen(app))
        moved.rename(photos)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "PSNR" in seen(app) and "Try again" not in seen(app))

    drive(TueApp(), SMALL, steps)


@pytest.mark.slow
def test_what_nobody_foresaw_is_told_without_a_traceback() -> None:
    class Broken(WatchScreen):
        def body(self) -> Any:
            yield from RunScreen.body(self)  # type: ignore[arg-type]

        def make_job(self) -> Job[Record]:
            yield Started("Breaking", 1, "pictures")
            raise ZeroDivisionError("[red]of all things[/red]")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(Broken())
        await on_screen(pilot, Choice)
        await reads(pilot, "ZeroDivisionError")
        text = seen(app)
        assert "ZeroDivisionError" in text and "[red]of all things" in text
        assert "ui.log" in text.replace("\n", "") and "Traceback" not in text

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_a_folder_without_pictures_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await until(pilot, lambda: "No picture was found" in seen(app))
        assert app.screen.query_one("#next", Button).disabled
        await pilot.press("ctrl+n")
        assert isinstance(app.screen, FolderScreen)

    drive(TueApp(tmp_path), SMALL, steps)


@pytest.mark.slow
def test_a_setting_that_cannot_work_is_refused_where_it_is_typed(
    photos: Path, tiny_weights: Path
) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(StrengthScreen(draft(photos, tiny_weights)))
        await on_screen(pilot, StrengthScreen)
        await write(pilot, "settings.noise.radius", "0.5")
        await until(pilot, lambda: "less than one level" in seen(app))
        await write(pilot, "settings.noise.steps", "many")
        await reads(pilot, "not a whole number")
        assert app.screen.query_one("#next", Button).disabled

    drive(TueApp(), LARGE, steps)


def toy(folder: Path, each: int) -> Path:
    """Write 32x32 pictures of two classes, each a colour of its own under noise."""
    random = np.random.default_rng(0)
    for name, colour in (("cold", (70, 90, 150)), ("warm", (190, 140, 80))):
        (folder / name).mkdir(parents=True)
        for place in range(each):
            pixels = np.array(colour) + random.normal(0, 25, (32, 32, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{place}.png")
    return folder


@pytest.mark.slow
def test_a_report_that_has_no_folder_is_refused_while_it_is_typed(
    photos: Path, tiny_weights: Path
) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(StrengthScreen(draft(photos, tiny_weights)))
        await on_screen(pilot, StrengthScreen)
        await write(pilot, "report", "no/p.html")
        await reads(pilot, "is missing or not")
        assert app.screen.query_one("#next", Button).disabled
        await write(pilot, "report", "p.html")
        await until(pilot, lambda: "PSNR" in seen(app))

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_verifying_fills_in_attackers_and_ends_in_a_headline_and_a_report(
    tmp_path: Path, tiny_weights: Path
) -> None:
    folder = toy(tmp_path / "in", 104)
    output = tmp_path / "out"
    list(protect(ProtectSpec((folder,), output, weights=str(tiny_weights), settings=QUICK)))
    settings = VerifySettings(
        victims=(VictimSettings(width=4, batch=16, rate=0.05),), attacks=("std",), seen=340
    )
    report = tmp_path / "report.html"

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        run = VerifyRun(VerifySpec(output, folder, settings, report=report))
        await app.push_screen(run)
        await until(pilot, lambda: "standard training" in seen(app))
        await until(pilot, lambda: not run.is_working)
        await pilot.pause()
        app.clear_notifications()
        await reads(pilot, "standard training", "resnet18:0.0625", "3 Result")
        assert "Protection" in seen(app) or "Inconclusive" in seen(app)

    drive(TueApp(), LARGE, steps)
    assert "<html" in report.read_text()


@pytest.mark.slow
def test_verifying_from_the_result_tells_that_six_pictures_are_too_few(
    photos: Path, tiny_weights: Path
) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(RunScreen(draft(photos, tiny_weights)))
        await on_screen(pilot, ResultScreen)
        await pilot.press("v")
        run = await on_screen(pilot, VerifyRun)
        await until(pilot, lambda: not run.is_working)
        await pilot.pause()
        await reads(pilot, "Inconclusive", "10 different")
        await pilot.press("escape")
        await on_screen(pilot, ResultScreen)

    drive(TueApp(), SMALL, steps)


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_to_its_weights(
    tmp_path: Path, tiny_settings: TrainSettings
) -> None:
    output = tmp_path / "mine.safetensors"
    settings = replace(tiny_settings, score_steps=30, steps=6)
    spec = TrainSpec(toy(tmp_path / "data", 12), output, settings, device="cpu")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        run = TrainRun(spec)
        await app.push_screen(run)
        await until(pilot, lambda: run.query_one("#score").lines)  # type: ignore[attr-defined]
        await pilot.press("c")
        await until(pilot, lambda: not run.is_working)
        await pilot.pause()
        if not output.exists():
            assert output.with_suffix(".checkpoint").exists()
            await pilot.press("r")
        await until(pilot, lambda: "The weights are in" in seen(app))

    drive(TueApp(), LARGE, steps)
    assert output.exists() and not output.with_suffix(".checkpoint").exists()


@pytest.mark.slow
def test_the_result_counts_the_notes_on_copies(photos: Path, tiny_weights: Path) -> None:
    counts = {"left out the embedded preview": 6, "palette converted to RGB": 1}
    summary = ProtectSummary(6, 0, 0, {}, Path("x"), Path("x/m"), 1.0, 0.5, notes=counts)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await on_screen(pilot, FolderScreen)
        await app.push_screen(ResultScreen(draft(photos, tiny_weights), summary, ()))
        await reads(pilot, "Left out the embedded preview: 6 pictures.")
        await reads(pilot, "Palette converted to RGB: 1 picture.")

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_every_screen_shows_its_ways_on_at_80_by_24(photos: Path, tiny_weights: Path) -> None:
    made = draft(photos, tiny_weights)
    summary = ProtectSummary(6, 0, 0, {}, Path("x"), Path("x/m"), 1.0, 0.5)
    screens: list[Step] = [
        LookScreen(made),
        StrengthScreen(made),
        ResultScreen(made, summary, ()),
        VerifyScreen(Path(), Path()),
        TrainScreen(None),
    ]

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await on_screen(pilot, FolderScreen)
        for number in range(len(screens) + 1):
            if number:
                await app.push_screen(screens[number - 1])
            await pilot.pause()
            screen = app.screen
            for button in screen.query(Button):
                if button.display:
                    assert screen.region.contains_region(button.region), (screen, button.id)
                    assert button.region.area
            if isinstance(screen, FolderScreen | ResultScreen):
                await pilot.press("f1")
                await on_screen(pilot, Help)
                await until(pilot, lambda: "Back" in seen(app) or "Quit" in seen(app))
                await pilot.press("escape")

    drive(TueApp(), SMALL, steps)


@pytest.mark.parametrize("size", mark_slow([SMALL, LARGE, (200, 60)], but=(LARGE,)))
def test_the_first_screen_can_be_read_in_either_shade(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await on_screen(pilot, FolderScreen)
        for _ in range(2):
            await reads(
                pilot, "Which pictures?", "What is a class?", "Clusters", "Help", "1 Folder"
            )
            await pilot.press("f2")
        assert app.theme != LIGHT.name

    drive(TueApp(), size, steps)


async def is_as_drawn(pilot: Pilot[int], name: str) -> None:
    """Hold the screen against its picture; TUE_DRAW=1 draws the pictures anew, to be looked at."""
    for field in pilot.app.screen.query(Input):
        field.cursor_blink = False
    await until(pilot, lambda: "Help" in seen(pilot.app))  # the keys at the bottom come last
    await pilot.pause()
    path = SNAPSHOTS / f"{name}.svg"
    if os.environ.get("TUE_DRAW"):
        path.write_text(drawn(pilot.app), encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    deadline = time.monotonic() + 60
    while drawn(pilot.app) != expected and time.monotonic() < deadline:
        await pilot.pause(0.1)  # a focus or a size may still be on its way
    assert drawn(pilot.app) == expected, f"{name} looks otherwise; see {is_as_drawn}"


def drawn(app: Any) -> str:
    """Return the screen as SVG, without what differs from run to run or fills half of the file."""
    text = re.sub(r"<clipPath.*?</clipPath>\s*", "", app.export_screenshot(), flags=re.DOTALL)
    text = re.sub(r' (clip-path|shape-rendering)="[^"]*"', "", text)
    return re.sub(r"terminal-\d+", "t", text)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "theme"), [(SMALL, DARK), (LARGE, LIGHT)])
def test_the_folder_looks_as_drawn(
    size: tuple[int, int], theme: Theme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ASSETS, tmp_path / "photos")
    (tmp_path / "photos" / "page.jpg").write_text("<html>")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        app.theme = theme.name
        await until(pilot, lambda: "photos-protected" in seen(app) and "space  3" in seen(app))
        await reads(pilot, "no picture inside", "3 classes")
        await is_as_drawn(pilot, f"folder-{size[0]}x{size[1]}")
        await pilot.press("question_mark")
        await on_screen(pilot, Help)
        await reads(pilot, "Folder above", "ctrl+n")
        assert "Copy selected" not in seen(app) and "Copy command" not in seen(app)
        await pilot.press("escape", "ctrl+p", *"train")
        await until(pilot, lambda: "Train weights" in seen(app))
        await pilot.press("enter")
        await on_screen(pilot, TrainScreen)

    drive(TueApp(Path("photos")), size, steps)


@pytest.mark.slow
def test_choosing_a_verification_and_a_result_look_as_drawn() -> None:
    spec = ProtectSpec((Path("photos"),))
    copies = Path("photos-protected")
    summary = ProtectSummary(
        protected=1204,
        already_done=96,
        failed=1,
        reasons={"not-a-picture": 1},
        output=copies,
        manifest=copies / MANIFEST,
        seconds=754,
        engine_seconds=500,
    )
    failed = (Failed(Path("photos/page.jpg"), "not-a-picture", "The content is no picture."),)

    async def verification(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(VerifyScreen(copies, Path("photos")))
        await until(pilot, lambda: "tue verify photos-protected" in seen(app))
        await is_as_drawn(pilot, "verify-80x24")

    async def result(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(ResultScreen(Draft(spec, copies), summary, failed))
        await until(pilot, lambda: "tue protect photos" in seen(app))
        await is_as_drawn(pilot, "result-80x24")

    drive(TueApp(), SMALL, verification)
    drive(TueApp(), SMALL, result)


@pytest.mark.slow
def test_sixteen_colours_are_enough(
    photos: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLORTERM")
    monkeypatch.setenv("TERM", "linux")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        assert app.current_theme.ansi
        await app.push_screen(LookScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: "difference × 10" in seen(app) and "▀" in seen(app))
        await pilot.press("f2")
        assert app.current_theme.ansi and not app.current_theme.dark

    drive(TueApp(), SMALL, steps)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens files by itself")
def test_the_full_size_files_are_opened_in_the_systems_viewer(
    photos: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "opened"
    for name in ("xdg-open", "open"):
        viewer = tmp_path / "bin" / name
        viewer.parent.mkdir(exist_ok=True)
        viewer.write_text(f'#!/bin/sh\n[ -s "$1" ] && echo "$1" >>{shlex.quote(str(opened))}\n')
        viewer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(LookScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: len(app.screen.query(Triptych)) == 3)
        await pilot.press("o")
        await until(pilot, lambda: opened.exists() and len(opened.read_text().splitlines()) == 3)

    drive(TueApp(), SMALL, steps)
    original = {path.name for path in photos.rglob("*.*")}
    names = sorted(Path(line).name for line in opened.read_text().splitlines())
    assert sum(name in original for name in names) == 2 and "difference" in " ".join(names)


@pytest.mark.slow
def test_verifying_and_training_are_reached_from_the_first_screen(photos: Path) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await until(pilot, lambda: "6 pictures" in seen(app))
        for key, kind in (("v", VerifyScreen), ("t", TrainScreen)):
            await pilot.press(key)
            await on_screen(pilot, kind)
            assert "device" in {field.question.name for field in app.screen.query(Field)}
            await pilot.press("escape")
            await on_screen(pilot, FolderScreen)

    drive(TueApp(photos), SMALL, steps)


@pytest.mark.slow
def test_what_is_no_file_may_be_typed_where_one_goes(photos: Path) -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(TrainScreen(photos))
        await write(pilot, "output", ".")
        await reads(pilot, "tue train", "-o .")
        form = app.screen.query_one(Form)
        form.get_field("data").fill("~nobody/in")
        await reads(pilot, "~nobody/in")
        form.get_field("output").fill("a" * 300)
        await reads(pilot, "-o", "aaaaaaaa")
        assert not app.screen.query_one("#next", Button).disabled

    drive(TueApp(), SMALL, steps)


@pytest.mark.slow
def test_without_colours_pictures_and_text_are_there(
    photos: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(LookScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: "difference × 10" in seen(app) and "▀" in seen(app))
        colours = set(re.findall(r"fill: #([0-9a-f]{6})", app.export_screenshot()))
        colours.discard("c5c8c6")  # of the export itself
        assert {colour for colour in colours if len({*re.findall("..", colour)}) > 1} == set()

    drive(TueApp(), SMALL, steps)


def ask(answer: bytes, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Ask a terminal of ours how it draws, which answers when it has been asked."""
    import pty

    for name in ("TMUX", "COLORTERM", "TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    child, terminal = pty.fork()
    if child == 0:
        os._exit({None: 10, "kitty": 11, "sixel": 12}[detect_graphics()])
    asked = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(terminal, 1000):
            asked += part
            if asked.endswith(b"\x1b[c"):
                os.write(terminal, answer)
                asked = b""
    os.close(terminal)
    return {10: None, 11: "kitty", 12: "sixel"}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_terminal_is_asked_how_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    xterm, true = b"\x1bP>|XTerm(379)\x1b\\", {"COLORTERM": "truecolor"}
    kitty = b"\x1bP>|kitty(%s)\x1b\\\x1b[?62;c"
    assert ask(xterm + b"\x1b[?63;1;2;4;6c", {}, monkeypatch) == "sixel"
    assert ask(xterm + b"\x1b[?64;1;2;6c", true, monkeypatch) is None
    assert ask(kitty % b"0.35.2", true, monkeypatch) == "kitty"
    assert ask(kitty % b"0.26.5", true, monkeypatch) is None  # knows no pictures as text
    assert ask(kitty % b"0.35.2", {}, monkeypatch) is None  # colours are rounded
    assert ask(xterm + b"\x1b[?63;4c", {"TMUX": "x"}, monkeypatch) is None
    assert ask(xterm + b"\x1b[?63;4c", {"NO_COLOR": "1"}, monkeypatch) is None
    assert ask(b"", {}, monkeypatch) is None  # it never answers


@pytest.mark.slow
def test_a_graphics_protocol_shows_the_pictures_own_pixels(
    photos: Path,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def kitty(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(LookScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: len(app.screen.query(View)) == 9)
        await until(pilot, lambda: "\U0010eeee" in seen(app))
        assert "▀" not in seen(app)

    async def sixel(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(LookScreen(draft(photos, tiny_weights)))
        await until(pilot, lambda: len(app.screen.query(View)) == 9)
        await pilot.pause()
        for view in app.screen.query(View):
            (image,) = view.children
            assert view.region.contains_region(image.region)
            (drawn,) = image.children
            lines = drawn.render_lines(drawn.size.region)
            assert "\x1bP0;0;0q" in "".join(segment.text for line in lines for segment in line)

    monkeypatch.setattr(View, "draw", staticmethod(load_sharp("kitty")))
    drive(TueApp(photos), LARGE, kitty)
    sent = re.findall(r"\x1b_G.*?m=(\d).*?;([^\x1b]*)\x1b", capfd.readouterr().out)
    files = "".join(part + "\n" * (more == "0") for more, part in sent).split()
    pictures = [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]
    assert len(pictures) >= 6 and all(picture.width > 150 for picture in pictures)
    monkeypatch.setattr(View, "draw", staticmethod(load_sharp("sixel")))
    drive(TueApp(photos), LARGE, sixel)


async def choose(pilot: Pilot[int], name: str, choice: str) -> None:
    """Choose in a field of the form on the screen."""
    pilot.app.screen.query_one(Form).get_field(name).query_one(Select).value = choice
    await pilot.pause()


@pytest.mark.slow
def test_another_method_shows_its_own_fields_and_keeps_what_was_changed(
    photos: Path, tiny_weights: Path
) -> None:
    made = draft(photos, tiny_weights)

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(StrengthScreen(made))
        await on_screen(pilot, StrengthScreen)
        form = app.screen.query_one(Form)

        def visible_fields() -> set[str]:
            names = {field.question.name for field in form.query(Field) if field.display}
            return {name.rpartition(".")[2] for name in names if "noise" in name}

        def noise() -> Noise:
            return made.spec.settings.noise

        tue = {"radius", "steps", "samples", "score_ratio", "score_mode", "gray_ratio"}
        assert visible_fields() == tue
        await write(pilot, "settings.noise.radius", "6")
        await choose(pilot, "settings.method", "rem")
        assert visible_fields() == {"radius", "steps", "samples", "inner_radius", "inner_steps"}
        assert form.get_field("settings.noise.samples").text == "5"
        assert noise() == RemNoise(radius=6 / 255, steps=1)
        await choose(pilot, "settings.method", "tue")
        assert visible_fields() == tue
        assert noise() == TueNoise(radius=6 / 255, steps=1)

    drive(TueApp(), LARGE, steps)


@pytest.mark.slow
def test_another_budget_brings_its_attackers_and_keeps_what_was_changed() -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        await app.push_screen(VerifyScreen(Path("out"), Path("in")))
        screen = await on_screen(pilot, VerifyScreen)
        await write(pilot, "settings.seed", "7")
        await choose(pilot, "budget", "standard")
        form = screen.query_one(Form)
        assert form.get_field("settings.attacks").text == ",".join(BUDGETS["standard"].attacks)
        assert form.get_field("settings.seeds").text == "3"
        await until(pilot, lambda: "--budget" in screen.write_command())
        command = "tue verify out --original in --budget standard --seed 7 --resume"
        assert screen.write_command() == command

    drive(TueApp(), LARGE, steps)


def test_a_form_takes_help_unit_and_choices_from_the_declarations() -> None:
    asked = {question.name: question for question in list_questions(ProtectSpec)}
    radius = asked["settings.noise.radius"]
    assert (radius.write(8 / 255), radius.unit) == ("8", "levels of 255")
    assert radius.declared.help.startswith("Largest change of a pixel")
    assert radius.read("4") == 4 / 255
    assert asked["settings.noise.score_mode"].declared.choices == ("norm", "ascent")
    assert asked["quality"].read("") is None
    with pytest.raises(BadSetting, match="whole number"):
        asked["quality"].read("best")


def test_text_that_changes_twice_is_as_high_as_the_second() -> None:
    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        said = FittedText("")
        said.styles.height = "auto"
        await app.screen.mount(said)
        await pilot.pause()
        said.update("one")
        app.screen._clear_arrangement_cache()
        app.screen._refresh_layout()  # as when the terminal's size changes in between
        said.update("one\ntwo")
        await until(pilot, lambda: said.size.height == 2)

    drive(TueApp(), SMALL, steps)


def test_a_job_that_is_stopped_is_closed_in_its_own_thread() -> None:
    begun: list[str] = []
    closed: list[str] = []

    def job() -> Job[Record]:
        begun.append("begun")
        try:
            for number in range(10_000):
                yield Advanced(number, 10_000, 1.0)
                time.sleep(0.001)
        finally:
            closed.append("closed")

    async def steps(app: TueApp, pilot: Pilot[int]) -> None:
        runner = Runner(app.screen, job)
        runner.start()
        await until(pilot, lambda: begun)
        runner.stop()
        await until(pilot, lambda: runner.is_over)

    drive(TueApp(), SMALL, steps)
    assert closed == ["closed"]


def test_ui_without_a_terminal_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tue_cli", "ui"], stdin=subprocess.DEVNULL, capture_output=True
    )
    assert ran.returncode == 2 and b"needs a terminal" in ran.stderr
    alone = CliRunner().invoke(app, [])  # whose streams are no terminal either
    assert alone.exit_code == 2 and "Usage: tue" in alone.stdout


CRASHES = """\
from tue_cli.cli import main
from tue_cli.tui.folder import FolderScreen
FolderScreen.action_up = lambda self: 1 / 0
main([])"""
"""The app, with a fault in what the key u does."""


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here")
@pytest.mark.slow
@pytest.mark.parametrize("end", ["key", "crash", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_real_terminal_is_given_back(
    end: str | signal.Signals, photos: Path, tmp_path: Path
) -> None:
    def tmux(*arguments: str) -> str:
        command = ["tmux", "-L", f"tue-{os.getpid()}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def waits(claim: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + PATIENCE
        while not claim(text := tmux("capture-pane", "-p", "-t", "t")):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        return text

    pid, code, crashes = tmp_path / "pid", tmp_path / "code", tmp_path / "crashes.py"
    crashes.write_text(CRASHES)
    shell = f"cd {shlex.quote(str(tmp_path))}; echo $$ >pid; exec {sys.executable} {crashes}"
    command = f"sh -c {shlex.quote(shell)}; echo $? >{code}; stty -a; sleep 600"
    tmux("new-session", "-d", "-s", "t", "-x", "80", "-y", "24", command)
    try:
        waits(lambda text: "Which pictures?" in text and "photos" in text)
        assert tmux("display", "-p", "-t", "t", "#{alternate_on}").strip() == "1"
        if end == "key":
            tmux("send-keys", "-t", "t", "Down", "Enter")
            waits(lambda text: "6 pictures" in text)
            tmux("send-keys", "-t", "t", "C-q")
        elif end == "crash":
            tmux("send-keys", "-t", "t", "u")
        else:
            os.kill(int(pid.read_text()), int(end))
        text = waits(lambda text: "icanon" in text)
        assert tmux("display", "-p", "-t", "t", "#{alternate_on}").strip() == "0"
        assert " -icanon" not in text and " -echo " not in text
        if end == "crash":
            assert "ZeroDivisionError" in text and "report it with" in text
            assert "Traceback" not in text
        expected = {"key": 0, "crash": 1}[end] if isinstance(end, str) else 128 + end
        assert int(code.read_text()) == expected
    finally:
        tmux("kill-server")
