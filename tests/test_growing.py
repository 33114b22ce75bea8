"""Folders that grow: what was given stays given, and only what is new or changed is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import finish, mark_slow
from test_jobs import copies, done, run, spec_of, timeless

from tue_cli.check.run import CheckSpec, check
from tue_cli.dataset.journal import Journal
from tue_cli.dataset.manifest import MANIFEST, Clusters, read_manifest, sha256
from tue_cli.dataset.output import WORK
from tue_cli.dataset.records import Given
from tue_cli.errors import BadSetting
from tue_cli.events import Advanced, AnyEvent, Checked, Failed, Note, Saved, Started
from tue_cli.protect.context import open_run
from tue_cli.protect.labels import label_items
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectPlan
from tue_cli.protect.run import protect


@pytest.fixture
def flat(small_photos: Path, tmp_path: Path) -> Path:
    """The six photographs in one folder."""
    (tmp_path / "photos").mkdir()
    for photo in small_photos.rglob("*.*"):
        shutil.copy(photo, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def clustered(flat: Path, tmp_path: Path, tiny_weights: Path) -> ProtectSpec:
    return spec_of(flat, tmp_path / "out", tiny_weights, labels="cluster:3")


def labels_of(output: Path) -> dict[str, str]:
    return {record["path"]: record["label"] for record in read_manifest(output)["pictures"]}


def saved(events: list[AnyEvent]) -> set[str]:
    return {event.path.name for event in events if isinstance(event, Saved)}


def notes(events: list[AnyEvent]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Note))


def states(output: Path) -> dict[str, str]:
    events = list(check(CheckSpec(output)))
    return {event.picture: event.state for event in events if isinstance(event, Checked)}


def stamps(output: Path) -> dict[str, tuple[str, int, int]]:
    """Content, time and inode of every file, with the manifest."""
    files = [path for path in output.rglob("*") if path.is_file()]
    return {
        path.relative_to(output).as_posix(): (
            sha256(path),
            path.stat().st_mtime_ns,
            path.stat().st_ino,
        )
        for path in files
    }


_opened: list[list[str]] = []


def _note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened and isinstance(arguments[0], str | os.PathLike):
        _opened[-1].append(os.fspath(arguments[0]))


sys.addaudithook(_note_opening)


@contextmanager
def watch_reading(monkeypatch: pytest.MonkeyPatch, *, decodes: bool = False) -> Iterator[list[str]]:
    """List the files that are opened; where nothing may be decoded, Pillow decodes nothing."""
    with monkeypatch.context() as patch:
        if not decodes:
            patch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("something was decoded"))
        _opened.append([])
        try:
            yield _opened[-1]
        finally:
            _opened.pop()


def leave_at(spec: ProtectSpec, kind: type) -> None:
    """Stop a run at its first event of a kind."""
    job = protect(spec)
    assert any(isinstance(event, kind) for event in job)
    job.close()


# --- clusters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", mark_slow(["cluster:3", "cluster", "auto"], but=["cluster:3"]))
def test_a_picture_that_is_added_leaves_the_clusters_and_their_copies_as_they_are(
    labels: str, clustered: ProtectSpec, flat: Path, tmp_path: Path
) -> None:
    run(clustered)
    before, was = stamps(tmp_path / "out"), labels_of(tmp_path / "out")
    centres = read_manifest(tmp_path / "out")["clusters"]
    assert len(set(was.values())) == 3 and centres["groups"] == 3
    assert centres["centres"].keys() == set(was.values())
    # The same to look at, and another file.
    (flat / "a-new.jpg").write_bytes((flat / "rocket.jpg").read_bytes() + b"\0")
    assert saved(run(replace(clustered, labels=labels))) == {"a-new.jpg"}
    assert labels_of(tmp_path / "out") == was | {"a-new.jpg": was["rocket.jpg"]}
    kept = {name: stamp for name, stamp in stamps(tmp_path / "out").items() if name in was}
    assert kept == {name: before[name] for name in was}
    assert read_manifest(tmp_path / "out")["clusters"] == centres


def test_grouping_tells_how_far_it_is_and_groups_that_auto_goes_on_with_are_called_so(
    clustered: ProtectSpec, flat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tue_cli.protect.labels.SEEN_BATCH", 4)
    events = run(clustered)
    grouping, protecting = (n for n, event in enumerate(events) if isinstance(event, Started))
    assert events[grouping] == Started("Grouping", count := len(list(flat.iterdir())), "pictures")
    told = [e for e in events[grouping:protecting] if isinstance(e, Advanced)]
    assert [event.done for event in told] == [4, count] and told[0].seconds_left is not None
    for plan in (events[protecting], *run(replace(clustered, labels="auto"))):
        if isinstance(plan, Started):
            assert isinstance(plan.plan, ProtectPlan)
            assert plan.plan.labels == "3 groups of similar pictures"


def test_a_renamed_picture_keeps_its_cluster_and_nothing_known_is_decoded_to_be_clustered(
    clustered: ProtectSpec, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clustered)
    was = labels_of(tmp_path / "out")
    (flat / "rocket.jpg").rename(flat / "zebra.jpg")
    with watch_reading(monkeypatch), open_run(clustered) as context:
        _, labelled = finish(label_items(context, clustered.labels))
    assert not labelled.given
    found = {item.relative.name: item.label for item in labelled.items}
    assert found["zebra.jpg"] == was.pop("rocket.jpg")
    assert found.items() >= was.items()


def test_another_picture_under_an_old_name_goes_to_the_cluster_that_is_nearest_to_it(
    clustered: ProtectSpec, flat: Path, tmp_path: Path
) -> None:
    run(clustered)
    was = labels_of(tmp_path / "out")
    one, other = next(
        (a, b) for a in was for b in was if was[a] != was[b] and Path(a).suffix == Path(b).suffix
    )
    os.utime(flat / other, (1, 1))
    shutil.copy2(flat / other, flat / one)
    assert saved(run(clustered)) == {one}
    assert labels_of(tmp_path / "out") == was | {one: was[other]}


def test_a_stopped_run_gives_the_same_clusters_though_the_folder_has_grown(
    clustered: ProtectSpec, flat: Path, tmp_path: Path
) -> None:
    run(replace(clustered, output=tmp_path / "whole"))
    leave_at(clustered, Saved)
    assert not (tmp_path / "out" / MANIFEST).exists()
    shutil.copy(flat / "cat.png", flat / "a-new.png")
    run(clustered)
    was, now = labels_of(tmp_path / "whole"), labels_of(tmp_path / "out")
    assert now == was | {"a-new.png": was["cat.png"]}
    whole = read_manifest(tmp_path / "whole")["clusters"]
    assert read_manifest(tmp_path / "out")["clusters"] == whole


@pytest.mark.slow
def test_a_killed_run_gives_the_same_clusters(
    clustered: ProtectSpec, flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    for number in range(60):
        name = f"{number:02d}.jpg"
        (flat / name).write_bytes((flat / "rocket.jpg").read_bytes() + bytes([number]))
    command = [sys.executable, "-m", "tue_cli", "protect", str(flat), "--labels", "cluster:3", "-q"]
    command += ["--weights", str(tiny_weights), "--steps", "2", "--device", "cpu", "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    output = tmp_path / "killed"
    with subprocess.Popen([*command, str(output)]) as process:
        deadline = time.monotonic() + 300
        while len(list(output.glob("*.jpg"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert not (output / MANIFEST).exists()
    (flat / "00-new.jpg").write_bytes((flat / "coffee.jpg").read_bytes() + b"\0")
    subprocess.run([*command, str(output)], check=True)
    was = labels_of(tmp_path / "whole")
    assert labels_of(output) == was | {"00-new.jpg": was["coffee.jpg"]}
    before, after = copies(tmp_path / "whole"), copies(output)
    assert after.pop("00-new.jpg") and after == before


def test_clusters_are_recorded_before_the_first_copy(
    clustered: ProtectSpec, tmp_path: Path
) -> None:
    job = protect(clustered)
    assert any(isinstance(event, Saved) for event in job)
    lines = (tmp_path / "out" / WORK / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["label"] for entry in entries[1:4]] == [f"cluster-0{n}" for n in range(3)]
    assert all("centre" in entry for entry in entries[1:4])
    assert all("source_sha256" in entry and "sha256" not in entry for entry in entries[4:10])
    assert all("sha256" in entry for entry in entries[10:]) and entries[10:]
    job.close()


@pytest.mark.slow
def test_another_number_of_clusters_is_another_request_and_said(
    clustered: ProtectSpec, tmp_path: Path
) -> None:
    run(clustered)
    events = run(replace(clustered, labels="cluster:2"))
    assert "--labels cluster:2 makes new groups; there were 3 before" in notes(events)
    assert set(labels_of(tmp_path / "out").values()) == {"cluster-00", "cluster-01"}
    assert read_manifest(tmp_path / "out")["clusters"]["groups"] == 2
    run(replace(clustered, labels="cluster:2", output=tmp_path / "other"))
    assert labels_of(tmp_path / "out") == labels_of(tmp_path / "other")
    again = run(replace(clustered, labels="cluster:2"))
    assert done(again).already_done == 6 and "new groups" not in notes(again)


@pytest.mark.slow
def test_new_clusters_whose_run_was_stopped_are_gone_on_with(
    clustered: ProtectSpec, tmp_path: Path
) -> None:
    run(clustered)
    leave_at(replace(clustered, labels="cluster:2"), Saved)
    events = run(replace(clustered, labels="cluster:2"))
    assert "new groups" not in notes(events)
    run(replace(clustered, labels="cluster:2", output=tmp_path / "other"))
    assert labels_of(tmp_path / "out") == labels_of(tmp_path / "other")


def test_clusters_of_other_weights_do_not_count(
    clustered: ProtectSpec, tmp_path: Path, tiny_weights: Path
) -> None:
    run(clustered)
    first = read_manifest(tmp_path / "out")["clusters"]
    other = replace(clustered, weights="cifar10", backend="onnx", existing="overwrite")
    run(other)
    second = read_manifest(tmp_path / "out")["clusters"]
    lengths = [len(found["centres"]["cluster-00"]) for found in (first, second)]
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize(
    "found",
    [
        [],
        {"groups": 1},
        {"groups": 1, "centres": {}},
        {"groups": "1", "centres": {"cluster-00": [0.0]}},
        {"groups": 2, "centres": {"cluster-00": [0.0], "cluster-01": [0.0, 1.0]}},
        {"groups": 1, "centres": {"cluster-00": [None]}},
        {"groups": 3, "centres": {"cluster-00": [0.0, 1.0]}},
    ],
)
def test_odd_clusters_in_a_manifest_are_refused(
    found: Any, clustered: ProtectSpec, flat: Path, tmp_path: Path
) -> None:
    run(clustered)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest | {"clusters": found}))
    (flat / "a-new.png").write_bytes((flat / "cat.png").read_bytes() + b"\0")
    with pytest.raises(BadSetting, match="cannot be read") as caught:
        run(clustered)
    assert "-o" in caught.value.remedy


def test_half_of_the_lines_of_new_clusters_change_nothing(tmp_path: Path) -> None:
    first = Clusters(2, {"cluster-00": (0.0,), "cluster-01": (1.5,)})
    second = Clusters(3, {f"cluster-{n:02d}": (float(n),) for n in range(3)})
    given = {"a.jpg": Given("cluster-01", "hash")}
    with Journal(tmp_path / "out", {}, "skip") as journal:
        journal.record_classes(first, given)
        journal.record_classes(second, {})
        save(journal, "b.jpg", "b")
    path = tmp_path / "out" / WORK / "journal.jsonl"
    whole = path.read_text().splitlines(keepends=True)[:-1]
    for lines, clusters, classes in (
        (whole, second, {}),
        (whole[:-1], first, given),
        (whole[:-2], first, given),
        (whole[:2], None, {}),
    ):
        path.write_text("".join(lines))
        with Journal(tmp_path / "out", {}, "skip") as journal:
            assert journal.clusters == clusters
            assert journal.given == classes


# --- names of folders ---------------------------------------------------------------------------


def test_a_flat_folder_that_gets_subfolders_keeps_the_class_of_its_old_pictures(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (flat / "cats").mkdir()
    (flat / "cat.png").rename(flat / "cats" / "cat.png")
    spec = spec_of(flat, tmp_path / "out", tiny_weights)
    run(spec)
    was, before = labels_of(tmp_path / "out"), copies(tmp_path / "out")
    assert len(set(was.values())) == 1
    (flat / "dogs").mkdir()
    assert done(run(spec)).already_done == 6
    for name in ("cats", "dogs"):
        shutil.copy(flat / "rocket.jpg", flat / name / "new.jpg")
    events = run(spec)
    assert saved(events) == {"new.jpg"} and done(events).protected == 2
    now = was | {"cats/new.jpg": "cats", "dogs/new.jpg": "dogs"}
    assert labels_of(tmp_path / "out") == now
    assert copies(tmp_path / "out").items() >= before.items()
    assert "1 picture keeps the class of an earlier run" in notes(events)
    assert "With --labels folders" in notes(events)
    again = run(spec)
    assert done(again).already_done == 8 and "earlier run" not in notes(again)
    # What the note promises.
    assert saved(run(replace(spec, labels="folders"))) == {"cat.png"}
    assert labels_of(tmp_path / "out") == now | {"cats/cat.png": "cats"}


def test_a_flat_folder_that_was_renamed_keeps_its_one_class(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(flat, tmp_path / "out", tiny_weights))
    (label,) = set(labels_of(tmp_path / "out").values())
    renamed = flat.rename(tmp_path / "pictures")
    shutil.copy(renamed / "rocket.jpg", renamed / "new.jpg")
    events = run(spec_of(renamed, tmp_path / "out", tiny_weights))
    assert saved(events) == {"new.jpg"}
    assert set(labels_of(tmp_path / "out").values()) == {label}


def test_classes_of_a_table_are_kept_by_auto_and_replaced_by_what_is_asked_for(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    table = tmp_path / "labels.csv"
    names = sorted(path.name for path in flat.iterdir())
    table.write_text("".join(f"{name},{'ab'[name > 'd']}\n" for name in names))
    spec = spec_of(flat, tmp_path / "out", tiny_weights, labels=str(table))
    run(spec)
    was = labels_of(tmp_path / "out")
    shutil.copy(flat / "rocket.jpg", flat / "new.jpg")
    events = run(replace(spec, labels="auto"))
    assert saved(events) == {"new.jpg"}
    assert labels_of(tmp_path / "out").items() >= was.items()
    assert "6 pictures keep the class of an earlier run" in notes(events)
    assert "With --labels single" in notes(events)
    run(replace(spec, labels="single"))
    assert len(set(labels_of(tmp_path / "out").values())) == 1


# --- only what is new or changed ----------------------------------------------------------------


@pytest.mark.parametrize("labels", ["auto", "cluster:3"])
def test_protecting_again_reads_each_original_once_decodes_nothing_and_writes_nothing(
    labels: str, flat: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(flat, tmp_path / "out", tiny_weights, labels=labels)
    (flat / "torn.png").write_bytes(b"")
    run(spec)
    (flat / "torn.png").unlink()
    run(spec)
    before = stamps(tmp_path / "out")
    with watch_reading(monkeypatch) as opened:
        events = run(spec)
    assert done(events).already_done == 6
    assert stamps(tmp_path / "out") == before
    originals = sorted(path for path in opened if Path(path).parent == flat)
    assert originals == sorted(map(str, flat.iterdir()))


def test_the_manifest_is_written_where_something_in_it_changed(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(flat, tmp_path / "out", tiny_weights)
    run(spec)
    before = stamps(tmp_path / "out")
    (flat / "torn.png").write_bytes(b"")
    run(spec)
    assert read_manifest(tmp_path / "out")["summary"]["failed"][0]["path"] == "torn.png"
    (flat / "torn.png").unlink()
    run(spec)
    assert not read_manifest(tmp_path / "out")["summary"]["failed"]
    after = stamps(tmp_path / "out")
    assert before.pop(MANIFEST) != after.pop(MANIFEST)
    assert before == after


# --- copies that somebody changed ---------------------------------------------------------------


def test_a_copy_that_was_edited_is_still_reported_after_protecting_again(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(flat, tmp_path / "out", tiny_weights)
    run(spec)
    manifest = timeless(tmp_path / "out")
    shutil.copy(flat / "rocket.jpg", tmp_path / "out" / "rocket.jpg")
    for _ in range(2):
        events = run(spec)
        assert [e.reason for e in events if isinstance(e, Failed)] == ["in-the-way"]
        assert states(tmp_path / "out")["rocket.jpg"] == "recompressed"
        assert timeless(tmp_path / "out")["pictures"] == manifest["pictures"]
    assert done(run(replace(spec, existing="overwrite"))).failed == 0
    assert set(states(tmp_path / "out").values()) == {"intact"}


def test_a_copy_without_an_original_stays_listed_and_one_that_was_deleted_is_made_again(
    flat: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(flat, tmp_path / "out", tiny_weights)
    run(spec)
    (flat / "rocket.jpg").rename(flat / "renamed.jpg")  # its copy stays
    (flat / "cat.png").unlink()
    (tmp_path / "out" / "cat.png").unlink()  # both are gone
    (tmp_path / "out" / "coffee.jpg").unlink()  # only the copy is gone
    assert saved(run(spec)) == {"renamed.jpg", "coffee.jpg"}
    found = states(tmp_path / "out")
    assert found.pop("cat.png") == "missing"
    assert found.keys() == {"renamed.jpg", "rocket.jpg", *copies(tmp_path / "out")}
    assert set(found.values()) == {"intact"}
    assert done(run(spec)).already_done == 5
    # Writing all copies again drops what is gone for good.
    run(replace(spec, existing="overwrite"))
    assert "cat.png" not in states(tmp_path / "out")
    assert states(tmp_path / "out")["rocket.jpg"] == "intact"


def save(journal: Journal, name: str, text: str) -> dict[str, str]:
    record = {"path": name, "source_sha256": text, "label": "a", "key": "b"}
    record["sha256"] = sha256(text.encode())
    journal.save(record, text.encode())
    return record


def listed(journal: Journal, *failed: str) -> dict[str, str]:
    failures = [{"path": path, "reason": "not-written", "message": ""} for path in failed]
    journal.finish({"failed": failures})
    return {r["path"]: r["source_sha256"] for r in read_manifest(journal.output)["pictures"]}


@pytest.mark.parametrize("happens", ["the old copy", "the new copy", "edited", "gone"])
def test_a_new_record_without_its_copy_never_hides_the_old_one(
    happens: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with Journal(output, {}, "skip") as journal:
        save(journal, "a.jpg", "old")
        assert listed(journal) == {"a.jpg": "old"}
    # A kill between the record and the copy, or after it; then the original goes away.
    with Journal(output, {}, "skip") as journal:
        save(journal, "a.jpg", "new")
    if happens == "gone":
        (output / "a.jpg").unlink()
    else:
        texts = {"the old copy": "old", "the new copy": "new", "edited": "edited"}
        (output / "a.jpg").write_text(texts[happens])
    with Journal(output, {}, "skip") as journal:
        expected = "new" if happens == "the new copy" else "old"
        assert listed(journal) == {"a.jpg": expected}


def test_what_only_a_journal_tells_is_listed_where_a_file_is_there(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Journal(output, {}, "skip") as journal:
        for name in ("edited.jpg", "gone.jpg", "whole.jpg"):
            save(journal, name, name)
    (output / "gone.jpg").unlink()
    (output / "edited.jpg").write_text("edited")
    with Journal(output, {}, "skip") as journal:
        assert listed(journal).keys() == {"edited.jpg", "whole.jpg"}


def test_a_copy_that_could_not_be_replaced_is_listed_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Journal(output, {}, "skip") as journal:
        save(journal, "a.jpg", "old")
        listed(journal)
    with Journal(output, {}, "overwrite") as journal:
        save(journal, "a.jpg", "new")
        (output / "a.jpg").write_text("old")
        assert listed(journal, "a.jpg") == {"a.jpg": "old"}
