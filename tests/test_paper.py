"""The paper's tables: what is measured, in which order, what is kept, and what is written."""

from __future__ import annotations

import itertools
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.paper.__main__ import main
from benchmarks.paper.cache import BenchCache, load_dataset
from benchmarks.paper.cifar import CIFAR_LAYOUTS
from benchmarks.paper.layout import ARMS, CORE, TABLES, Bench
from benchmarks.paper.run import BenchSpec, bench
from benchmarks.paper.settings import PRESETS, BenchSettings
from benchmarks.paper.tables import (
    ResultTable,
    TableCell,
    format_cell,
    format_markdown,
    get_published,
    summarize,
)
from benchmarks.rows import read_rows
from tue_cli.core.batches import Images
from tue_cli.engine.torch import choose_device
from tue_cli.errors import BadSetting, OutputProblem
from tue_cli.events import Advanced, AnyEvent, Done, Metric, Note, Table
from tue_cli.noise import RemNoise, TapNoise, TueNoise

FEW = replace(
    PRESETS["mini"],
    per_class=12,
    test_per_class=6,
    size=16,
    width=4,
    score_width=4,
    score_steps=3,
    steps=3,
    clean_steps=3,
    batch=12,
    noise_steps=2,
    tap_steps=2,
    inner_steps=1,
    adversary_steps=1,
    victim_steps=4,
    adversarial_steps=4,
    points=2,
    radii=(0, 4),
    filters=("gray",),
    seeds=1,
)


@pytest.fixture(scope="module")
def pictures(toy: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes, to train and to test."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10"
    for number, (pixels, label) in enumerate(zip(toy.pixels, toy.labels, strict=True)):
        part = "train" if number < 36 else "val"
        place = folder / part / "abc"[int(label)] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place)
    return folder


def spec_of(pictures: Path, output: Path, *tables: str, **changes: Any) -> BenchSpec:
    spec = BenchSpec((pictures,), output, tables, FEW, device="cpu")
    return replace(spec, **changes)


def means(output: Path) -> dict[str, Any]:
    """What was measured, without what hangs on the clock."""
    rows = read_rows(output / "rows.jsonl")
    return {row["key"]: (row["accuracy"], row["robust_train"], row["seed"]) for row in rows}


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[AnyEvent]]:
    """A folder with all of table 1, and what was said."""
    output = tmp_path_factory.mktemp("bench")
    return output, list(bench(spec_of(pictures, output, "1")))


@pytest.mark.slow
def test_table_1_is_measured_and_written(whole: tuple[Path, list[AnyEvent]]) -> None:
    output, events = whole
    table = next(event for event in events if isinstance(event, Table))
    assert table.columns == ("training", *ARMS)
    assert [row[0] for row in table.rows] == ["standard", "4/255", "grayscale"]
    assert all("–" not in cell for row in table.rows for cell in row)
    assert any("[29.20]" in cell for cell in table.rows[1])
    text = (output / "table-1-cifar-10.md").read_text()
    assert "| standard |" in text and "[29.20]" in text
    assert len(list(read_rows(output / "rows.jsonl"))) == 3 * len(ARMS)
    assert isinstance(events[-1], Done)
    for name in ("figure-1", "figure-2"):
        assert "<svg" in (output / f"{name}-cifar-10.svg").read_text()
        with Image.open(output / f"{name}-cifar-10.png") as image:
            assert image.width > 400


@pytest.mark.slow
def test_a_row_says_how_it_came_about(whole: tuple[Path, list[AnyEvent]]) -> None:
    output, _ = whole
    for row in read_rows(output / "rows.jsonl"):
        settings = row["settings"]
        assert row["n"] == 1 and row["seed"] == settings["trial"]["seed"] == 0
        assert 0 <= row["accuracy"] <= row["peak"] <= 1
        assert row["wall_seconds"] > 0 and "CPU" in row["hardware"]["device"] and row["commit"]
        assert (row["robust_train"] is None) == (not settings["trial"]["radius"])
        needs = row["arm"] not in ("clean", "random noise", "LSP", "CUDA")
        assert bool(row["weights_sha256"]) == needs
        assert row["pictures"] == 36
        if row["weights_sha256"]:
            assert settings["arm"]["training"]["width"] == 4


@pytest.mark.slow
def test_what_is_known_is_not_measured_again(
    whole: tuple[Path, list[AnyEvent]], pictures: Path
) -> None:
    output, _ = whole
    before = means(output)
    events = list(bench(spec_of(pictures, output, "1")))
    assert not [event for event in events if isinstance(event, Metric | Advanced)]
    assert means(output) == before
    # Other tables take the cells that they share.
    again = list(bench(spec_of(pictures, output, "2", dry_run=True)))
    table = next(event for event in again if isinstance(event, Table))
    assert "–" not in "".join(next(row for row in table.rows if row[0] == "RN-18"))


def test_another_budget_is_another_cell(pictures: Path, tmp_path: Path) -> None:
    dataset, _ = load_dataset(pictures, FEW)
    a, b = (Bench(s, "CIFAR-10", dataset.make_key()) for s in (FEW, replace(FEW, victim_steps=5)))
    arm = a.make_arm("TUE")
    assert a.place(arm).key != b.place(arm).key
    assert a.place(arm, "at4").key == b.place(arm, "at4").key
    # More seeds add to a cell, and do not begin another.
    assert Bench(replace(FEW, seeds=3), "CIFAR-10", dataset.make_key()).place(arm) == a.place(arm)


@pytest.mark.slow
def test_benches_in_one_folder_share_the_work(
    whole: tuple[Path, list[AnyEvent]], pictures: Path, tmp_path: Path
) -> None:
    first, second = (bench(spec_of(pictures, tmp_path, "1")) for _ in range(2))
    # The first has a victim in hand; the second, which goes on meanwhile, leaves it that one.
    next(event for event in first if isinstance(event, Metric))
    done = []
    for event in second:
        done.append(event)
        if isinstance(event, Note) and "Another bench" in event.message:
            break
    assert len(means(tmp_path)) == 3 * len(ARMS) - 1
    # What a bench that is stopped had in hand is free again.
    first.close()
    done += second
    assert len([event for event in done if isinstance(event, Advanced)]) == 3 * len(ARMS)
    assert means(tmp_path) == means(whole[0])
    table = (tmp_path / "table-1-cifar-10.md").read_text()
    assert table == (whole[0] / "table-1-cifar-10.md").read_text()


@pytest.mark.parametrize("name", ["random noise", "LSP", "EM"])
def test_another_seed_is_another_noise(name: str, pictures: Path, tmp_path: Path) -> None:
    dataset, _ = load_dataset(pictures, FEW)
    cache = BenchCache(tmp_path, dataset, choose_device("cpu"), "cpu")

    def made(seed: int) -> Any:
        # The nets are the same: only the noise's own seed differs.
        making = cache.make_images(replace(Bench(FEW, "any", "data").make_arm(name), seed=seed))
        while True:
            try:
                next(making)
            except StopIteration as stop:
                return stop.value[0]

    first, again, other = made(0), made(0), made(1)
    assert (first == again).all()
    assert (first != other).any((1, 2, 3)).all()


@pytest.mark.slow
def test_an_interrupted_bench_goes_on_and_ends_equal(pictures: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(bench(spec_of(pictures, whole, "partial")))
    for count in (3, 9, 20):
        running = bench(spec_of(pictures, parts, "partial"))
        list(itertools.islice(running, count))
        running.close()
    list(bench(spec_of(pictures, parts, "partial")))
    assert means(parts) == means(whole)
    assert not list(parts.rglob("*.part"))


@pytest.mark.slow
def test_noise_that_was_begun_is_finished_to_the_same_bytes(
    whole: tuple[Path, list[AnyEvent]], pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "again"
    shutil.copytree(whole[0], output)
    (output / "rows.jsonl").unlink()
    for path in (output / "pictures").glob("*.npy"):
        begun = np.load(path).tobytes()[: 33 * 3 * 16 * 16 + 5]
        path.with_suffix(".part").write_bytes(begun)
        path.unlink()
    list(bench(spec_of(pictures, output, "1")))
    for path in (whole[0] / "pictures").glob("*.npy"):
        assert np.array_equal(np.load(path), np.load(output / "pictures" / path.name))
    assert means(output) == means(whole[0])


@pytest.mark.slow
def test_every_arm_s_pictures_keep_its_bound(
    whole: tuple[Path, list[AnyEvent]], pictures: Path
) -> None:
    dataset, _ = load_dataset(pictures, FEW)
    plan = Bench(FEW, "CIFAR-10", dataset.make_key())
    for name in ARMS[1:]:
        arm = plan.make_arm(name)
        moved = np.load(whole[0] / "pictures" / f"{arm.make_key(dataset.make_key())}.npy").astype(
            int
        )
        change = np.abs(moved - dataset.pixels).max((1, 2, 3))
        assert (change > 0).all()
        assert (change.max() <= 8) == (name not in ("LSP", "CUDA"))


def test_the_most_telling_victims_come_first() -> None:
    plan = Bench(PRESETS["mini"], "CIFAR-10", "data")
    plan.make_table_1()
    entries = plan.list_victims()
    assert len(entries) == 11 * (3 * 2 + 2)
    first = entries[: 2 * len(CORE)]
    assert {cell.arm.name for _, cell, _ in first} == set(CORE)
    assert [run.radius for _, _, run in first] == [0] * len(CORE) + [4 / 255] * len(CORE)
    assert all(run.seed == 1 for _, _, run in entries[-11 * 3 :])


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_laid_out(name: str) -> None:
    plan = Bench(PRESETS["paper"], "CIFAR-100", "data")
    table = TABLES[name](plan)
    assert table.places.keys() == set(itertools.product(table.rows, table.columns))
    assert {place.key for place in table.places.values()} == plan.cells.keys()
    assert ("[" in format_markdown(table, {})) == (name.isdigit())
    if name in ("3", "4"):
        assert table.title.startswith("Table 4")


def test_the_paper_protocol_is_the_published_one() -> None:
    plan = Bench(PRESETS["paper"], "CIFAR-10", "data")
    tue, rem, tap = (plan.make_arm(name) for name in ("TUE", "REM", "TAP"))
    assert isinstance(tue.noise, TueNoise) and isinstance(rem.noise, RemNoise)
    assert (tue.noise.steps, tue.noise.samples, rem.noise.inner_steps) == (10, 5, 10)
    assert isinstance(tap.noise, TapNoise)
    assert (tap.noise.steps, round(tap.noise.step * 255, 3)) == (250, 0.4)
    assert asdict(plan.make_arm("SEM").noise)["inner_steps"] == 0
    assert asdict(plan.make_arm("TUE without score").noise)["score_ratio"] == 0
    # The grayscale term is no paper's.
    for name in ("TUE", "EM", "TUE without score", "clean", "random noise"):
        arm = plan.make_arm(name)
        for noise in (arm.noise, arm.training.noise if arm.training else arm.noise):
            assert asdict(noise).get("gray_ratio", 0) == 0
    key = plan.place(tue, "at4").key
    trial = plan.cells[key].trial
    assert (trial.steps, trial.victim.batch, trial.victim.width) == (40_000, 128, 64)
    assert (trial.adversary_steps, trial.radius) == (10, 4 / 255)


@pytest.mark.parametrize(
    ("coordinates", "figure"),
    [
        (("1", "CIFAR-10", "resnet18", "TUE", "resnet18", "4"), 29.20),
        (("1", "ImageNet subset", "resnet18", "EM", "resnet18", "0"), 1.26),
        (("2", "CIFAR-10", "resnet18", "clean", "wrn34-10", "4"), 91.21),
        (("4", "CIFAR-100", "densenet121", "EM", "vgg16", "0"), 1.00),
        (("6", "CIFAR-100", "vgg16", "TUE", "densenet121", "4"), 41.93),
        (("1", "CIFAR-10", "resnet18", "LSP", "resnet18", "4"), None),
        (("1", "photos", "resnet18", "TUE", "resnet18", "4"), None),
    ],
)
def test_the_paper_s_figures_are_found(coordinates: tuple[str, ...], figure: float | None) -> None:
    assert get_published(*coordinates) == figure


def row_of(accuracy: float, robust: float | None = None) -> dict[str, Any]:
    return {"accuracy": accuracy, "robust_train": robust}


def test_a_cell_shows_mean_spread_doubt_and_the_paper() -> None:
    place = TableCell("key", 29.2)
    assert format_cell(place, {}) == "– [29.20]"
    two = summarize([row_of(0.2), row_of(0.4)])
    assert two["n"] == 2
    assert format_cell(place, {"key": two}) == "30.0 ± 14.1 [29.20]"
    assert format_cell(TableCell("key"), {"key": summarize([row_of(0.2, 0.6)])}) == "20.0 (60)"
    assert format_cell(TableCell("key"), {"key": summarize([row_of(0.2, 0.4)])}) == "20.0 (40)*"
    table = ResultTable("t", "T", "a", ("r",), ("c",), {("r", "c"): place})
    assert "| r | 30.0 ± 14.1 [29.20] |" in format_markdown(table, {"key": two})


@pytest.mark.parametrize("wrong", ["table", "no-test", "classes"])
def test_what_cannot_be_measured_is_refused(wrong: str, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    if wrong == "no-test":
        shutil.rmtree(folder / "val")
    if wrong == "classes":
        (folder / "val" / "a").rename(folder / "val" / "z")
    spec = spec_of(folder, tmp_path / "out", "7" if wrong == "table" else "1")
    with pytest.raises(BadSetting) as caught:
        list(bench(spec))
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CIFAR_LAYOUTS)
def test_pickled_cifar_is_written_out_once(name: str, tmp_path: Path) -> None:
    kept, folder, output = CIFAR_LAYOUTS[name], tmp_path / "kept", tmp_path / "out"
    (folder / kept.folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = {file: random.integers(0, 256, (6, 3072), np.uint8) for file in kept.train + kept.test}
    for file, levels in pixels.items():
        content = {"data": levels, kept.labels: [0, 1] * 3}
        (folder / kept.folder / file).write_bytes(pickle.dumps(content, protocol=2))
    meta = {f"{kept.labels[:-1]}_names": ["cat", "dog"]}
    (folder / kept.folder / kept.names).write_bytes(pickle.dumps(meta, protocol=2))
    spec = BenchSpec((folder,), output, ("1",), replace(FEW, per_class=None), "cpu", dry_run=True)
    events = list(bench(spec))
    assert any(isinstance(event, Note) and name in event.message for event in events)
    assert {place.name for place in (output / "data" / name / "train").iterdir()} == {"cat", "dog"}
    file = kept.test[0]
    with Image.open(output / "data" / name / "test" / "dog" / f"{file}-00003.png") as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), pixels[file][3])
    assert not [event for event in bench(spec) if isinstance(event, Note)]
    assert (output / f"table-1-{name}.md").exists()
    # Interrupted between the two parts, it goes on with the second.
    shutil.rmtree(output / "data" / name / "test")
    list(bench(spec))
    assert len(list((output / "data" / name / "test").rglob("*.png"))) == 6


@pytest.mark.parametrize("changes", [{"seed": 1}, {"size": 20}, {"steps": 4}])
def test_results_of_other_settings_are_not_written_over(
    changes: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    spec = replace(spec_of(pictures, tmp_path / "out", "1"), dry_run=True)
    list(bench(spec))
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    list(bench(spec))
    with pytest.raises(BadSetting, match="another preset, size or seed"):
        list(bench(replace(spec, settings=replace(spec.settings, **changes))))
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before


@pytest.mark.parametrize("size", [0, -4, 4, 33])
def test_a_size_that_no_net_takes_is_refused(size: int, pictures: Path, tmp_path: Path) -> None:
    spec = spec_of(pictures, tmp_path / "out", "1")
    with pytest.raises(BadSetting, match="multiple of 4"):
        list(bench(replace(spec, settings=replace(spec.settings, size=size))))


def test_an_output_that_cannot_be_made_stops_the_bench_at_once(
    pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputProblem) as caught:
        list(bench(replace(spec_of(pictures, tmp_path / "file", "1"), dry_run=True)))
    assert caught.value.remedy


@pytest.mark.parametrize("meta", [{}, [], {"label_names": 3}])
def test_a_dataset_that_is_not_whole_is_refused(meta: object, tmp_path: Path) -> None:
    kept = CIFAR_LAYOUTS["cifar-10"]
    (tmp_path / kept.folder).mkdir()
    (tmp_path / kept.folder / kept.names).write_bytes(pickle.dumps(meta, protocol=2))
    batch = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    for file in kept.train + kept.test:
        (tmp_path / kept.folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(BadSetting) as caught:
        list(bench(BenchSpec((tmp_path,), tmp_path / "out", ("1",), FEW, "cpu")))
    assert "Download" in caught.value.remedy


def test_a_pickle_that_does_something_is_not_read(tmp_path: Path) -> None:
    kept = CIFAR_LAYOUTS["cifar-100"]
    (tmp_path / kept.folder).mkdir()
    (tmp_path / kept.folder / kept.names).write_bytes(pickle.dumps(Path.cwd))
    with pytest.raises(BadSetting, match="no place"):
        list(bench(BenchSpec((tmp_path,), tmp_path / "out", ("1",), FEW, "cpu")))


def test_the_presets_grow() -> None:
    costs = []
    for name in ("mini", "small", "paper"):
        settings: BenchSettings = PRESETS[name]
        costs.append(settings.width**2 * settings.victim_steps * settings.batch)
    assert costs == sorted(costs)


@pytest.mark.slow
def test_a_row_that_was_cut_off_is_measured_again(
    whole: tuple[Path, list[AnyEvent]], pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "again"
    shutil.copytree(whole[0], output)
    text = (output / "rows.jsonl").read_text()
    (output / "rows.jsonl").write_text(text[:-40])
    events = list(bench(spec_of(pictures, output, "1")))
    assert len([event for event in events if isinstance(event, Advanced)]) == 1
    assert means(output) == means(whole[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", ""), "empty"),
        (("-o", "out", "--preset", "huge"), "mini"),
        (("-o", "out"), "train/CLASS/"),
    ],
)
def test_a_command_line_that_cannot_be_measured_is_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(tmp_path), *words])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
