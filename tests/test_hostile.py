"""What must hold whatever tue meets: nothing is told to anybody, nothing hangs, nothing crashes."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import math
import os
import pickle
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from conftest import mark_slow
from PIL import Image
from safetensors.numpy import save

from benchmarks.paper.cifar import CIFAR_LAYOUTS
from benchmarks.paper.run import BenchSpec, bench
from benchmarks.paper.settings import PRESETS
from tue_cli.cli import main
from tue_cli.dataset import manifest
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.output import WORK
from tue_cli.dataset.records import read_former_run
from tue_cli.dataset.selection import read_paths
from tue_cli.errors import BadSetting, ExitCode, ImageProblem, WeightsProblem
from tue_cli.images import codec
from tue_cli.images import png as png_chunks
from tue_cli.protect import pipeline
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.scan import FormerRun
from tue_cli.storage import lines
from tue_cli.storage.reading import NotAFile, TooLarge, parse_json, read_file
from tue_cli.train.export import write_graph
from tue_cli.weights import Card, Weights, build, digest, load, read

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "assets" / "photos"
TUE = [sys.executable, "-m", "tue_cli"]


# --- nobody is told --------------------------------------------------------------------------

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
SOCKET = {"x86_64": 41, "aarch64": 198}
"""The number of the system call, by machine."""
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2


def no_sockets() -> None:
    """Let the kernel end this process, and what it starts, where it asks for a socket.

    Seccomp needs no rights and no program that a bare machine lacks, and sees what native code
    does, which Python's audit hooks do not.
    """
    assert LIBC is not None
    load, equal, answer = 0x20, 0x15, 0x06
    ended, allowed = 0x80000000, 0x7FFF0000
    lines = [
        (load, 0, 0, 0),  # the call's number
        (equal, 0, 1, SOCKET[platform.machine()]),
        (answer, 0, 0, ended),
        (answer, 0, 0, allowed),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HP", len(lines), ctypes.addressof(code))
    assert LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert LIBC.prctl(PR_SET_SECCOMP, FILTER, program) == 0


def alone(*command: object, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with a home and a folder for scratch files of its own, and without sockets."""
    unset = ("TMP", "TEMP", "ORT_DISABLE_TELEMETRY")
    env = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k not in unset}
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [str(part) for part in command],
        env={**env, "HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        preexec_fn=no_sockets,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has seccomp")
def test_nothing_is_written_beside_the_output_and_no_socket_is_opened(tmp_path: Path) -> None:
    home, output = tmp_path / "home", tmp_path / "out"
    # The trap works, for native code and for what a command starts.
    asks = "import socket; socket.socket()"
    assert alone(sys.executable, "-c", asks, home=home).returncode < 0
    for backend in ("onnx", "torch"):
        quick = ("--labels", "single", "--steps", 1, "--backend", backend)
        ran = alone(*TUE, "protect", PHOTOS, "-o", output / backend, *quick, home=home)
        assert ran.returncode == 0, ran.stderr
    ran = alone(*TUE, "check", output / "onnx", "--original", PHOTOS, home=home)
    assert ran.returncode == 0, ran.stderr
    weights = Path(shutil.copy(ROOT / "weights" / "cifar10.safetensors", output / "w.safetensors"))
    ran = alone(*TUE, "export", weights, home=home)
    assert ran.returncode == 0 and weights.with_suffix(".onnx").exists(), ran.stderr
    left = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert [path for path in left if "tue" not in path.parts] == []


def test_one_place_imports_onnx_runtime() -> None:
    """The one that switches its telemetry off first."""
    importing = [
        path.name
        for folder in ("tue_cli", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("import onnxruntime", "from onnxruntime"))
    ]
    # Twice: once for the types alone.
    assert importing == ["onnx.py"] * 2


# --- what former runs left -------------------------------------------------------------------

NEST = "[" * 100_000 + "]" * 100_000
PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """End a test that waits for something that never comes."""
    if hasattr(signal, "alarm"):
        signal.alarm(300)
    yield
    if hasattr(signal, "alarm"):
        signal.alarm(0)


@pytest.fixture(scope="module")
def photos(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in") / "photos"
    shutil.copytree(small_photos / "everyday", folder)
    return folder


def tue(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command, and return its exit code and what it said on stderr."""
    capsys.readouterr()
    code = 0
    try:
        main([str(part) for part in arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


def protected(
    photos: Path, output: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    common = ("--labels", "single", "--steps", 1, "--weights", weights)
    return tue("protect", photos, "-o", output, *common, capsys=capsys)


def assert_is_a_sentence(said: str) -> None:
    assert "Traceback" not in said and "unexpected error" not in said
    assert sum(line.startswith("Error:") for line in said.splitlines()) <= 1


@pytest.fixture(scope="module")
def finished(photos: Path, twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tue has protected."""
    output = tmp_path_factory.mktemp("finished") / "out"
    with pytest.raises(SystemExit) as ended:
        main(["protect", str(photos), "-o", str(output), "--labels", "single", "--steps", "1",
            "--weights", str(twin)])  # fmt: skip
    assert not ended.value.code
    return output


def odd_manifests(good: dict[str, Any]) -> dict[str, bytes]:
    """Manifests that are no manifest of tue's, or not in this part, by name."""

    def changed(**parts: Any) -> bytes:
        return json.dumps({**good, **parts}).encode()

    def first(**fields: Any) -> bytes:
        return changed(pictures=[{**good["pictures"][0], **fields}, *good["pictures"][1:]])

    whole, run = json.dumps(good), good["run"]
    return {
        "empty": b"",
        "zeros": bytes(1000),
        "list": b"[]",
        "nested": b"[" * 200_000,
        "nested a little": changed(run={"x": json.loads("[" * 400 + "]" * 400)}),
        "nan in the run": changed(run={**run, "x": float("nan")}),
        "infinite": whole.replace('"run": {', '"run": {"x": 1e400, ', 1).encode(),
        "digits": whole.replace('"schema": 1', '"schema": ' + "1" * 5000, 1).encode(),
        "schema true": changed(schema=True),
        "schema 2": changed(schema=2),
        "keys a number": changed(keys={"photos": 5}),
        "keys a list": changed(keys={"photos": ["a"]}),
        "a key no name": changed(keys={"\ud800": "cat"}),
        "engine a number": changed(run={**run, "engine": 5}),
        "engine a list": changed(run={**run, "engine": ["a"]}),
        "pictures numbers": changed(pictures=[1, 2]),
        "path no name": first(path="\ud800.jpg"),
        "path with zero": first(path="a\0b"),
        "path outside": first(path="../../photos/a.jpg"),
        "path absolute": first(path="/etc/passwd"),
    }


def told_oddly(good: dict[str, Any]) -> dict[str, bytes]:
    """Manifests in which something is odd that decides nothing."""

    def first(**fields: Any) -> bytes:
        pictures = [{**good["pictures"][0], **fields}, *good["pictures"][1:]]
        return json.dumps({**good, "pictures": pictures}).encode()

    odd: dict[str, Any] = dict.fromkeys(
        ("mean", "psnr", "small_rms", "survival", "ssim", "bytes", "seconds"), "x"
    )
    return {
        "numbers texts": first(**odd),
        "numbers lists": first(**dict.fromkeys(odd, [])),
        "not a number": first(mean=float("nan"), psnr=float("inf")),
        "sizes huge": first(size=[10**30, 10**30]),
        "sizes text": first(size="s", metadata=[1], notes=5),
        "failed numbers": json.dumps({**good, "summary": {"failed": [5]}}).encode(),
        "summary a list": json.dumps({**good, "summary": []}).encode(),
    }


NAMES = list(odd_manifests({"run": {}, "schema": 1, "pictures": [{}]}))
TOLD = list(told_oddly({"pictures": [{}]}))


def with_manifest(finished: Path, data: bytes, place: Path) -> Path:
    output = Path(shutil.copytree(finished, place))
    (output / MANIFEST).write_bytes(data)
    return output


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupt_manifest_ends_in_a_sentence(
    name: str,
    finished: Path,
    photos: Path,
    twin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = json.loads((finished / MANIFEST).read_bytes())
    output = with_manifest(finished, odd_manifests(good)[name], tmp_path / "out")
    code, said = protected(photos, output, twin, capsys)
    assert code == ExitCode.USAGE, said
    assert_is_a_sentence(said)
    code, said = tue("check", output, "--original", photos, capsys=capsys)
    # What has nothing to do with checking may stand.
    assert code in (ExitCode.OK, ExitCode.USAGE), said
    assert_is_a_sentence(said)


@pytest.mark.parametrize("name", mark_slow(TOLD, but=("numbers texts",)))
def test_what_only_tells_something_stops_nothing(
    name: str,
    finished: Path,
    photos: Path,
    twin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = json.loads((finished / MANIFEST).read_bytes())
    output = with_manifest(finished, told_oddly(good)[name], tmp_path / "out")
    page = ("--report", tmp_path / "page.html")
    common = ("--labels", "single", "--steps", 1, "--weights", twin)
    code, said = tue("protect", photos, "-o", output, *common, *page, capsys=capsys)
    assert code == ExitCode.OK, said
    code, said = tue("check", output, "--original", photos, capsys=capsys)
    assert code == ExitCode.OK, said


def odd_lines(good: dict[str, Any]) -> dict[str, str]:
    record = good["pictures"][0]
    return {
        "nested": "[" * 200_000,
        "nested record": json.dumps(record)[:-1] + f', "x": {NEST}}}',
        "nan in the run": '{"run": {"x": NaN}}',
        "run a list": '{"run": [1]}',
        "keys a number": '{"run": {}, "keys": 5}',
        "keys a list": '{"run": {}, "keys": [1]}',
        "engine a list": json.dumps({"run": {**good["run"], "engine": [1]}}),
        "path no name": json.dumps({**record, "path": "\ud800.jpg"}),
        "label no name": json.dumps({**record, "label": "\ud800", "key": "\ud800"}),
        "path with zero": json.dumps({**record, "path": "a\0b"}),
        "path outside": json.dumps({**record, "path": "../a.jpg"}),
        "half": json.dumps(record)[:50],
    }


LINES = list(odd_lines({"run": {}, "pictures": [{}]}))


@pytest.mark.parametrize("name", mark_slow(LINES, but=("path outside",)))
def test_a_corrupt_line_of_a_journal_ends_in_a_sentence(
    name: str,
    finished: Path,
    photos: Path,
    twin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = json.loads((finished / MANIFEST).read_bytes())
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (output / MANIFEST).unlink()
    (output / WORK).mkdir()
    lines = [json.dumps({"run": good["run"]}), *map(json.dumps, good["pictures"])]
    journal = "\n".join((*lines, odd_lines(good)[name], ""))
    (output / WORK / "journal.jsonl").write_text(journal, encoding="ascii")
    code, said = protected(photos, output, twin, capsys)
    assert code in (ExitCode.OK, ExitCode.USAGE, ExitCode.ENVIRONMENT), said
    assert_is_a_sentence(said)


@pytest.mark.parametrize("line", ["", " ", "{", "x" * 2_000], ids=["empty", "space", "{", "x"])
def test_a_journal_of_lines_that_are_no_entries_is_given_up_early(
    line: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / WORK).mkdir()
    with (tmp_path / WORK / "journal.jsonl").open("w", encoding="ascii") as file:
        file.write(f"{line}\n" * 990 + '{"run": {"engine": "x"}}\n')
    assert read_former_run(tmp_path) == {"engine": "x"}
    with (tmp_path / WORK / "journal.jsonl").open("a", encoding="ascii") as file:
        file.write(f"{line}\n" * 5_000)
    with (
        mock.patch.object(lines, "parse_json", wraps=parse_json) as parsed,
        pytest.raises(BadSetting, match="more than 1,000 lines"),
    ):
        read_former_run(tmp_path)
    assert parsed.call_count < 1_100


def test_a_long_line_of_a_journal_is_not_read_at_once(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "journal.jsonl").write_bytes(bytes(100_000_000) + b'\n{"run": {}}\n')
    tracemalloc.start()
    assert read_former_run(tmp_path) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("data", [b" [[" + b"[]," * 100_000, b'{"x": [' + b"[]," * 100_000])
def test_a_manifest_of_lists_is_refused_before_it_is_parsed(data: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(data + b"[]]}")
    with (
        mock.patch.object(manifest, "parse_json", side_effect=AssertionError),
        pytest.raises(BadSetting, match="tue did not write it"),
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("place", [MANIFEST, f"{WORK}/journal.jsonl"])
def test_state_and_tables_that_are_too_large_are_refused_with_the_limit(
    place: str, photos: Path, twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "out" / place
    large.parent.mkdir(parents=True)
    with large.open("wb") as file:
        file.truncate(300_000_000)  # sparse
    code, said = protected(photos, tmp_path / "out", twin, capsys)
    assert code == ExitCode.USAGE and "larger than 256,000,000 bytes" in " ".join(said.split())
    assert_is_a_sentence(said)
    table = large.rename(tmp_path / "table.csv")
    with table.open("wb") as file:
        file.truncate(65_000_000)
    common = ("-o", tmp_path / "other", "--weights", twin, "--labels", table)
    code, said = tue("protect", photos, *common, capsys=capsys)
    assert code == ExitCode.USAGE and "larger than 64,000,000 bytes" in " ".join(said.split())
    assert_is_a_sentence(said)


def test_a_class_with_a_zero_byte_is_refused_with_its_line(
    photos: Path, twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path.name},x" for path in sorted(photos.iterdir())]
    (tmp_path / "t.csv").write_text("\n".join([*rows[:-1], rows[-1] + "\0y"]), encoding="utf-8")
    common = ("-o", tmp_path / "out", "--weights", twin, "--labels", tmp_path / "t.csv")
    code, said = tue("protect", photos, *common, capsys=capsys)
    assert code == ExitCode.USAGE and f"Line {len(rows)} of" in said
    assert_is_a_sentence(said)


def test_a_list_on_stdin_that_is_too_large_is_refused_with_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tue_cli.dataset.selection.MOST_LIST", 100)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n" * 60)))
    with pytest.raises(BadSetting, match="larger than 100 bytes"):
        read_paths(["-"])


@PIPES
@pytest.mark.parametrize("place", [MANIFEST, f"{WORK}/journal.jsonl"])
def test_a_pipe_in_the_place_of_state_is_refused_at_once(
    place: str,
    finished: Path,
    photos: Path,
    twin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    (output / MANIFEST).unlink()
    (output / place).parent.mkdir(exist_ok=True)
    os.mkfifo(output / place)
    code, said = protected(photos, output, twin, capsys)
    assert code in (ExitCode.USAGE, ExitCode.ENVIRONMENT), said
    assert "not a regular file" in said
    assert_is_a_sentence(said)
    code, said = tue("check", output, capsys=capsys)
    assert code == ExitCode.USAGE, said
    assert_is_a_sentence(said)


@PIPES
def test_only_regular_files_of_a_bearable_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(NotAFile):
            read_file(place, 100)
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(1 << 40)  # of a terabyte, which takes no room where it is sparse
    with pytest.raises(TooLarge):
        read_file(tmp_path / "giant", 1 << 30)
    with pytest.raises(ImageProblem) as caught:
        codec.read(tmp_path / "giant")
    assert caught.value.reason == "too-large"
    with pytest.raises(OSError, match="null"):
        read_file(Path("a\0b"), 100)


def test_json_is_read_to_a_depth_and_without_numbers_that_it_has_not() -> None:
    assert parse_json('{"a": [1, 2.5, NaN, 1e400, -Infinity]}') == {"a": [1, 2.5, None, None, None]}
    for text in (NEST, "[" * 1000 + "]" * 1000, '{"a":' * 60 + "1" + "}" * 60, "9" * 5000, "{"):
        with pytest.raises(ValueError):
            parse_json(text)


@pytest.mark.slow
def test_stdout_that_is_full_or_closed_ends_the_command_cleanly(
    photos: Path, twin: Path, tmp_path: Path
) -> None:
    command = [*TUE, "protect", str(photos), "--labels", "single", "--steps", "1", "--json"]
    command += ["--weights", str(twin), "-o"]
    ran = subprocess.Popen(
        [*command, str(tmp_path / "closed")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert ran.stdout is not None and ran.stderr is not None
    ran.stdout.close()
    with ran.stderr:
        said = ran.stderr.read().decode()
    assert ran.wait() == ExitCode.ENVIRONMENT, said
    assert "Cannot write to stdout" in said
    assert_is_a_sentence(said)
    assert "Exception ignored" not in said
    if not Path("/dev/full").exists():
        return
    with Path("/dev/full").open("wb") as full:
        again = subprocess.run(
            [*command, str(tmp_path / "full")], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert again.returncode == ExitCode.ENVIRONMENT
    assert b"Cannot write to stdout" in again.stderr and b"Exception ignored" not in again.stderr


@pytest.mark.slow
def test_stderr_that_is_closed_stops_no_work(photos: Path, twin: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*TUE, "protect", str(photos), "--labels", "single", "--steps", "1"]
    command += ["--weights", str(twin), "-o"]
    output = tmp_path / "out"
    ran = subprocess.run(
        [*command, str(output)], stdout=subprocess.PIPE, stderr=writer, check=False
    )
    assert ran.returncode == ExitCode.OK and (output / MANIFEST).exists()
    assert b"Protected 3 pictures" in ran.stdout
    # Neither can be told of, and the exit code alone is left to tell it.
    both = subprocess.run(
        [*command, str(tmp_path / "both")], stdout=writer, stderr=writer, check=False
    )
    wrong = subprocess.run(
        [*TUE, "check", str(tmp_path / "none")], stdout=writer, stderr=writer, check=False
    )
    os.close(writer)
    assert (both.returncode, wrong.returncode) == (ExitCode.ENVIRONMENT, ExitCode.USAGE)


def test_a_table_into_a_closed_stdout_ends_in_a_sentence(finished: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    next(output.glob("*.jpg")).unlink()
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [*TUE, "check", str(output)], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert ran.returncode == ExitCode.ENVIRONMENT and "Cannot write to stdout" in ran.stderr
    assert_is_a_sentence(ran.stderr)
    assert "Exception ignored" not in ran.stderr


@pytest.mark.parametrize("place", ["tue_cli.cli.app", "tue_cli.console.Console.run"])
def test_an_interruption_before_any_work_is_a_sentence(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupts(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupts)
    assert tue("check", "x", capsys=capsys) == (ExitCode.INTERRUPTED, "Interrupted.\n")


def test_an_interruption_while_tue_is_loaded_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    ran = subprocess.run(
        [*TUE, "check", "x"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (ExitCode.INTERRUPTED, "Interrupted.\n")


def test_an_error_that_nobody_foresaw_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("tue_cli.console.Console.run", fails)
    code, said = tue("check", "anything", capsys=capsys)
    assert code == ExitCode.ENVIRONMENT and "a mistake of ours" in said
    assert "Traceback" not in said


def test_a_run_whose_settings_are_odd_is_offered_with_those_that_are_chosen(tmp_path: Path) -> None:
    spec = ProtectSpec(paths=(tmp_path,))
    odd: list[Any] = [5, [], {}, {"noise": 5}, {"noise": {"new": 1}}]
    for run in ({"settings": settings} for settings in odd):
        assert FormerRun(1, False, run).resume(spec) == spec


# --- weights ---------------------------------------------------------------------------------


def sealed(card: str, tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return a weights file whose seal is right, whatever the card says."""
    seal = hashlib.sha256((digest(tensors) + card).encode()).hexdigest()
    return save(tensors, metadata={"card": card, "seal": seal})


ODD_CARDS: dict[str, dict[str, Any]] = {
    "size 0": {"size": 0},
    "size negative": {"size": -32},
    "size text": {"size": "32"},
    "size 33": {"size": 33},
    "size true": {"size": True},
    "size huge": {"size": 100_000},
    "width huge": {"width": 10**6},
    "width text": {"width": "16"},
    "score width 0": {"score_width": 0},
    "no classes": {"classes": []},
    "classes numbers": {"classes": list(range(10))},
    "classes text": {"classes": "abc"},
    "classes twice": {"classes": ["a", "a", "b"]},
    "class no name": {"classes": ["a", "b", "\ud800"]},
    "method list": {"method": ["tue"]},
    "net a path": {"net": "../../x"},
    "sigma text": {"sigma": "x"},
    "sigma nan": {"sigma": float("nan")},
    "sigma none": {"sigma": None},
    "training list": {"training": []},
    "another field": {"more": 1},
}


@pytest.mark.parametrize("name", ["list", "nested", *ODD_CARDS])
def test_a_card_that_cannot_be_is_refused_before_the_tensors_are_read(
    name: str,
    tiny: Weights,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = json.loads(tiny.card.to_json())
    card = json.dumps({**fields, **ODD_CARDS.get(name, {})})
    if name in ("list", "nested"):
        card = (
            "[]"
            if name == "list"
            else card.replace('"training": {', f'"training": {{"x": {NEST}, ')
        )
    # Nothing behind the header: the card alone is enough to refuse the file.
    data = sealed(card, dict(tiny.tensors))
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    code, said = protected(photos, tmp_path / "out", path, capsys)
    assert code == ExitCode.ENVIRONMENT, said
    assert "card" in said or "nested" in said
    assert_is_a_sentence(said)


def test_the_card_of_sound_weights_is_taken(tiny: Weights, tmp_path: Path) -> None:
    path = tmp_path / "sound.safetensors"
    path.write_bytes(sealed(tiny.card.to_json(), dict(tiny.tensors)))
    assert load(str(path)).card == tiny.card


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_hold_no_numbers_are_refused(
    number: float,
    tiny: Weights,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = {name: array.copy() for name, array in tiny.tensors.items()}
    tensors["surrogate.head.bias"][1] = number
    path = tmp_path / "nan.safetensors"
    path.write_bytes(sealed(tiny.card.to_json(), tensors))
    code, said = protected(photos, tmp_path / "out", path, capsys)
    assert code == ExitCode.ENVIRONMENT and "not finite" in said
    assert_is_a_sentence(said)


def test_noise_that_is_no_number_stops_the_run(
    twin: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights so large that the nets overflow: finite, and their noise is not."""
    weights = read(twin, name="w")
    tensors = {name: array.copy() for name, array in weights.tensors.items()}
    for name, array in tensors.items():
        if name.startswith("surrogate.head"):
            tensors[name] = np.full_like(array, 3e38)
    path = tmp_path / "large.safetensors"
    path.write_bytes(sealed(weights.card.to_json(), tensors))
    graph = twin.with_suffix(".onnx").read_bytes()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".onnx").write_bytes(graph.replace(weights.sha256.encode(), sha256.encode()))
    code, said = protected(photos, tmp_path / "out", path, capsys)
    assert code == ExitCode.ENVIRONMENT and "not a number (NaN)" in said
    assert_is_a_sentence(said)


def folders_of(photos: Path, folder: Path) -> Path:
    """The pictures in two folders, a class each."""
    for place, path in enumerate(sorted(photos.iterdir())):
        (folder / f"{place % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{place % 2}")
    return folder


@pytest.mark.parametrize("labels", ["folders", "cluster:2"])
def test_weights_that_overflow_are_refused_where_pictures_are_seen(
    labels: str, tiny: Weights, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {
        name: np.clip(array * 1e30, -3e38, 3e38).astype(array.dtype)
        if array.dtype == np.float32
        else array
        for name, array in tiny.tensors.items()
    }
    path = tmp_path / "large.safetensors"
    path.write_bytes(sealed(tiny.card.to_json(), tensors))
    folder = folders_of(photos, tmp_path / "in")
    common = ("-o", tmp_path / "out", "--labels", labels, "--steps", 1, "--weights", path)
    code, said = tue("protect", folder, *common, "--backend", "torch", capsys=capsys)
    assert code == ExitCode.ENVIRONMENT and "not finite" in said and "--weights" in said
    assert_is_a_sentence(said)


def test_logits_too_far_apart_to_be_compared_are_refused(
    twin: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "tue_cli.engine.torch.TorchEngine.logits",
        lambda _, pixels: np.tile(np.array([[3e38, -3e38, 0]], np.float32), (len(pixels), 1)),
    )
    folder = folders_of(photos, tmp_path / "in")
    common = ("-o", tmp_path / "out", "--labels", "folders", "--steps", 1, "--weights", twin)
    code, said = tue("protect", folder, *common, "--backend", "torch", capsys=capsys)
    assert code == ExitCode.ENVIRONMENT and "not finite" in said
    assert_is_a_sentence(said)


DAMAGE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "none": lambda tensors: {},
    "float16": lambda tensors: {n: a.astype(np.float16) for n, a in tensors.items()},
    "float64": lambda tensors: {
        n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in tensors.items()
    },
    "renamed": lambda tensors: {f"x{n}": a for n, a in tensors.items()},
    "one renamed": lambda tensors: {n.replace("head", "hand"): a for n, a in tensors.items()},
    "flat": lambda tensors: {n: a.reshape(-1) for n, a in tensors.items()},
    "score alone": lambda tensors: {n: a for n, a in tensors.items() if n.startswith("score.")},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_no_graph_is_written_of_weights_that_hold_no_usable_net(
    name: str, tiny: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(sealed(tiny.card.to_json(), DAMAGE[name](dict(tiny.tensors))))
    code, said = tue("export", path, capsys=capsys)
    assert code == ExitCode.ENVIRONMENT, said
    assert "no usable" in " ".join(said.split()) or "as float" in " ".join(said.split())
    assert_is_a_sentence(said)
    assert not path.with_suffix(".onnx").exists()


def test_a_graph_that_is_not_sound_is_a_sentence(
    twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("two shapes")

    monkeypatch.setattr("onnx.checker.check_model", refuse)
    with pytest.raises(WeightsProblem, match="two shapes"):
        list(write_graph(read(twin, name="w"), tmp_path / "w.onnx", beside=False))


def test_a_net_larger_than_its_tensors_is_refused_before_it_is_built(tiny: Weights) -> None:
    # 1024 channels would take 11 GB.
    large = replace(tiny, card=replace(tiny.card, width=1024))
    with pytest.raises(WeightsProblem, match="no usable surrogate"):
        build(large, ("surrogate",))


def test_every_field_of_a_card_is_looked_at(tiny: Weights) -> None:
    for name in asdict(tiny.card):
        fields = json.loads(tiny.card.to_json())
        del fields[name]
        with pytest.raises(ValueError):
            Card.from_json(json.dumps(fields))


# --- metadata --------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return png_chunks.make_png_chunk(kind, data)


def png(*chunks: bytes) -> bytes:
    return png_chunks.splice_png(coded("PNG"), chunks)


def jpeg(*payloads: tuple[int, bytes]) -> bytes:
    segments = (b"\xff" + bytes([m]) + (len(p) + 2).to_bytes(2, "big") + p for m, p in payloads)
    data = coded("JPEG")
    return b"".join((data[:2], *segments, data[2:]))


def coded(kind: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def in_parts(exif: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(0xE1, b"Exif\0\0" + exif[at : at + size]) for at in range(0, len(exif), size)]


def tiff_with(entries: list[tuple[int, int, int, int]], more: bytes = b"") -> bytes:
    """A directory of (tag, kind, amount, value or offset) after an empty first one, and bytes."""
    second = struct.pack("<H", len(entries))
    second += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<IHI", 8, 0, 14) + second + more


EMPTY = b"MM\0*" + struct.pack(">IHI", 8, 0, 0)
STARTS = EMPTY + b"\xff\xd8" + b"\xff\xe0\0\4\xff\xd8" * 50_000
"""Starts of JPEGs, each of which walks over all that follow."""
CLAIMS = tiff_with([(tag, 4, 65_535, 14) for tag in range(65_535)])
"""Each of 65,535 tags claims the same 65,535 numbers."""
CHAIN = b"II*\0" + struct.pack("<IHI", 8, 0, 14 + 6 * 9_999)
CHAIN += struct.pack("<HI", 4_000, 0) * 10_000 + bytes(100_000)
"""Directories in each other, each of which blanks what lies in its entries."""
RESOURCE = b"8BIM\4\x0c" + bytes(6)
BASE64 = b"<x>/9j/" + b"A&#65;" * 1_000_000 + b"</x>"

TANGLED: dict[str, Callable[[], bytes]] = {
    "starts of JPEGs in PNG": lambda: png(chunk(b"eXIf", STARTS)),
    "starts of JPEGs in JPEG": lambda: jpeg(*in_parts(STARTS, 60_000)),
    "starts of JPEGs in WebP": lambda: coded("WEBP", exif=STARTS),
    "claims in PNG": lambda: png(chunk(b"eXIf", CLAIMS)),
    "claims in JPEG": lambda: jpeg(*in_parts(CLAIMS, 65_000)),
    "EXIF byte by byte": lambda: jpeg(*in_parts(EMPTY + bytes(100_000), 1)),
    "EXIF of 20 MB": lambda: png(chunk(b"eXIf", EMPTY + bytes(20_000_000))),
    "XMP of 20 MB": lambda: coded("WEBP", xmp=b"x" * 20_000_000),
    "a head of 20 MB": lambda: jpeg(*[(0xE5, bytes(65_000))] * 320),
    "chunks": lambda: png(*[chunk(b"tEXt", b"a\0b")] * 20_000),
    "a caption of 20 MB": lambda: coded("TIFF", tiffinfo={270: "x" * 20_000_000}),
}
BEARABLE: dict[str, Callable[[], bytes]] = {
    "a picture as text": lambda: jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + BASE64[:60_000])),
    "a picture as long text": lambda: coded("WEBP", xmp=BASE64),
    "many resources": lambda: jpeg(
        *[(0xED, b"Photoshop 3.0\0" + b"8BIM\4\x0c" + bytes(6))] * 5_000
    ),
    "a chain": lambda: png(chunk(b"eXIf", CHAIN)),
    "strips over each other": lambda: png(
        chunk(
            b"eXIf",
            tiff_with(
                [(273, 4, 30_000, 50), (279, 4, 30_000, 120_050)],
                struct.pack("<30000I", *[170_000 * 2] * 30_000) * 2 + bytes(1_000_000),
            ),
        )
    ),
}


@pytest.mark.parametrize("name", TANGLED)
def test_metadata_that_would_stop_a_run_are_refused(name: str) -> None:
    with pytest.raises(ImageProblem) as caught:
        codec.decode(TANGLED[name]())
    assert caught.value.reason == "metadata"


@pytest.mark.slow
@pytest.mark.parametrize("name", BEARABLE)
def test_metadata_that_can_be_read_to_the_end_are(name: str) -> None:
    """Each took minutes, or gigabytes, where every part was looked at from every other."""
    source = BEARABLE[name]()
    tracemalloc.start()
    try:
        codec.decode(source)
    except ImageProblem as problem:
        assert problem.reason == "metadata"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(source) + 10_000_000


def test_a_dry_run_is_not_stopped_by_metadata(
    twin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(TANGLED["claims in PNG"]())
    (folder / "b.png").write_bytes(coded("PNG"))
    common = ("--labels", "single", "--weights", twin, "--steps", 1)
    code, _ = tue("protect", folder, "-o", tmp_path / "out", "-n", *common, capsys=capsys)
    assert code == ExitCode.OK
    code, said = tue("protect", folder, "-o", tmp_path / "out", *common, capsys=capsys)
    assert code == ExitCode.SOME_FAILED and "metadata" in said
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.png"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the address space")
def test_a_picture_without_room_in_memory_is_a_reason_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (10_000, 10_000)).save(path)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tue_cli.errors import ImageProblem\n"
        "from tue_cli.images import codec\n"
        "data = codec.read(Path(sys.argv[1]))\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "room = pages * resource.getpagesize() + 200_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "try: codec.decode(data)\n"
        "except ImageProblem as problem: print(problem.reason)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert ran.stdout.strip() == b"memory", ran.stderr


@pytest.mark.slow
def test_large_pictures_are_worked_on_alone_and_get_the_same_bytes(
    twin: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert protected(photos, tmp_path / "beside", twin, capsys)[0] == ExitCode.OK
    sizes = sorted(math.prod(codec.read_dimensions(path.read_bytes())) for path in photos.iterdir())
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", sizes[1])  # all but the smallest are large
    assert protected(photos, tmp_path / "alone", twin, capsys)[0] == ExitCode.OK
    for copy in (tmp_path / "beside").iterdir():
        if copy.name != MANIFEST:
            assert copy.read_bytes() == (tmp_path / "alone" / copy.name).read_bytes()


# --- data sets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../escaped", "/escaped", "a/b", "a\\b", "..", ".", "", 5, "\0"]
)
def test_the_name_of_a_class_is_never_a_path(name: object, tmp_path: Path) -> None:
    kept, folder = CIFAR_LAYOUTS["cifar-10"], tmp_path / "kept"
    (folder / kept.folder).mkdir(parents=True)
    batch = {"data": np.zeros((2, 3072), np.uint8), kept.labels: [0, 1]}
    for file in kept.train + kept.test:
        (folder / kept.folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {f"{kept.labels[:-1]}_names": ["cat", name]}
    (folder / kept.folder / kept.names).write_bytes(pickle.dumps(meta, protocol=2))
    with pytest.raises(BadSetting, match="folder"):
        list(bench(BenchSpec((folder,), tmp_path / "out", ("1",), PRESETS["mini"], "cpu", True)))
    assert not list(tmp_path.rglob("*.png"))
