"""Data sets in object storage: how fast, how flat in memory, and whether kills lose anything.

    python -m benchmarks.shards --weights NAME --work FOLDER [--only plain,local,ray,parts,kills]

Small JPEGs in tar shards lie in an S3 server (moto's) on loopback.

- `plain`: as many single-threaded processes as there are workers protect local shards in a plain
  loop, without S3, a manifest or a plan, and do not measure the copies.
- `local`: `tue protect file://…` protects the same shards with as many processes, without S3 and
  Ray.
- `ray`: `tue protect s3://… --engine ray` does so with as many workers. Its shards are compared
  with those of one machine, and its memory is watched. It needs the row of `plain`.
- `parts`: what a picture takes, by part of the work; `benchmarks.scale` makes a model of it.
- `kills`: a worker is killed, or the driver, while shards go from S3 to S3, and the run is started
  again if need be. All that it leaves is compared with what a whole run of one machine leaves.

Each row is written once it is known, and not measured again; `--work` keeps the shards, too.
Nothing else may run on the machine: Ray gives its workers a low priority (niceness 15), so other
work slows them more than the plain processes.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import script
from benchmarks.command import SECRET, TUE, build_environment
from benchmarks.rows import Rows, identify_machine
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
LOOK = 2.0
"""Seconds between two looks at the memory of workers."""
POINTS = 12
"""Of the curve of a worker's memory."""
ANY_WORKER = b"ray::Map"
"""Prefix of the titles of the processes in which Ray protects shards or reads labels."""
ATTEMPTS = 5
"""How often a run is tried again that was over before the kill."""
KILL_PICTURES = 40
"""Of a shard of a run that is killed."""
ALL = ("plain", "local", "ray", "parts", "kills")
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
def serve_bucket(folder: Path) -> Iterator[Any]:
    """Yield a client of an S3 server on loopback that has the shards in bucket/in.

    The environment has the server's address. The bucket keeps every version of an object.
    """
    import boto3

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
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        store = boto3.client("s3")
        store.create_bucket(Bucket="bucket")
        store.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
        for path in sorted(folder.glob("*.tar")):
            store.upload_file(str(path), "bucket", f"in/{path.name}")
        yield store
    finally:
        server.kill()
        server.wait()
        drain.wait()


def list_versions(store: Any, folder: str) -> dict[str, tuple[str, str]]:
    """Return the ETag and the version of each object below a folder of the bucket."""
    pages = store.get_paginator("list_object_versions").paginate(
        Bucket="bucket", Prefix=f"{folder}/"
    )
    return {
        found["Key"].removeprefix(f"{folder}/"): (found["ETag"], found["VersionId"])
        for page in pages
        for found in page.get("Versions", ())
        if found["IsLatest"]
    }


def build_command(
    source: str, output: str, arguments: argparse.Namespace, *options: str
) -> list[str]:
    """Return the command that protects shards."""
    own = ["--weights", arguments.weights, "--device", arguments.device]
    workers = ["--jobs", str(arguments.workers), "--steps", str(arguments.steps)]
    return [*TUE, "protect", source, "-o", output, *own, *workers, *options, "--json", "-q"]


def run_command(command: Sequence[str]) -> tuple[list[dict[str, Any]], float, dict[str, Any]]:
    """Run a command; return its events, its wall time and how much memory it and its workers had.

    Raises SystemExit with what the command said where it did not end with 0.
    """
    began = time.monotonic()
    watched: list[tuple[int, int]] = []
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as problems:
        process = subprocess.Popen(command, env=build_environment(1), stdout=said, stderr=problems)
        while process.poll() is None:
            for number in (process.pid, *find_workers()):
                with suppress(OSError, StopIteration, ValueError):
                    watched.append((number, read_memory(number)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
        wall = time.monotonic() - began
        said.seek(0)
        problems.seek(0)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}:\n{problems.read()}")
        return [json.loads(line) for line in said], wall, describe_memory(process.pid, watched)


def find_workers(prefix: bytes = b"ray::MapWorker") -> list[int]:
    """Return the processes whose titles begin so; by default those that protect shards."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(prefix):
                found.append(int(entry.name))
    return found


def read_memory(process: int) -> int:
    """Return a process's resident bytes that are its own."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def describe_memory(driver: int, watched: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the memory of the driver and of the workers that lived long, in MiB.

    `late_over_early` is the largest ratio of a worker's most memory in the last quarter of its life
    to that in the second; `curve` is that of the worker that was seen most often.
    """
    by_process: dict[int, list[float]] = {}
    for number, used in watched:
        by_process.setdefault(number, []).append(round(used / 2**20, 1))
    own = by_process.pop(driver, [0.0])
    long = [seen for seen in by_process.values() if len(seen) >= 12]
    told: dict[str, Any] = {"workers": len(long), "driver_peak_mib": max(own)}
    if long:
        early = [max(seen[len(seen) // 4 : len(seen) // 2]) for seen in long]
        late = [max(seen[3 * len(seen) // 4 :]) for seen in long]
        longest = max(long, key=len)
        told |= {
            "peak_mib": max(map(max, long)),
            "late_over_early": round(max(b / a for a, b in zip(early, late, strict=True)), 3),
            "curve_mib": [longest[place * len(longest) // POINTS] for place in range(POINTS)],
        }
    return told


def protect_plainly(places: Sequence[Path], weights: str, steps: int) -> None:
    """Protect the pictures of local shards in a plain loop, and keep nothing."""
    noise: Any = ProtectSettings().noise
    settings = ProtectSettings(noise=replace(noise, steps=steps))
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


def measure_local(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return how long `tue protect` takes for all shards without S3 and Ray."""
    local = arguments.work / "local"
    shutil.rmtree(local, ignore_errors=True)
    _, wall, _ = run_command(build_command(folder.as_uri(), local.as_uri(), arguments))
    return {"wall_seconds": round(wall, 2), "pictures_a_second": arguments.pictures / wall}


def measure_ray(
    arguments: argparse.Namespace, folder: Path, plain: dict[str, Any]
) -> dict[str, Any]:
    """Return how long Ray takes through S3, and whether its shards are those of one machine."""
    local = arguments.work / "local"
    run_command(build_command(folder.as_uri(), local.as_uri(), arguments))
    with serve_bucket(folder) as store:
        command = build_command("s3://bucket/in", "s3://bucket/out", arguments, "--engine", "ray")
        events, wall, memory = run_command(command)
        made = {
            name: store.get_object(Bucket="bucket", Key=f"out/{name}")["Body"].read()
            for name in list_versions(store, "out")
            if name.endswith(".tar")
        }
    whole = {path.name: path.read_bytes() for path in local.glob("*.tar")}
    rate = arguments.pictures / wall
    saved = [event for event in events if event["event"] == "saved"]
    return {
        "plain": {name: plain[name] for name in ("wall_seconds", "pictures_a_second", "when")},
        "wall_seconds": round(wall, 2),
        "pictures_a_second": rate,
        "over_plain": round(rate / plain["pictures_a_second"], 3),
        # Of the time in which shards are made, without starting, reading labels and stopping.
        "workers_busy_seconds": round(sum(sum(event["seconds"].values()) for event in saved), 2),
        "protected": sum(event["protected"] for event in saved),
        "equal_shards": sum(made.get(name) == data for name, data in whole.items()),
        "other_shards": len(made.keys() - whole.keys()),
        "memory": memory,
    }


def measure_kill(
    arguments: argparse.Namespace,
    store: Any,
    whole: dict[str, tuple[str, str]],
    kind: str,
    seed: int,
    attempt: int,
) -> dict[str, Any]:
    """Kill a worker or the driver of a run at a random moment; return how it ended.

    `whole` is what an undisturbed run leaves: the ETag and version of each object, by name.

    Raises SystemExit for a run that fails by itself.
    """
    chance = random.Random(f"{kind} {seed} {attempt}")
    folder = f"killed-{kind}-{seed}-{attempt}"
    command = build_command("s3://bucket/in", f"s3://bucket/{folder}", arguments, "--engine", "ray")
    # From 0, which is while labels are read; two workers finish the last two shards together.
    after, pause = chance.randrange(max(1, arguments.kill_shards - 1)), 2 * chance.random()
    process = subprocess.Popen(
        command, env=build_environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if find_workers(ANY_WORKER) and len(list_finished(store, folder)) >= after:
            break
        time.sleep(0.05)
    time.sleep(pause)
    finished = list_finished(store, folder)
    victims = [process.pid] if kind == "driver" else find_workers(ANY_WORKER)
    killed = False
    if process.poll() is None and len(finished) < arguments.kill_shards and victims:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(victims), signal.SIGKILL)
            killed = True
    code = process.wait()
    if code and not killed:
        raise SystemExit(f"{command} ended with {code}, though nothing was killed")
    if kind == "driver" and killed:
        while find_workers(ANY_WORKER):
            time.sleep(0.1)
        again = subprocess.run(command, env=build_environment(1), capture_output=True, check=False)
        code = again.returncode
    left = list_versions(store, folder)
    return {
        "killed": killed,
        "after_shards": len(finished),
        "code": code,
        "finished_stayed": all(left.get(name) == found for name, found in finished.items()),
        "equal": {n: tag for n, (tag, _) in left.items()} == {n: t for n, (t, _) in whole.items()},
    }


def list_finished(store: Any, folder: str) -> dict[str, tuple[str, str]]:
    """Return the finished shards of an output, those with a part of the manifest, and versions."""
    found = list_versions(store, folder)
    parts = [name.removeprefix(".tue/parts/") for name in found if name.startswith(".tue/parts/")]
    return {name: found[name] for part in parts if (name := part.rsplit(".", 2)[0]) in found}


def measure_kills(arguments: argparse.Namespace, rows: Rows) -> None:
    """Kill workers and drivers, each as often as was asked for."""
    about = {"shards": arguments.kill_shards, "steps": arguments.steps, "through": "S3"}
    settings = [
        {**about, "kind": kind, "seed": seed, "weights": arguments.weights}
        for seed in range(arguments.kills)
        for kind in ("worker", "driver")
    ]
    missing = [asked for asked in settings if rows.is_missing("shards: kill", asked)]
    if not missing:
        return
    pictures = KILL_PICTURES * arguments.kill_shards
    folder = make_shards(arguments.work / "small", arguments.kill_shards, pictures, 48)
    with serve_bucket(folder) as store:
        run_command(build_command("s3://bucket/in", "s3://bucket/whole", arguments))
        whole = list_versions(store, "whole")
    for asked in missing:
        began = time.monotonic()
        # A new server for each, since a server keeps everything in memory that it was ever sent.
        with serve_bucket(folder) as store:
            for attempt in range(ATTEMPTS):
                kind, seed = asked["kind"], asked["seed"]
                found = measure_kill(arguments, store, whole, kind, seed, attempt)
                if found["killed"]:
                    break
        seconds = round(time.monotonic() - began, 1)
        rows.add("shards: kill", asked, seed=asked["seed"], n=1, seconds=seconds, **found)
        script.say(f"kill of a {asked['kind']}, seed {asked['seed']}: {found}")


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
    if arguments.device != "cpu":
        about["device"] = arguments.device
    sizes = {"pictures": arguments.pictures, "shards": arguments.shards, "side": arguments.side}
    whole = {**about, **sizes, "workers": arguments.workers}
    if "plain" in arguments.only and rows.is_missing("shards: plain", whole):
        folder = make_all_shards(arguments)
        add_row(rows, "plain", whole, arguments.pictures, lambda: measure_plain(arguments, folder))
    if "local" in arguments.only and rows.is_missing("shards: local", whole):
        folder = make_all_shards(arguments)
        add_row(rows, "local", whole, arguments.pictures, lambda: measure_local(arguments, folder))
    if "ray" in arguments.only and rows.is_missing("shards: ray", whole):
        plain = rows.find("shards: plain", whole)
        if plain is None or identify_machine(plain) != identify_machine(rows.facts):
            raise SystemExit("There is no row of `plain` of this machine; add it to --only.")
        folder = make_all_shards(arguments)
        add_row(
            rows, "ray", whole, arguments.pictures, lambda: measure_ray(arguments, folder, plain)
        )
    if "parts" in arguments.only:
        for side in script.parse_numbers(arguments.sides):
            settings = {**about, "side": side, "pictures": arguments.part_pictures}
            if rows.is_missing("shards: parts", settings):
                n = arguments.part_pictures
                add_row(rows, "parts", settings, n, partial(measure_parts, arguments, side))
    if "kills" in arguments.only:
        measure_kills(arguments, rows)


def add_row(
    rows: Rows, name: str, settings: dict[str, Any], n: int, act: Callable[[], dict[str, Any]]
) -> None:
    """Measure, write the row and tell it."""
    began = time.monotonic()
    found = act()
    seconds = round(time.monotonic() - began, 1)
    rows.add(f"shards: {name}", settings, seed=0, n=n, seconds=seconds, **found)
    script.say(f"{name}: {found}")


def make_all_shards(arguments: argparse.Namespace) -> Path:
    """Make the shards that were asked for, and return their folder."""
    sizes = arguments.shards, arguments.pictures, arguments.side
    return make_shards(arguments.work / "in-{}-{}-{}".format(*sizes), *sizes)


def main() -> None:
    parser = script.make_parser(__doc__, "shards")
    add = parser.add_argument
    add("--weights", default="cifar10")
    add("--only", type=lambda text: text.split(","), default=list(ALL))
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
