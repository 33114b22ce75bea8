"""What must hold whatever tue meets: nothing is told to anybody, nothing hangs, nothing crashes."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert importing == ["onnx_engine.py"] * 2
