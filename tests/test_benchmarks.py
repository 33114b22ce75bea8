"""What the scripts in benchmarks/ share: rows, and victims that are trained once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import protection, script
from benchmarks.rows import RESULTS, Rows, make_key, read_rows
from tue_cli.core.batches import Images


def test_rows_of_two_processes_are_found_by_both(tmp_path: Path) -> None:
    one, two = (Rows(tmp_path / "rows.jsonl") for _ in range(2))
    one.add("cell", {"a": 1}, seed=0, n=1, seconds=0.0, accuracy=0.5)
    two.add("cell", {"a": 2}, seed=0, n=1, seconds=0.0, failed="no memory")
    assert two.find("cell", {"a": 1}) and one.is_missing("cell", {"a": 2})
    # The last one counts.
    two.add("cell", {"a": 1}, seed=0, n=1, seconds=0.0, accuracy=0.25)
    assert (one.find("cell", {"a": 1}) or {})["accuracy"] == 0.25
    assert len(one.read_written()) == 3
    # What an earlier run has in another folder is known too.
    assert not Rows(tmp_path / "new" / "rows.jsonl", done=tmp_path).is_missing("cell", {"a": 1})


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "half')
    Rows(path).add("cell", {}, seed=0, n=1, seconds=0.0)
    assert [row["cell"] for row in read_rows(path)] == ["cell"]
    assert not Rows(path).is_missing("cell", {})


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_say_what_was_measured_and_where(path: Path) -> None:
    rows = list(read_rows(path))
    assert len(rows) == len(path.read_text().splitlines())
    for row in rows:
        assert {"seed", "n", "seconds", "hardware", "commit"} <= row.keys()
        assert row["key"] == make_key({"cell": row["cell"], **row["settings"]})
        assert "curve" not in row


@pytest.mark.slow
def test_victims_of_protection_are_trained_once(
    toy: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number, (pixels, label) in enumerate(zip(toy.pixels, toy.labels, strict=True)):
        part = "train" if number < 36 else "val"
        place = tmp_path / "data" / part / "abc"[int(label)] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place)
    words = ["--data", str(tmp_path / "data"), "--classes", "3", "--weights", "cifar10"]
    words += ["--arms", "clean,random", "--sizes", "16", "--epochs", "2", "--width", "4"]
    words += ["--adversary", "0,4", "--adversary-steps", "1", "--results", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["protection.py", *words])
    script.run(protection.parse_arguments(), protection.measure)
    table = capsys.readouterr().out
    rows = list(read_rows(tmp_path / "out" / "protection.jsonl"))
    assert [row["settings"]["arm"] for row in rows] == ["clean", "random"] * 2
    assert [row["robust_train"] is None for row in rows] == [True, True, False, False]
    assert all(row["command"].startswith("python -m benchmarks.protection") for row in rows)
    script.run(protection.parse_arguments(), protection.measure)
    assert list(read_rows(tmp_path / "out" / "protection.jsonl")) == rows
    assert capsys.readouterr().out == table
