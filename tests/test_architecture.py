"""The rules of the house that a run can break: what is imported, what is shipped."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tue_cli
from tue_cli.errors import ExitCode
from tue_cli.weights import index, load

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "torchvision", "onnxruntime", "textual", "matplotlib")


@pytest.mark.parametrize("arguments", [["--help"], ["protect", "--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom tue_cli.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stderr.decode().strip().endswith("[]")


def test_shipped_weights_are_what_the_index_says() -> None:
    listed = index()
    assert listed["default"] in listed["weights"]
    files = {entry["file"] for entry in listed["weights"].values()}
    assert files == {path.name for path in (ROOT / "weights").glob("*.safetensors")}
    for name, entry in listed["weights"].items():
        path = ROOT / "weights" / entry["file"]
        assert path.stat().st_size < 50_000_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        card = load(name).card
        assert card.training["command"].startswith("tue train ")
        assert json.loads(json.dumps(entry["card"])) == json.loads(card.to_json())


def test_the_version_is_stated_once() -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated and stated[1] == tue_cli.__version__


def test_the_readme_tells_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", text, re.M), code


def test_the_readme_quotes_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    text = (ROOT / "README.md").read_text()
    for name, block in readme.BLOCKS.items():
        start, end = readme.markers(name)
        assert start + block() + end in text
