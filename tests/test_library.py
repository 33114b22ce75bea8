"""`tue_cli.Protector`: what it makes is what `tue protect` writes, whoever asks, and how often."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SECRET
from numpy.typing import NDArray
from PIL import Image

from tue_cli import Protector
from tue_cli.config import ProtectSettings
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.noise import TueNoise
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.run import protect

ROOT = Path(__file__).parent.parent
SHORT = ProtectSettings(noise=TueNoise(steps=2, samples=1))


@pytest.fixture(scope="module")
def library(twin: Path) -> Protector:
    return Protector(twin, settings=SHORT, secret=SECRET, backend="onnx")


def draw(seed: int, side: int = 40, channels: int = 3) -> NDArray[np.uint8]:
    levels = np.random.default_rng(seed).normal(128, 30, (side, side, channels))
    return levels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("format", ["keep", "webp"])
def test_a_file_gets_the_very_bytes_that_the_command_writes(
    format: str, small_photos: Path, twin: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    spec = ProtectSpec(
        (small_photos,), output, settings=SHORT, weights=str(twin), backend="onnx", format=format
    )
    list(protect(spec))
    manifest = json.loads((output / "tue-manifest.json").read_text())
    assert len(manifest["pictures"]) == 6
    planned = Protector(twin, settings=SHORT, plan=output, format=format)
    assert planned.codes == manifest["keys"]
    for record in manifest["pictures"]:
        data = (small_photos / record["source"]).read_bytes()
        made = planned.protect_file(data, record["label"])
        assert made == (output / record["path"]).read_bytes(), record["path"]


def test_a_plan_of_other_weights_is_refused(twin: Path, tmp_path: Path) -> None:
    run = {"weights": {"name": "others", "sha256": "0" * 64}}
    manifest = {"schema": 1, "run": run, "keys": {"a": "a"}, "pictures": []}
    (tmp_path / "tue-manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadSetting, match="other weights: others"):
        Protector(twin, settings=SHORT, secret=SECRET, plan=tmp_path)


def test_one_picture_is_protected_alike_alone_in_a_batch_and_in_any_thread(
    library: Protector,
) -> None:
    pictures = [draw(seed) for seed in range(4)]
    labels = ["a", "b", "a", "c"]
    together = library.protect_batch(pictures, labels)
    for before, after in zip(pictures, together, strict=True):
        moved = np.abs(before.astype(int) - after).max()
        assert 0 < moved <= round(SHORT.noise.radius * 255)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(library.protect, pictures, labels))
    assert all(map(np.array_equal, together, alone))


def test_eight_threads_write_the_bytes_that_one_does(
    library: Protector, small_photos: Path
) -> None:
    files = [path.read_bytes() for path in sorted(small_photos.rglob("*")) if path.is_file()] * 4
    labels = [f"account {number}" for number in range(len(files))]
    alone = list(map(library.protect_file, files, labels))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(library.protect_file, files, labels)) == alone


def test_every_picture_of_a_batch_needs_a_label(library: Protector) -> None:
    for labels in (["a"], ["a", "b", "c"]):
        with pytest.raises(BadSetting, match="2 pictures"):
            library.protect_batch([draw(1), draw(2)], labels)


def test_an_array_and_a_picture_of_pillow_get_the_same_noise_and_keep_their_kind(
    library: Protector,
) -> None:
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        array = draw(channels, channels=channels)
        image = Image.fromarray(array[..., 0] if channels == 1 else array)
        image.info["dpi"] = (72, 72)
        made = library.protect(image, "a")
        assert made.mode == mode and made.info == {"dpi": (72, 72)}
        assert np.array_equal(np.asarray(made).reshape(array.shape), library.protect(array, "a"))
    flat = draw(9, channels=1)[..., 0]
    assert library.protect(flat, "a").shape == flat.shape


def test_transparent_pixels_and_the_alpha_channel_stay_as_they_are(library: Protector) -> None:
    array = draw(3, channels=4)
    array[:20, :, 3] = 0
    made = library.protect(array, "a")
    assert np.array_equal(made[:20], array[:20]) and np.array_equal(made[..., 3], array[..., 3])
    assert not np.array_equal(made[20:], array[20:])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 5), np.uint8), "mode"),
        (np.zeros((4, 4, 3), np.float32), "mode"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_a_reason(
    library: Protector, array: NDArray[np.uint8], reason: str
) -> None:
    with pytest.raises(ImageProblem) as caught:
        library.protect(array, "a")
    assert caught.value.reason == reason


def test_a_white_picture_has_no_place_for_noise_and_comes_back_as_it_is(
    library: Protector,
) -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    assert np.array_equal(library.protect(white, "a"), white)


def test_a_strength_is_as_strong_as_the_command_s(twin: Path) -> None:
    subtle, strong = (
        Protector(twin, strength=name, secret=SECRET, backend="onnx").protect(draw(5), "a")
        for name in ("subtle", "strong")
    )
    change = [np.abs(made.astype(int) - draw(5)).mean() for made in (subtle, strong)]
    assert change[1] > 1.5 * change[0] > 0
    with pytest.raises(BadSetting, match="no strength"):
        Protector(twin, strength="gentle", secret=SECRET)


def test_classes_share_the_codes_and_other_labels_are_refused(twin: Path) -> None:
    def codes_of(**more: object) -> Protector:
        return Protector(twin, settings=SHORT, secret=SECRET, backend="onnx", **more)  # type: ignore[arg-type]

    shared = codes_of(classes=["cats", "dogs", "birds"])
    assert shared.codes is not None and len(set(shared.codes.values())) == 3
    assert codes_of(classes=shared.codes).codes == shared.codes
    with pytest.raises(BadSetting, match="none of the classes"):
        shared.find_code("fish")
    with pytest.raises(BadSetting, match="no class of the weights"):
        codes_of(classes={"cats": "nothing"})
    with pytest.raises(BadSetting, match="Both"):
        codes_of(classes=["cats"], plan="out")
    anything = codes_of()
    assert anything.codes is None
    assert {anything.find_code(f"account-{number}") for number in range(50)} == {"a", "b", "c"}


def test_without_a_secret_nothing_is_protected(twin: Path, own_home: Path) -> None:
    (own_home / "secret").unlink()
    with pytest.raises(BadSetting, match="There is no secret yet"):
        Protector(twin, settings=SHORT)
    assert not (own_home / "secret").exists()
    with pytest.raises(BadSetting, match="contains no secret"):
        Protector(twin, settings=SHORT, secret="guess")


def test_the_package_is_imported_without_the_library() -> None:
    code = "import sys, tue_cli; assert 'numpy' not in sys.modules; tue_cli.Protector"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_upload_handler_of_the_page_protects_an_upload(
    small_photos: Path, own_home: Path
) -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks[0].strip().splitlines()) <= 16
    names: dict[str, object] = {"SHORT": SHORT}
    exec(blocks[0].replace("Protector(", "Protector(settings=SHORT, "), names)
    source = next(small_photos.rglob("*.jpg"))
    handle = names["handle_upload"]
    assert callable(handle)
    made = handle(source.read_bytes(), "account-1")
    assert made != source.read_bytes()
