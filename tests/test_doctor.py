"""`tue doctor`: it tries what is here, names what must be mended, and changes nothing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import HOME, SECRET
from typer.testing import CliRunner

from tue_cli import __version__
from tue_cli.cli import app
from tue_cli.doctor import EXTRAS
from tue_cli.errors import ExitCode


def examine() -> tuple[int, dict[str, Any], str]:
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    return ran.exit_code, json.loads(ran.stdout.splitlines()[-1]), ran.output


def test_what_works_was_tried_and_nothing_is_written(own_home: Path) -> None:
    (own_home / "weights").mkdir()
    (own_home / "weights" / "mine.safetensors").touch()
    before = sorted(HOME.rglob("*"))
    code, found, output = examine()
    assert (code, found["problems"]) == (0, [])
    assert sorted(HOME.rglob("*")) == before
    assert found["versions"]["tue"] == __version__ and found["versions"]["Pillow"] >= "13"
    works = {(one["backend"], one["device"]) for one in found["devices"] if one["works"]}
    assert {("torch", "cpu"), ("onnx", "cpu")} <= works
    assert all(one["result"] for one in found["devices"])
    assert found["weights"]["mine"] == str(own_home / "weights" / "mine.safetensors")
    assert found["data"] == str(own_home) and found["has_secret"]
    assert SECRET.split()[1] not in output


def test_each_problem_is_told_with_what_to_do(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_home / "secret").write_text("no secret")
    for name in ("onnxruntime", "onnxruntime_gpu"):
        (tmp_path / f"{name}-1.30.dist-info").mkdir()
        about = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.30\n"
        (tmp_path / f"{name}-1.30.dist-info" / "METADATA").write_text(about)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, found, _ = examine()
    assert code == ExitCode.ENVIRONMENT
    both, damaged = found["problems"]
    assert both.startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in both
    assert "contains no secret" in damaged and "tue secret new" in damaged


def test_a_data_folder_that_cannot_be_used_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "data"))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path / "file" / "data"))
    code, found, _ = examine()
    assert code == ExitCode.ENVIRONMENT
    (problem,) = found["problems"]
    assert f"{tmp_path / 'file'} is not a folder" in problem and "XDG_DATA_HOME" in problem


def test_the_extras_are_those_of_the_package() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"].keys()
    assert EXTRAS.keys() == extras - {"benchmarks", "test"}
