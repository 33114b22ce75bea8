"""Data sets in object storage: how fast, how flat in memory, and whether kills lose anything.

    python -m benchmarks.shards --weights NAME

Small JPEGs in tar shards lie in an S3 server (moto's) on loopback. `plain`: as many single-threaded
processes as there are workers protect local shards in a plain loop, without S3, a manifest or a
plan. `ray`: `tue protect s3://… --engine ray` does so with as many workers; its shards are compared
with those of one machine, and the memory of its workers is watched. `kills`: a worker is killed, or
the driver, and the run is started again if need be; the shards are compared with those of a whole
run. `parts`: what a picture takes, by part of the work; `benchmarks.scale` makes a model of it.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import script
from benchmarks.command import SECRET, TUE, build_environment
from benchmarks.rows import Rows
from benchmarks.summary import summarize
from tue_cli.config import ProtectSettings
from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.secret import parse_secret
from tue_cli.images import codec
from tue_cli.protect.context import BATCH
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.sharding import open_alone

CLASSES = 10
QUALITY = 90
LOOK = 0.5
"""Seconds between two looks at the memory of workers."""
PARTS = ("read", "decode", "engine", "encode", "write")


def draw_picture(number: int, side: int) -> bytes:
    """Return a JPEG with a colour of its class and texture of several sizes."""
    levels = np.random.default_rng(number)
    pixels = np.full((side, side, 3), 128.0) + levels.normal(0, 12, (side, side, 3))
    for cells in (2, 4, 8, 16):
        coarse = levels.normal(0, 22, (cells, cells, 3))
        pixels += np.kron(coarse, np.ones((-(-side // cells),) * 2 + (1,)))[:side, :side]
    pixels += 30 * np.random.default_rng(number % CLASSES).normal(size=3)
    made = io.BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    picture.save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def make_shards(folder: Path, shards: int, pictures: int, side: int) -> Path:
    """Write so many pictures in tar shards of WebDataset's layout; one that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        place = folder / f"part-{shard:05d}.tar"
        numbers = range(shard * pictures // shards, (shard + 1) * pictures // shards)
        if place.exists():
            continue
        with tarfile.open(place.with_suffix(".new"), "w") as tar:
            for number in numbers:
                label = str(number % CLASSES).encode()
                for end, data in (("jpg", draw_picture(number, side)), ("cls", label)):
                    about = tarfile.TarInfo(f"{number:08d}.{end}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
        place.with_suffix(".new").rename(place)
    return folder


@contextmanager
def serve_bucket(folder: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """Yield the environment of an S3 server on loopback that has the shards, and its files."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    address = next(line.split()[-1] for line in server.stdout if "Running on" in line)
    # What it says of every request must not fill the pipe.
    drain = subprocess.Popen(["cat"], stdin=server.stdout, stdout=subprocess.DEVNULL)
    own = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ.update(own)
    try:
        import s3fs

        system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("bucket")
        for path in sorted(folder.glob("*.tar")):
            system.put_file(str(path), f"bucket/in/{path.name}")
        yield own, system
    finally:
        server.kill()
        server.wait()
        drain.wait()


def build_command(
    source: str, output: str, arguments: argparse.Namespace, *options: str
) -> list[str]:
    """Return the command that protects shards."""
    own = ["--weights", arguments.weights, "--device", arguments.device]
    workers = ["--jobs", str(arguments.workers), "--steps", str(arguments.steps)]
    return [*TUE, "protect", source, "-o", output, *own, *workers, *options, "--json", "-q"]


def run_command(command: Sequence[str]) -> tuple[list[dict[str, Any]], float, dict[str, Any]]:
    """Run a command; return its events, its wall time and what its workers' memory was."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=build_environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watched: list[tuple[float, int, int]] = []
    os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
    said = ""
    while process.poll() is None:
        with suppress(TypeError, BlockingIOError):
            said += process.stdout.read() or ""  # type: ignore[union-attr]
        for worker in find_workers():
            with suppress(OSError, StopIteration, ValueError):
                watched.append((time.monotonic() - began, worker, read_memory(worker)))
        time.sleep(LOOK)
    said += process.stdout.read() or ""  # type: ignore[union-attr]
    wall = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}:\n{process.communicate()[1]}")
    return [json.loads(line) for line in said.splitlines()], wall, describe_memory(watched)


def find_workers() -> list[int]:
    """Return the processes in which Ray runs workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(entry.name))
    return found


def read_memory(process: int) -> int:
    """Return a process's resident bytes that are its own."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def describe_memory(watched: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    """Return each worker's largest memory in the second and in the last quarter of its life."""
    by_worker: dict[int, list[int]] = {}
    for _, worker, used in watched:
        by_worker.setdefault(worker, []).append(used)
    long = [seen for seen in by_worker.values() if len(seen) >= 12]
    early = [max(seen[len(seen) // 4 : len(seen) // 2]) for seen in long]
    late = [max(seen[3 * len(seen) // 4 :]) for seen in long]
    if not long:
        return {"workers": 0}
    return {
        "workers": len(long),
        "peak_mib": round(max(map(max, long)) / 2**20, 1),
        "late_over_early": round(max(b / a for a, b in zip(early, late, strict=True)), 3),
    }


def protect_plainly(places: Sequence[Path], weights: str, steps: int) -> None:
    """Protect the pictures of local shards in a plain loop, and keep nothing."""
    noise: Any = ProtectSettings().noise
    settings = ProtectSettings(noise=type(noise)(steps=steps))
    spec = ProtectSpec((), settings=settings, weights=weights, device="cpu")
    copier = open_alone(spec, parse_secret(SECRET, "benchmark"))
    codes = copier.weights.card.classes
    for place in places:
        held = []
        with tarfile.open(place) as tar, tarfile.open(fileobj=io.BytesIO(), mode="w") as made:
            for member in tar:
                opened = tar.extractfile(member)
                assert opened is not None
                if member.name.endswith(".jpg"):
                    held.append(opened.read())
            for start in range(0, len(held), BATCH):
                batch = [
                    copier.prepare(codec.decode(data), sha256(data), Path("copy.jpg"))
                    for data in held[start : start + BATCH]
                ]
                deltas = copier.perturb(batch, [codes[0]] * len(batch))
                for ready, delta in zip(batch, deltas, strict=True):
                    data = copier.finish(ready, delta).encoded.data
                    about = tarfile.TarInfo("copy.jpg")
                    about.size = len(data)
                    made.addfile(about, io.BytesIO(data))


def measure_plain(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return how long plain processes take for all shards."""
    places = sorted(folder.glob("*.tar"))
    context = multiprocessing.get_context("spawn")
    began = time.monotonic()
    processes = [
        context.Process(
            target=protect_plainly,
            args=(places[n :: arguments.workers], arguments.weights, arguments.steps),
        )
        for n in range(arguments.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a plain process failed")
    wall = time.monotonic() - began
    return {"wall_seconds": round(wall, 2), "pictures_a_second": arguments.pictures / wall}


def measure_ray(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return how long Ray takes through S3, and whether its shards are those of one machine."""
    plain = measure_plain(arguments, folder)
    local = arguments.work / "local"
    events, _, _ = run_command(build_command(folder.as_uri(), local.as_uri(), arguments))
    with serve_bucket(folder) as (_, system):
        command = build_command("s3://bucket/in", "s3://bucket/out", arguments, "--engine", "ray")
        events, wall, memory = run_command(command)
        equal = [
            system.cat_file(f"bucket/out/{path.name}") == path.read_bytes()
            for path in sorted(local.glob("*.tar"))
        ]
    rate = arguments.pictures / wall
    spent: Counter[str] = Counter()
    for event in events:
        if event["event"] == "saved":
            spent.update(event["seconds"])
    busy = sum(spent.values())
    return {
        "plain": plain,
        "wall_seconds": round(wall, 2),
        "pictures_a_second": rate,
        "over_plain": round(rate / plain["pictures_a_second"], 3),
        # Of the time in which shards are made, without starting, reading labels and stopping.
        "workers_busy_seconds": round(busy, 2),
        "equal_shards": sum(equal),
        "memory": memory,
    }


def measure_kill(
    arguments: argparse.Namespace, folder: Path, kind: str, seed: int
) -> dict[str, Any]:
    """Kill a worker or the driver of a run at a random moment; return how it ended."""
    chance = random.Random(seed)
    output = arguments.work / f"killed-{kind}-{seed}"
    command = build_command(folder.as_uri(), output.as_uri(), arguments, "--engine", "ray")
    parts = output / ".tue" / "parts"
    after = chance.randrange(0, max(1, arguments.kill_shards - 1))
    process = subprocess.Popen(
        command, env=build_environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def is_time() -> bool:
        finished = len(list(parts.iterdir())) if parts.is_dir() else 0
        return finished >= after and bool(list((output / ".tue").glob("tue-scratch-*")))

    while process.poll() is None and not is_time():
        time.sleep(0.01)
    time.sleep(chance.random() * 0.3)
    killed = process.poll() is None
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*")} if killed else {}
    if kind == "driver":
        process.kill()
    elif found := find_workers():
        with suppress(ProcessLookupError):
            os.kill(chance.choice(found), signal.SIGKILL)
    code = process.wait()
    if kind == "driver":
        while find_workers():
            time.sleep(0.1)
        code = subprocess.run(
            command, env=build_environment(1), capture_output=True, check=False
        ).returncode
    stayed = all(path.exists() and path.stat().st_mtime_ns == at for path, at in finished.items())
    return {
        "killed": killed,
        "after_shards": after,
        "code": code,
        "finished_stayed": stayed,
        "equal": read_shards(output) == read_shards(arguments.work / "whole"),
    }


def read_shards(output: Path) -> dict[str, str]:
    """Return the digest of every file of an output, of its manifest too."""
    files = (path for path in output.rglob("*") if path.is_file() and "scratch" not in path.name)
    return {path.relative_to(output).as_posix(): sha256(path) for path in files}


def measure_kills(arguments: argparse.Namespace, rows: Rows) -> None:
    """Kill workers and drivers, each as often as was asked for."""
    folder = make_shards(
        arguments.work / "small", arguments.kill_shards, 40 * arguments.kill_shards, 48
    )
    run_command(build_command(folder.as_uri(), (arguments.work / "whole").as_uri(), arguments))
    for kind in ("worker", "driver"):
        for seed in range(arguments.kills):
            about = {"kind": kind, "shards": arguments.kill_shards, "steps": arguments.steps}
            settings = {**about, "seed": seed, "weights": arguments.weights}
            if rows.is_missing("shards: kill", settings):
                began = time.monotonic()
                found = measure_kill(arguments, folder, kind, seed)
                seconds = round(time.monotonic() - began, 1)
                rows.add("shards: kill", settings, seed=seed, n=1, seconds=seconds, **found)
                script.say(f"kill of a {kind}, seed {seed}: {found}")


def measure_parts(arguments: argparse.Namespace, side: int) -> dict[str, Any]:
    """Return what a picture takes on one thread, in seconds by part, and its bytes."""
    shards, pictures = 4, arguments.part_pictures
    folder = make_shards(arguments.work / f"parts-{side}", shards, pictures, side)
    output = arguments.work / f"parts-{side}-out"
    with serve_bucket(folder):
        one = argparse.Namespace(**{**vars(arguments), "workers": 1})
        command = build_command("s3://bucket/in", f"s3://bucket/{output.name}", one)
        events, wall, _ = run_command(command)
    each: dict[str, list[float]] = {name: [] for name in PARTS}
    for event in events:
        if event["event"] == "saved":
            for name in PARTS:
                each[name].append(event["seconds"].get(name, 0.0) / event["protected"])
    saved = [event for event in events if event["event"] == "saved"]
    return {
        "seconds_each": {name: summarize(values, 6) for name, values in each.items()},
        "bytes_in": sum(p.stat().st_size for p in folder.glob("*.tar")) / pictures,
        "bytes_out": sum(event["bytes"] for event in saved) / pictures,
        "start_seconds": round(wall - sum(sum(e["seconds"].values()) for e in saved), 2),
        "engine": next(e["engine"] for e in events if e.get("title") == "Protecting"),
    }


def measure(arguments: argparse.Namespace) -> None:
    """Measure what was asked for and has no row yet."""
    rows = script.open_rows(arguments, dtype="as the engine chooses", device=arguments.device)
    about = {"weights": arguments.weights, "steps": arguments.steps}
    if "ray" in arguments.only:
        sizes = {"pictures": arguments.pictures, "shards": arguments.shards, "side": arguments.side}
        settings = {**about, **sizes, "workers": arguments.workers}
        if rows.is_missing("shards: ray", settings):
            folder = make_shards(arguments.work / "in", *sizes_of(arguments))
            began = time.monotonic()
            found = measure_ray(arguments, folder)
            seconds = round(time.monotonic() - began, 1)
            rows.add(
                "shards: ray", settings, seed=0, n=arguments.pictures, seconds=seconds, **found
            )
            script.say(f"Ray: {found}")
    if "parts" in arguments.only:
        for side in script.parse_numbers(arguments.sides):
            settings = {**about, "side": side, "pictures": arguments.part_pictures}
            if rows.is_missing("shards: parts", settings):
                began = time.monotonic()
                found = measure_parts(arguments, side)
                seconds = round(time.monotonic() - began, 1)
                n = arguments.part_pictures
                rows.add("shards: parts", settings, seed=0, n=n, seconds=seconds, **found)
                script.say(f"parts at {side}: {found}")
    if "kills" in arguments.only:
        measure_kills(arguments, rows)


def sizes_of(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Return the number of shards and pictures, and the side of a picture."""
    return arguments.shards, arguments.pictures, arguments.side


def main() -> None:
    parser = script.make_parser(__doc__, "shards")
    add = parser.add_argument
    add("--weights", default="cifar10")
    add("--only", type=lambda text: text.split(","), default=["ray", "parts", "kills"])
    add("--pictures", type=int, default=20_000)
    add("--shards", type=int, default=40)
    add("--side", type=int, default=64)
    add("--workers", type=int, default=2)
    add("--steps", type=int, default=ProtectSettings().noise.steps)  # type: ignore[attr-defined]
    add("--kills", type=int, default=20, help="of a worker, and of the driver")
    add("--kill-shards", type=int, default=6)
    add("--sides", default="64,500", help="of the pictures whose parts are measured")
    add("--part-pictures", type=int, default=256)
    script.run(parser.parse_args(), measure)


if __name__ == "__main__":
    main()
