"""Copies meet their originals, nothing is learned that is tested, and every arm is comparable."""

from __future__ import annotations

import io
import os
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tue_cli.dataset.manifest import sha256
from tue_cli.errors import BadSetting
from tue_cli.events import Failed
from tue_cli.verify.dataset import KEPT_BYTES, VictimDataset, choose_kept_size, load_victim_dataset
from tue_cli.verify.pairs import (
    Pair,
    find_original,
    limit_pairs,
    list_clean_images,
    pair_copies,
    split,
)
from tue_cli.verify.restored import choose_pictures
from tue_cli.verify.split import choose_working_size

POOL = ThreadPoolExecutor(2)


def picture(path: Path, seed: int, *, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(20, 236, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def copied(folder: Path, copies: Path) -> dict[str, Any]:
    """Return a manifest of copies that are a level brighter than their originals."""
    records = []
    for original in sorted(folder.rglob("*.png")):
        relative = original.relative_to(folder)
        (copies / relative).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(original))
        Image.fromarray(pixels + np.uint8(1)).save(copies / relative)
        records.append(
            {
                "path": relative.as_posix(),
                "source": relative.as_posix(),
                "source_sha256": sha256(original),
                "sha256": sha256(copies / relative),
                "label": relative.parts[0],
                "key": "a",
            }
        )
    return {"pictures": records}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in each of two classes."""
    for number in range(20):
        picture(tmp_path / "in" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "in"


def arms_of(
    folder: Path, *, seed: int = 0, size: int = 32, radius: float = 8 / 255
) -> tuple[VictimDataset, list[Failed]]:
    """Return every picture as its own copy."""
    pairs = [replace(p, copy=p.original) for p in list_clean_images(folder, POOL, classes=True)]
    train, held = split(pairs, 0.3, seed)
    failed: list[Failed] = []
    arms = load_victim_dataset(
        train, held, size=size, radius=radius, seed=seed, pool=POOL, failed=failed.append
    )
    return arms, failed


def test_each_copy_meets_its_original(folder: Path, tmp_path: Path) -> None:
    manifest = copied(folder, tmp_path / "out")
    pairs, failures, others = pair_copies(tmp_path / "out", folder, manifest, POOL)
    assert not failures and not others and len(pairs) == 20
    for pair in pairs:
        assert pair.copy is not None
        assert pair.copy.relative_to(tmp_path / "out") == pair.original.relative_to(folder)
        assert pair.sha256 == sha256(pair.original) and pair.label == pair.original.parent.name


def test_what_cannot_be_paired_is_named_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    manifest = copied(folder, tmp_path / "out")
    (folder / "a" / "0.png").unlink()
    picture(folder / "a" / "2.png", 99)
    (tmp_path / "out" / "a" / "4.png").unlink()
    picture(tmp_path / "out" / "a" / "6.png", 98)
    pairs, failures, others = pair_copies(tmp_path / "out", folder, manifest, POOL)
    assert {f.path.name: f.reason for f in failures} == {
        "0.png": "no-original",
        "2.png": "changed",
        "4.png": "no-copy",
    }
    assert len(pairs) == 17 and others == 1


@pytest.mark.parametrize("field", ["path", "source"])
@pytest.mark.parametrize("outside", ["../secret.png", "a/../../secret.png", "/etc/hostname"])
def test_a_manifest_leads_nowhere_outside_its_folders(
    field: str, outside: str, folder: Path, tmp_path: Path
) -> None:
    manifest = copied(folder, tmp_path / "out")
    secret = picture(tmp_path / "secret.png", 5)
    record = manifest["pictures"][0]
    record[field], record["source_sha256"] = outside, sha256(secret)
    pairs, failures, _ = pair_copies(tmp_path / "out", folder, manifest, POOL)
    assert [failure.reason for failure in failures] == ["outside"]
    assert find_original(record, folder) is None
    assert secret not in {place for pair in pairs for place in (pair.original, pair.copy)}


def test_odd_paths_and_names_of_a_manifest_stop_nothing(folder: Path, tmp_path: Path) -> None:
    manifest = copied(folder, tmp_path / "out")
    odd: list[Any] = ["", ".", "a\0b", "x" * 5000, "\udc80.png", ["a"], 7, None]
    for record, source in zip(manifest["pictures"], odd, strict=False):
        record["source"] = source
    manifest["pictures"][-1]["label"] = "a\ud800\n<b>"
    pairs, failures, _ = pair_copies(tmp_path / "out", folder, manifest, POOL)
    assert len(failures) == len(odd) and len(pairs) == 20 - len(odd)


def test_originals_of_another_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    manifest = copied(folder, tmp_path / "out")
    (tmp_path / "other").mkdir()
    with pytest.raises(BadSetting, match="of 20 originals, none"):
        pair_copies(tmp_path / "out", tmp_path / "other", manifest, POOL)


def test_a_name_in_either_unicode_form_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    picture(tmp_path / "in" / composed / "x.png", 0)
    picture(tmp_path / "holdout" / decomposed / "y.png", 1)
    manifest = copied(tmp_path / "in", tmp_path / "out")
    manifest["pictures"][0]["label"] = decomposed
    pairs, _, _ = pair_copies(tmp_path / "out", tmp_path / "in", manifest, POOL)
    tested = list_clean_images(tmp_path / "holdout", POOL, classes=True)
    assert pairs[0].label == tested[0].label == composed


def test_a_background_is_no_class_of_the_set(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "background" / "x.png", 0)
    (own,) = list_clean_images(tmp_path / "in", POOL, classes=True)
    (other,) = list_clean_images(tmp_path / "in", POOL, classes=False)
    assert own.label != other.label


contents = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(0, 3)), unique=True
)


@given(contents, st.floats(0.05, 0.9), st.integers(0, 5))
def test_no_content_is_both_learned_and_tested(
    pictures: list[tuple[str, int, int]], share: float, seed: int
) -> None:
    pairs = [
        Pair(Path(f"{label}-{content}-{number}"), None, label, sha256(str(content).encode()))
        for label, content, number in pictures
    ]
    train, held = split(pairs, share, seed)
    assert not {pair.sha256 for pair in train} & {pair.sha256 for pair in held}
    assert len(set(train)) == len(train) and len(set(held)) == len(held)
    assert set(train) | set(held) <= set(pairs)
    # Order of the pictures decides nothing.
    again = split(pairs[::-1], share, seed)
    assert [set(part) for part in again] == [set(train), set(held)]


def test_every_class_is_split_alike() -> None:
    pairs = [
        Pair(Path(f"{n}"), None, "rare" if n < 10 else "common", sha256(str(n).encode()))
        for n in range(100)
    ]
    train, held = split(pairs, 0.2, 0)
    assert sum(pair.label == "rare" for pair in held) == 2
    assert sum(pair.label == "common" for pair in held) == 18
    assert len(train) == 80
    assert split(pairs, 0.2, 1) != (train, held)


RARE_AND_COMMON = [
    Pair(Path(f"{n}"), None, label, sha256(str(n).encode()))
    for n, label in enumerate(["rare"] * 30 + ["common"] * 270)
]


@given(st.integers(1, 400), st.integers(0, 3))
def test_fewer_pictures_keep_every_class_in_its_proportion(most: int, seed: int) -> None:
    kept = limit_pairs(RARE_AND_COMMON, most, seed)
    assert len(kept) <= most + 1 and len(set(kept)) == len(kept)
    rare = sum(pair.label == "rare" for pair in kept)
    assert abs(rare - min(most, 300) / 10) <= 1 and rare >= 1


def test_arms_hold_the_same_pictures_in_one_order(folder: Path) -> None:
    arms, failed = arms_of(folder)
    assert not failed
    assert arms.clean.shape == arms.protected.shape == arms.random.shape == (14, 3, 32, 32)
    assert np.array_equal(arms.clean, arms.protected)
    noise = arms.random.astype(int) - arms.clean
    assert np.abs(noise).max() == 8 and (np.abs(noise).mean((1, 2, 3)) > 3).all()
    assert abs(noise.mean()) < 0.2
    assert arms.test.shape == (6, 3, 32, 32) and set(arms.test_labels) == {0, 1}
    known = {picture.tobytes() for picture in arms.clean}
    assert not known & {picture.tobytes() for picture in arms.test}


def test_random_noise_is_as_whole_levels_as_the_protection(folder: Path) -> None:
    arms, _ = arms_of(folder, radius=3.9 / 255)
    assert np.abs(arms.random.astype(int) - arms.clean).max() == 3


def test_random_noise_is_as_coarse_as_what_a_victim_sees(tmp_path: Path) -> None:
    for n in range(4):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png", n, size=(300, 400))
    arms, _ = arms_of(tmp_path)
    noise = np.abs(arms.random.astype(int) - arms.clean)
    assert noise.mean() > 2 and noise.max() <= 8


def test_the_same_seed_holds_the_same_arms_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    first = arms_of(folder)[0].digest()
    shutil.copytree(folder, tmp_path / "moved")
    # Names of files do not matter, only their content.
    for number, path in enumerate(sorted((tmp_path / "moved").rglob("*.png"))):
        path.rename(path.with_name(f"renamed-{100 - number}.png"))
    assert arms_of(tmp_path / "moved")[0].digest() == first
    assert arms_of(folder, seed=1)[0].digest() != first


def test_whatever_is_tested_is_part_of_the_digest(folder: Path) -> None:
    arms, _ = arms_of(folder)
    others = [
        replace(arms, test_labels=1 - arms.test_labels),
        replace(arms, test=255 - arms.test),
        replace(arms, labels=1 - arms.labels),
        replace(arms, random=arms.clean),
        replace(arms, classes=("a", "c")),
    ]
    assert len({arms.digest(), *(other.digest() for other in others)}) == 1 + len(others)


def test_a_part_of_each_class_is_protected_and_the_rest_clean(folder: Path) -> None:
    arms, _ = arms_of(folder)
    arms = replace(arms, protected=255 - arms.clean)
    pixels, labels = arms.select_training("protected", part=0.4)
    changed = (pixels != arms.clean).any((1, 2, 3))
    assert [int(changed[labels == number].sum()) for number in (0, 1)] == [3, 3]  # of 7 each
    alone, its_labels = arms.select_training("protected", part=0.4, alone=True)
    assert np.array_equal(alone, arms.clean[~changed])
    assert np.array_equal(its_labels, labels[~changed])
    clean, _ = arms.select_training("clean", part=0.4, alone=True)
    assert np.array_equal(clean, alone)


def test_a_filter_reaches_the_training_pictures_alone(folder: Path) -> None:
    arms, _ = arms_of(folder)
    test = arms.test.copy()
    pixels, _ = arms.select_training("protected", degrade="gray")
    assert (pixels == pixels[:, :1]).all()
    assert np.array_equal(arms.test, test) and (arms.test != arms.test[:, :1]).any()


def test_a_third_of_each_class_that_is_tested_is_enough_to_learn_to_restore_from(
    tmp_path: Path,
) -> None:
    for n in range(40):
        picture(tmp_path / "ab"[n % 2] / f"{n}.png", n)
    arms, _ = arms_of(tmp_path)
    assert arms.own is not None
    files, tested = choose_pictures(arms, arms.own)
    for number, name in enumerate(arms.classes):
        own = arms.test_labels == number
        assert (~tested[own]).sum() == own.sum() // 3 > 0
        assert sum(file.parent.name == name for file in files) == own.sum() // 3
    left = arms.choose_tests(tested)
    assert left.own is not None and not {*left.own.held} & {*files}
    for file, place in zip(files, np.flatnonzero(~tested), strict=True):
        assert np.array_equal(arms.own.resize(np.asarray(Image.open(file))), arms.test[place])


def test_where_others_pictures_are_learned_these_alone_make_pairs(folder: Path) -> None:
    arms, _ = arms_of(folder)
    assert arms.own is not None
    pairs = [replace(pair, copy=pair.original) for pair in arms.own.pairs]
    others = [replace(pair, copy=None) for pair in pairs[5:9]]
    own = replace(arms.own, pairs=(*pairs[:5], *others, *pairs[9:]))
    files, tested = choose_pictures(arms, own)
    assert files == tuple(pair.original for pair in others) and tested.all()


def test_an_arm_that_stays_as_it_is_takes_no_more_memory(folder: Path) -> None:
    arms, _ = arms_of(folder)
    assert arms.select_training("protected")[0] is arms.protected
    assert arms.count_bytes() == (3 * 14 + 6) * 3 * 32 * 32


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Gray photographs, wider than high, of two classes."""
    for number in range(12):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        picture(place, number, size=(170, 250), mode="L")
    return tmp_path / "photos"


def test_of_a_photograph_the_middle_square_is_kept_larger_than_victims_see_it(photos: Path) -> None:
    pixels = np.full((170, 250, 3), 200, np.uint8)
    pixels[:, :40] = pixels[:, -40:] = 0
    Image.fromarray(pixels).save(photos / "a" / "0.png")
    arms, _ = arms_of(photos, size=128)
    assert arms.clean.shape == (8, 3, 144, 144) and arms.test.shape == (4, 3, 144, 144)
    assert arms.get_input_size() == 128
    every = np.concatenate([arms.clean, arms.test])
    assert (every == 200).all((1, 2, 3)).sum() == 1


def test_only_inputs_of_photographs_are_smaller_than_what_is_kept() -> None:
    sizes = {size: choose_kept_size(size) for size in (32, 64, 92, 96, 100, 128, 224)}
    assert sizes == {32: 32, 64: 64, 92: 92, 96: 108, 100: 112, 128: 144, 224: 252}


@pytest.mark.parametrize("size", [32, 128])
def test_a_filter_at_own_size_reads_every_arm_as_it_was_loaded(photos: Path, size: int) -> None:
    arms, _ = arms_of(photos, size=size)
    # Grayscale changes nothing in gray pictures.
    for arm in ("clean", "protected", "random"):
        pixels, labels = arms.select_training(arm, degrade="gray", own_size=True)
        assert np.array_equal(pixels, getattr(arms, arm)) and np.array_equal(labels, arms.labels)
    assert (arms.random != arms.clean).any()
    assert np.array_equal(arms.protected, arms.clean)


def test_a_filter_at_own_size_comes_before_resizing(photos: Path) -> None:
    arms, _ = arms_of(photos, size=128)
    assert arms.own is not None
    at_own_size, _ = arms.select_training("protected", degrade="jpeg10", own_size=True)
    after, _ = arms.select_training("protected", degrade="jpeg10")
    for pair, pixels in zip(arms.own.pairs, at_own_size, strict=True):
        file = io.BytesIO()
        Image.open(pair.original).convert("RGB").save(file, "JPEG", quality=10)
        small = (
            Image.open(file).crop((40, 0, 210, 170)).resize((144, 144), Image.Resampling.BILINEAR)
        )
        expected = np.asarray(small).transpose(2, 0, 1).astype(int)
        assert np.abs(pixels - expected).max() <= 1
    assert np.abs(at_own_size.astype(int) - after).mean() > 2


def test_a_mixture_is_filtered_at_own_size_as_a_whole(photos: Path) -> None:
    arms, _ = arms_of(photos, size=128)
    mixed, _ = arms.select_training("random", part=0.5, degrade="blur", own_size=True)
    whole = {
        arm: arms.select_training(arm, degrade="blur", own_size=True)[0]
        for arm in ("clean", "random")
    }
    noisy = (mixed == whole["random"]).all((1, 2, 3))
    assert noisy.sum() == 4 and np.array_equal(mixed[~noisy], whole["clean"][~noisy])


def test_a_fold_is_filtered_at_own_size_as_it_was_cut(photos: Path) -> None:
    arms, _ = arms_of(photos, size=128)
    kept = np.arange(len(arms.labels)) % 3 != 0
    fold = arms.take(kept, np.ones(len(arms.test), bool))
    pixels, labels = fold.select_training("protected", degrade="gray", own_size=True)
    whole, _ = arms.select_training("protected", degrade="gray", own_size=True)
    assert np.array_equal(pixels, whole[kept]) and np.array_equal(labels, arms.labels[kept])


def test_what_was_filtered_is_kept_for_other_folds_as_far_as_there_is_room(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms, _ = arms_of(photos, size=128)
    assert arms.own is not None
    half = arms.take(np.arange(len(arms.labels)) < 4, np.ones(len(arms.test), bool))
    for arm in ("clean", "protected"):  # other pictures, which must not be mixed up
        half.select_training(arm, degrade="blur", own_size=True)
    whole, _ = arms.select_training("protected", degrade="blur", own_size=True)
    shutil.rmtree(photos)
    again, _ = arms.select_training("protected", degrade="blur", own_size=True)
    assert np.array_equal(again, whole)
    with pytest.raises(BadSetting):
        arms.select_training("clean", degrade="blur", own_size=True)
    assert len(arms.own.kept) == 4 + 8 <= arms.own.most_kept == KEPT_BYTES // (3 * 144**2)
    monkeypatch.setattr("tue_cli.verify.dataset.KEPT_BYTES", 0)
    assert arms.own.most_kept == 0


def test_pictures_of_16_bits_are_filtered_at_their_own_size_as_of_8(photos: Path) -> None:
    shallow = np.asarray(Image.open(photos / "a" / "0.png"))
    Image.fromarray(shallow.astype(np.uint16) * 257).save(photos / "a" / "0.png")
    arms, failed = arms_of(photos, size=128)
    assert not failed
    pixels, _ = arms.select_training("clean", degrade="gray", own_size=True)
    assert np.abs(pixels.astype(int) - arms.clean).max() <= 1


def test_a_photograph_that_is_gone_while_victims_train_is_named(photos: Path) -> None:
    arms, _ = arms_of(photos, size=128)
    assert arms.own is not None
    gone = arms.own.pairs[0].original
    gone.unlink()
    with pytest.raises(BadSetting, match=gone.name):
        arms.select_training("clean", degrade="jpeg10", own_size=True)


def test_other_labels_follow_colour_and_leave_the_pictures(folder: Path) -> None:
    arms, _ = arms_of(folder)
    shade = np.where(np.arange(14) % 2, 40, 200).astype(np.uint8)[:, None, None, None]
    arms = replace(arms, clean=np.broadcast_to(shade, arms.clean.shape).copy())
    other = arms.relabel(0)
    assert np.array_equal(other.protected, arms.protected)
    assert len(other.labels) == 14 and len(other.test_labels) == len(arms.test_labels)
    assert len(set(zip(other.labels, shade.ravel(), strict=True))) == 2
    assert np.array_equal(arms.relabel(0).labels, other.labels)


def test_unequal_classes_are_as_sure_as_their_smallest(folder: Path) -> None:
    arms, _ = arms_of(folder)
    equal = replace(arms, test_labels=np.repeat([0, 1], 50))
    unequal = replace(arms, test_labels=np.repeat([0, 1], [95, 5]))
    assert equal.count_tested() == pytest.approx(100)
    # The mean over two classes varies as p (1 - p) (1/95 + 1/5) / 4.
    assert unequal.count_tested() == pytest.approx(4 / (1 / 95 + 1 / 5))


def test_gray_long_and_single_pixel_pictures_are_pictures(folder: Path) -> None:
    picture(folder / "a" / "gray.png", 50, mode="L")
    picture(folder / "a" / "long.png", 51, size=(3, 400))
    picture(folder / "b" / "dot.png", 52, size=(1, 1))
    picture(folder / "b" / "glass.png", 53, mode="RGBA")
    arms, failed = arms_of(folder)
    assert not failed
    assert len(arms.labels) + len(arms.test_labels) == 24


def test_a_picture_that_cannot_be_decoded_is_named_and_left_out(folder: Path) -> None:
    (folder / "a" / "page.png").write_text("<html>")
    arms, failed = arms_of(folder)
    assert [(f.path.name, f.reason) for f in failed] == [("page.png", "not-a-picture")]
    assert len(arms.labels) + len(arms.test_labels) == 20


def test_a_broken_copy_is_blamed_and_not_its_original(folder: Path, tmp_path: Path) -> None:
    manifest = copied(folder, tmp_path / "out")
    (tmp_path / "out" / "a" / "0.png").write_text("<html>")
    pairs, _, _ = pair_copies(tmp_path / "out", folder, manifest, POOL)
    train = [pair for pair in pairs if int(pair.original.stem) < 14]
    held = [pair for pair in pairs if pair not in train]
    failed: list[Failed] = []
    load_victim_dataset(
        train, held, size=32, radius=8 / 255, seed=0, pool=POOL, failed=failed.append
    )
    assert [failure.path for failure in failed] == [tmp_path / "out" / "a" / "0.png"]


def test_victims_see_small_pictures_small_and_photographs_large(tmp_path: Path) -> None:
    for side in (24, 48, 100, 200):
        picture(tmp_path / str(side) / "x.png", side, size=(side, side + 20))
    sizes = {
        pair.label: choose_working_size([pair])
        for pair in list_clean_images(tmp_path, POOL, classes=True)
    }
    assert sizes == {"24": 32, "48": 32, "100": 64, "200": 128}


def test_pipes_and_links_that_lead_nowhere_are_left_out(folder: Path) -> None:
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "lost.png").symlink_to(folder / "nowhere.png")
    (folder / "a" / "folder.png").mkdir()
    assert len(list_clean_images(folder, POOL, classes=True)) == 20
