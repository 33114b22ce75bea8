"""The command line as a shell sees it: streams, exit codes, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def tue(
    *arguments: str, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tue_cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    for name, level in (("a", 80), ("b", 160)):
        (place / name).mkdir(parents=True)
        Image.new("RGB", (24, 24), (level, level, level)).save(place / name / "x.png")
    return place


def test_results_go_to_stdout_and_progress_to_stderr(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    quick = ("--steps", "1", "--weights", str(tiny_weights), "-o", str(tmp_path / "out"))
    ran = tue("protect", str(folder), *quick)
    assert ran.returncode == 0, ran.stderr
    assert b"protected: 2" in ran.stdout
    assert b"Protecting: 2 pictures" in ran.stderr


def test_json_is_one_object_a_line(folder: Path, tmp_path: Path, tiny_weights: Path) -> None:
    quick = ("--steps", "1", "--weights", str(tiny_weights), "-o", str(tmp_path / "out"))
    ran = tue("protect", str(folder), "--json", *quick)
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [e["event"] for e in events] == ["started", "saved", "saved", "done"]
    assert events[1]["largest"] == 8
    assert Path(events[1]["path"]).is_file() and Path(events[1]["source"]).is_file()
    assert events[-1]["protected"] == 2 and events[-1]["engine_seconds"] > 0


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_printed_as_they_are_in_any_encoding(
    encoding: str,
    folder: Path,
    tmp_path: Path,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (folder / "a" / "[red]:smile:.png").write_text("<html>")
    out = str(tmp_path / "é")
    ran = tue("protect", str(folder), "-o", out, "--steps", "1", "--weights", str(tiny_weights))
    assert ran.returncode == 1
    assert b"[red]:smile:.png" in ran.stderr
    shown = "é".encode(encoding, "backslashreplace")
    assert b"output: " + str(tmp_path).encode() + b"/" + shown in ran.stdout


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


def test_a_bad_picture_makes_the_exit_code_1(
    folder: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (folder / "a" / "page.jpg").write_text("<html>")
    out = str(tmp_path / "out")
    ran = tue("protect", str(folder), "-o", out, "--steps", "1", "--weights", str(tiny_weights))
    assert ran.returncode == 1
    assert b"page.jpg" in ran.stderr and b"not-a-picture" in ran.stderr


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
    assert other.returncode == 2 and b"engine was 'onnx" in other.stderr
    assert tue(*command).returncode == 0  # auto goes on with what began
