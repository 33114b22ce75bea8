"""The GPU run, rehearsed: the same code at toy size, where every capture fails of itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import gpu_fast, gpu_views
from tue_cli.nets.classifiers import Classifier, ConvNorm
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.weights import read

ROOT = Path(__file__).parent.parent
MODULES = ("textual", "textual_image", "kornia", "kornia_rs")
"""What a machine with a GPU may lack."""
PART = 40_000
"""Bytes of a part of a weights file, of which the toy's has several then."""
BLOCKED = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *more: None if name.partition(".")[0] in {modules!r} else find(name, *more)
)
"""


def archive(folder: Path, name: str, part: str, *, size: int = 32) -> Path:
    """Write an archive of ten classes, eight pictures to train and four to test of each."""
    random = np.random.default_rng(0)
    path = folder / f"{name}.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for kind, count in (("train", 8), (part, 4)):
            for label in range(10):
                for number in range(count):
                    # Large patches, so that pictures differ in the last layers too.
                    levels = random.uniform(20, 235, (4, 4, 3)).astype(np.uint8)
                    file = io.BytesIO()
                    Image.fromarray(levels).resize((size, size)).save(file, "JPEG")
                    member = tarfile.TarInfo(f"{kind}/class-{label}/{number}.jpg")
                    member.size = file.tell()
                    file.seek(0)
                    tar.addfile(member, file)
    return path


def rehearsed(data: Path, out: Path, *more: str, minutes: float = 30) -> tuple[str, list[Any]]:
    """Rehearse a run without what a GPU machine lacks; return what it printed, and its rows."""
    site = out.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKED.format(modules=set(MODULES)))
    command = [sys.executable, "benchmarks/gpu.py", str(data), "--out", str(out)]
    done = subprocess.run(
        [*command, "--minutes", str(minutes), "--rehearse", *more],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "TUE_GPU_PART": str(PART),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (out / "rows.jsonl").read_text().splitlines() if (out / "rows.jsonl").exists() else []
    return done.stdout, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str, list[Any]]:
    folder = tmp_path_factory.mktemp("gpu")
    data = archive(folder, "cifar-10", "test")
    return (data, folder / "out", *rehearsed(data, folder / "out"))


def cells(rows: list[Any], name: str) -> list[Any]:
    return [row for row in rows if row["cell"].startswith(name)]


@pytest.mark.slow
def test_a_rehearsal_does_every_step_of_the_run(
    table: tuple[Path, Path, str, list[Any]],
) -> None:
    _, _, said, rows = table
    assert {row["cell"] for row in rows} == {
        "right: against float64",
        "right: a training captured",
        "surrogate",
        "noise",
        "victim",
        "timing: bf16 product",
        "timing: noise",
        "timing: training step of the surrogate",
        "timing: engine",
        "timing: tue protect",
        "timing: compiling",
        "timing: tue verify",
    }
    assert len(said.splitlines()) <= 40
    victims = {(r["settings"]["arm"], r["settings"]["radius"]) for r in cells(rows, "victim")}
    assert victims >= {(arm, radius) for arm in ("TUE", "clean", "EM") for radius in (0, 2, 4)}
    assert {r["settings"]["name"] for r in cells(rows, "surrogate")} == {
        "TUE",
        "EM",
        "TUE without score",
        "REM-lite",
    }


@pytest.mark.slow
def test_every_row_says_what_it_is_and_where_it_comes_from(
    table: tuple[Path, Path, str, list[Any]],
) -> None:
    _, _, _, rows = table
    for row in rows:
        assert {"cell", "settings", "seed", "n", "hardware", "commit", "when", "key"} <= set(row)
    for row in cells(rows, "victim"):
        assert 0 <= row["accuracy"] <= 1
        assert (row["robust_train"] is not None) == bool(row["settings"]["radius"])


@pytest.mark.slow
def test_what_is_computed_is_right_and_the_commands_work(
    table: tuple[Path, Path, str, list[Any]],
) -> None:
    _, _, _, rows = table
    assert all(row["within"] for row in cells(rows, "right"))
    assert all(not row.get("failed") for row in rows)
    (verified,) = cells(rows, "timing: tue verify")
    assert verified["code"] == 0, verified


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="captures succeed there")
def test_where_nothing_can_be_captured_the_run_goes_on_and_says_so(
    table: tuple[Path, Path, str, list[Any]],
) -> None:
    _, _, _, rows = table
    for row in cells(rows, "right: against float64"):
        captured = row["settings"]["way"] == "captured"
        assert bool(row["fell_back"]) == captured


@pytest.mark.slow
def test_what_an_earlier_run_has_done_is_skipped(
    table: tuple[Path, Path, str, list[Any]], tmp_path: Path
) -> None:
    data, first, _, rows = table
    _, again = rehearsed(data, tmp_path / "again", "--done", str(first))
    kinds = {row["cell"].partition(":")[0] for row in again}
    assert kinds == {"right", "timing"}
    assert {row["cell"] for row in cells(again, "timing")} == {
        "timing: tue protect",
        "timing: tue verify",
    }


@pytest.mark.slow
def test_weights_come_back_in_parts_and_are_joined(
    table: tuple[Path, Path, str, list[Any]], tmp_path: Path
) -> None:
    _, out, _, rows = table
    assert all(path.stat().st_size <= PART for path in out.glob("A.*"))
    (surrogate,) = [row for row in cells(rows, "surrogate") if row["settings"]["name"] == "TUE"]
    assert len(surrogate["files"]) > 2
    command = [sys.executable, "-m", "benchmarks.gpu", "--join", "A", "--done", str(out)]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True)
    weights = read(tmp_path / "A.safetensors", name="A")
    assert weights.card.method == "tue" and len(weights.card.classes) == 10
    assert {value.dtype for value in weights.tensors.values()} == {np.dtype("f4"), np.dtype("i8")}


@pytest.mark.slow
def test_many_classes_and_unseen_ones_are_rehearsed_too(
    table: tuple[Path, Path, str, list[Any]], tmp_path: Path
) -> None:
    _, done, _, _ = table
    wide = archive(tmp_path, "tiny-imagenet-50a", "val", size=64)
    _, rows = rehearsed(wide, tmp_path / "b")
    assert [row["settings"]["name"] for row in cells(rows, "surrogate")] == ["B"]
    for part in (tmp_path / "b").glob("B.safetensors.*"):
        (done / part.name).write_bytes(part.read_bytes())
    held = archive(tmp_path, "tiny-imagenet-50b", "val", size=64)
    said, rows = rehearsed(held, tmp_path / "unseen", "--done", str(done))
    assert {row["settings"]["arm"] for row in cells(rows, "unseen")} >= {"clean", "A", "B"}


@pytest.mark.slow
def test_a_run_never_passes_its_time(
    table: tuple[Path, Path, str, list[Any]], tmp_path: Path
) -> None:
    data, _, _, whole = table
    began = time.monotonic()
    said, rows = rehearsed(data, tmp_path / "short", minutes=0.2)
    # Python itself and the end of a process take a moment, on a busy machine two.
    assert time.monotonic() - began < 60 * 0.2 + 20
    assert len(rows) < len(whole)


@pytest.mark.slow
def test_what_each_step_will_take_is_told_before_there_is_a_gpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--predict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| surrogate A | 33.2 |" in done.stdout


def test_the_jpeg_that_surrogate_b_is_trained_through_is_pillow_s() -> None:
    photo = ROOT / "assets" / "photos" / "everyday" / "cat.png"
    with Image.open(photo) as image:
        small = image.convert("RGB").resize((64, 64))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=gpu_views.QUALITY, subsampling="4:2:0")
    with Image.open(file) as image:
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    pixels = (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255)[None].requires_grad_()
    found = gpu_views.apply_jpeg(pixels)
    # Pillow smooths chroma when it enlarges it; nothing else differs by more than rounding.
    change = (expected - pixels[0]).abs().mean()
    assert (found[0] - expected).abs().mean() < 0.35 * change
    (gradient,) = torch.autograd.grad(found.sum(), pixels)
    assert gradient.abs().sum() > 0


@pytest.mark.slow
def test_a_net_that_cannot_be_compiled_stays_as_it_was() -> None:
    net = Classifier(nn.Sequential(ConvNorm(3, 4, 3), nn.ReLU()), nn.Linear(4, 10))
    frozen, pixels = FrozenClassifier(net, torch.float32), torch.rand(4, 3, 32, 32)
    plain, expected = frozen.net, frozen(pixels)
    failed, apart = gpu_fast.compile_net(frozen, torch.device("cpu"), 4, "no such compiler")
    assert failed and "no such compiler" in failed and apart is None
    assert frozen.net is plain
    assert torch.equal(frozen(pixels), expected)


def test_each_picture_s_noise_meets_every_view() -> None:
    pixels = torch.rand(8, 3, 32, 32)
    through = torch.stack([gpu_views.apply_views(pixels, turn) for turn in range(4)])
    wanted = torch.stack([view(pixels) for view in gpu_views.VIEWS])
    for place in range(8):
        apart = (through[:, None, place] - wanted[None, :, place]).abs().amax((2, 3, 4))
        # Every view once, at one turn or another.
        assert (apart < 1e-5).sum(0).tolist() == (apart < 1e-5).sum(1).tolist() == [1] * 4
