"""Discovery, output places, labels and keys."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import string
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tue_cli.dataset.discover import Found, Item, discover, find_crowded, is_case_sensitive
from tue_cli.dataset.labels import assign_labels
from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.output import WORK, choose_default_output
from tue_cli.errors import BadSetting, NothingToDo, OutputProblem

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture")
    return root


def places(found: Found) -> list[str]:
    return [item.relative.as_posix() for item in found.items]


def classes(items: Iterable[Item]) -> dict[str, str]:
    return {item.relative.as_posix(): item.label for item in items}


def reasons(found: Found) -> dict[str, str]:
    return {path.name: reason for path, reason in found.ignored}


def test_one_folder_is_mirrored_at_the_output_itself(tmp_path: Path) -> None:
    photos = plant(tmp_path / "photos", "b.JPG", "cats/a.jpg", "cats/deep/z.png")
    found = discover([photos], tmp_path / "out")
    assert places(found) == ["b.JPG", "cats/a.jpg", "cats/deep/z.png"]
    assert [item.source for item in found.items] == [photos / place for place in places(found)]
    assert not found.ignored and not found.refused


def test_several_folders_are_mirrored_under_their_names_and_files_at_the_top(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "one/a.jpg", "two/a.jpg", "single.png")
    paths = [tmp_path / "two", tmp_path / "one", tmp_path / "single.png"]
    assert places(discover(paths, tmp_path / "out")) == ["one/a.jpg", "single.png", "two/a.jpg"]


def test_the_working_folder_can_be_given_as_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "photos", "-rf.jpg", "a/b.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    output = choose_default_output([Path()])
    assert output == tmp_path / "photos-protected"
    found = discover([Path()], output)
    assert places(found) == ["-rf.jpg", "a/b.jpg"]
    assert {item.label for item in assign_labels(found, "single")} == {"owner"}


def test_a_path_given_twice_counts_once(tmp_path: Path) -> None:
    photos = plant(tmp_path / "photos", "a.jpg")
    assert places(discover([photos, tmp_path / "photos/"], tmp_path / "out")) == ["a.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        "new\nline.jpg",
        "🐈‍⬛ emoji.png",
        "-o.jpg",
        " leading and trailing .jpg",
        "x" * 251 + ".jpg",
        os.fsdecode(b"latin-\xe9-1.jpg"),
        "quote'\"\\`$(rm).jpg",
        "nfd-e\u0301.jpg",
    ],
)
def test_hostile_names_are_found_and_kept(tmp_path: Path, name: str) -> None:
    photos = tmp_path / "photos"
    try:
        plant(photos, name)
    except OSError:
        pytest.skip("this file system has no such names")
    (item,) = assign_labels(discover([photos], tmp_path / "out"), "auto")
    assert os.fsencode(item.relative) == os.fsencode(name)
    assert item.source.read_bytes() == b"picture"


def test_the_order_is_that_of_the_names_bytes(tmp_path: Path) -> None:
    names = ["B.jpg", "a.jpg", "a/z.jpg", "ä.jpg", "a-b.jpg"]
    photos = plant(tmp_path / "photos", *names)
    assert places(discover([photos], tmp_path / "out")) == sorted(names, key=os.fsencode)


def test_junk_is_ignored_with_a_reason(tmp_path: Path) -> None:
    junk = [".DS_Store", "._a.jpg", "Thumbs.db", ".hidden.jpg"]
    photos = plant(tmp_path / "photos", "a.jpg", "notes.txt", "@eaDir/a.jpg", ".git/a.jpg", *junk)
    found = discover([photos], tmp_path / "out")
    assert places(found) == ["a.jpg"]
    expected = dict.fromkeys([*junk, "@eaDir", ".git"], "hidden or system file")
    assert reasons(found) == expected | {"notes.txt": "not a picture"}


def test_a_file_named_by_a_person_is_never_passed_over_in_silence(tmp_path: Path) -> None:
    plant(tmp_path, ".hidden.jpg", "notes.txt")
    found = discover([tmp_path / ".hidden.jpg", tmp_path / "notes.txt"], tmp_path / "out")
    assert places(found) == [".hidden.jpg"]
    assert [(path.name, reason) for path, reason, _ in found.refused] == [
        ("notes.txt", "unsupported")
    ]


def test_earlier_outputs_inside_the_input_are_ignored(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg", "done/b.jpg", f"done/{MANIFEST}", "half/c.jpg")
    plant(tmp_path / "in", f"half/{WORK}/journal.jsonl")
    found = discover([tmp_path / "in"], tmp_path / "out")
    assert places(found) == ["a.jpg"]
    assert reasons(found) == dict.fromkeys(["done", "half"], "folder: already protected")


def test_symlinks_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/real.jpg", "elsewhere/more/b.jpg", "in/a.jpg")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "elsewhere/real.jpg")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere/more")
    found = discover([tmp_path / "in"], tmp_path / "out")
    assert places(found) == ["a.jpg", "link.jpg", "more/b.jpg"]
    assert found.items[1].source == tmp_path / "in/link.jpg"


def test_a_loop_of_symlinks_ends(tmp_path: Path) -> None:
    plant(tmp_path / "in", "sub/a.jpg")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    found = discover([tmp_path / "in"], tmp_path / "out")
    assert places(found) == ["sub/a.jpg"]
    assert reasons(found) == {"up": "symlink loop"}


def test_a_very_deep_tree_is_walked(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "/".join("d" * 300)
    folder.mkdir(parents=True)
    plant(folder, "a.jpg")
    assert len(discover([tmp_path / "in"], tmp_path / "out").items) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_named_like_a_picture_and_is_none_is_refused_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(tmp_path / "in")
    os.mkfifo("pipe.jpg")
    os.mkfifo("pipe")
    Path("gone.jpg").symlink_to("nowhere.jpg")
    Path("self.jpg").symlink_to("self.jpg")
    Path("gone").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("door.png")
        found = discover([tmp_path / "in"], tmp_path / "out")
    assert places(found) == ["a.jpg"]
    assert {path.name: reason for path, reason, _ in found.refused} == {
        "pipe.jpg": "not-a-file",
        "door.png": "not-a-file",
        "gone.jpg": "broken-link",
        "self.jpg": "broken-link",
    }
    assert reasons(found) == dict.fromkeys(["pipe", "gone"], "not a regular file")


def test_an_unreadable_folder_is_refused_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "in", "a.jpg", "locked/b.jpg")
    locked = tmp_path / "in/locked"
    if IS_ROOT:
        real = Path.iterdir

        def iterdir(folder: Path) -> Iterator[Path]:
            if folder == locked:
                raise PermissionError(13, "Permission denied")
            return real(folder)

        monkeypatch.setattr(Path, "iterdir", iterdir)
    else:
        locked.chmod(0)
    found = discover([tmp_path / "in"], tmp_path / "out")
    locked.chmod(0o700)
    assert places(found) == ["a.jpg"]
    assert found.refused == (
        (locked, "unreadable-folder", "This folder cannot be read: Permission denied."),
    )


def test_nothing_to_do_says_what_was_left_aside(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.txt", "b.txt")
    with pytest.raises(NothingToDo, match="2 files ignored .not a picture."):
        discover([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize(
    ("given_paths", "output", "words"),
    [
        (["missing"], "out", "does not exist"),
        (["in"], "in", "is the input"),
        (["in"], "sub/../in", "is the input"),
        (["link"], "in", "is the input"),
        (["in"], "in/sub/new", "is inside"),
        (["in"], "link/new", "is inside"),
        (["in/sub"], "in", "contains the input"),
        (["in/a.jpg"], "in", "is the input"),
        (["in/sub/b.jpg"], "in", "contains the input"),
    ],
)
def test_overlaps_are_refused_before_any_work(
    tmp_path: Path, given_paths: list[str], output: str, words: str
) -> None:
    plant(tmp_path, "in/a.jpg", "in/sub/b.jpg", "sub/x.jpg")
    (tmp_path / "link").symlink_to("in")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadSetting, match=words) as caught:
        discover([tmp_path / path for path in given_paths], tmp_path / output)
    assert caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["in/a", "in/a/new", "in/.hidden/new", "in"])
@pytest.mark.parametrize("finished", [True, False])
def test_an_output_within_a_linked_folder_is_refused(
    tmp_path: Path, output: str, finished: bool
) -> None:
    plant(tmp_path, "in/a/l/b/0.png", "in/b/0.png", "in/a/own.png", "in/.hidden/1.png", "x/2.png")
    (tmp_path / "x/l").symlink_to("../in")
    if finished:
        plant(tmp_path, f"in/{MANIFEST}", f"in/a/{MANIFEST}")
    with pytest.raises(BadSetting, match="is inside") as caught:
        discover([tmp_path / "x"], tmp_path / output)
    assert str(tmp_path / "x/l") in caught.value.message


@pytest.mark.parametrize("given_paths", [[".tue", "b"], [".TUE", "b"], ["c"], ["d"]])
def test_a_name_that_tue_keeps_for_itself_is_refused(
    tmp_path: Path, given_paths: list[str]
) -> None:
    plant(tmp_path, f"c/{MANIFEST}/x.png", f"d/{MANIFEST.upper()}/x.png", "b/y.png")
    plant(tmp_path / given_paths[0], "z.png")
    with pytest.raises(BadSetting, match="uses for its own files") as caught:
        discover([tmp_path / path for path in given_paths], tmp_path / "out")
    assert "Rename" in caught.value.remedy


def test_an_output_beside_a_single_file_is_no_overlap(tmp_path: Path) -> None:
    plant(tmp_path, "in/a.jpg")
    assert places(discover([tmp_path / "in/a.jpg"], tmp_path / "in/out")) == ["a.jpg"]


def test_an_output_whose_symlink_leads_back_to_the_originals_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "in/sub/a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "in/sub")
    with pytest.raises(BadSetting, match="folder of originals"):
        discover([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A.jpg", "a.JPG"),
        ("straße.jpg", "STRASSE.jpg"),
        ("\u00e9.jpg", "e\u0301.jpg"),
        ("É/x.jpg", "e\u0301/X.jpg"),
        ("a.jpg", "A.jpg/b.jpg"),
    ],
)
def test_copies_that_would_collide_are_found_and_others_are_not(
    tmp_path: Path, one: str, other: str
) -> None:
    # One file by two names that differ in case: so does a disk look that does not tell case.
    plant(tmp_path, "out/n")
    with contextlib.suppress(FileExistsError):
        (tmp_path / "out/N").hardlink_to(tmp_path / "out/n")
    crowded = find_crowded([Path(one), Path(other), Path("else.jpg")], tmp_path / "out")
    # What lies in a folder has a place; what has the folder's name has none.
    assert crowded == {Path(one)} | ({Path(other)} if "A.jpg/" not in other else set())


@pytest.mark.parametrize("output", ["out", "out/to/be/made", "empty"])
def test_names_that_differ_in_case_have_places_where_the_disk_tells_case(
    tmp_path: Path, output: str
) -> None:
    photos = plant(tmp_path / "in", "IMG_1.JPG", "img_1.jpg", "a/x.jpg", "A/x.jpg")
    if sum(len(files) for _, _, files in os.walk(photos)) < 4:
        pytest.skip("this disk does not tell case")
    plant(tmp_path, "out/name")
    (tmp_path / "empty").mkdir()
    found = discover([photos], tmp_path / output).items
    assert len(found) == 4
    assert not find_crowded([item.relative for item in found], tmp_path / output)


def test_case_is_told_by_the_names_that_are_there(tmp_path: Path) -> None:
    plant(tmp_path, "one/name", "two/name", "two/0")
    (tmp_path / "one/NAME").hardlink_to(tmp_path / "one/name")
    assert not is_case_sensitive(tmp_path / "one") and not is_case_sensitive(tmp_path / "one/9/9")
    assert is_case_sensitive(tmp_path / "two")


def test_what_can_never_be_protected_takes_no_place(tmp_path: Path) -> None:
    plant(tmp_path, "one/IMG.CR2", "two/IMG.CR2", "two/b.jpg")
    found = discover([tmp_path / "one/IMG.CR2", *(tmp_path / "two").iterdir()], tmp_path / "out")
    assert places(found) == ["IMG.CR2", "IMG.CR2", "b.jpg"]


def test_a_picture_without_an_ending_is_found_by_its_content(tmp_path: Path) -> None:
    plant(tmp_path / "in", "README", "a.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "in/holiday", "JPEG")
    (tmp_path / "in/cut").write_bytes((tmp_path / "in/holiday").read_bytes()[:40])
    found = discover([tmp_path / "in"], tmp_path / "out")
    assert places(found) == ["a.jpg", "holiday"]
    assert reasons(found) == dict.fromkeys(["README", "cut"], "not a picture")


@pytest.mark.parametrize(
    "place", [WORK, f"{WORK}/journal.jsonl", f"{WORK}/lock", MANIFEST, "a", "a/b"]
)
def test_a_link_in_the_output_is_refused_before_any_work(tmp_path: Path, place: str) -> None:
    plant(tmp_path, "in/a/b/c.jpg", "elsewhere/x")
    (tmp_path / "out" / place).parent.mkdir(parents=True)
    (tmp_path / "out" / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputProblem, match="is a link") as caught:
        discover([tmp_path / "in"], tmp_path / "out")
    assert place in caught.value.message and "-o" in caught.value.remedy


def test_an_output_that_holds_an_original_by_a_link_in_the_input_is_refused(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "in/other.jpg", "out/a.jpg")
    (tmp_path / "in/a.jpg").symlink_to(tmp_path / "out/a.jpg")
    with pytest.raises(BadSetting, match="folder of originals"):
        discover([tmp_path / "in"], tmp_path / "out")


def test_a_picture_named_beside_its_folder_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.png").touch()
    found = discover([folder, folder / "x.png"], tmp_path / "out")
    assert [item.relative for item in found.items] == [Path("x.png")]


def test_two_files_of_one_name_collide(tmp_path: Path) -> None:
    plant(tmp_path, "one/a.jpg", "two/a.jpg")
    with pytest.raises(BadSetting, match="the same place"):
        discover([tmp_path / "one/a.jpg", tmp_path / "two/a.jpg"], tmp_path / "out")


def test_the_default_output_lies_beside_the_input(tmp_path: Path) -> None:
    photos = plant(tmp_path / "photos", "a.jpg", "b.jpg")
    beside = tmp_path / "photos-protected"
    assert choose_default_output([photos]) == beside
    assert choose_default_output([photos / "a.jpg"]) == beside
    assert choose_default_output([photos / "a.jpg", photos / "b.jpg"]) == beside
    for several in ([photos, tmp_path / "other"], [photos, photos / "a.jpg"], [Path("/")]):
        with pytest.raises(BadSetting, match="-o"):
            choose_default_output(several)


def test_folders_are_classes_and_what_lies_above_them_is_the_owners(tmp_path: Path) -> None:
    plant(tmp_path / "in", "top.jpg", "cats/a.jpg", "dogs/deep/b.jpg")
    found = discover([tmp_path / "in"], tmp_path / "out")
    expected = {"top.jpg": "owner", "cats/a.jpg": "cats", "dogs/deep/b.jpg": "dogs"}
    assert classes(assign_labels(found, "folders")) == expected
    assert classes(assign_labels(found, "auto")) == expected


def test_auto_sees_one_class_where_fewer_than_two_folders_hold_pictures(tmp_path: Path) -> None:
    plant(tmp_path / "in", "top.jpg", "cats/a.jpg", "notes/readme.txt")
    found = discover([tmp_path / "in"], tmp_path / "out")
    assert set(classes(assign_labels(found, "auto")).values()) == {"owner"}
    assert set(classes(assign_labels(found, "folders")).values()) == {"owner", "cats"}


def test_several_input_folders_are_classes(tmp_path: Path) -> None:
    plant(tmp_path / "set", "cats/a.jpg", "dogs/x/b.jpg")
    found = discover([tmp_path / "set/cats", tmp_path / "set/dogs"], tmp_path / "out")
    assert classes(assign_labels(found, "auto")) == {"cats/a.jpg": "cats", "dogs/x/b.jpg": "dogs"}
    assert set(classes(assign_labels(found, "single")).values()) == {"owner"}


def test_an_unknown_way_to_label_is_refused(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg")
    with pytest.raises(BadSetting, match="--labels clusters"):
        assign_labels(discover([tmp_path / "in"], tmp_path / "out"), "clusters")


@pytest.mark.parametrize(
    "text",
    [
        "path,class\ncats/a.jpg,cat\nb.jpg,dog\n",
        "\ufeffpath,class\r\ncats/a.jpg,cat\r\n\r\nb.jpg,dog\r\n",
        "cats/a.jpg,cat\nb.jpg, dog",
        "Class,size,Path\ncat,3,a.jpg\ndog,4,./b.jpg\n",
        "IN/cats/a.jpg,cat\nIN/b.jpg,dog\n",
    ],
)
def test_a_table_gives_the_classes(tmp_path: Path, text: str) -> None:
    plant(tmp_path / "in", "cats/a.jpg", "b.jpg")
    table = tmp_path / "labels.csv"
    table.write_bytes(text.replace("IN", (tmp_path / "in").as_posix()).encode())
    items = assign_labels(discover([tmp_path / "in"], tmp_path / "out"), str(table))
    assert classes(items) == {"cats/a.jpg": "cat", "b.jpg": "dog"}


def test_a_table_finds_hostile_names(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a\nb,c.jpg", "e\u0301.jpg")
    table = tmp_path / "labels.csv"
    table.write_text('"a\nb,c.jpg",one\n\u00e9.jpg,two\n', encoding="utf-8")
    items = assign_labels(discover([tmp_path / "in"], tmp_path / "out"), str(table))
    assert classes(items) == {"a\nb,c.jpg": "one", "e\u0301.jpg": "two"}


def test_rows_of_a_table_that_name_nothing_are_counted(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("a.jpg,x\nb.jpg,y\nc.jpg,z\n")
    notes: list[str] = []
    assign_labels(discover([tmp_path / "in"], tmp_path / "out"), str(table), notes.append)
    assert len(notes) == 1 and notes[0].startswith("2 rows")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one/a.jpg,x\n", r"3 of 4 pictures have no row .*: b\.jpg, c\.jpg, two/a\.jpg\.$"),
        ("a.jpg,x\nb.jpg,x\nc.jpg,x\n", r"2 of 4 pictures have no row"),
        ("b.jpg,x\nb.jpg,y\n", "two classes, x and y"),
        ("b.jpg;x\n", "Line 1 .* has no class"),
        ("b.jpg,x\nc.jpg,\n", "Line 2 .* has no class"),
        ("", "4 of 4"),
    ],
)
def test_a_table_that_does_not_cover_the_pictures_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    plant(tmp_path / "in", "one/a.jpg", "two/a.jpg", "b.jpg", "c.jpg")
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(BadSetting) as caught:
        assign_labels(discover([tmp_path / "in"], tmp_path / "out"), str(table))
    assert re.search(words, caught.value.message)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    plant(tmp_path / "in", "a.jpg")
    found = discover([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(BadSetting, match="cannot be read"):
        assign_labels(found, str(tmp_path / "labels.csv"))


FEW = settings(max_examples=20)


@FEW
@given(st.sets(st.text(string.ascii_letters + "éß", min_size=1, max_size=2), min_size=1))
def test_places_that_are_not_crowded_stay_apart_on_any_disk(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos = plant(Path(folder) / "in", *(f"{name}.jpg" for name in names))
        # A disk that does not tell case, as `tells_case` sees it.
        plant(Path(folder), "out/n")
        with contextlib.suppress(FileExistsError):
            (Path(folder) / "out/N").hardlink_to(Path(folder) / "out/n")
        found = discover([photos], Path(folder) / "out").items
        crowded = find_crowded([item.relative for item in found], Path(folder) / "out")
        kept = [name.casefold() for name in names if Path(f"{name}.jpg") not in crowded]
        alone = Counter(name.casefold() for name in names)
        assert sorted(kept) == sorted(name for name, count in alone.items() if count == 1)
