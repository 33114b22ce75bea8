"""Which pictures are taken: patterns, subfolders, failures, and no copy that is protected."""

from __future__ import annotations

import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_folders import places, plant, reasons
from test_jobs import copies, done, planned, run, spec_of

from tue_cli.dataset.discover import discover
from tue_cli.dataset.manifest import read_manifest
from tue_cli.dataset.records import read_failures, read_records
from tue_cli.dataset.selection import Selection, read_patterns
from tue_cli.errors import BadSetting, NothingToDo
from tue_cli.events import AnyEvent, Done, Note, Saved, Skipped
from tue_cli.protect.run import protect

NAMES = (
    "-draft.jpg",
    "a.jpg",
    "cats/a.jpg",
    "cats/b c.PNG",
    "cats/old/a.jpg",
    "dogs/Übung.jpg",
    "dogs/straße/x[1].jpg",
    "old/z.jpg",
)


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_photos, tmp_path / "photos"))


def notes_of(events: list[AnyEvent]) -> list[str]:
    return [event.message for event in events if isinstance(event, Note)]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.png", ["cats/b c.PNG"]),
        ("a.jpg", ["a.jpg", "cats/a.jpg", "cats/old/a.jpg"]),
        ("/a.jpg", ["a.jpg"]),
        ("./a.jpg", ["a.jpg"]),
        ("cats/*.jpg", ["cats/a.jpg"]),
        ("cats/**/*.jpg", ["cats/a.jpg", "cats/old/a.jpg"]),
        ("**/old/*", ["cats/old/a.jpg", "old/z.jpg"]),
        ("old", ["cats/old/a.jpg", "old/z.jpg"]),
        ("old/", ["cats/old/a.jpg", "old/z.jpg"]),
        ("a.jpg/", []),
        ("cats/old", ["cats/old/a.jpg"]),
        ("CATS/OLD/", ["cats/old/a.jpg"]),
        ("cats/**", ["cats/a.jpg", "cats/b c.PNG", "cats/old/a.jpg"]),
        ("* *", ["cats/b c.PNG"]),
        ("b?c.*", ["cats/b c.PNG"]),
        ("-*", ["-draft.jpg"]),
        ("--*", []),
        ("[az].jpg", ["a.jpg", "cats/a.jpg", "cats/old/a.jpg", "old/z.jpg"]),
        ("x[[]1].jpg", ["dogs/straße/x[1].jpg"]),
        ("übung.jpg", ["dogs/Übung.jpg"]),
        (unicodedata.normalize("NFD", "?bung*"), ["dogs/Übung.jpg"]),
        (unicodedata.normalize("NFD", "ÜBUNG*"), ["dogs/Übung.jpg"]),
        ("STRASSE/", ["dogs/straße/x[1].jpg"]),
        ("*/*/*", ["cats/old/a.jpg", "dogs/straße/x[1].jpg"]),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_pattern_includes_what_it_matches_and_excludes_the_same(
    pattern: str, matched: list[str], form: str, tmp_path: Path
) -> None:
    def spell(name: str) -> str:
        return unicodedata.normalize(form, name)  # type: ignore[arg-type]

    plant(tmp_path / "in", *map(spell, NAMES))
    expected = sorted(map(spell, matched), key=os.fsencode)
    others = sorted(set(map(spell, NAMES)) - set(expected), key=os.fsencode)
    paths = ([tmp_path / "in"], tmp_path / "out")
    assert places(discover(*paths, Selection(exclude=(pattern,)))) == others
    if not matched:
        with pytest.raises(NothingToDo, match="8 files ignored .no --include pattern matches"):
            discover(*paths, Selection(include=(pattern,)))
        return
    assert places(discover(*paths, Selection(include=(pattern,)))) == expected


def test_exclude_wins_over_include(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg", "b.jpg", "notes.txt", "drafts/a.jpg")
    selection = Selection(include=("a.*", "b.*"), exclude=("b.jpg", "drafts/"))
    found = discover([tmp_path / "in"], tmp_path / "out", selection)
    assert places(found) == ["a.jpg"]
    assert reasons(found) == {
        "b.jpg": "left out by --exclude",
        "drafts": "folder: left out by --exclude",
        "notes.txt": "not a picture",
    }


def test_patterns_match_below_each_of_several_folders_and_the_names_of_files(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "one/sub/a.jpg", "two/sub/a.jpg", "two/b.jpg", "c.jpg", "d.png")
    paths = [tmp_path / name for name in ("one", "two", "c.jpg", "d.png")]
    found = discover(paths, tmp_path / "out", Selection(include=("sub/a.jpg", "*.png")))
    assert places(found) == ["d.png", "one/sub/a.jpg", "two/sub/a.jpg"]
    assert places(discover(paths, tmp_path / "out", Selection(exclude=("one/",)))) == [
        "c.jpg", "d.png", "one/sub/a.jpg", "two/b.jpg", "two/sub/a.jpg"
    ]  # fmt: skip


def test_subfolders_are_left_out_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, "one/a.jpg", "one/cats/b.jpg", "two/c.jpg", "two/dogs/d.jpg")
    found = discover([tmp_path / "one"], tmp_path / "out", Selection(recursive=False))
    assert places(found) == ["a.jpg"]
    assert reasons(found) == {"cats": "folder: left out by --no-recursive"}
    both = [tmp_path / "one", tmp_path / "two"]
    found = discover(both, tmp_path / "out", Selection(recursive=False))
    assert places(found) == ["one/a.jpg", "two/c.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_left_out_fails_no_run(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg", "private/b.jpg")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    # A link to what holds the output would be refused.
    (tmp_path / "in" / "private" / "up").symlink_to(tmp_path)
    selection = Selection(exclude=("private/", "gone.jpg", "*.png"))
    found = discover([tmp_path / "in"], tmp_path / "out", selection)
    assert places(found) == ["a.jpg"] and not found.refused
    assert len(found.ignored) == 3


@pytest.mark.parametrize(
    ("selection", "options"),
    [
        (Selection(include=("*.gif",)), "--include"),
        (Selection(exclude=("*",)), "--exclude"),
        (Selection(include=("b*",), exclude=("c*",)), "--include or --exclude"),
        (Selection(exclude=("a*",), recursive=False), "--exclude or --no-recursive"),
    ],
)
def test_where_nothing_is_left_the_remedy_names_the_options(
    selection: Selection, options: str, tmp_path: Path
) -> None:
    plant(tmp_path / "in", "a.jpg")
    with pytest.raises(NothingToDo, match="1 file ignored") as refused:
        discover([tmp_path / "in"], tmp_path / "out", selection)
    assert refused.value.remedy == f"Change or leave out {options}."


@pytest.mark.parametrize("pattern", ["", "/", "./", "."])
def test_a_pattern_that_names_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(BadSetting, match="names no picture"):
        read_patterns(["*.jpg", pattern])


def test_runs_with_other_patterns_go_on_in_one_output_and_keep_its_copies(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    run(spec_of(photos, tmp_path / "out", tiny_weights))
    before = copies(tmp_path / "out")
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, include=("space/",)))
    assert done(events).already_done == len(list((photos / "space").iterdir()))
    assert any(
        "3 files ignored (no --include pattern matches)" in note for note in notes_of(events)
    )
    assert copies(tmp_path / "out") == before
    listed = {record["path"] for record in read_manifest(tmp_path / "out")["pictures"]}
    assert listed == before.keys()
    events = run(spec_of(photos, tmp_path / "out", tiny_weights, exclude=("SPACE",)))
    assert any("1 folder ignored (left out by --exclude)" in note for note in notes_of(events))
    assert copies(tmp_path / "out") == before and done(events).protected == 0


def test_classes_are_the_same_whichever_pictures_are_included_first(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    assert done(run(replace(spec, include=("space/",)))).protected == 3
    labels = {record["label"] for record in read_manifest(tmp_path / "out")["pictures"]}
    assert labels == {"space"}
    assert done(run(spec)).already_done == 3


def failed_in(output: Path) -> list[str]:
    return [failure["path"] for failure in read_manifest(output)["summary"]["failed"]]


def test_only_the_pictures_that_failed_are_tried_again(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    broken, link = photos / "space" / "broken.png", photos / "everyday" / "link.jpg"
    broken.write_bytes(b"no picture")
    link.symlink_to(tmp_path / "later.jpg")
    spec = spec_of(photos, output, tiny_weights)
    assert done(run(spec)).failed == 2
    before = copies(output)
    again = replace(spec, retry_failed=True)
    events = run(again)
    assert done(events).failed == 2 and not [e for e in events if isinstance(e, Saved | Skipped)]
    assert failed_in(output) == sorted([link.as_posix(), "space/broken.png"])

    Image.effect_noise((40, 30), 60).convert("RGB").save(broken)
    shutil.copy(photos / "space" / "rocket.jpg", tmp_path / "later.jpg")
    (photos / "space" / "new.png").write_bytes(broken.read_bytes())  # it did not fail
    assert planned(replace(again, dry_run=True)).pictures == 2
    events = run(again)
    saved = sorted(event.path.name for event in events if isinstance(event, Saved))
    assert saved == ["broken.png", "link.jpg"] and done(events).failed == 0
    assert failed_in(output) == [] and copies(output).items() >= before.items()
    listed = {record["path"] for record in read_manifest(output)["pictures"]}
    assert listed == copies(output).keys()


def test_what_failed_in_a_run_that_was_stopped_is_tried_again_too(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    for name in ("a.png", "b.png", "c.png"):  # all come before what can be protected
        (photos / "everyday" / name).write_bytes(b"no picture")
    spec = spec_of(photos, output, tiny_weights)
    run(replace(spec, include=("a.png",)))  # finishes, and leaves one failure behind
    job = protect(spec)
    next(event for event in job if isinstance(event, Saved))
    job.close()
    for name in ("a.png", "b.png"):
        Image.effect_noise((40, 30), 60).convert("RGB").save(photos / "everyday" / name)
    again = replace(spec, retry_failed=True)
    job = protect(again)
    saved = [next(event for event in job if isinstance(event, Saved))]
    job.close()
    # What is protected now is no failure any more.
    failed = {f"everyday/{name}.png" for name in "abc"}
    left = failed - {record["path"] for record in read_records(output)}
    assert {failure["path"] for failure in read_failures(output)} == left < failed
    saved += [event for event in run(again) if isinstance(event, Saved)]
    assert {event.path.name for event in saved} <= {"a.png", "b.png"}
    assert failed_in(output) == ["everyday/c.png"]
    assert {"everyday/a.png", "everyday/b.png"} <= copies(output).keys()


@pytest.mark.parametrize("dry_run", [False, True])
def test_where_nothing_failed_there_is_nothing_to_retry(
    dry_run: bool, photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    output = tmp_path / "out"
    spec = spec_of(photos, output, tiny_weights, retry_failed=True, dry_run=dry_run)
    (event,) = run(spec)
    assert isinstance(event, Done) and "no run has finished in" in event.said[0]
    assert not output.exists()
    job = protect(replace(spec, retry_failed=False, dry_run=False))
    next(event for event in job if isinstance(event, Saved))
    job.close()
    (event,) = run(spec)
    assert isinstance(event, Done) and "leave out --retry-failed to continue it" in event.said[0]
    if not dry_run:
        run(replace(spec, retry_failed=False))
        (event,) = run(spec)
        assert isinstance(event, Done) and "no picture failed in the last run" in event.said[0]


def test_what_failed_and_is_gone_is_told(photos: Path, tmp_path: Path, tiny_weights: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    (photos / "broken.png").unlink()
    (*_, event) = run(replace(spec, retry_failed=True))
    assert isinstance(event, Done)
    assert event.said == (
        "Nothing to do: none of the pictures that failed in the last run was found.",
    )


def test_a_run_over_some_pictures_keeps_the_failures_of_the_others(
    photos: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    (photos / "space" / "broken.png").write_bytes(b"no picture")
    (photos / "everyday" / "broken.png").write_bytes(b"no picture")
    spec = spec_of(photos, tmp_path / "out", tiny_weights)
    run(spec)
    (photos / "everyday" / "broken.png").unlink()
    Image.effect_noise((40, 30), 60).convert("RGB").save(photos / "everyday" / "broken.png")
    events = run(replace(spec, include=("everyday/",)))
    assert done(events).protected == 1 and done(events).failed == 0
    assert failed_in(tmp_path / "out") == ["space/broken.png"]
    (photos / "space" / "broken.png").unlink()
    run(spec)
    assert failed_in(tmp_path / "out") == []
