"""The user's secret, and the codes that classes get with it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import string
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SECRET as TEXT
from conftest import finish
from hypothesis import given
from hypothesis import strategies as st

from tue_cli.config import ProtectSettings
from tue_cli.dataset.manifest import read_manifest
from tue_cli.dataset.secret import (
    Secret,
    export_secret,
    import_secret,
    keep_codes,
    keep_secret,
    make_secret,
    mark_class,
    parse_secret,
    read_codes,
    read_secret,
    renew_secret,
    show_secret,
)
from tue_cli.errors import BadSetting, OutputProblem, TueError
from tue_cli.events import Done, Note, Started
from tue_cli.images import codec
from tue_cli.noise import TueNoise
from tue_cli.protect.codes import MOST_LOOKED_AT, assign_codes, choose_codes
from tue_cli.protect.context import open_run
from tue_cli.protect.labels import label_items
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectPlan
from tue_cli.protect.run import protect

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
CODES = [f"code-{n}" for n in range(8)]
NAMES = st.text(string.ascii_lowercase + "é 🐈\udce9", min_size=1, max_size=4)
OWN = parse_secret(TEXT, "the tests")


def order(name: str, codes: Sequence[str] = CODES, secret: Secret = OWN) -> list[str]:
    return sorted(codes, key=lambda code: secret.derive(name, code))


def draw_looks(seed: int, count: int) -> dict[str, Any]:
    rows = np.random.default_rng(seed).normal(size=(count, len(CODES))).astype(np.float32)
    return {f"class {number}": row for number, row in enumerate(rows)}


@given(st.sets(NAMES, max_size=8))
def test_each_code_is_used_once_while_there_are_enough(names: set[str]) -> None:
    codes = assign_codes(names, CODES, {}, order)
    assert codes.keys() == names
    assert len(set(codes.values())) == len(names)
    assert set(codes.values()) <= set(CODES)


@given(st.sets(NAMES, max_size=20), st.sets(NAMES, max_size=20))
def test_new_classes_move_no_code(names: set[str], more: set[str]) -> None:
    before = assign_codes(names, CODES, {}, order)
    after = assign_codes(names | more, CODES, before, order)
    assert before.items() <= after.items()


def test_a_class_alone_gets_what_its_secret_and_name_say() -> None:
    names = [f"class {number}" for number in range(50)]
    for name in names:
        assert assign_codes([name], CODES, {}, order) == {name: order(name)[0]}
    other = make_secret()
    mine = [order(name)[0] for name in names]
    assert set(mine) == set(CODES)
    assert mine != [order(name, secret=other)[0] for name in names]


@given(st.integers(0, 2**31), st.integers(1, 40), st.booleans())
def test_more_classes_than_codes_share_them_evenly_and_keep_them(
    seed: int, count: int, are_seen: bool
) -> None:
    looks = draw_looks(seed, count)
    whole = assign_codes(looks, CODES, {}, order, {}, looks if are_seen else None)
    uses = Counter(dict.fromkeys(CODES, 0))
    uses.update(whole.values())
    assert max(uses.values()) - min(uses.values()) <= 1
    more = {**looks, "new": looks["class 0"]}
    assert whole.items() <= assign_codes(more, CODES, whole, order, {}, more).items()


def test_ten_thousand_classes_share_codes_evenly() -> None:
    names = [f"class {number}" for number in range(10_000)]
    codes = assign_codes(names, CODES, {}, order)
    assert set(Counter(codes.values()).values()) == {10_000 // len(CODES)}


def test_a_code_is_kept_while_at_most_a_third_of_the_classes_share_it() -> None:
    names = [f"class {number}" for number in range(9)]
    four = dict.fromkeys(names[:4], "code-3")
    codes = assign_codes(names, CODES, {}, order, four)
    assert [codes[name] for name in names[:3]] == ["code-3"] * 3 and codes[names[3]] != "code-3"
    # What is new takes what is left.
    assert len(set(codes.values())) == 7


def test_classes_of_a_folder_that_is_split_keep_their_codes() -> None:
    names = [f"class {number}" for number in range(300)]
    whole = assign_codes(names, CODES, {}, order)
    # Into folders of ten, at random: neighbours have different codes anyway.
    mixed = np.random.default_rng(0).permutation(names).tolist()
    moved = 0
    for start in range(0, 300, 10):
        part = mixed[start : start + 10]
        codes = assign_codes(part, CODES, {}, order, whole)
        moved += sum(codes[name] != whole[name] for name in part)
    assert moved <= 10


def test_what_was_remembered_is_kept_while_codes_are_shared_evenly() -> None:
    ones = dict.fromkeys(("cat", "dog"), "code-3")
    codes = assign_codes(["cat", "dog", "elk"], CODES, {}, order, ones)
    assert codes["cat"] == "code-3" and codes["dog"] != "code-3"
    assert len(set(codes.values())) == 3
    # A choice of this very output counts more.
    assert assign_codes(["cat"], CODES, {"cat": "code-5"}, order, ones) == {"cat": "code-5"}
    assert assign_codes(["cat"], CODES, {}, order, {"cat": "gone"})["cat"] in CODES


def test_classes_get_codes_that_are_neither_nearest_nor_far() -> None:
    codes = "tuvwxyz"
    near = np.array([0, -1, -2, -3, -4, -9, -9.5], np.float32)
    for number in range(20):
        name = f"class {number}"
        one = assign_codes([name], codes, {}, partial(order, codes=codes), {}, {name: near})
        assert one[name] in "vwx"
    # Of three codes none is passed over, and a class of which nothing was seen gets any.
    few_order = partial(order, codes="tuv")
    few = {"cat": near[:3], "dog": near[:3]}
    assert len(set(assign_codes([*few, "fog"], "tuv", {}, few_order, {}, few).values())) == 3


def test_classes_that_look_alike_get_different_codes_where_codes_are_shared() -> None:
    # Two kinds of classes, as many of each as there are codes; the names mix them.
    kinds = np.random.default_rng(0).normal(size=(2, len(CODES))).astype(np.float32)
    looks = {f"class {number:02d}": kinds[number % 2] for number in range(2 * len(CODES))}
    codes = assign_codes(looks, CODES, {}, order, {}, looks)
    for kind in (0, 1):
        own = [codes[name] for name in looks if int(name[-2:]) % 2 == kind]
        assert len(set(own)) == len(CODES)


def run(photos: Path, output: Path, weights: Path, **changes: Any) -> list[Any]:
    settings = ProtectSettings(noise=TueNoise(steps=2))
    spec = {"settings": settings, "device": "cpu", "jobs": 2, **changes}
    return list(protect(ProtectSpec((photos,), output, weights=str(weights), **spec)))


def codes_of(events: list[Any]) -> dict[str, str]:
    (plan,) = (e.plan for e in events if isinstance(e, Started) and e.plan is not None)
    assert isinstance(plan, ProtectPlan)
    return dict(plan.keys)


def read_copies(output: Path) -> dict[str, bytes]:
    files = (p for p in output.rglob("*") if p.is_file() and p.suffix != ".json")
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in files}


def test_with_the_same_secret_the_same_bytes_whatever_the_folder_is_called(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    flat, other = tmp_path / "holiday", tmp_path / "Ferien 2026"
    shutil.copytree(small_photos / "space", flat)
    shutil.copytree(small_photos / "space", other)
    first = run(flat, tmp_path / "one", tiny_weights)
    shutil.rmtree(own_home)
    own_home.mkdir()
    (own_home / "secret").write_text(TEXT)
    second = run(other, tmp_path / "two", tiny_weights)
    assert codes_of(first) == codes_of(second) and codes_of(first).keys() == {"owner"}
    assert read_copies(tmp_path / "one") == read_copies(tmp_path / "two")
    (own_home / "secret").write_text(make_secret().format())
    run(other, tmp_path / "three", tiny_weights)
    assert read_copies(tmp_path / "one").keys() == read_copies(tmp_path / "three").keys()
    assert read_copies(tmp_path / "one") != read_copies(tmp_path / "three")


def test_of_two_secrets_the_same_code_has_other_noise(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    run(small_photos / "space", tmp_path / "one", tiny_weights, key="b")
    (own_home / "secret").write_text(make_secret().format())
    run(small_photos / "space", tmp_path / "two", tiny_weights, key="b")
    one, two = read_copies(tmp_path / "one"), read_copies(tmp_path / "two")
    assert one.keys() == two.keys() and all(one[name] != two[name] for name in one)


@pytest.mark.parametrize(("most", "decoded"), [(2000, 6), (4, 4), (1, 0)])
def test_no_more_pictures_are_looked_at_than_allowed_however_many_classes_there_are(
    most: int,
    decoded: int,
    small_photos: Path,
    tmp_path: Path,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MOST_LOOKED_AT == 2000
    monkeypatch.setattr("tue_cli.protect.codes.MOST_LOOKED_AT", most)
    seen: list[bytes] = []
    decode = codec.decode

    def count(data: bytes) -> codec.DecodedImage:
        seen.append(data)
        return decode(data)

    monkeypatch.setattr(codec, "decode", count)
    settings = ProtectSettings(noise=TueNoise(steps=1))
    weights = str(tiny_weights)
    spec = ProtectSpec(
        (small_photos,), tmp_path / "out", weights=weights, settings=settings, device="cpu"
    )
    with open_run(spec) as opened:
        _, labelled = finish(label_items(opened, "folders"))
        items = labelled.items
        list(choose_codes(opened, items))
    assert len(seen) == decoded


def test_a_split_folder_keeps_the_codes_of_its_classes(
    small_photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    codes = codes_of(run(small_photos, tmp_path / "whole", tiny_weights))
    assert len(set(codes.values())) == 2
    for name in codes:
        part = tmp_path / f"part of {name}"
        for place in (name, f"{name} too"):
            shutil.copytree(small_photos / name, part / place)
        assert codes_of(run(part, tmp_path / f"{name} out", tiny_weights))[name] == codes[name]


def test_folders_whose_names_differ_in_unicode_form_alone_are_one_class(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(small_photos / "everyday", photos / "caf\u00e9")
    shutil.copytree(small_photos / "space", photos / "space")
    codes = codes_of(run(photos, tmp_path / "out", tiny_weights))
    (photos / "caf\u00e9").rename(photos / "cafe\u0301")
    # As another machine knows it: by the secret alone.
    (own_home / "codes.jsonl").unlink()
    assert codes_of(run(photos, tmp_path / "other", tiny_weights)) == codes
    one, other = (read_copies(tmp_path / out) for out in ("out", "other"))
    assert {unicodedata.normalize("NFC", name): data for name, data in other.items()} == one
    shutil.copytree(small_photos / "everyday", photos / "caf\u00e9", dirs_exist_ok=True)
    (photos / "caf\u00e9" / "cat.png").rename(photos / "caf\u00e9" / "again.png")
    both = run(photos, tmp_path / "both", tiny_weights, labels="folders")
    assert codes_of(both).keys() == {"caf\u00e9", "space"}
    assert {r["label"] for r in read_manifest(tmp_path / "both")["pictures"]} == set(codes)


def test_a_class_that_an_older_run_spelt_otherwise_is_gone_on_with(
    small_photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(small_photos / "everyday", photos / "cafe\u0301")
    shutil.copytree(small_photos / "space", photos / "space")
    run(photos, tmp_path / "out", tiny_weights)
    manifest = tmp_path / "out" / "tue-manifest.json"
    text = manifest.read_text()
    assert "caf\\u00e9" in text
    manifest.write_text(text.replace("caf\\u00e9", "cafe\\u0301"))
    for labels in ("auto", "folders"):
        (finished,) = (
            e
            for e in run(photos, tmp_path / "out", tiny_weights, labels=labels)
            if isinstance(e, Done)
        )
        assert finished.result.already_done == 6


def test_a_dry_run_keeps_neither_a_secret_nor_codes(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    (own_home / "secret").unlink()
    run(small_photos, tmp_path / "out", tiny_weights, dry_run=True)
    assert not list(own_home.iterdir())
    run(small_photos, tmp_path / "out", tiny_weights)
    assert {path.name for path in own_home.iterdir()} == {
        "secret",
        "codes.jsonl",
        "originals.jsonl",
        "copies.jsonl",
    }
    assert stat.S_IMODE((own_home / "secret").stat().st_mode) == 0o600


def test_a_class_that_gets_another_code_in_another_folder_is_told(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    run(small_photos, tmp_path / "out", tiny_weights)
    lines = [json.loads(line) for line in (own_home / "codes.jsonl").read_text().splitlines()]
    same = [json.dumps({**line, "code": lines[0]["code"]}) for line in lines]
    (own_home / "codes.jsonl").write_text("".join(f"{line}\n" for line in same))
    events = run(small_photos, tmp_path / "again", tiny_weights)
    told = [e for e in events if isinstance(e, Note) and "got another code than" in e.message]
    assert [len(note.names) for note in told] == [len(lines) - 1]


def test_a_killed_run_leaves_the_codes_of_all_its_classes(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    settings = ProtectSettings(noise=TueNoise(steps=2))
    spec = ProtectSpec(
        (small_photos,), tmp_path / "out", weights=str(tiny_weights), settings=settings
    )
    begun = protect(spec)
    codes = {}
    for event in begun:
        if isinstance(event, Started):
            assert isinstance(event.plan, ProtectPlan)
            codes = dict(event.plan.keys)
        if type(event).__name__ == "Saved":
            break
    begun.close()
    # What the user's folder remembers is gone, and the secret is another one.
    (own_home / "codes.jsonl").unlink()
    (own_home / "secret").write_text(make_secret().format())
    run(small_photos, tmp_path / "out", tiny_weights, device="auto")
    assert read_manifest(tmp_path / "out")["keys"] == codes


def test_the_secret_is_in_nothing_that_a_run_writes_or_says(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    report = tmp_path / "report.html"
    events = run(small_photos, tmp_path / "out", tiny_weights, report=report)
    bits = TEXT.split()[1]
    written = [p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    for data in (*written, report.read_bytes(), repr(events).encode()):
        assert bits.encode() not in data and bytes.fromhex(bits) not in data
    assert bits not in repr(OWN)
    assert b"everyday" not in (own_home / "codes.jsonl").read_bytes()


def test_a_home_that_cannot_be_written_means_a_secret_for_this_output_alone(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    shutil.rmtree(own_home)
    own_home.write_text("a file where the folder should be")
    try:
        events = run(small_photos, tmp_path / "out", tiny_weights)
        notes = [event.message for event in events if isinstance(event, Note)]
        assert any("do not publish that folder" in note for note in notes)
        own = tmp_path / "out" / ".tue" / "secret"
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        kept, first = own.read_text(), read_copies(tmp_path / "out")
        shutil.copytree(small_photos / "space", tmp_path / "more" / "space")
        run(small_photos, tmp_path / "out", tiny_weights, existing="overwrite")
        assert own.read_text() == kept and read_copies(tmp_path / "out") == first
    finally:
        own_home.unlink()
        own_home.mkdir()


def test_a_secret_that_is_out_of_reach_is_told_and_left_alone(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    secret = own_home / "secret"
    secret.unlink()
    secret.symlink_to(tmp_path / "a disk that is not there" / "secret")
    events = run(small_photos, tmp_path / "out", tiny_weights)
    assert any("link that leads nowhere" in e.message for e in events if isinstance(e, Note))
    assert (tmp_path / "out" / ".tue" / "secret").is_file()
    with pytest.raises(TueError, match="link that leads nowhere"):
        told(show_secret())
    assert secret.is_symlink() and not any(own_home.glob("secret-*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows always knows a home folder")
def test_without_a_home_folder_the_output_gets_a_secret_of_its_own(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def find_nobody(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    events = run(small_photos, tmp_path / "out", tiny_weights)
    assert any("no home folder" in e.message for e in events if isinstance(e, Note))
    assert (tmp_path / "out" / ".tue" / "secret").is_file()
    for job in (show_secret(), renew_secret(), import_secret(tmp_path / "out" / ".tue" / "secret")):
        with pytest.raises(TueError, match="no home folder"):
            told(job)


def told(job: Any) -> tuple[Any, str]:
    (done,) = (event for event in job if isinstance(event, Done))
    return done.result, "\n".join(done.said)


def test_a_secret_moves_to_another_machine_by_a_file(tmp_path: Path, own_home: Path) -> None:
    shown, words = told(show_secret())
    assert shown.fingerprint == OWN.fingerprint and TEXT.split()[1] not in words
    told(export_secret(tmp_path / "mine"))
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    with pytest.raises(OutputProblem, match="exists already"):
        told(export_secret(tmp_path / "mine"))
    made, words = told(renew_secret())
    assert made.former.read_text() == TEXT and made.fingerprint != OWN.fingerprint
    assert read_secret() != OWN
    back, _ = told(import_secret(tmp_path / "mine"))
    assert read_secret() == OWN and back.former != made.former
    assert "Nothing to do" in told(import_secret(tmp_path / "mine"))[1]
    (own_home / "secret").unlink()
    assert told(show_secret())[0].fingerprint is None


def test_several_new_secrets_at_once_lose_none_that_was_in_use(own_home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        formers = list(pool.map(lambda _: told(renew_secret())[0].former, range(24)))
    assert len(set(formers)) == 24 == len(list(own_home.glob("secret-former-*")))
    assert TEXT in {former.read_text() for former in formers}
    assert read_secret() is not None


def test_a_new_secret_that_cannot_be_written_leaves_the_former_one_in_its_place(
    own_home: Path,
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # as on a full disk
    try:
        with pytest.raises(TueError, match="cannot be used"):
            told(renew_secret())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_secret() == OWN and [p.name for p in own_home.iterdir()] == ["secret"]


@pytest.mark.parametrize("text", ["", "tue-secret-1 12", TEXT[:-3], "x" * 5000, "\0" * 40])
def test_what_is_no_secret_is_not_imported(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(BadSetting):
        told(import_secret(tmp_path / "file"))
    assert read_secret() == OWN


def test_a_damaged_secret_stops_the_run_and_can_be_replaced(
    small_photos: Path, tmp_path: Path, tiny_weights: Path, own_home: Path
) -> None:
    (own_home / "secret").write_text("tue-secret-1 12\n")
    with pytest.raises(TueError, match="tue secret new"):
        run(small_photos, tmp_path / "out", tiny_weights)
    assert not (tmp_path / "out").exists()
    told(renew_secret())
    assert read_secret() is not None


def test_of_two_first_secrets_one_wins_for_both(own_home: Path) -> None:
    (own_home / "secret").unlink()
    first, second = make_secret(), make_secret()
    assert keep_secret(first) == first == keep_secret(second) == read_secret()
    assert [path.name for path in own_home.iterdir()] == ["secret"]


def test_the_first_choice_of_a_code_stays(own_home: Path) -> None:
    mark = mark_class(OWN, "weights", "cafe\u0301")
    assert mark == mark_class(OWN, "weights", "caf\u00e9")
    assert mark not in (mark_class(OWN, "others", "café"), mark_class(make_secret(), "w", "café"))
    keep_codes({mark: "cat"})
    keep_codes({mark: "dog", "other": "elk"})
    with (own_home / "codes.jsonl").open("a") as file:
        file.write('{"class": 3}\nnonsense\n')
    assert read_codes() == {mark: "cat", "other": "elk"}


def test_the_command_prints_and_reads_the_secret_at_a_pipe(own_home: Path) -> None:
    def tue(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tue_cli", "secret", *words]
        return subprocess.run(command, input=typed, capture_output=True, text=True, check=False)

    assert tue("export", "-").stdout == TEXT
    assert tue("import", "-", typed="nonsense").returncode == 2
    other = make_secret()
    assert tue("import", "-", typed=other.format()).returncode == 0
    assert read_secret() == other
