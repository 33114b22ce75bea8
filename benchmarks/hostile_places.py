"""Hostile surroundings for `hostile.py`: do they make `tue` touch an original, lose a copy, hang?

Each trial runs the command in a process of its own and a folder of its own. POSIX only.

- `links`: links, second names, pipes, files and folders are planted where an output has its own,
  before the run or in its midst.
- `faults`: system calls are refused or fail, folders are removed or moved away, or the run is
  killed; then the same command, undisturbed, must produce the copies of an undisturbed run.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tue_cli import cli
from tue_cli.dataset import journal
from tue_cli.dataset import output as output_folder
from tue_cli.engine.onnx import import_runtime
from tue_cli.storage import atomic, lines

Plan = dict[str, tuple[str, int, int]]
"""Calls that fail: the error's name, after how many calls, and how often."""
LIMIT = 60
"""Seconds after which a run counts as hanging."""
ORDERLY = {0, 1, 2, 4}
"""Exit codes of `tue protect` that the README has for what happens here."""
QUICK = ("--steps", "1", "--device", "cpu", "--backend", "onnx", "--labels", "folders")
PICTURES = 40
"""More than the engine takes at once, so that a run has a midst."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    code: int | None
    """None where it hung."""
    said: str

    def find_fault(self) -> str:
        """Return what was not orderly about it; or nothing."""
        if self.code is None:
            return f"still running after {LIMIT} seconds"
        if "Traceback" in self.said or self.said.count("Error:") > 1:
            return f"more than a sentence: {self.said[-2000:]}"
        return "" if self.code in ORDERLY else f"exit {self.code}: {self.said[-500:]}"


def protect(
    source: Path,
    output: Path,
    *options: str,
    plan: Plan | None = None,
    midst: Callable[[int], object] = lambda _: None,
    after: float = 0.0,
) -> Outcome:
    """Run `tue protect`; give `midst` its number once a copy is there and so many seconds are over.

    `plan` is what its file system gets wrong, as `spoil` takes it.
    """
    with tempfile.TemporaryFile() as said:
        number = os.fork()
        if not number:
            # What is imported already is not imported again, which would take most of the time.
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            spoil(plan or {})
            try:
                cli.main(["protect", str(source), "-o", str(output), *QUICK, *options])
            except SystemExit as ended:
                sys.stdout.flush()
                os._exit(int(ended.code or 0))
            except BaseException:
                traceback.print_exc()
            os._exit(99)
        began, is_over, code = time.monotonic(), False, None
        while code is None and time.monotonic() - began < LIMIT:
            if not is_over and any(output.glob("?/*.*")):
                time.sleep(after)
                midst(number)
                is_over = True
            time.sleep(0.001)
            ended_now, status = os.waitpid(number, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended_now else None
        if code is None:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
        said.seek(0)
        return Outcome(code, said.read().decode(errors="replace"))


def draw_folder(place: Path) -> Path:
    """Draw two class folders of small pictures, and a file that is none, all for the user alone."""
    noise = np.random.default_rng(0)
    for number in range(PICTURES):
        folder = place / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(40, 216, (40, 48, 3), np.uint8)
        name = f"p{number:02d}.{'png' if number % 3 else 'jpg'}"
        Image.fromarray(pixels).save(folder / name)
        (folder / name).chmod(0o600)
    (place / "letter.txt").write_text("Dear diary")
    return place


def list_contents(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return content, time and mode of all that lies below a folder, through no link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_symlink():
            # A folder's time tells of every entry that came or went.
            content = "folder"
        found[path.relative_to(folder).as_posix()] = (content, status.st_mtime_ns, status.st_mode)
    return found


def hash_copies(output: Path) -> dict[str, str]:
    """Return the hash of every file of an output but the manifest."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file() and path.parent != output
    }


@dataclass(frozen=True)
class Ground:
    """What the trials of `links` and `faults` start from."""

    originals: Path
    finished: Path
    """An output that a run has finished."""
    begun: Path
    """The same, as a kill may leave it."""


def make_ground(place: Path) -> Ground:
    """Make the originals, an output, and half an output."""
    import_runtime()  # once, for the runs to come
    originals = draw_folder(place / "originals")
    finished, begun = place / "finished", place / "begun"
    ended = protect(originals, finished)
    if ended.code:
        raise SystemExit(f"An undisturbed run failed: {ended.said}")
    shutil.copytree(finished, begun)
    whole = json.loads((begun / "tue-manifest.json").read_text())
    (begun / "tue-manifest.json").unlink()
    (begun / ".tue").mkdir()
    lines = [{"run": whole["run"]}, *whole["pictures"][: PICTURES // 3]]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (begun / ".tue" / "journal.jsonl").write_text(text + '{"path": "a/p')
    return Ground(originals, finished, begun)


Trial = Iterator[tuple[str, str]]
"""What each trial did, and what was wrong with it, or nothing."""


def try_links(place: Path, seed: int) -> Trial:
    """Plant what must not be followed; no original may change, whatever the command does."""
    base = make_ground(place)
    while True:
        draw = random.Random(seed)
        trial = place / f"trial-{seed}"
        originals, output = trial / "originals", trial / "out"
        shutil.copytree(base.originals, originals)
        start = draw.choice((None, base.finished, base.begun))
        if start is not None:
            shutil.copytree(start, output)
        output.mkdir(exist_ok=True)
        before = list_contents(originals)
        is_early = draw.random() < 0.6
        done: list[str] = []

        def plant(
            _: int, draw: random.Random = draw, trial: Path = trial, done: list[str] = done
        ) -> None:
            for _ in range(draw.choice((1, 1, 2))):
                done.append(plant_hostile(draw, trial))

        if is_early:
            plant(0)
        options = [f"--existing={draw.choice(('skip', 'overwrite', 'overwrite', 'error'))}"]
        options += draw.choice(([], [], ["--format", "png"], ["--dry-run"]))
        options += draw.choice(([], ["--jobs", "1"], ["--report", str(trial / "page.html")]))
        ended = protect(
            originals,
            output,
            *options,
            midst=(lambda _: None) if is_early else plant,
            after=draw.choice((0.0, 0.02, 0.2)),
        )
        wrong = ended.find_fault()
        if list_contents(originals) != before:
            wrong = f"the originals changed; exit {ended.code}: {ended.said[-300:]}"
        yield f"seed {seed}, {start and start.name}: {'; '.join(done)} {options}", wrong
        shutil.rmtree(trial)
        seed += 1


PARTS = (
    "",
    ".tue",
    ".tue/journal.jsonl",
    ".tue/lock",
    ".tue/scratch-0",
    "tue-manifest.json",
    "a",
    "b",
    "a/p00.jpg",
    "b/p01.png",
)
"""Of an output, that something may be planted in the place of."""


def plant_hostile(draw: random.Random, trial: Path) -> str:
    """Put something hostile in the place of a part of the output; say what, and where."""
    output, originals = trial / "out", trial / "originals"
    name = draw.choice(PARTS)
    target = originals / draw.choice(("", "a", "b", "a/p00.jpg", "b/p01.png", "letter.txt", "none"))
    kind = draw.choice(("link", "link", "link", "second name", "pipe", "file", "folder", "moved"))
    where = output / name
    if any(parent.is_symlink() for parent in (output, *where.parents) if parent != where):
        return "nothing (a link leads away)"
    try:
        if os.path.lexists(where):
            where.rename(trial / f"away-{draw.randrange(10**9)}")
        where.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            where.symlink_to(target)
        elif kind == "second name" and target.is_file():
            where.hardlink_to(target)
        elif kind == "pipe":
            os.mkfifo(where)
        elif kind == "file":
            where.write_bytes(b"stranger")
        elif kind == "folder":
            where.mkdir()
    except OSError as error:
        # The run was quicker, or what was planted before is in the way.
        return f"nothing ({error.strerror})"
    return f"{kind} at {name or 'the output'} to {target.relative_to(trial)}"


CALLS = [
    "chmod",
    "utime",
    "fsync",
    "open",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "stat",
    "fstat",
    "listdir",
    "close",
    "flock",
]
NUMBERS = ["EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "ENOLCK", "ENOSPC", "EIO", "EROFS"]
HARMLESS = {"chmod", "utime", "fsync", "flock"}
"""Calls that may be refused for good without a picture that fails."""
REFUSED = {"EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "ENOLCK"}


def try_faults(place: Path, seed: int) -> Trial:
    """Disturb a run; the same command must then end with the copies of an undisturbed one."""
    base = make_ground(place)
    expected = hash_copies(base.finished)
    while True:
        draw = random.Random(seed)
        trial = place / f"trial-{seed}"
        originals, output = trial / "originals", trial / "out"
        shutil.copytree(base.originals, originals)
        before = list_contents(originals)
        kind = draw.choice(("refused", "refused", "failing", "removed", "killed"))
        if kind == "killed":
            what, wrong = "killed", kill_run(draw, originals, output)
        elif kind == "removed":
            what, wrong = remove_part(draw, trial)
        else:
            what, wrong = fail_calls(draw, originals, output, refused=kind == "refused")
        again = protect(originals, output)
        if not wrong and (again.code or hash_copies(output) != expected):
            different = sorted(set(hash_copies(output).items()) ^ set(expected.items()))
            wrong = f"the next run: exit {again.code}, {different[:4]}: {again.said[-500:]}"
        if list_contents(originals) != before:
            wrong = "the originals changed"
        yield f"seed {seed}: {what}", wrong
        shutil.rmtree(trial)
        seed += 1


def kill_run(draw: random.Random, originals: Path, output: Path) -> str:
    """Kill a run."""
    ended = protect(
        originals,
        output,
        midst=lambda number: os.kill(number, signal.SIGKILL),
        after=draw.random() * 0.3,
    )
    return "" if ended.code == -signal.SIGKILL else ended.find_fault()


def remove_part(draw: random.Random, trial: Path) -> tuple[str, str]:
    """Remove or move a part of the output in the midst of a run: it ends at once, or was over."""
    output = trial / "out"
    name = draw.choice(("", ".tue", ".tue/journal.jsonl", ".tue/lock", "a", "b"))
    is_moved = draw.random() < 0.5

    def disturb(_: int) -> None:
        try:
            if is_moved:
                (output / name).rename(trial / "away")
            elif (output / name).is_dir():
                shutil.rmtree(output / name)
            else:
                (output / name).unlink()
        except OSError:
            pass  # the run was quicker

    after = draw.random() * 0.2
    ended = protect(trial / "originals", output, "--jobs", "1", midst=disturb, after=after)
    return f"{'moved' if is_moved else 'removed'} {name or 'the output'}", ended.find_fault()


def fail_calls(
    draw: random.Random, originals: Path, output: Path, *, refused: bool
) -> tuple[str, str]:
    """Let system calls be refused for good, or fail from some call on for a while."""
    plan: Plan = {}
    for call in draw.sample(sorted(HARMLESS) if refused else CALLS, draw.choice((1, 1, 2))):
        number = draw.choice(sorted(REFUSED) if refused else NUMBERS)
        if call == "flock" and number == "EACCES":
            number = "ENOLCK"  # EACCES is how shares say that another run holds the lock
        first = 0 if refused else draw.choice((0, 1, 3, 10, 30, 60))
        plan[call] = (number, first, 10**9 if refused else draw.choice((1, 3, 10**9)))
    ended = protect(originals, output, plan=plan)
    wrong = ended.find_fault()
    if not wrong and refused and (ended.code or ended.said.count("lacks some features") != 1):
        wrong = f"exit {ended.code}, not one note: {ended.said[-500:]}"
    return f"{plan}", wrong


def spoil(plan: Plan) -> None:
    """Let calls of what writes copies and journal fail, in this process."""
    counts: Counter[str] = Counter()

    def spoil_call(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*given: object, **options: object) -> object:
            number, first, many = plan[name]
            counts[name] += 1
            if first < counts[name] <= first + many:
                code = getattr(errno, number)
                raise OSError(code, os.strerror(code))
            return call(*given, **options)

        return run

    class Spoilt:
        """The module `os`, some of whose calls fail."""

        def __getattr__(self, name: str) -> object:
            found = getattr(os, name)
            return spoil_call(name, found) if name in plan else found

    for module in (atomic, lines, journal, output_folder):
        vars(module)["os"] = Spoilt()
    if "flock" in plan:
        vars(fcntl)["flock"] = spoil_call("flock", fcntl.flock)


KINDS: dict[str, Callable[[Path, int], Trial]] = {"links": try_links, "faults": try_faults}
