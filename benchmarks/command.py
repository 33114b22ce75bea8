"""The command under test, run as people run it."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tue_cli.weights import Weights, build, load

TUE = (sys.executable, "-m", "tue_cli")
PAPERS = ("--radius", "8", "--gray", "0", "--smooth", "1")
"""Options of `tue protect` for the paper's noise."""
SECRET = f"tue-secret-1 {'7e' * 32}\n"
"""The secret of every user who runs a command under test."""
KEYS = ("in-order", "nearest", "farthest")

# A process counts the memory of the one that started it as its own until it is itself: so a small
# one stands between a benchmark that holds torch and the command whose memory is asked for.
_BETWEEN = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.run(sys.argv[1:]).returncode
wall = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss
print(json.dumps({"code": code, "wall": wall, "cpu": cpu, "peak": peak}), flush=True)
"""


def build_environment(threads: int) -> dict[str, str]:
    """Return the environment of a command under test: so many threads, none of which spins.

    Its user is new and has a known secret, so that every run gives the same codes and noise.
    """
    home = Path(tempfile.mkdtemp(prefix="tue-user-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "tue").mkdir()
    (home / "tue" / "secret").write_text(SECRET)
    own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **own, "XDG_DATA_HOME": str(home)}


def build_protect_command(
    source: Path, output: Path, *, weights: str, device: str, options: Sequence[str] = ()
) -> list[str]:
    """Return the command that protects a folder, quietly and with its events as JSON."""
    named = ["--weights", weights, "--device", device]
    return [*TUE, "protect", str(source), "-o", str(output), *named, *options, "--json", "-q"]


def read_summary(stdout: str) -> dict[str, Any]:
    """Return the last `done` object among the lines that the command wrote."""
    for line in reversed(stdout.splitlines()):
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "done":
                return event
    return {}


def run_protect(
    source: Path,
    output: Path,
    *,
    weights: str,
    device: str,
    threads: int,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Run `tue protect` on a folder to its end and return its times, its memory and its counts.

    Raises SystemExit with what the command said where it did not protect every picture.
    """
    command = build_protect_command(source, output, weights=weights, device=device, options=options)
    summary, measured = run_measured(command, threads)
    return {
        "already_done": summary["already_done"],
        "cpu_seconds": measured["cpu_seconds"],
        "engine_seconds": summary["engine_seconds"],
        "failed": summary["failed"],
        "job_seconds": summary["seconds"],
        "peak_mib": measured["peak_mib"],
        "protected": summary["protected"],
        "wall_seconds": measured["wall_seconds"],
    }


def run_measured(command: Sequence[str], threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Run a command that prints its events as JSON; return its last, and its times and memory.

    Raises SystemExit with what the command said where it did not end with 0.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BETWEEN, *command],
        env=build_environment(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.rstrip().rpartition("\n")
    measured = json.loads(said[2]) if done.returncode == 0 else {"code": done.returncode}
    summary = read_summary(said[0])
    if measured["code"] or not summary:
        raise SystemExit(f"{shlex.join(command)} ended with {measured['code']}:\n{done.stderr}")
    in_bytes = measured["peak"] * (1 if sys.platform == "darwin" else 1024)
    return summary, {
        "cpu_seconds": round(measured["cpu"], 3),
        "peak_mib": round(in_bytes / 2**20, 1),
        "wall_seconds": round(measured["wall"], 3),
    }


def protect_classes(
    source: Path,
    output: Path,
    *,
    weights: str,
    keys: str,
    device: str,
    threads: int,
    options: Sequence[str] = (),
) -> None:
    """Protect a folder of class folders; `keys` are of `KEYS`, or nothing for the command's own.

    What is protected already stays.
    """
    parts: list[tuple[Path, Path, list[str]]] = [(source, output, [])]
    if keys:
        folders = sorted(p for p in source.iterdir() if p.is_dir())
        parts = [
            (folder, output / folder.name, ["--labels", "single", "--key", key])
            for folder, key in zip(folders, choose_keys(load(weights), source, keys), strict=False)
        ]
    for folder, place, more in parts:
        run_protect(
            folder,
            place,
            weights=weights,
            device=device,
            threads=threads,
            options=[*options, *more],
        )


def choose_keys(weights: Weights, source: Path, which: str) -> tuple[str, ...]:
    """Return each class folder's key, one of `KEYS`: the n-th for the n-th, or the one `nearest` to
    its pictures by the surrogate, or the `farthest`.

    Those are so of all folders together, and every key is used once.
    """
    import numpy as np
    import torch
    from scipy.optimize import linear_sum_assignment

    from tue_cli.train.data import load_images

    if which == "in-order":
        return weights.card.classes
    classes, pictures, _ = load_images(source, weights.card.size, 64)
    surrogate = build(weights, ("surrogate",))["surrogate"].eval()
    with torch.no_grad():
        odds = surrogate(pictures.pixels.float() / 255).log_softmax(1)
    near = [odds[pictures.labels == number].mean(0).numpy() for number in range(len(classes))]
    keys = linear_sum_assignment(
        np.stack(near), maximize={"nearest": True, "farthest": False}[which]
    )[1]
    return tuple(weights.card.classes[key] for key in keys)
