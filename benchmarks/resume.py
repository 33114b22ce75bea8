"""Whether `tue protect` writes the same bytes again, and after every kill -9 and resume.

    python -m benchmarks.resume --data DIR/tiny-imagenet-50b/train --weights NAME

Some 120 pictures in three class folders are protected twice, into two folders, and the trees are
compared. Then the command is started in a fresh folder, killed at a random moment (seeded; uniform
from 0.3 s to the full run's time), started again with the same words, and the tree compared with
the uninterrupted one: the same files with the same bytes, no file but copies and the manifest, and
no copy that was finished before the kill written anew. The manifests are compared but for what the
clock decides. A second series is killed while copies are being written: as soon as a random number
of them is there. Each kill is saved as it is done; a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import script
from benchmarks.command import build_environment, build_protect_command, read_summary
from benchmarks.rows import Row
from benchmarks.summary import format_table, summarize
from tue_cli.images.codec import SUFFIXES
from tue_cli.weights import load

MANIFEST = "tue-manifest.json"
CLOCK = frozenset({"seconds", "finished", "engine_seconds"})
"""Keys of the manifest, anywhere in it, that only the clock decides."""
EARLIEST = 0.3
"""Seconds from a start to the first moment at which it may be killed."""
POLL = 0.005
"""Seconds between two looks at a run."""


def copy_pictures(data: Path, classes: int, per_class: int, place: Path) -> Path:
    """Copy the first pictures of the first classes to a folder."""
    shutil.rmtree(place, ignore_errors=True)
    names = sorted(p.name for p in data.iterdir() if p.is_dir())[:classes]
    for name in names:
        (place / name).mkdir(parents=True)
        found = sorted(p for p in (data / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        for path in found[:per_class]:
            shutil.copy2(path, place / name / path.name)
    return place


def drop_times(value: Any) -> Any:
    """Return a manifest without what the clock decides."""
    if isinstance(value, dict):
        return {name: drop_times(part) for name, part in value.items() if name not in CLOCK}
    return [drop_times(part) for part in value] if isinstance(value, list) else value


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return all that lies below a folder, by relative path; folders end in a stroke."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = b""
        elif name == MANIFEST:
            manifest = drop_times(json.loads(path.read_bytes()))
            found[name] = json.dumps(manifest, sort_keys=True).encode()
        else:
            found[name] = path.read_bytes()
    return found


def list_differences(tree_a: dict[str, bytes], tree_b: dict[str, bytes]) -> list[str]:
    """Return the paths that only one tree has or that differ."""
    return sorted(name for name in tree_a | tree_b if tree_a.get(name) != tree_b.get(name))


def list_copies(output: Path) -> dict[str, tuple[int, int]]:
    """Return the finished copies in an output: inode and size by relative path."""
    found = {}
    for path in output.glob("*/*"):
        if path.suffix.lower() in SUFFIXES and path.parent.name != ".tue":
            status = path.stat()
            found[path.relative_to(output).as_posix()] = (status.st_ino, status.st_size)
    return found


class Runs:
    """The one command of this benchmark, with outputs that differ."""

    def __init__(self, arguments: argparse.Namespace, source: Path) -> None:
        """`source` is the folder of originals."""
        self._arguments = arguments
        self._source = source
        self._said = arguments.work / "stdout"
        self._complaints = arguments.work / "stderr"

    def _start(self, output: Path) -> subprocess.Popen[bytes]:
        given = self._arguments
        options = [] if given.jobs is None else ["--jobs", str(given.jobs)]
        command = build_protect_command(
            self._source, output, weights=given.weights, device=given.device, options=options
        )
        with self._said.open("wb") as said, self._complaints.open("wb") as complaints:
            return subprocess.Popen(
                command,
                env=build_environment(given.threads),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complaints,
            )

    def run_whole(self, output: Path) -> Row:
        """Run the command to its end; return its code, its summary and its times."""
        began, first = time.monotonic(), None
        process = self._start(output)
        while process.poll() is None:
            if first is None and list_copies(output):
                first = time.monotonic() - began
            time.sleep(POLL)
        return {
            "code": process.returncode,
            "first_copy": first,
            "seconds": time.monotonic() - began,
            "stderr": self._complaints.read_text(encoding="utf-8", errors="replace"),
            "summary": read_summary(self._said.read_text(encoding="utf-8")),
        }

    def run_killed(self, output: Path, after: float, copies_first: int) -> tuple[bool, float]:
        """Start the command; kill it after so many seconds, and not before so many copies.

        Returns whether it had ended by itself, and how long it ran.
        """
        began = time.monotonic()
        process = self._start(output)
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            while process.poll() is None and len(list_copies(output)) < copies_first:
                time.sleep(POLL)
        ended = process.poll() is not None
        process.kill()
        process.wait()
        return ended, time.monotonic() - began


def kill_and_resume(
    runs: Runs, output: Path, after: float, copies_first: int, reference: dict[str, bytes]
) -> Row:
    """Kill a run, resume it, and compare what it leaves with an uninterrupted one."""
    shutil.rmtree(output, ignore_errors=True)
    ended, ran = runs.run_killed(output, after, copies_first)
    before = list_copies(output)
    done = ended or (output / MANIFEST).exists()
    wrong = [path for path in before if (output / path).read_bytes() != reference.get(path)]
    resumed = runs.run_whole(output)
    found = read_tree(output)
    later = list_copies(output)
    phase = "after" if done else "within" if before else "before"
    return {
        "already_done": resumed["summary"].get("already_done"),
        "copies_at_kill": len(before),
        "differing": list_differences(found, reference)[:20],
        "equal": found == reference,
        "exit_code": resumed["code"],
        "killed_after": round(ran, 3),
        "phase": phase,
        "rewritten": sum(later.get(path) != status for path, status in before.items()),
        "stderr": resumed["stderr"][-500:],
        "strays": sorted(set(found) - set(reference))[:20],
        "unfinished_copies_in_place": wrong[:20],
    }


def run_twice(runs: Runs, source: Path, work: Path) -> tuple[dict[str, bytes], float, Row]:
    """Protect a folder twice; return the first tree, the shorter time, and how they compare."""
    trees, times = [], []
    for name in ("reference", "again"):
        output = work / name
        shutil.rmtree(output, ignore_errors=True)
        run = runs.run_whole(output)
        if run["code"] or not run["summary"]:
            raise SystemExit(f"tue protect ended with {run['code']}:\n{run['stderr']}")
        script.note(f"uninterrupted: {run['seconds']:.1f} s, first copy at {run['first_copy']} s")
        trees.append(read_tree(output))
        times.append(run)
    files = {name for name in trees[0] if not name.endswith("/")}
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*.*")} | {MANIFEST}
    return (
        trees[0],
        min(run["seconds"] for run in times),
        {
            "differing": list_differences(*trees)[:20],
            "equal": trees[0] == trees[1],
            "files": len(files),
            "first_copy_seconds": [round(run["first_copy"] or 0.0, 3) for run in times],
            "missing": sorted(expected - files)[:20],
            "strays": sorted(files - expected)[:20],
            "seconds": round(sum(run["seconds"] for run in times), 3),
        },
    )


def summarize_kills(rows: Sequence[Row]) -> Row:
    """Return what all kills of a series came to."""
    phases = Counter(row["phase"] for row in rows)
    return {
        "kills": len(rows),
        "phases": {name: phases[name] for name in ("before", "within", "after")},
        "equal": sum(row["equal"] for row in rows),
        "exit_0": sum(row["exit_code"] == 0 for row in rows),
        "with_strays": sum(bool(row["strays"]) for row in rows),
        "with_unfinished_copies": sum(bool(row["unfinished_copies_in_place"]) for row in rows),
        "with_rewritten_copies": sum(row["rewritten"] > 0 for row in rows),
        "copies_at_kill": summarize((row["copies_at_kill"] for row in rows), 1),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "resume")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder of class folders")
    add("--weights", required=True, help="name or file")
    add("--classes", type=int, default=3)
    add("--per-class", type=int, default=40)
    add("--kills", type=int, default=20, help="at any moment of a run")
    add(
        "--writing-kills", type=int, default=10, help="as soon as 1 to all but one copies are there"
    )
    add("--seed", type=int, default=0, help="of the moments")
    add("--jobs", type=int, help="of tue protect")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Make the reference, then kill and resume as often as is still missing."""
    work = arguments.work
    source = copy_pictures(
        arguments.data, arguments.classes, arguments.per_class, work / "pictures"
    )
    rows = script.open_rows(arguments, dtype="chosen by tue", device=arguments.device)
    runs = Runs(arguments, source)
    reference, full, figures = run_twice(runs, source, work)
    settings = {
        "classes": arguments.classes,
        "data": arguments.data.resolve().name,
        "device": arguments.device,
        "jobs": arguments.jobs,
        "per_class": arguments.per_class,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "weights_sha256": load(arguments.weights).sha256,
    }
    twice = rows.add("resume: twice", settings, **figures, seed=arguments.seed, n=2)
    count = len(list_copies(work / "reference"))
    series = {"any moment": arguments.kills, "while writing": arguments.writing_kills}
    found: dict[str, list[Row]] = {title: [] for title in series}
    for title, kills in series.items():
        for number in range(kills):
            asked = {**settings, "kill": number, "series": title}
            row = rows.find("resume: kill", asked)
            if row is None:
                after, least = choose_moment(title, number, arguments.seed, full, count)
                began = time.monotonic()
                kill = kill_and_resume(runs, work / "killed", after, least, reference)
                seconds = round(time.monotonic() - began, 3)
                row = rows.add(
                    "resume: kill", asked, **kill, seed=arguments.seed, n=1, seconds=seconds
                )
                script.note(f"{title} {number + 1}/{kills}: {describe_kill(row)}")
            found[title].append(row)
    say_all(twice, {title: summarize_kills(kills) for title, kills in found.items() if kills})


def choose_moment(title: str, number: int, seed: int, full: float, count: int) -> tuple[float, int]:
    """Return after how many seconds, and how many copies, a run is killed, by a kill's number.

    `full` are the seconds of a whole run, which makes `count` copies.
    """
    share = random.Random(f"{seed}/{title}/{number}").random()
    if title == "while writing":
        return EARLIEST, 1 + int(share * (count - 1))
    return EARLIEST + share * max(0.0, full - EARLIEST), 0


def describe_kill(row: Row) -> str:
    """Return what became of a kill, in a line."""
    return (
        f"killed after {row['killed_after']:.2f} s, {row['phase']} writing, "
        f"{row['copies_at_kill']} copies; {'equal' if row['equal'] else 'DIFFERS'}"
    )


def say_all(twice: Row, sums: dict[str, Row]) -> None:
    """Print what the two whole runs and the kills of every series came to."""
    script.say(
        f"Twice uninterrupted, {twice['files']} files: "
        f"{'equal' if twice['equal'] else 'DIFFERENT'}; strays: {len(twice['strays'])}.\n"
    )
    head = ["killed", "kills", "before writing", "within", "after", "equal", "exit 0"]
    lines = [
        [
            title,
            figures["kills"],
            *(figures["phases"][name] for name in ("before", "within", "after")),
            figures["equal"],
            figures["exit_0"],
            figures["with_strays"],
            figures["with_unfinished_copies"],
            figures["with_rewritten_copies"],
        ]
        for title, figures in sums.items()
    ]
    script.say(format_table([*head, "strays", "unfinished copies", "rewritten"], lines))


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
