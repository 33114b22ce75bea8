"""Fuzz tue with hostile files and surroundings, and count what goes wrong.

    python -m benchmarks.hostile                          # each fuzzer for a minute, and the memory
    python -m benchmarks.hostile --only state --minutes 10
    python -m benchmarks.hostile --only memory            # the figure that the README has

`mutants` changes bytes of pictures in every format, decodes them and protects what decodes.
`metadata` draws directories, claims and offsets that no program would write. `state` damages the
manifest, the journal, the labels and the weights of a finished folder, and runs `tue protect` and
`tue check` on it. Allowed outcomes: a picture or the reason for its failure; a documented exit code
and one sentence. Anything else is wrong, and so is a case that takes long; it is kept in --keep,
and the exit code is 1. `links` and `faults` (`hostile_places.py`) plant links where an output has
its files, refuse system calls, remove folders and kill; a trial that goes wrong is told with the
--seed that repeats it. `memory` protects a JPEG of 150 megapixels, one and then three at once, and
tells the peak.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import hostile_places, script
from benchmarks.command import run_protect
from tue_cli.cli import main as tue
from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.output import WORK
from tue_cli.errors import ImageProblem, WeightsProblem
from tue_cli.images import codec, encode, png
from tue_cli.images.quality import compare
from tue_cli.weights import SHIPPED as WEIGHTS
from tue_cli.weights import build, digest, index, load

SECONDS = 20
"""That a case may take; all are small."""
PHOTOS = Path(__file__).parents[1] / "assets" / "photos"
QUICK = ("--labels", "single", "--steps", "1", "--backend", "onnx", "-q")
WIDE, HIGH = 15_000, 10_000
"""The large picture, 150 megapixels."""
MOST = 12
"""Bytes a pixel that protecting it may take at its peak."""


class Cases:
    """Runs cases until the time is up, counts what came of them and keeps what went wrong."""

    def __init__(self, minutes: float, keep: Path, seed: int) -> None:
        self.seed = seed
        self._end = time.monotonic() + 60 * minutes
        self._keep = keep
        self.counts: Counter[str] = Counter()
        self.wrong = 0

    def count_until_end(self) -> Iterator[int]:
        """Yield numbers until the time is up."""
        number = 0
        while time.monotonic() < self._end:
            yield number
            number += 1

    def run(self, name: str, data: bytes, case: Callable[[], str]) -> None:
        """Run a case, which returns a word for what came of it; an exception is wrong."""

        def give_up(*_: object) -> None:
            raise TimeoutError(f"longer than {SECONDS} s")

        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(SECONDS)
        try:
            word = case()
        except Exception as error:
            word = f"WRONG, {type(error).__name__}"
            self.wrong += 1
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / name).write_bytes(data)
            script.note(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
        self.counts[word] += 1


# --- bytes -----------------------------------------------------------------------------------


def make_images() -> dict[str, bytes]:
    """Return a small picture in every format and coding, with metadata."""
    pixels = np.random.default_rng(0).integers(60, 190, (40, 56, 3), np.uint8)
    exif = Image.Exif()
    exif[270], exif[274], exif[305] = "a quay", 6, "fuzzer"
    exif.get_ifd(34665)[36867] = "2020:01:01 00:00:00"
    beside: dict[str, Any] = {"exif": exif.tobytes()}
    colour = Image.fromarray(pixels)
    files = {
        "baseline.jpg": (colour, "JPEG", {**beside, "xmp": b"<x/>", "quality": 90}),
        "progressive.jpg": (colour, "JPEG", {**beside, "progressive": True}),
        "grey.jpg": (colour.convert("L"), "JPEG", {}),
        "colour.png": (colour, "PNG", beside),
        "alpha.png": (colour.convert("RGBA"), "PNG", {}),
        "palette.png": (colour.quantize(16), "PNG", {"transparency": 3}),
        "lossy.webp": (colour, "WEBP", {**beside, "xmp": b"<x/>"}),
        "lossless.webp": (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        "plain.tif": (colour, "TIFF", {"tiffinfo": exif}),
        "lzw.tif": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (colour, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (colour, "TIFF", {"compression": "jpeg"}),
        "plain.bmp": (colour, "BMP", {}),
        "plain.avif": (colour, "AVIF", beside),
    }
    found = {}
    for name, (image, kind, options) in files.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


def mutate(source: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them changed, gone, doubled or moved."""
    data = bytearray(source)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        # The head decides most.
        reach = min(len(data), draw.choice((16, 64, 512, len(data))))
        at = draw.randrange(reach)
        length = draw.choice((1, 2, 4, 8))
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                odd = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
                data[at : at + length] = odd * length
            case 2:
                data[at : at + length] = draw.randbytes(length)
            case 3:
                del data[at : at + draw.choice((1, 4, 64))]
            case 4:
                data[at:at] = data[at : at + draw.choice((4, 64, 1024))]
            case _:
                del data[draw.randrange(len(data)) :]
    return bytes(data)


def try_protecting(source: bytes) -> str:
    """Decode and protect a picture, and return a word for what came of it."""
    try:
        picture = codec.decode(source)
        if picture.pixels[..., 0].size > 1_000_000:
            return "decodes, large"
        noise = np.random.default_rng(0).integers(-8, 9, picture.pixels.shape)
        moved = (picture.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
        encoded = encode.encode(picture, moved)
        assert compare(picture.pixels, encoded.decoded.pixels).psnr > 15
    except ImageProblem as problem:
        if problem.reason in ("memory", "unwritable", "alpha-lost"):
            raise RuntimeError(f"{problem.reason}: {problem}") from problem
        return problem.reason
    return "protected"


def fuzz_bytes(cases: Cases, draw: random.Random, place: Path) -> None:
    """Change bytes of pictures."""
    sources = make_images()
    for number in cases.count_until_end():
        name = draw.choice(list(sources))
        data = mutate(sources[name], draw)
        cases.run(f"{number}-{name}", data, partial(try_protecting, data))


# --- metadata --------------------------------------------------------------------------------


def draw_directory(draw: random.Random, room: int) -> bytes:
    """Return a TIFF structure with directories that point anywhere, into each other too."""
    order = draw.choice("<>")
    data = bytearray(
        draw.choice((bytes(room), draw.randbytes(room), b"\xff\xd8\xff\xe0\0\4" * (room // 6)))
    )
    struct.pack_into(order + "2sHI", data, 0, b"II" if order == "<" else b"MM", 42, 8)
    at = 8
    for _ in range(draw.choice((1, 2, 3, 40, 400))):
        count = draw.choice((0, 1, 5, 300, 4000))
        if at + 6 + 12 * count > len(data):
            break
        struct.pack_into(order + "H", data, at, count)
        for entry in range(count):
            tag = draw.choice((273, 279, 513, 514, 324, 325, 274, 282, 34665, 34853, 37500, 700))
            amount = draw.choice((1, 2, 300, 65_535, 1 << 31))
            where = draw.choice((at, 8, 0, draw.randrange(len(data)), 1 << 31))
            kind = draw.choice((1, 2, 3, 4, 5, 7, 10, 12, 99))
            struct.pack_into(order + "HHII", data, at + 2 + 12 * entry, tag, kind, amount, where)
        link = at + 2 + 12 * count
        at = draw.choice((link + 4, link + 4, at + 2, 8, draw.randrange(8, len(data) - 6)))
        struct.pack_into(order + "I", data, link, at)
    return bytes(data)


def draw_text(draw: random.Random, room: int) -> bytes:
    """Return XMP that is full of the beginnings of pictures."""
    part = draw.choice(
        (b"/9j/", b"/9j/&#", b"&#65;", b"UklGR\n", b"iVBORw0KGgo=", b"A" * 60 + b"/9j/!")
    )
    return b"<x:xmpmeta>" + draw.choice((b"/9j/", b"")) + part * (room // len(part))


def draw_resources(draw: random.Random, room: int) -> bytes:
    """Return Photoshop's blocks, which may claim anything."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < room:
        size = draw.choice((0, 1, 40, 1 << 31))
        code = draw.choice((0x409, 0x40C, 0x3ED, 0x404))
        parts.append(b"8BIM" + struct.pack(">HHI", code, 0, size) + bytes(min(size, 40)))
    return b"Photoshop 3.0\0" + b"".join(parts)[:room]


def add_metadata(draw: random.Random, plain: dict[str, bytes]) -> bytes:
    """Return a picture with drawn metadata in it."""
    room = draw.choice((100, 5_000, 60_000, 600_000))
    exif = draw_directory(draw, room)
    kind = draw.choice(("PNG", "JPEG", "WEBP", "TIFF"))
    if kind == "PNG":
        chunks = [png.make_png_chunk(b"eXIf", exif)]
        chunks += [
            png.make_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + draw_text(draw, room))
        ]
        return png.splice_png(plain["colour.png"], tuple(chunks))
    if kind == "JPEG":
        step = draw.choice((60_000, 60_000, 500))
        parts = [(0xE1, b"Exif\0\0" + exif[at : at + step]) for at in range(0, len(exif), step)]
        parts.append((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + draw_text(draw, min(room, 60_000))))
        parts += [(0xED, draw_resources(draw, min(room, 60_000)))] * draw.choice((1, 5, 300))
        parts.append((0xE2, b"MPF\0" + exif[:60_000]))
        segments = (b"\xff" + bytes([m]) + struct.pack(">H", len(p) + 2) + p for m, p in parts)
        data = plain["grey.jpg"]
        return b"".join((data[:2], *segments, data[2:]))
    if kind == "WEBP":
        body = plain["lossy.webp"][12:]
        body = body[:8] + bytes([0x0C]) + body[9:]
        for name, part in ((b"EXIF", exif), (b"XMP ", draw_text(draw, room))):
            body += name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2)
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return exif


def fuzz_metadata(cases: Cases, draw: random.Random, place: Path) -> None:
    """Draw metadata that no program would write."""
    plain = make_images()
    for number in cases.count_until_end():
        data = add_metadata(draw, plain)
        cases.run(f"{number}-metadata", data, partial(try_protecting, data))


# --- state -----------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\ud800", "a\0b"),
    *("../x", "/etc/passwd", [], {}, [1], ["a"], {"a": 1}, {"": None}, [[[[]]]]),
)


def distort(value: Any, draw: random.Random) -> Any:
    """Return a value of JSON in which one part is another, is gone, or is there twice."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        changed = dict(value)
        match draw.randrange(5):
            case 0:
                del changed[name]
            case 1:
                changed[str(draw.choice(ODD))] = changed[name]
            case _:
                changed[name] = distort(value[name], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        return [*value[:place], distort(value[place], draw), *value[place + draw.randrange(2) :]]
    return draw.choice(ODD)


def damage_json(good: bytes, draw: random.Random) -> bytes:
    """Return a JSON file with one part or a few bytes that are not as they were."""
    if draw.random() < 0.3:
        return mutate(good, draw)
    if draw.random() < 0.05:
        return good[:-2] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return json.dumps(distort(json.loads(good), draw)).encode()


def run_command(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it said."""
    heard = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        try:
            tue([str(part) for part in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, heard.getvalue()


def hash_tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def classify_end(*arguments: object) -> str:
    """Run a command, and return a word for its end; it must be one that the README has."""
    code, heard = run_command(*arguments)
    if code not in (0, 1, 2, 3, 4, 5):
        raise RuntimeError(f"exit {code}: {heard[-200:]}")
    if "Traceback" in heard or "unexpected error" in heard:
        raise RuntimeError(heard[-300:])
    return f"{arguments[0]} exit {code}"


def reseal(data: bytes, draw: random.Random) -> bytes:
    """Return packaged weights with another card, and a seal that agrees with it."""
    from safetensors.numpy import load as parse
    from safetensors.numpy import save

    length = int.from_bytes(data[:8], "little")
    card = json.loads(data[8 : 8 + length])["__metadata__"]["card"]
    tensors = parse(data)
    changed = damage_json(card.encode(), draw).decode("utf-8", "replace")
    seal = hashlib.sha256((digest(tensors) + changed).encode("utf-8", "replace")).hexdigest()
    return save(tensors, metadata={"card": changed, "seal": seal})


def try_weights(path: Path) -> str:
    """Read a weights file and build its nets, and return a word for what came of it."""
    try:
        build(load(str(path)), ("surrogate", "score"))
    except WeightsProblem:
        return "weights refused"
    return "weights read"


def fuzz_state(cases: Cases, draw: random.Random, place: Path) -> None:
    """Damage what a run leaves and what it is given."""
    source = shutil.copytree(PHOTOS / "everyday", place / "in")
    code, heard = run_command("protect", source, "-o", place / "done", *QUICK)
    assert code == 0, heard
    good = (place / "done" / MANIFEST).read_bytes()
    whole = json.loads(good)
    lines = [{"run": whole["run"]}, *whole["pictures"]]
    journal = "\n".join(json.dumps(line) for line in lines).encode() + b"\n"
    shipped = (WEIGHTS / index()["weights"]["cifar10"]["file"]).read_bytes()
    table = "\n".join(f"{path.name},a" for path in sorted(source.iterdir())).encode()
    before = hash_tree(source)
    for number in cases.count_until_end():
        what = draw.choice(("manifest", "manifest", "journal", "journal", "labels", "weights"))
        output = Path(shutil.copytree(place / "done", place / f"{number}"))
        data, commands = good, [("check", output, "--original", source)]
        if what == "manifest":
            data = damage_json(good, draw)
            (output / MANIFEST).write_bytes(data)
        elif what == "journal":
            line = json.dumps(draw.choice(lines)).encode()
            data = draw.choice((mutate(journal, draw), journal + damage_json(line, draw) + b"\n"))
            (output / MANIFEST).unlink()
            (output / WORK).mkdir()
            (output / WORK / "journal.jsonl").write_bytes(data)
        elif what == "labels":
            data = mutate(table, draw)
            (place / "labels.csv").write_bytes(data)
        elif what == "weights":
            data = reseal(shipped, draw) if draw.random() < 0.7 else mutate(shipped, draw)
            (place / "w.safetensors").write_bytes(data)
            cases.run(f"{number}-{what}", data, lambda: try_weights(place / "w.safetensors"))
        more = QUICK if what != "labels" else ("--labels", place / "labels.csv", *QUICK[2:])
        commands.append(("protect", source, "-o", output, *more))
        if what == "weights":
            commands = []
        for command in commands:
            cases.run(f"{number}-{what}", data, partial(classify_end, *command))
        if hash_tree(source) != before:
            cases.wrong += 1
            script.note(f"{number}-{what}: an original was changed")
            before = hash_tree(source)
        shutil.rmtree(output)


# --- memory ----------------------------------------------------------------------------------


def write_large(place: Path) -> Path:
    """Write a JPEG of 150 megapixels, a few megabytes, and return its path."""
    path = place / "large.jpg"
    across = np.linspace(0, 255, WIDE).astype(np.uint8)
    down = np.linspace(0, 255, HIGH).astype(np.uint8)
    pixels = np.empty((HIGH, WIDE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = across, down[:, None]
    squares = (np.arange(WIDE) // 500 + np.arange(HIGH)[:, None] // 500) % 2
    pixels[..., 2] = 90 + 60 * squares.astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=85)
    return path


def measure_memory(cases: Cases, draw: random.Random, place: Path) -> None:
    """Measure what a large picture takes, alone and beside others."""
    (place / "one").mkdir()
    (place / "three").mkdir()
    path = write_large(place / "one")
    for number in range(3):
        shutil.copy(path, place / "three" / f"{number}.jpg")
    for name, jobs in (("one", 1), ("three", 4)):
        options = ("--labels", "single", "--steps", "1", "--backend", "onnx", "--jobs", str(jobs))
        facts = run_protect(
            place / name,
            place / f"{name}-out",
            weights="cifar10",
            device="cpu",
            threads=1,
            options=options,
        )
        taken = facts["peak_mib"] * 2**20 / (WIDE * HIGH)
        word = f"{name} of 150 megapixels, --jobs {jobs}: {taken:.1f} bytes a pixel"
        cases.counts[f"{word}, {facts['peak_mib'] * 2**20 / 1e9:.2f} GB"] += 1
        cases.wrong += taken > MOST


# --- surroundings ----------------------------------------------------------------------------


def make_fuzzer(kind: str) -> Callable[[Cases, random.Random, Path], None]:
    """Return a fuzzer of `hostile_places.py`."""

    def fuzz(cases: Cases, draw: random.Random, place: Path) -> None:
        trials = hostile_places.KINDS[kind](place, cases.seed)
        for _, (what, wrong) in zip(cases.count_until_end(), trials, strict=False):
            cases.counts["WRONG" if wrong else "well"] += 1
            if wrong:
                cases.wrong += 1
                script.note(f"{kind}, {what}: {wrong}")

    return fuzz


FUZZERS: dict[str, Callable[[Cases, random.Random, Path], None]] = {
    "mutants": fuzz_bytes,
    "metadata": fuzz_metadata,
    "state": fuzz_state,
    "links": make_fuzzer("links"),
    "faults": make_fuzzer("faults"),
    "memory": measure_memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FUZZERS, default=list(FUZZERS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each fuzzer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("hostile-wrong"), help="what went wrong")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wrong = 0
    for name in arguments.only:
        cases = Cases(arguments.minutes, arguments.keep / name, arguments.seed)
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            FUZZERS[name](cases, random.Random(arguments.seed), Path(folder))
        script.say(f"{name}: {sum(cases.counts.values())} cases, {cases.wrong} wrong")
        for word, count in sorted(cases.counts.items()):
            script.say(f"  {count:6} {word}")
        wrong += cases.wrong
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
