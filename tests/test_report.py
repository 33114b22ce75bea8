"""The report stands alone, believes no name, and gives no figure that was not measured."""

from __future__ import annotations

import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from skimage import data as bundled

from tue_cli.attacks.registry import ATTACKS, WAYS
from tue_cli.errors import ImageProblem, OutputProblem
from tue_cli.images.exif import ORIENTATION
from tue_cli.images.thumbnails import MIDDLE, SIDE, Thumbnails, make_thumbnails
from tue_cli.report.answer import PLAIN
from tue_cli.report.page import render_page, write_page
from tue_cli.report.write import refuse_report, write_report

ASTRONAUT: NDArray[np.uint8] = np.ascontiguousarray(
    bundled.astronaut()[20:120, 150:310]  # type: ignore[no-untyped-call]
)
HOSTILE = "a<script>alert(1)</script>\"'&\u202e.png"


class Marks(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.within = ""
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data: str) -> None:
        if self.within != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def saved(path: Path, pixels: NDArray[np.uint8], turn: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def opened(view: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(view)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Thumbnails:
    tmp_path = tmp_path_factory.mktemp("pair")
    noise = np.random.default_rng(0).integers(-8, 9, ASTRONAUT.shape)
    after = np.clip(ASTRONAUT + noise, 0, 255).astype(np.uint8)
    before_file, after_file = saved(tmp_path / "a.png", ASTRONAUT), saved(tmp_path / "b.png", after)
    return make_thumbnails(before_file, after_file, record(HOSTILE))


def record(path: str = "cats/a.png", **more: Any) -> dict[str, Any]:
    return {"path": path, "largest": 8, "psnr": 34.06, "ssim": 0.987, "survival": 1.0, **more}


def manifest(*records: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {
            "settings": {"method": "tue", "noise": {"radius": 8 / 255, "steps": 10}, "seed": 0},
            "weights": {"name": "cifar10", "sha256": "9a4d" * 16},
        },
        "keys": {HOSTILE: "frog"},
        "summary": {"failed": [{"path": HOSTILE, "reason": "animated", "message": "Animated."}]},
        "pictures": list(records) or [record()],
    }


def attack(**more: Any) -> dict[str, Any]:
    return {
        "name": "std",
        "title": "standard training",
        "victim": "resnet18:16",
        "floor": 0.1,
        "floor_name": "chance",
        "clean": {"mean": 0.583, "low": 0.551, "high": 0.612},
        "protected": {"mean": 0.193, "low": 0.17, "high": 0.22},
        "random": None,
        "protection": {"value": 81.4, "low": 75.3, "high": 86.8},
        "inconclusive": "",
        "curves": {"clean": [[0.2, 0.5, 0.58]], "protected": [[0.2, 0.2, 0.19]], "random": []},
        **more,
    }


def result(**more: Any) -> dict[str, Any]:
    weakest = {"attack": "jpeg", "title": "JPEG at quality 10", "victim": "resnet18:16"}
    return {
        "headline": "Protection: 38 % (weakest attack: JPEG at quality 10)",
        "status": "conclusive",
        "reasons": [],
        "standard": {"value": 81.4, "low": 75.3, "high": 86.8},
        "weakest": {"value": 38.1, "low": -2.2, "high": 44.0, **weakest},
        "chance": 0.1,
        "attacks": [attack()],
        "setup": {"victims": ["resnet18:16"], "time": "3 min", "held_out_pictures": 1000},
        **more,
    }


EMBEDDING: dict[str, Any] = {
    "classes": ["cat", HOSTILE],
    "clean": [[0.0, 0.0, 0], [4.0, 2.0, 1]],
    "protected": [[1.0, 1.0, 0], [3.0, 8.0, 1]],
    "title": "t-SNE of the features of 2 pictures",
}


def full(pair: Thumbnails, **more: Any) -> str:
    given = {"manifest": manifest(), "pictures": [pair], "result": result(), "embedding": EMBEDDING}
    return render_page(**{**given, "command": f"tue verify '{HOSTILE}'", **more})


def test_the_page_needs_nothing_but_itself(pair: Thumbnails) -> None:
    html = full(pair)
    marks = Marks(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {
        t for t, _ in marks.elements
    }
    for tag, attributes in marks.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert re.match(r"data:image/(png|jpeg);base64,|#", attributes.get(name) or "#"), tag
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(a for a in marks.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_no_name_becomes_markup(pair: Thumbnails) -> None:
    hostile = attack(title=HOSTILE, victim=HOSTILE, floor_name=HOSTILE, inconclusive=HOSTILE)
    html = full(pair, result=result(attacks=[hostile], headline=HOSTILE, reasons=[HOSTILE]))
    assert "<script" not in html
    assert "\u202e" not in html and r"\u202e" in html
    assert Marks(html).text.count("<script>alert(1)</script>") > 10


def test_an_undecodable_name_can_be_written(tmp_path: Path) -> None:
    write_page(
        render_page(manifest=manifest(record("\udc80.png")), pictures=[]), tmp_path / "report.html"
    )
    name = Thumbnails("\udc80.png", b"", b"", b"", "")
    assert r"\udc80.png" in render_page(manifest=manifest(), pictures=[name])


def test_the_answer_stands_with_its_intervals(pair: Thumbnails) -> None:
    text = Marks(full(pair)).text
    assert "Protection: 38 % (weakest attack: JPEG at quality 10)" in text
    assert "81\N{NO-BREAK SPACE}% (75–87)" in text


def protections(**of: tuple[float, float, float]) -> dict[str, Any]:
    """A result with these attackers, each with its protection and the ends of its interval."""
    attacks = [
        attack(
            name=name,
            title=ATTACKS[name].title,
            protection={"value": value, "low": low, "high": high},
        )
        for name, (value, low, high) in of.items()
    ]
    return result(attacks=attacks)


def first_screen(html: str) -> dict[str, list[str]]:
    """What stands under each heading of the answer."""
    found: dict[str, list[str]] = {}
    for name, part in re.findall(r'<section class="who who-(\w+)">(.*?)</section>', html, re.S):
        found[name] = [
            re.sub(r"[ \n]+", " ", Marks(row).text).strip()
            for row in re.findall(r"<li>(.*?)</li>", part, re.S)
        ]
    return found


def test_the_first_screen_says_who_is_stopped_slowed_and_not(pair: Thumbnails) -> None:
    told = protections(
        std=(92, 85, 97),
        gray=(88, 80, 93),
        blur=(85, 78, 92),
        at4=(40, 30, 50),
        jpeg10=(38, -2, 44),
    )
    told["attacks"].append(attack(name="at2", title=ATTACKS["at2"].title, inconclusive="too few"))
    html = full(pair, result=told)
    screen = first_screen(html)
    # Where an interval crosses a limit, the lower group has the attacker; the strongest come first.
    assert screen["stopped"] == [
        "Learns from the copies as they are standard training 92\N{NO-BREAK SPACE}% (85–97)",
        "Takes the colours away grayscale 88\N{NO-BREAK SPACE}% (80–93)",
    ]
    assert [row.split(" (")[0] for row in screen["slowed"]] == [
        "Blurs the pictures Gaussian blur after resizing 85\N{NO-BREAK SPACE}%",
        "Learns to ignore noise up to 4/255 adversarial training 4/255 40\N{NO-BREAK SPACE}%",
    ]
    (free,) = screen["free"]
    assert (
        free.startswith("Compresses the pictures very strongly") and "\N{MINUS SIGN}2 to 44" in free
    )
    assert screen["unknown"] == ["Learns to ignore noise up to 2/255 adversarial training 2/255"]
    text = " ".join(Marks(html).text.split())
    assert (
        "Of 6 attackers, the copies stop 2, slow 2 and do not stop 1; 1 could not be measured."
        in text
    )
    assert (
        "lower end of the protection: 80 % or more" in text
        and "30 to 80 %" in text
        and "less than 30 %" in text
    )


def test_recall_of_one_class_is_told_with_what_becomes_of_the_others(pair: Thumbnails) -> None:
    others = {"clean": 0.712, "protected": 0.704, "random": 0.7}
    text = Marks(full(pair, result=result(attacks=[attack(others=others)]))).text
    assert "the recall of that class" in text
    assert (
        "Other classes: 71\N{NO-BREAK SPACE}% after originals, 70\N{NO-BREAK SPACE}% after copies"
        in text
    )
    assert "recall" not in Marks(full(pair)).text


def test_several_victims_are_told_apart_on_the_first_screen(pair: Thumbnails) -> None:
    told = protections(std=(92, 85, 97))
    told["attacks"].append({**told["attacks"][0], "victim": "vgg16:1"})
    rows = first_screen(full(pair, result=told))["stopped"]
    assert ["vgg16:1" in row for row in rows] == [False, True]


def test_an_attacker_without_plain_words_goes_by_its_title(pair: Thumbnails) -> None:
    other = attack(title="fine-tuning of a pretrained network, grayscale")
    (row,) = first_screen(full(pair, result=result(attacks=[other])))["slowed"]
    assert row.startswith("Fine-tuning of a pretrained network, grayscale 81")


def test_every_attacker_has_plain_words() -> None:
    assert {*ATTACKS, *WAYS.values()} <= set(PLAIN)


def test_what_is_inconclusive_gives_its_reason_and_no_protection(pair: Thumbnails) -> None:
    doubtful = attack(protection={"value": 77.0, "low": 1, "high": 99}, inconclusive="too few")
    html = full(
        pair,
        result=result(
            status="inconclusive",
            headline="Protection: 77 %",
            reasons=["only 120 pictures were given"],
            attacks=[doubtful],
            weakest={**result()["weakest"], "value": 77.0},
        ),
    )
    text = Marks(html).text
    assert "Inconclusive" in text and "Only 120 pictures were given." in text
    assert "too few" in text
    assert "77" not in text
    answer = text[text.index("Inconclusive") : text.index("What the victims learned")]
    assert "%" not in answer


def test_without_a_result_only_the_pictures_are_told_of(pair: Thumbnails) -> None:
    marks = Marks(render_page(manifest=manifest(), pictures=[pair], command="tue protect a"))
    assert "was not measured here" in marks.text
    assert "victim" not in marks.text and not marks.of("table")
    assert len(marks.of("img")) == 3
    assert "This page does not show how much the copies protect." in marks.text


def test_a_report_for_which_nothing_was_trained_says_so(pair: Thumbnails) -> None:
    few = result(
        status="inconclusive",
        headline="Inconclusive: too few",
        reasons=["6 pictures are too few"],
        attacks=[],
        weakest=None,
        standard=None,
        chance=None,
        setup={"time": None},
    )
    text = " ".join(Marks(full(pair, result=few, embedding=None)).text.split())
    assert "no model was trained" in text and "Nothing was trained" in text
    assert "6 pictures are too few." in text
    assert "were trained" not in text and "victims" not in text


def test_facts_are_told_in_the_users_units(pair: Thumbnails) -> None:
    told = manifest()
    told["run"]["settings"]["smooth"] = 0.25
    told["finished"] = "2026-11-27T17:25:54+00:00"
    text = Marks(full(pair, manifest=told)).text
    assert "25\N{NO-BREAK SPACE}%" in text and "2026-11-27 17:25:54 UTC" in text


def test_a_filter_that_has_no_radius_is_told_to_have_no_limit(pair: Thumbnails) -> None:
    told = manifest()
    told["run"]["settings"] |= {"method": "cuda", "noise": {}}
    assert "no limit: a filter may change a pixel" in Marks(full(pair, manifest=told)).text


def test_a_report_of_a_name_that_no_file_can_have_is_refused_before_any_work() -> None:
    with pytest.raises(OutputProblem, match="too long"):
        refuse_report(Path(f"{'a' * 300}.html"))


def test_a_report_that_has_no_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputProblem, match="is missing or not"):
        refuse_report(tmp_path / "nowhere" / "page.html")
    refuse_report(tmp_path / "page.html")


@pytest.mark.parametrize("smooth", ["<q>", [0.25], {}, None])
def test_a_share_that_is_no_number_stops_no_page(smooth: object) -> None:
    told = manifest()
    told["run"]["settings"]["smooth"] = smooth
    page = render_page(manifest=told, pictures=[])
    assert page.endswith("</html>") and "<q>" not in page


def test_bars_are_as_long_as_accuracies_and_whiskers_span_their_intervals(pair: Thumbnails) -> None:
    html = full(pair)
    bars = [a for a in Marks(html).of("rect") if a["class"] == "fill-clean"]
    assert [bar["width"] for bar in bars] == ["58.3%"]
    whiskers = re.findall(r'<g class="whisker">\s*<line x1="(.+?)%" x2="(.+?)%"', html)
    assert whiskers == [("75.3", "86.8"), ("55.1", "61.2"), ("17.0", "22.0")]
    without = attack(
        clean={"mean": 0.5, "low": None, "high": None}, protected=None, inconclusive="why"
    )
    assert 'class="whisker"' not in full(pair, result=result(attacks=[without]))


PROBE = "a linear probe of a pretrained network"


def test_what_was_tested_only_once_has_no_curve(pair: Thumbnails) -> None:
    once = {"clean": [[0.58]], "protected": [[0.19]], "random": [[0.5]]}
    html = full(pair, result=result(attacks=[attack(), attack(title=PROBE, curves=once)]))
    charts = [str(a["aria-label"]) for a in Marks(html).of("svg") if a.get("role") == "img"]
    assert sum(label.startswith("Accuracy by epoch") for label in charts) == 1
    assert sum(label.startswith("Accuracy after") for label in charts) == 2


def test_standard_training_stands_beside_a_probe_that_learned_more(pair: Thumbnails) -> None:
    low = {"value": 12.0, "low": 5.0, "high": 20.0}
    found = [attack(name="std"), attack(name="std", title=PROBE, victim="Lite0", protection=low)]
    screen = first_screen(full(pair, result=result(attacks=found)))
    (standard,), (probe,) = screen["slowed"], screen["free"]
    assert standard.startswith("Learns from the copies as they are standard training")
    assert probe.startswith(f"{PLAIN[PROBE]} {PROBE}, Lite0 12")


def test_every_chart_is_told_in_words(pair: Thumbnails) -> None:
    charts = [a for a in Marks(full(pair)).of("svg") if a.get("role") == "img"]
    assert len(charts) == 1 + 1 + 1 + 2 + 2  # answer, bars, curves, maps, spreads
    assert all(chart["aria-label"] for chart in charts)


def test_both_maps_share_their_axes(pair: Thumbnails) -> None:
    paths = re.findall(r'<path class="cloud .+?" d="M([\d.]+) ([\d.]+)h', full(pair))
    places = np.array(paths, float)
    original = np.array([[0, 0], [4, 2], [1, 1], [3, 8]], float)
    scale = np.ptp(places[:, 1]) / 8
    np.testing.assert_allclose(places[:, 0] - places[0, 0], original[:, 0] * scale, atol=0.1)
    np.testing.assert_allclose(places[0, 1] - places[:, 1], original[:, 1] * scale, atol=0.1)


def test_what_a_manifest_lacks_is_left_out() -> None:
    bare: dict[str, Any] = {"run": {}, "keys": {}, "pictures": [{"path": "a", "psnr": None}]}
    assert "PSNR says" not in render_page(manifest=bare, pictures=[])
    spread = Marks(render_page(manifest=manifest(record(), record(psnr=30.0)), pictures=[])).text
    assert "lowest 30.0 dB" in spread and "median 32.0 dB" in spread


def test_equal_pictures_differ_nowhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", ASTRONAUT)
    views = make_thumbnails(path, path, {})
    assert np.unique(opened(views.difference)).tolist() == [MIDDLE]
    assert (views.name, views.note) == ("a.png", "")


def test_the_difference_is_ten_times_the_change_and_clipped(tmp_path: Path) -> None:
    before = np.full((6, 6, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0], after[5, 5] = (103, 98, 100), (255, 0, 100)
    files = saved(tmp_path / "a.png", before), saved(tmp_path / "b.png", after)
    difference = opened(make_thumbnails(*files, record()).difference)
    assert difference[0, 0].tolist() == [158, 108, 128]
    assert difference[-1, -1].tolist() == [255, 0, 128]


def test_a_large_picture_is_shown_where_its_change_is_seen_and_not_scaled(tmp_path: Path) -> None:
    before = np.tile(ASTRONAUT, (6, 7, 1))
    height, width, _ = before.shape
    after = before.copy()
    after[height - 150 : height - 50, width - 150 : width - 50] //= 2
    views = make_thumbnails(saved(tmp_path / "a.png", before), saved(tmp_path / "b.png", after), {})
    with Image.open(io.BytesIO(views.difference)) as image:
        assert image.size == (SIDE, SIDE)
    shown = opened(views.before)
    distance = np.abs(shown.astype(int) - before[-SIDE:, -SIDE:])
    assert distance.mean() < 4  # a JPEG of these very pixels


def test_views_are_small_and_keep_no_metadata(tmp_path: Path) -> None:
    large = np.tile(ASTRONAUT, (6, 7, 1))
    files = saved(tmp_path / "a.jpg", large), saved(tmp_path / "b.jpg", large)
    views = make_thumbnails(*files, record(psnr=None))
    for view in (views.before, views.after, views.difference):
        image = Image.open(io.BytesIO(view))
        assert max(image.size) <= SIDE and not image.getexif()
    assert views.note == "largest change 8 levels, SSIM 0.987"


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_views_stand_upright(tmp_path: Path, kind: str, turn: int) -> None:
    quarters = np.zeros((20, 40, 3), np.uint8)
    quarters[:10, :20], quarters[:10, 20:], quarters[10:, :20] = (
        (240, 0, 0),
        (0, 240, 0),
        (0, 0, 240),
    )
    path = saved(tmp_path / f"a.{kind}", quarters, turn)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    view = Image.open(io.BytesIO(make_thumbnails(path, path, {}).before))
    assert view.size == tuple(9 * side for side in expected.shape[1::-1])
    found = np.asarray(view.convert("RGB"))[4::9, 4::9]
    assert np.abs(found.astype(int) - expected).max() <= 4


def test_a_transparent_picture_lies_on_white(tmp_path: Path) -> None:
    clear = np.dstack([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)])
    path = saved(tmp_path / "a.png", clear)
    assert np.unique(opened(make_thumbnails(path, path, {}).before)).tolist() == [255]


def test_a_grey_original_can_have_a_coloured_copy(tmp_path: Path) -> None:
    grey = np.full((8, 8), 90, np.uint8)
    files = saved(tmp_path / "a.png", grey), saved(tmp_path / "b.png", np.dstack([grey + 2] * 3))
    assert np.unique(opened(make_thumbnails(*files, {}).difference)).tolist() == [MIDDLE + 20]


def test_pictures_of_two_sizes_are_no_pair(tmp_path: Path) -> None:
    files = saved(tmp_path / "a.png", ASTRONAUT), saved(tmp_path / "b.png", ASTRONAUT[1:])
    with pytest.raises(ImageProblem) as caught:
        make_thumbnails(*files, {})
    assert caught.value.reason == "other-size"


@pytest.mark.parametrize(
    "place", ["missing/report.html", "folder", "file/report.html", "nul\0.html"]
)
def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(os.walk(tmp_path))
    with pytest.raises(OutputProblem) as caught:
        write_page("<!doctype html>", tmp_path / place)
    assert caught.value.remedy
    assert sorted(os.walk(tmp_path)) == before


def test_a_full_disk_keeps_the_former_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_page("old", path)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputProblem, match="Free some space"):
        write_page("new", path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report.html", "old")]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")
@pytest.mark.parametrize(("modes", "expected"), [((0o600, 0o644), 0o600), ((0o644, 0o640), 0o640)])
def test_who_may_read_the_page_may_read_every_original_on_it(
    tmp_path: Path, modes: tuple[int, ...], expected: int
) -> None:
    names = [f"{number}.png" for number, _ in enumerate(modes)]
    for name, mode in zip(names, modes, strict=True):
        saved(tmp_path / name, ASTRONAUT).chmod(mode)
    records = [record(path=name) for name in names]
    list(
        write_report(
            tmp_path / "page.html",
            manifest(*records),
            tmp_path,
            lambda one: tmp_path / one["path"],
        )
    )
    html = tmp_path / "page.html"
    assert html.read_text().count("data:image") >= 2
    (tmp_path / "plain").touch(expected)
    assert html.stat().st_mode == (tmp_path / "plain").stat().st_mode
