"""What a run tells of its copies: the notes on them, counted by kind, on console and screen."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.dataset.manifest import read_manifest
from tue_cli.protect.result import describe_notes
from tue_cli.text import format_count

COMMAND = ["protect", "--steps", "1", "--smooth", "1", "--backend", "torch", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path, tiny_weights: Path) -> Path:
    """Four pictures: two with an embedded preview, one of them with private parts; one palette."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    preview = io.BytesIO()
    picture.resize((16, 16)).save(preview, "JPEG")
    view = preview.getvalue()
    tags = b"II*\0\x08\0\0\0\0\0\x0e\0\0\0\x02\0\x01\x02\x04\0\x01\0\0\0\x2c\0\0\0"
    tags += b"\x02\x02\x04\0\x01\0\0\0" + len(view).to_bytes(4, "little") + bytes(4)
    exif = b"Exif\0\0" + tags + view
    for name in ("a.jpg", "b.jpg"):
        picture.save(folder / name, exif=exif)
    data = (folder / "b.jpg").read_bytes()
    parts = b"\xff\xe5\0\x06priv\xff\xe7\0\x06more"
    (folder / "b.jpg").write_bytes(data[:2] + parts + data[2:])
    picture.quantize(16).save(folder / "c.png")
    picture.save(folder / "d.png")
    return folder


def run(photos: Path, weights: Path, *options: str) -> tuple[str, str]:
    out = str(photos.parent / "out")
    arguments = [*COMMAND, str(photos), "-o", out, "--weights", str(weights), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_notes_are_counted_by_kind_the_most_frequent_first(
    photos: Path, tiny_weights: Path
) -> None:
    _, said = run(photos, tiny_weights)
    lines = [line for line in said.splitlines() if line.endswith("-v lists the names.")]
    assert lines == [
        "Left out the embedded preview: 2 pictures. -v lists the names.",
        "Left out private segments that may hold the original picture: 1 picture. "
        "-v lists the names.",
        "Palette converted to RGB: 1 picture. -v lists the names.",
    ]


def test_the_names_of_pictures_with_a_note_are_listed_on_request(
    photos: Path, tiny_weights: Path
) -> None:
    _, said = run(photos, tiny_weights, "-v")
    assert "Left out the embedded preview: 2 pictures.\n  a.jpg\n  b.jpg\n" in said
    assert re.search(r"private segments.*: 1 picture\.\n  b\.jpg: APP5, APP7\n", said)


def test_quiet_runs_tell_no_notes(photos: Path, tiny_weights: Path) -> None:
    assert run(photos, tiny_weights, "-q") == ("", "")


def test_scripts_get_the_counts_with_the_result(photos: Path, tiny_weights: Path) -> None:
    said, _ = run(photos, tiny_weights, "--json")
    done = json.loads(said.splitlines()[-1])
    assert list(done["notes"].items())[0] == ("left out the embedded preview", 2)
    records = read_manifest(photos.parent / "out")["pictures"]
    assert sum(done["notes"].values()) == 4
    kinds = {note.partition(": ")[0] for record in records for note in record["notes"]}
    assert kinds == set(done["notes"])


def test_a_run_that_writes_nothing_tells_no_notes(photos: Path, tiny_weights: Path) -> None:
    run(photos, tiny_weights)
    assert "preview" not in "".join(run(photos, tiny_weights))


def test_a_count_of_notes_is_a_sentence() -> None:
    assert list(describe_notes({"left out the depth map": 1200})) == [
        f"Left out the depth map: {format_count(1200, 'picture')}."
    ]
