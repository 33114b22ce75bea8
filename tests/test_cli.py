"""The command line as a shell sees it: streams, exit codes, help."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import mark_slow
from PIL import Image
from test_options import parse

from tue_cli.cli import main
from tue_cli.config import METHODS, TRAININGS, TrainSettings
from tue_cli.noise import SteppedNoise, TueNoise
from tue_cli.weights import load


@dataclass
class Ran:
    """What a command left: its exit code and its two streams."""

    returncode: int
    stdout: bytes
    stderr: bytes


def tue(
    *arguments: str, stdin: bytes = b"", cwd: Path | None = None, encoding: str = "utf-8"
) -> Ran:
    """Run a command in this process, which has loaded torch already."""
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, chdir(cwd or Path.cwd()):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
        patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, "backslashreplace"))
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    for name, level in (("a", 80), ("b", 160)):
        (place / name).mkdir(parents=True)
        Image.new("RGB", (24, 24), (level, level, level)).save(place / name / "x.png")
    return place


def test_results_go_to_stdout_and_progress_to_stderr(folder: Path, tmp_path: Path) -> None:
    quick = ("--steps", "1", "-o", str(tmp_path / "out"))  # the packaged weights need no torch
    command = [sys.executable, "-m", "tue_cli", "protect", str(folder), *quick]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert b"Protected 2 pictures in" in ran.stdout
    assert b"Protecting: 2 pictures" in ran.stderr


def test_json_is_one_object_a_line(folder: Path, tmp_path: Path, tiny_weights: Path) -> None:
    quick = ("--steps", "1", "--weights", str(tiny_weights), "-o", str(tmp_path / "out"))
    ran = tue("protect", str(folder), "--json", "--smooth", "1", *quick)
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [e["event"] for e in events] == ["note", "started", "saved", "saved", "done"]
    assert events[2]["largest"] == 12
    assert Path(events[2]["path"]).is_file() and Path(events[2]["source"]).is_file()
    assert events[-1]["protected"] == 2 and events[-1]["engine_seconds"] > 0


@pytest.mark.slow
def test_json_goes_to_a_pipe_though_progress_is_drawn_in_a_terminal(
    folder: Path, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tue_cli", "protect", str(folder), "--steps", "1", "--json"]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # the terminal is gone when the command is
            while part := os.read(ours, 1 << 16):
                drawn += part
        os.close(ours)
        assert process.stdout is not None
        events = [json.loads(line)["event"] for line in process.stdout]
    assert events[-1] == "done" and events.count("saved") == 2
    assert b"Protecting" in drawn and b'"event"' not in drawn


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_printed_as_they_are_in_any_encoding(
    encoding: str, folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (folder / "a" / "[red]:smile:.png").write_text("<html>")
    out = str(tmp_path / "é")
    command = ("protect", str(folder), "-o", out, "--steps", "1", "--weights", str(tiny_weights))
    ran = tue(*command, encoding=encoding)
    assert ran.returncode == 1
    assert b"[red]:smile:.png" in ran.stderr
    shown = "é".encode(encoding, "backslashreplace")
    assert b"Copies: " + str(tmp_path).encode() + b"/" + shown in ran.stdout


def test_a_list_on_stdin_names_the_pictures(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    listed = f"{folder / 'a' / 'x.png'}\0".encode()
    out = str(tmp_path / "out")
    ran = tue(
        "protect", "-", "-o", out, "--steps", "1", "--weights", str(tiny_weights), stdin=listed
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "x.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "Usage"),
        (("nosuch",), 2, "nosuch"),
        (("protect",), 2, "PATHS"),
        (("protect", "/no/such/place"), 2, "does not exist"),
        (("protect", ""), 2, "empty"),
        (("protect", "IN", "--radius", "-1"), 2, "radius"),
        (("protect", "IN", "-o", ""), 2, "-o is empty"),
        (("protect", "IN", "--weights", "nosuch"), 4, "no weights"),
        (("protect", "IN", "--device", "cuda:99", "--weights", "TINY"), 4, "--device cpu"),
        (("protect", "IN", "--backend", "caffe"), 2, "onnx"),
        (("protect", "IN", "--backend", "onnx", "--weights", "TINY"), 4, "tue export"),
        (("export", "TINY", "-o", "x.bin"), 2, ".onnx"),
        (("export", "nosuch"), 4, "no weights"),
        (("protect", "EMPTY"), 3, "No picture"),
        (("train", "IN", "-o", "x.pt"), 2, "safetensors"),
        (("train", "IN", "-o", "x.safetensors", "--max-time", "soon"), 2, "30m"),
        (("train", "IN", "-o", "x.safetensors", "--max-time", "nanh"), 2, "30m"),
    ],
)
def test_errors_have_codes_and_remedies(
    arguments: tuple[str, ...],
    code: int,
    says: str,
    folder: Path,
    tmp_path: Path,
    tiny_weights: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"IN": folder, "EMPTY": tmp_path / "empty", "TINY": tiny_weights}
    ran = tue(*(str(places.get(a, a)) for a in arguments), cwd=tmp_path)
    assert ran.returncode == code
    assert says in (ran.stdout + ran.stderr).decode()
    assert b"Traceback" not in ran.stderr


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights of any recipe but tue, made once by the command from a folder of two classes."""
    place = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    for name, level in (("a", 90), ("b", 160)):
        (place / "in" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.normal(level, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "in" / name / f"{number}.png")
    few = {"width": 4, "size": 16, "steps": 3, "score-steps": 3, "batch": 4, "score-width": 4}
    few |= {"adversary-steps": 1}
    own = {"em": {"noise-steps": 2, "samples": 1}, "ntga": {"noise-steps": 2}}
    own["rem"] = own["em"] | {"inner-steps": 1}

    @cache
    def make(recipe: str) -> Path:
        weights = place / f"{recipe}.safetensors"
        option = "--recipe" if recipe == "clean" else "--method"
        options = few | own.get(recipe, {})
        quick = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        ran = tue("train", str(place / "in"), "-o", str(weights), option, recipe, *quick)
        assert ran.returncode == 0, ran.stderr
        return weights

    return make


BOUNDS = {
    "tue": b"radius: 12/255\n",
    "em": b"radius: 8/255\n",
    "rem": b"radius: 8/255\n",
    "tap": b"radius: 8/255\n",
    "ntga": b"radius: 8/255\n",
    "lsp": b"radius: 6/255 as root mean square (L2); single pixels may change more\n",
    "cuda": b"radius: no limit: a filter may change a pixel by any amount\n",
    "uc": b"radius: 16/255\n",
}


@pytest.mark.parametrize("name", mark_slow(METHODS, but=("lsp",)))
def test_every_method_protects_and_says_its_bound_first(
    name: str,
    made: Callable[[str], Path],
    tiny_weights: Path,
    small_photos: Path,
    tmp_path: Path,
) -> None:
    recipes = METHODS[name].recipes
    options = ["--method", name, "-o", str(tmp_path / "out"), "--format", "png"]
    if recipes:
        weights = tiny_weights if recipes[0] == "tue" else made(recipes[0])
        options += ["--weights", str(weights)]
    if isinstance(METHODS[name].noise, SteppedNoise):
        options += ["--steps", "2"]
    photos = str(small_photos)
    planned = tue("protect", photos, *options, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert BOUNDS[name] in planned.stderr + b"\n"
    assert not (tmp_path / "out").exists()
    ran = tue("protect", photos, *options)
    assert ran.returncode == 0, ran.stderr
    assert b"Protected 6 pictures in" in ran.stdout
    assert BOUNDS[name] in ran.stderr + b"\n"
    manifest = json.loads((tmp_path / "out" / "tue-manifest.json").read_text())
    largest = METHODS[name].find_reach(METHODS[name].noise) * 255
    assert all(1 <= record["largest"] <= largest for record in manifest["pictures"])
    if METHODS[name].bound != "linf":
        assert max(record["largest"] for record in manifest["pictures"]) > 8
    assert b"Nothing to do: all 6 copies are up to date." in tue("protect", photos, *options).stdout


def test_uc_serves_a_folder_without_classes(
    made: Callable[[str], Path], tmp_path: Path, folder: Path
) -> None:
    out = str(tmp_path / "out")
    ran = tue(
        "protect", str(folder), "--labels", "cluster", "--method", "uc", "-o", out,
        "--weights", str(made("uc")),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((tmp_path / "out" / "tue-manifest.json").read_text())
    assert {record["label"] for record in manifest["pictures"]} == {"cluster-00", "cluster-01"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("protect", "IN", "--method", "tap", "--weights", "TINY"), 4, "--recipe clean"),
        (("protect", "IN", "--method", "rem", "--weights", "TINY"), 4, "--method rem"),
        (("protect", "IN", "--method", "tea"), 2, "cuda"),
        (("protect", "IN", "--method", "lsp", "--labels", "cluster"), 2, "surrogate"),
        (("protect", "IN", "--method", "rem", "--inner-steps", "-1"), 2, "--inner-steps -1"),
        (("protect", "IN", "--method", "lsp", "--backend", "onnx"), 2, "--backend torch"),
        (("train", "IN", "-o", "w.safetensors", "--method", "lsp"), 2, "needs no weights"),
        (("train", "IN", "-o", "w.safetensors", "--recipe", "cleen"), 2, "clean"),
        (
            ("train", "IN", "-o", "w.safetensors", "--method", "rem", "--recipe", "clean"),
            2,
            "one of the two",
        ),
        (
            ("train", "IN", "-o", "w.safetensors", "--method", "remm", "--recipe", "clean"),
            2,
            "one of the two",
        ),
        (("protect", "IN", "--method", "cuda", "--radius", "4"), 2, "Leave out --radius"),
        (("protect", "IN", "--method", "em", "--score", "0.5"), 2, "Leave out --score"),
        (("protect", "IN", "--method", "uc", "--steps", "5"), 2, "The method uc has no --steps."),
        (("protect", "IN", "--inner-steps", "2"), 2, "only for rem."),
        (
            ("train", "IN", "-o", "w.safetensors", "--method", "tap", "--noise-steps", "2"),
            2,
            "The recipe clean has no --noise-steps.",
        ),
        (("train", "IN", "-o", "w.safetensors", "--preset", "nosuch"), 2, "no preset 'nosuch'"),
        (("verify", "IN", "--original", "IN", "--budget", "soon"), 2, "30m"),
    ],
)
def test_what_does_not_fit_a_method_is_refused_with_a_remedy(
    arguments: tuple[str, ...],
    code: int,
    says: str,
    folder: Path,
    tmp_path: Path,
    tiny_weights: Path,
) -> None:
    places = {"IN": folder, "TINY": tiny_weights}
    ran = tue(*(str(places.get(a, a)) for a in arguments), cwd=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert says in ran.stderr.decode()
    assert b"Traceback" not in ran.stderr


def test_the_noise_s_options_reach_the_manifest_and_training_has_no_term_in_grey(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    given = {"gray": "0.75", "score": "0.125", "samples": "2", "steps": "3", "radius": "6"}
    given["smooth"] = "0.5"
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    out = tmp_path / "out"
    ran = tue("protect", str(folder), "-o", str(out), "--weights", str(tiny_weights), *options)
    assert ran.returncode == 0, ran.stderr
    settings = json.loads((out / "tue-manifest.json").read_text())["run"]["settings"]
    assert settings["smooth"] == 0.5
    noise = settings["noise"]
    found = {name: noise[f"{name}_ratio"] for name in ("gray", "score")}
    assert found == {"gray": 0.75, "score": 0.125}
    assert (noise["samples"], noise["steps"], noise["radius"]) == (2, 3, 6 / 255)
    assert TrainSettings().noise == TueNoise(gray_ratio=0.0)


def test_the_preset_packaged_is_how_the_packaged_weights_were_made() -> None:
    card = load("cifar10").card
    made = card.training["settings"]
    preset = asdict(TRAININGS["packaged"])
    same = preset.keys() - {"noise"}
    assert {name: preset[name] for name in same} == {name: made[name] for name in same}
    chosen = parse("tue train in -o w.safetensors --preset packaged --width 8").settings
    assert (chosen.width, chosen.steps, chosen.score_width) == (8, made["steps"], card.score_width)


def test_a_bad_picture_makes_the_exit_code_1(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (folder / "a" / "page.jpg").write_text("<html>")
    out = str(tmp_path / "out")
    ran = tue("protect", str(folder), "-o", out, "--steps", "1", "--weights", str(tiny_weights))
    assert ran.returncode == 1
    assert b"page.jpg" in ran.stderr and b"is not a picture" in ran.stderr


@pytest.mark.slow
def test_exported_weights_are_protected_with_and_resumed_by_the_same_engine_only(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(tiny_weights.read_bytes())
    ran = tue("export", str(weights))
    assert ran.returncode == 0, ran.stderr
    assert b"signs" in ran.stdout
    out = str(tmp_path / "out")
    command = ("protect", str(folder), "-o", out, "--steps", "1", "--weights", str(weights))
    ran = tue(*command, "--backend", "onnx")
    assert ran.returncode == 0, ran.stderr
    assert b"engine: ONNX Runtime, CPU, " in ran.stderr
    other = tue(*command, "--backend", "torch")
    assert other.returncode == 2 and b"engine onnx" in other.stderr
    assert tue(*command).returncode == 0  # auto goes on with what began
