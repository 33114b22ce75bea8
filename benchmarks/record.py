"""What every benchmark writes down: where it ran, with which weights, and its cells as they finish.

The command under test is run here too, as people run it. What is measured is in the scripts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

import tue_cli
from tue_cli import __version__
from tue_cli.weights import Weights

RESULTS = Path(__file__).parent / "results"
TUE = (sys.executable, "-m", "tue_cli")

Facts = dict[str, Any]

# A process counts the memory of the one that started it as its own until it is itself: so a small
# one stands between a benchmark that holds torch and the command whose memory is asked for.
_BETWEEN = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.run(sys.argv[1:]).returncode
wall = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"code": code, "wall": wall, "peak": peak}), flush=True)
"""


def say(text: str) -> None:
    """Print a line of the result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def command_line() -> str:
    """Return this process's command, without the machine's own paths."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    arguments = [re.sub(r"(^|(?<=[:,=]))/[^\s:,=]*/", "", word) for word in sys.argv[1:]]
    return shlex.join(["python", script, *arguments])


def hardware(*, threads: int, dtype: str, device: str = "cpu") -> Facts:
    """Return what the figures were measured on, and how busy that was."""
    processor = {"model name": platform.processor() or platform.machine(), "flags": ""}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            processor[name.strip()] = value.strip()
    return {
        "bfloat16_by": [i for i in ("avx512_bf16", "amx_bf16") if i in processor["flags"].split()],
        "cpu": processor["model name"],
        "cores": os.cpu_count(),
        "device": device,
        "dtype": dtype,
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "torch": version("torch"),
        "tue": __version__,
        "tue_sources": sources(),
    }


def sources() -> str:
    """Return a short digest of the package's own code, whatever its version says."""
    state = hashlib.sha256()
    folder = Path(tue_cli.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        state.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def weights_facts(weights: Weights) -> Facts:
    """Return which weights were used, and what their card says in short."""
    card = weights.card
    training = card.training
    return {
        "name": weights.name,
        "sha256": weights.sha256,
        "card": {
            "classes": len(card.classes),
            "data": training.get("data"),
            "method": card.method,
            "net": card.net,
            "score_width": card.score_width,
            "seconds": training.get("seconds"),
            "sigma": card.sigma,
            "size": card.size,
            "steps": training.get("steps"),
            "width": card.width,
        },
    }


def spread(values: Iterable[float], digits: int = 5) -> Facts:
    """Return n, mean, median, smallest, largest and the sample's standard deviation, if it has one.

    Values that are not finite are left out.
    """
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return {"n": 0}
    return {
        "n": len(kept),
        "mean": round(statistics.fmean(kept), digits),
        "median": round(statistics.median(kept), digits),
        "min": round(min(kept), digits),
        "max": round(max(kept), digits),
        "std": round(statistics.stdev(kept), digits) if len(kept) > 1 else None,
    }


def key_of(settings: Mapping[str, Any]) -> str:
    """Return a short name for settings: the same for the same."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


PAPERS = ("--gray", "0", "--smooth", "1")
"""Options of `tue protect` for the paper's noise."""


class Results:
    """One results file: facts about the run, and cells that are written as they finish.

    A cell is known by its `settings`; a later one of equal settings but for those in `replacing`
    takes the place of the former. Two processes may fill one file.
    """

    def __init__(
        self, folder: Path, name: str, *, replacing: Sequence[str] = ("weights_sha256",)
    ) -> None:
        """`name` is the file's, without its extension."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        # Not beside the results: the lock's file outlives the lock.
        where = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        self._lock = FileLock(Path(tempfile.gettempdir()) / f"tue-results-{where}.lock")
        self._replacing = frozenset(replacing)

    def read(self) -> Facts:
        """Return what the file holds; nothing where there is none."""
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def cells(self) -> list[Facts]:
        """Return the cells that the file holds."""
        return list(self.read().get("cells", []))

    def find(self, settings: Mapping[str, Any]) -> Facts | None:
        """Return the cell of these settings, if it is finished."""
        key = key_of(settings)
        return next((cell for cell in self.cells() if cell["key"] == key), None)

    def add(self, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> Facts:
        """Write one finished cell and return it."""
        cell = {"key": key_of(settings), "settings": dict(settings), **figures}
        place = self._place(settings)

        def change(content: Facts) -> None:
            others = [c for c in content.get("cells", []) if self._place(c["settings"]) != place]
            content["cells"] = sorted([*others, cell], key=lambda c: self._place(c["settings"]))

        self._change(change)
        return cell

    def put(self, **facts: Any) -> None:
        """Write facts about the run as a whole."""
        self._change(lambda content: content.update(facts))

    def _place(self, settings: Mapping[str, Any]) -> str:
        kept = {name: settings[name] for name in settings if name not in self._replacing}
        return json.dumps(kept, sort_keys=True)

    def _change(self, change: Callable[[Facts], None]) -> None:
        with self._lock:
            content = self.read()
            change(content)
            scratch = self.path.with_suffix(".json-part")
            text = json.dumps(content, sort_keys=True, indent=1)
            scratch.write_text(f"{text}\n", encoding="utf-8")
            scratch.replace(self.path)


def in_work(arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], None]) -> None:
    """Measure in the folder `--work`, or in one of its own where none was given."""
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="tue-benchmark-") as folder:
        arguments.work = Path(folder)
        measure(arguments)


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a command under test: so many threads, none of which spins."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def protect_command(
    source: Path, output: Path, *, weights: str, device: str, options: Sequence[str] = ()
) -> list[str]:
    """Return the command that protects a folder, quietly and with its events as JSON."""
    named = ["--weights", weights, "--device", device]
    return [*TUE, "protect", str(source), "-o", str(output), *named, *options, "--json", "-q"]


def summary_of(stdout: str) -> Facts:
    """Return the last `done` object among the lines that the command wrote."""
    for line in reversed(stdout.splitlines()):
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "done":
                return event
    return {}


def keys_of(weights: Weights, source: Path, which: str) -> tuple[str, ...]:
    """Return each class folder's key: `farthest` from what the surrogate sees there, or `nearest`.

    That is so of all folders together, and every key is used once.
    """
    import numpy as np
    import torch
    from scipy.optimize import linear_sum_assignment

    from tue_cli.train.data import load_pictures
    from tue_cli.weights import build

    classes, pictures, _ = load_pictures(source, weights.card.size, 64)
    surrogate = build(weights, ("surrogate",))["surrogate"].eval()
    with torch.no_grad():
        odds = surrogate(pictures.pixels.float() / 255).log_softmax(1)
    near = [odds[pictures.labels == number].mean(0).numpy() for number in range(len(classes))]
    keys = linear_sum_assignment(
        np.stack(near), maximize={"nearest": True, "farthest": False}[which]
    )[1]
    return tuple(weights.card.classes[key] for key in keys)


def run_protect(
    source: Path,
    output: Path,
    *,
    weights: str,
    device: str,
    threads: int,
    options: Sequence[str] = (),
) -> Facts:
    """Run `tue protect` on a folder to its end and return its times, its memory and its counts.

    Raises SystemExit with what the command said where it did not protect every picture.
    """
    command = protect_command(source, output, weights=weights, device=device, options=options)
    done = subprocess.run(
        [sys.executable, "-c", _BETWEEN, *command],
        env=environment(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.rstrip().rpartition("\n")
    measured = json.loads(said[2]) if done.returncode == 0 else {"code": done.returncode}
    summary = summary_of(said[0])
    if measured["code"] or not summary:
        raise SystemExit(f"{shlex.join(command)} ended with {measured['code']}:\n{done.stderr}")
    in_bytes = measured["peak"] * (1 if sys.platform == "darwin" else 1024)
    return {
        "already_done": summary["already_done"],
        "engine_seconds": summary["engine_seconds"],
        "failed": summary["failed"],
        "job_seconds": summary["seconds"],
        "peak_mib": round(in_bytes / 2**20, 1),
        "protected": summary["protected"],
        "wall_seconds": round(measured["wall"], 3),
    }
