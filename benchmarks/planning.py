"""How long `tue protect --dry-run` takes for many folders, and how much memory.

    python -m benchmarks.planning --archive DIR/tiny-imagenet-50b.tar.xz --weights NAME [--protect]

The pictures of an archive are dealt out to 1,000 subfolders, 20,000 small JPEGs in all, and the
folder is planned by the command, as people run it. With `--protect` it is then protected to the
end, in one run, and the copies are counted. What has a row with these settings is not measured
again.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import script
from benchmarks.command import build_protect_command, run_measured, run_protect
from benchmarks.rows import Row
from benchmarks.summary import format_table
from tue_cli.images.codec import SUFFIXES
from tue_cli.weights import load


def deal_out(archive: Path, pictures: int, classes: int, place: Path) -> Path:
    """Write the first pictures of an archive to so many subfolders, as evenly as can be.

    Raises SystemExit where it holds too few.
    """
    shutil.rmtree(place, ignore_errors=True)
    folders = [place / f"class-{number:04d}" for number in range(classes)]
    for folder in folders:
        folder.mkdir(parents=True)
    count = 0
    for name, data in itertools.islice(_read_pictures(archive), pictures):
        (folders[count % classes] / name).write_bytes(data)
        count += 1
    if count < pictures:
        raise SystemExit(f"{archive} holds {count:,} pictures, not {pictures:,}.")
    return place


def _read_pictures(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r|*") as file:
        for member in file:
            path = Path(member.name)
            if member.isfile() and path.suffix.lower() in SUFFIXES:
                opened = file.extractfile(member)
                assert opened is not None
                yield path.name, opened.read()


def plan(arguments: argparse.Namespace, source: Path) -> dict[str, Any]:
    """Run `tue protect --dry-run` and return its figures."""
    command = build_protect_command(
        source,
        arguments.work / "copies",
        weights=arguments.weights,
        device=arguments.device,
        options=["--dry-run"],
    )
    summary, measured = run_measured(command, arguments.threads)
    return {
        "estimated_bytes": summary["estimated_bytes"],
        "estimated_seconds": summary["estimated_seconds"],
        "failed": summary["failed"],
        "pictures": summary["pictures"],
        **measured,
    }


def protect(arguments: argparse.Namespace, source: Path) -> dict[str, Any]:
    """Run `tue protect` to its end; return its figures, and count what it wrote."""
    output = arguments.work / "copies"
    shutil.rmtree(output, ignore_errors=True)
    measured = run_protect(
        source,
        output,
        weights=arguments.weights,
        device=arguments.device,
        threads=arguments.threads,
    )
    copies = [path for path in output.glob("*/*") if path.suffix.lower() in SUFFIXES]
    return {
        **measured,
        "bytes": sum(path.stat().st_size for path in copies),
        "copies": len(copies),
        "folders": len({path.parent for path in copies}),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "planning")
    add = parser.add_argument
    add("--archive", type=Path, required=True, help="a tar archive of pictures")
    add("--weights", required=True, help="name or file")
    add("--classes", type=int, default=1000, help="subfolders")
    add("--pictures", type=int, default=20_000)
    add("--protect", action="store_true", help="also protect all of them")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Plan, and protect where that was asked for, what has no row yet."""
    rows = script.open_rows(arguments, dtype="chosen by tue", device=arguments.device)
    settings = {
        "archive": arguments.archive.name,
        "classes": arguments.classes,
        "device": arguments.device,
        "pictures": arguments.pictures,
        "threads": arguments.threads,
        "weights_sha256": load(arguments.weights).sha256,
    }
    cells = {"planning: plan": plan}
    if arguments.protect:
        cells["planning: protect"] = protect
    found: dict[str, Row] = {}
    source = None
    for cell, work in cells.items():
        row = rows.find(cell, settings)
        if row is None:
            source = source or deal_out(
                arguments.archive,
                arguments.pictures,
                arguments.classes,
                arguments.work / "pictures",
            )
            figures = work(arguments, source)
            row = rows.add(
                cell,
                settings,
                **figures,
                seed=0,
                n=arguments.pictures,
                seconds=figures["wall_seconds"],
            )
        found[cell] = row
    script.say(
        format_table(
            ["", "seconds", "CPU seconds", "peak MiB"],
            [
                [cell, row["wall_seconds"], row["cpu_seconds"], row["peak_mib"]]
                for cell, row in found.items()
            ],
        )
    )


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
