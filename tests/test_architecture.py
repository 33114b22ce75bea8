"""The rules of the house that a run can break: what is imported, what is shipped."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import tue_cli
from benchmarks import readme
from tue_cli.errors import ExitCode
from tue_cli.fields import list_questions
from tue_cli.protect.request import ProtectSpec
from tue_cli.weights import index, load, read_graph

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "torchvision", "onnxruntime", "textual", "textual_image", "matplotlib")


def test_help_imports_nothing_heavy() -> None:
    # One process for all: what one of them imports is there after it.
    code = (
        "import sys\nfrom tue_cli.cli import app\n"
        "for name in ([], ['protect'], ['train'], ['verify'], ['check'], ['export']):\n"
        "    try: app([*name, '--help'])\n"
        "    except SystemExit as stop: assert not stop.code\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    assert not heavy, (name, heavy)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Usage") == 6


def test_shipped_weights_are_what_the_index_says() -> None:
    listed = index()
    assert listed["default"] in listed["weights"]
    files = {entry["file"] for entry in listed["weights"].values()}
    assert files == {path.name for path in (ROOT / "weights").glob("*.safetensors")}
    for name, entry in listed["weights"].items():
        path = ROOT / "weights" / entry["file"]
        assert path.stat().st_size < 50_000_000
        graph = read_graph(load(name))
        assert entry["graph"]["file"] == f"{name}.onnx" and len(graph) < 200_000
        assert hashlib.sha256(graph).hexdigest() == entry["graph"]["sha256"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        card = load(name).card
        assert card.training["command"].startswith("tue train ")
        assert json.loads(json.dumps(entry["card"])) == json.loads(card.to_json())


LEFT_OUT = ("torch", "torchvision")
"""What the light requirements leave out of the package's own."""
ABSENT = (*LEFT_OUT, "kornia", "onnx", "sklearn")
"""What cannot be imported after such an installation."""
_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from tue_cli.cli import main
main(sys.argv[1:])
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `tue` where torch and all that only torch's commands need cannot be imported."""
    code = _WITHOUT.format(names=ABSENT)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_without_torch_the_whole_of_protect_and_check_runs(twin: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "out", tmp_path / "page.html"
    common = ("protect", ROOT / "assets" / "photos", "--steps", 2, "--weights", twin)
    ran = without_torch(*common, "-o", output, "--labels", "cluster:3", "--report", page)
    assert ran.returncode == 0, ran.stderr
    assert "Protected 6 pictures" in ran.stdout and "engine: ONNX Runtime" in ran.stderr
    assert page.stat().st_size > 10_000
    again = without_torch(*common, "-o", output, "--labels", "cluster:3")
    assert again.returncode == 0 and "all 6 copies are up to date" in again.stdout
    checked = without_torch("check", output, "--original", ROOT / "assets" / "photos")
    assert checked.returncode == 0, checked.stderr
    verified = without_torch("verify", output, "--original", ROOT / "assets" / "photos")
    assert verified.returncode == ExitCode.ENVIRONMENT
    assert "pip install" in verified.stderr and "Traceback" not in verified.stderr
    # The packaged weights need no torch either.
    shipped = without_torch("protect", ROOT / "assets" / "photos" / "everyday" / "cat.png",
        "-o", tmp_path / "cat", "--steps", 1)  # fmt: skip
    assert shipped.returncode == 0, shipped.stderr


def test_without_torch_a_picture_is_protected(twin: Path, tmp_path: Path) -> None:
    picture = ROOT / "assets" / "photos" / "everyday" / "cat.png"
    ran = without_torch("protect", picture, "-o", tmp_path / "out", "--steps", 1, "--weights", twin)
    assert ran.returncode == 0, ran.stderr
    assert "Protected 1 picture" in ran.stdout and "engine: ONNX Runtime" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("protect", "IN", "--backend", "torch", "--weights", "W", "-o", "OUT"),
        pytest.param(("train", "IN", "-o", "OUT/w.safetensors"), marks=pytest.mark.slow),
        pytest.param(("export", "W"), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_torch_says_so_with_the_line_that_installs_it(
    arguments: tuple[str, ...], twin: Path, tmp_path: Path
) -> None:
    places = {"IN": ROOT / "assets" / "photos", "W": twin, "OUT": tmp_path / "out"}
    ran = without_torch(*(places.get(part, part) for part in arguments))
    assert ran.returncode == ExitCode.ENVIRONMENT, ran.stderr
    assert "pip install" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_light_requirements_are_the_package_s_without_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements-light.txt").read_text().splitlines()
    light = [line for line in lines if not line.startswith("#")]

    def name(line: str) -> str:
        return re.split(r"[<>=;]", line)[0]

    kept = [line for line in project["dependencies"] if name(line) not in LEFT_OUT]
    assert light == kept
    assert {name(line) for line in project["dependencies"]} >= set(LEFT_OUT)


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    imported = set[str]()
    for path in (ROOT / "tue_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    imported -= sys.stdlib_module_names | {"tue_cli"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["export"], *extras["ray"], *extras["verify"]]
    names = {re.split(r"[<>=;\[]", line)[0].replace("-", "_").lower() for line in lines}
    unlike = {
        "pil": "pillow",
        "sklearn": "scikit_learn",
        "skimage": "scikit_image",
    }  # the package, the name that pip knows
    needed = {unlike.get(name.lower(), name) for name in imported}
    # pyproject.toml says why torchvision is there; one of the two onnxruntimes is anywhere; fsspec
    # imports s3fs.
    assert names - {"torchvision", "onnxruntime_gpu", "s3fs"} == needed


def test_files_and_functions_can_be_read_at_one_sitting() -> None:
    for path in (ROOT / "tue_cli").rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("tue_cli", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_the_version_is_stated_once() -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert stated and stated[1] == tue_cli.__version__


def test_the_readme_tells_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", text, re.M), code


def test_readme_and_docs_quote_the_committed_results() -> None:
    for name, block in readme.BLOCKS.items():
        start, end = readme.make_markers(name)
        assert start + block() + end in readme.find_page(name).read_text(encoding="utf-8")


def test_the_help_of_strength_quotes_the_committed_results() -> None:
    asked = next(q for q in list_questions(ProtectSpec) if q.name == "strength")
    for name, (visible, learned) in readme.collect_strengths().items():
        psnr, score = visible["psnr"]["median"], learned["std"]["score"]
        assert f"{name} (PSNR {psnr:.0f} dB, protection {score:.0f} %)" in asked.declared.help
