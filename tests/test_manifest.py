"""The journal and the manifest: resuming, owning, locking, leaving nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tue_cli.dataset.journal import Journal
from tue_cli.dataset.manifest import MANIFEST, describe_differences, read_manifest, sha256
from tue_cli.dataset.output import WORK, explain_output_error, is_output
from tue_cli.errors import BadSetting, ExitCode, OutputProblem
from tue_cli.storage.atomic import SCRATCH, get_identity
from tue_cli.text import escape

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
R = 8 / 255
RUN: dict[str, Any] = {"tool": "tue", "weights": "abc", "settings": {"radius": R, "steps": 20}}
OTHER: dict[str, Any] = {
    "tool": "tue",
    "weights": "abc",
    "settings": {"radius": 2 * R, "steps": 20},
}
NAMES = ["a.jpg", "cats/b.jpg", "cats/new\nline.jpg", os.fsdecode(b"latin-\xe9.png"), "🐈.jpg"]


def protect(journal: Journal, name: str, text: str = "copy", *, move: bool = True) -> None:
    """What the job does with one picture; without `move`, as far as a kill may let it come."""
    content = f"{text} of {name!a}".encode()
    copy = journal.output / name
    former = copy.read_bytes() if copy.exists() else None
    record = {
        "path": name,
        "source_sha256": sha256(name.encode("utf-8", "surrogateescape")),
        "sha256": sha256(content),
        "label": "cats",
        "key": "key-3",
        "psnr": 41.5,
        "seconds": 0.1,
    }
    journal.save(record, content)
    if not move and former is None:
        copy.unlink()
    elif not move and former is not None:
        copy.write_bytes(former)


def leave_scratch(journal: Journal) -> Path:
    """Leave a copy that was cut off while it was written."""
    unfinished = journal.output / WORK / f"{SCRATCH}0"
    unfinished.write_bytes(b"half a pict")
    return unfinished


def is_done(journal: Journal, name: str, **changed: str) -> bool:
    given = {"source_sha256": sha256(name.encode("utf-8", "surrogateescape"))}
    return journal.is_done(Path(name), **({"label": "cats", "key": "key-3"} | given | changed))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def timeless(output: Path) -> dict[str, Any]:
    manifest = read_manifest(output)
    assert manifest.pop("seconds") >= 0 and manifest.pop("finished")
    return manifest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "output"


@pytest.fixture
def finished(output: Path) -> Path:
    with Journal(output, RUN, "skip") as journal:
        for name in NAMES:
            protect(journal, name)
        journal.finish({"protected": len(NAMES)})
    return output


def test_a_finished_output_holds_the_copies_and_the_manifest_alone(finished: Path) -> None:
    assert files(finished) == {*NAMES, MANIFEST}
    assert not (finished / WORK).exists()
    manifest = read_manifest(finished)
    assert manifest["run"] == RUN
    assert manifest["keys"] == {"cats": "key-3"}
    assert manifest["summary"] == {"protected": len(NAMES)}
    assert [picture["path"] for picture in manifest["pictures"]] == sorted(NAMES)
    assert is_output(finished)


def test_the_manifest_is_plain_ascii_with_sorted_names(finished: Path) -> None:
    text = (finished / MANIFEST).read_bytes().decode("ascii")
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"


def test_what_was_done_is_done_in_the_next_run(finished: Path) -> None:
    with Journal(finished, RUN, "skip") as journal:
        assert all(is_done(journal, name) for name in NAMES)
        assert all(journal.owns(Path(name)) for name in NAMES)
        assert journal.keys == {"cats": "key-3"}
        assert not is_done(journal, "a.jpg", source_sha256="another picture")
        assert not is_done(journal, "a.jpg", label="dogs")
        assert not is_done(journal, "a.jpg", key="key-4")
        assert not is_done(journal, "unheard-of.jpg")


def test_looking_again_changes_nothing_but_the_times(finished: Path) -> None:
    before = timeless(finished)
    with Journal(finished, RUN, "skip") as journal:
        journal.finish({"protected": len(NAMES)})
    assert timeless(finished) == before


def test_a_copy_that_was_changed_or_removed_is_neither_done_nor_ours(finished: Path) -> None:
    (finished / "a.jpg").write_bytes(b"edited by a person")
    (finished / "cats/b.jpg").unlink()
    with Journal(finished, RUN, "skip") as journal:
        for name in ("a.jpg", "cats/b.jpg"):
            assert not is_done(journal, name)
            assert not journal.owns(Path(name))


def test_what_lies_at_the_place_of_a_copy_cannot_stop_the_run(finished: Path) -> None:
    (finished / "a.jpg").unlink()
    (finished / "a.jpg").mkdir()
    (finished / "🐈.jpg").unlink()
    os.mkfifo(finished / "🐈.jpg")
    with Journal(finished, RUN, "skip") as journal:
        assert not is_done(journal, "a.jpg")
        assert not journal.owns(Path("🐈.jpg"))
        assert not journal.owns(Path("x" * 300))


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_manifest import NAMES, RUN, Journal, leave_scratch, protect
journal = Journal(Path(sys.argv[1]), RUN, "skip").__enter__()
protect(journal, NAMES[0])
protect(journal, NAMES[1])
protect(journal, NAMES[2], move=False)
leave_scratch(journal)
with open(journal.output / ".tue" / "journal.jsonl", "ab") as file:
    file.write(b'{"path": "cats/half')
os._exit(9)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, str(here)],
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_killed_run_is_resumed_to_the_same_manifest(output: Path, tmp_path: Path) -> None:
    assert run_python(KILLED, str(output)).returncode == 9
    assert is_output(output)
    with Journal(output, RUN, "skip") as journal:
        done = [is_done(journal, name) for name in NAMES]
        assert done == [True, True, False, False, False]
        assert files(output / WORK) == {"lock", "journal.jsonl"}
        for name in NAMES[2:]:
            protect(journal, name)
        journal.finish({"protected": len(NAMES)})
    with Journal(tmp_path / "whole", RUN, "skip") as journal:
        for name in NAMES:
            protect(journal, name)
        journal.finish({"protected": len(NAMES)})
    assert timeless(output) == timeless(tmp_path / "whole")
    assert files(output) == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_journal_cut_at_any_byte_is_read_up_to_there(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        for name in NAMES[:3]:
            protect(journal, name)
    path = output / WORK / "journal.jsonl"
    whole = path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with Journal(output, RUN, "skip") as journal:
            complete = max(0, sum(end <= cut for end in ends) - 1)
            assert len(journal.records) == complete
            protect(journal, NAMES[3])
        with Journal(output, RUN, "skip") as journal:
            assert is_done(journal, NAMES[3])
            assert len(journal.records) == complete + 1


def test_an_interruption_keeps_the_journal_and_removes_unfinished_copies(output: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        leave_scratch(journal)
        raise KeyboardInterrupt
    assert files(output) == {"a.jpg", f"{WORK}/journal.jsonl"}


def test_a_crash_between_the_manifest_and_the_journal_is_harmless(finished: Path) -> None:
    before = timeless(finished)
    (finished / WORK).mkdir()
    lines = [{"run": OTHER}, *before["pictures"], {"run": RUN}, before["pictures"][0]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (finished / WORK / "journal.jsonl").write_text(text)
    with Journal(finished, RUN, "skip") as journal:
        assert all(is_done(journal, name) for name in NAMES)
        journal.finish({"protected": len(NAMES)})
    assert timeless(finished) == before
    assert files(finished) == {*NAMES, MANIFEST}


def test_a_run_that_fails_before_any_record_leaves_nothing_behind(
    output: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError), Journal(output, RUN, "skip") as journal:
        leave_scratch(journal)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_before_stay(output: Path) -> None:
    output.mkdir(parents=True)
    with Journal(output, RUN, "skip"):
        assert (output / WORK).is_dir()
    assert list(output.iterdir()) == []


def test_other_settings_are_refused_and_named_when_skipping(finished: Path) -> None:
    with pytest.raises(BadSetting, match=r"radius 8 → 16") as caught:
        Journal(finished, OTHER, "skip").__enter__()
    assert "--existing overwrite" in caught.value.remedy
    assert files(finished) == {*NAMES, MANIFEST}


def test_overwriting_with_other_settings_knows_the_copies_as_ours_but_not_as_done(
    finished: Path,
) -> None:
    (finished / "cats/b.jpg").write_bytes(b"edited by a person")
    with Journal(finished, OTHER, "overwrite") as journal:
        assert journal.records == {} and journal.keys == {}
        assert not is_done(journal, "a.jpg")
        assert journal.owns(Path("a.jpg"))
        assert not journal.owns(Path("cats/b.jpg"))
        protect(journal, "a.jpg", "stronger copy", move=False)
        assert journal.owns(Path("a.jpg"))
        protect(journal, "a.jpg", "stronger copy")
        journal.finish({})
    assert [picture["path"] for picture in read_manifest(finished)["pictures"]] == ["a.jpg"]
    assert read_manifest(finished)["run"] == OTHER


def test_an_overwriting_run_that_was_interrupted_goes_on_by_skipping(finished: Path) -> None:
    with Journal(finished, OTHER, "overwrite") as journal:
        protect(journal, "a.jpg", "stronger copy")
    with Journal(finished, OTHER, "skip") as journal:
        assert is_done(journal, "a.jpg")
        assert not is_done(journal, "🐈.jpg")
        assert journal.owns(Path("🐈.jpg"))
    with pytest.raises(BadSetting, match="other settings"):
        Journal(finished, RUN, "skip").__enter__()


def test_any_former_run_is_an_error_where_it_was_asked_to_be(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match="already contains 5 protected copies"):
        Journal(finished, RUN, "error").__enter__()
    with Journal(tmp_path / "fresh", RUN, "error"):
        pass
    with pytest.raises(BadSetting, match="--existing never"):
        Journal(tmp_path / "fresh", RUN, "never")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema": 1',
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "run": {}, "keys": {}, "pictures": [{"path": 3}]}',
        '{"schema": 99}',
        "\x00\xff",
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_with_a_remedy(output: Path, text: str) -> None:
    output.mkdir(parents=True)
    (output / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BadSetting) as caught:
        Journal(output, RUN, "overwrite").__enter__()
    # Other commands, which do not have this option, give the same remedy.
    assert "protect" in caught.value.remedy and "-o" in caught.value.remedy
    assert (output / MANIFEST).read_text(encoding="latin-1") == text
    assert files(output) == {MANIFEST}


def test_a_folder_without_a_manifest_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="has no tue-manifest"):
        read_manifest(tmp_path)


def test_a_failure_without_a_copy_leaves_no_record(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        protect(journal, "b.jpg", move=False)
        failed = [{"path": "b.jpg", "reason": "unwritable", "message": "It could not be moved."}]
        journal.finish({"failed": failed})
    manifest = read_manifest(output)
    assert [picture["path"] for picture in manifest["pictures"]] == ["a.jpg"]
    assert manifest["summary"]["failed"] == failed


def test_a_former_copy_stays_recorded_when_its_source_fails_later(finished: Path) -> None:
    with Journal(finished, RUN, "skip") as journal:
        journal.finish({"failed": [{"path": "a.jpg", "reason": "truncated", "message": ""}]})
    assert len(read_manifest(finished)["pictures"]) == len(NAMES)


def test_figures_that_are_not_finite_become_null(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        journal.save(journal.records["a.jpg"] | {"psnr": float("inf")}, b"copy of 'a.jpg'")
        journal.finish({"mean": {"psnr": float("nan")}})
    manifest = read_manifest(output)
    assert manifest["pictures"][0]["psnr"] is None
    assert manifest["summary"] == {"mean": {"psnr": None}}


def test_an_incomplete_record_is_a_mistake_of_the_caller(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal, pytest.raises(ValueError, match="sha256"):
        journal.save({"path": "a.jpg"}, b"")


def test_threads_may_record_at_once(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        threads = [
            threading.Thread(target=protect, args=(journal, f"{number}.jpg"))
            for number in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(output, RUN, "skip") as journal:
        assert all(is_done(journal, f"{number}.jpg") for number in range(24))


def test_names_as_long_as_the_disk_allows_can_be_protected(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        protect(journal, "x" * 251 + ".jpg")
        journal.finish({})
    with Journal(output, RUN, "skip") as journal:
        assert is_done(journal, "x" * 251 + ".jpg")


SECOND = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_manifest import RUN, Journal, OutputProblem
try:
    with Journal(Path(sys.argv[1]), RUN, "skip"):
        sys.exit(0)
except OutputProblem as problem:
    sys.stdout.write(problem.message)
    sys.exit(int(problem.exit_code))
"""


def test_two_processes_cannot_use_one_output(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        unfinished = leave_scratch(journal)
        second = run_python(SECOND, str(output))
        assert second.returncode == ExitCode.ENVIRONMENT, second.stderr
        assert "Another run of tue is using" in second.stdout
        assert unfinished.exists()
    assert run_python(SECOND, str(output)).returncode == 0


def test_two_journals_of_one_process_cannot_use_one_output(output: Path) -> None:
    with Journal(output, RUN, "skip") as journal:
        with pytest.raises(OutputProblem, match="Another run"):
            Journal(output, RUN, "skip").__enter__()
        protect(journal, "a.jpg")
        journal.finish({})
    with Journal(output, RUN, "skip") as journal:
        assert is_done(journal, "a.jpg")


def test_a_journal_can_be_left_from_another_thread(output: Path) -> None:
    journal = Journal(output, RUN, "skip").__enter__()
    leaving = threading.Thread(target=journal.__exit__, args=(None, None, None))
    leaving.start()
    leaving.join()
    assert not output.exists()


@pytest.mark.parametrize("place", ["file", "file/below", "dangling"])
def test_something_else_in_the_place_of_the_output_is_a_problem_with_a_remedy(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    with pytest.raises(OutputProblem, match="not a folder") as caught:
        Journal(tmp_path / place, RUN, "skip").__enter__()
    assert "-o" in caught.value.remedy
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_an_output_that_nobody_can_make_is_a_problem() -> None:
    with pytest.raises(OutputProblem, match="cannot be written|not writable|read-only"):
        Journal(Path("/proc/tue/output"), RUN, "skip").__enter__()


@pytest.mark.skipif(IS_ROOT, reason="root may write anywhere")
def test_an_output_without_permission_is_a_problem(output: Path) -> None:
    output.mkdir(parents=True)
    output.chmod(0o500)
    with pytest.raises(OutputProblem, match="not writable"):
        Journal(output, RUN, "skip").__enter__()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EROFS, "read-only"),
        (errno.EPERM, "not writable"),
        (errno.EIO, "cannot be written: "),
    ],
)
def test_every_way_to_fail_at_writing_has_a_sentence(number: int, words: str) -> None:
    problem = explain_output_error(OSError(number, os.strerror(number)), Path("out\nput"))
    assert words in problem.message and "out\\nput" in problem.message and problem.remedy


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputProblem, match="is full"), Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        monkeypatch.setattr(os, "fsync", fsync)
        protect(journal, "b.jpg")
    monkeypatch.undo()
    with Journal(output, RUN, "skip") as journal:
        assert is_done(journal, "a.jpg")
        assert not is_done(journal, "b.jpg")


def test_paths_are_shown_on_one_line() -> None:
    assert escape("é \n\x1b\udce9🐈") == "é \\n\\x1b\\udce9🐈"


def test_another_version_goes_on_and_leaves_finished_copies(finished: Path) -> None:
    newer = RUN | {"tool": "newer", "algorithm": 2}
    with Journal(finished, newer, "skip") as journal:
        assert all(is_done(journal, name) for name in NAMES)
        protect(journal, "new.jpg")
        journal.finish({})
    assert read_manifest(finished)["run"] == newer
    assert len(read_manifest(finished)["pictures"]) == len(NAMES) + 1


@pytest.mark.parametrize("removed", [WORK, f"{WORK}/journal.jsonl"])
@pytest.mark.parametrize("how", ["deleted", "moved", "linked"])
def test_a_journal_removed_mid_run_stops_it_and_copies_stay_known(
    output: Path, tmp_path: Path, removed: str, how: str
) -> None:
    (tmp_path / "originals").mkdir()
    with (
        pytest.raises(OutputProblem, match="was removed or replaced"),
        Journal(output, RUN, "skip") as journal,
    ):
        protect(journal, "a.jpg")
        if how == "deleted":
            subprocess.run(["rm", "-r", output / removed], check=True)
        else:
            (output / removed).rename(tmp_path / "away")
        if how == "linked":
            (output / removed).symlink_to(tmp_path / "originals")
        protect(journal, "b.jpg")
    assert files(output) - {f"{WORK}/journal.jsonl"} == {"a.jpg"}
    assert not list((tmp_path / "originals").iterdir())
    if how == "linked":
        (output / removed).unlink()
        return
    with Journal(output, RUN, "skip") as journal:
        assert is_done(journal, "a.jpg") and not is_done(journal, "b.jpg")


def test_an_output_removed_mid_run_stops_it_and_does_not_come_back(output: Path) -> None:
    with (
        pytest.raises(OutputProblem, match="was removed or replaced"),
        Journal(output, RUN, "skip") as journal,
    ):
        protect(journal, "a.jpg")
        shutil.rmtree(output)
        protect(journal, "b.jpg")
    assert not output.exists()


def test_an_output_moved_mid_run_is_gone_on_with_where_it_lies(
    output: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputProblem, match="replaced"), Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        output.rename(tmp_path / "elsewhere")
        protect(journal, "b.jpg")
    assert not output.exists()
    with Journal(tmp_path / "elsewhere", RUN, "skip") as journal:
        assert is_done(journal, "a.jpg")


@pytest.mark.parametrize("how", ["a link", "a folder", "removed"])
def test_a_folder_exchanged_mid_run_stops_it_and_nothing_is_written_there(
    output: Path, tmp_path: Path, how: str
) -> None:
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals/b.jpg").write_bytes(b"precious")
    with pytest.raises(OutputProblem, match="link|replaced"):  # noqa: SIM117
        with Journal(output, RUN, "skip") as journal:
            protect(journal, "cats/a.jpg")
            (output / "cats").rename(tmp_path / "away")
            if how == "a link":
                (output / "cats").symlink_to(tmp_path / "originals")
            elif how == "a folder":
                (tmp_path / "originals").rename(output / "cats")
            protect(journal, "cats/b.jpg")
    place = output / "cats" if how == "a folder" else tmp_path / "originals"
    assert files(place) == {"b.jpg"} and (place / "b.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("place", ["", "cats"])
def test_a_folder_of_originals_gets_no_copy_whatever_leads_there(output: Path, place: str) -> None:
    (output / "cats").mkdir(parents=True)
    originals = {get_identity((output / place).stat())}
    with (
        pytest.raises(OutputProblem, match="replaced"),
        Journal(output, RUN, "skip", originals) as journal,
    ):
        protect(journal, "cats/a.jpg")
    assert not list((output / "cats").iterdir())


@pytest.mark.parametrize("place", [WORK, f"{WORK}/journal.jsonl", f"{WORK}/lock", MANIFEST])
@pytest.mark.parametrize("target", ["a.jpg", "", "nowhere"])
def test_a_planted_link_is_refused_and_its_target_stays(
    output: Path, tmp_path: Path, place: str, target: str
) -> None:
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals/a.jpg").write_bytes(b"precious")
    (output / place).parent.mkdir(parents=True, exist_ok=True)
    (output / place).symlink_to(tmp_path / "originals" / target)
    with pytest.raises(OutputProblem, match="is a link"):
        Journal(output, RUN, "overwrite").__enter__()
    assert (output / place).is_symlink()
    assert {path.name for path in (tmp_path / "originals").iterdir()} == {"a.jpg"}
    assert (tmp_path / "originals/a.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("place", ["journal.jsonl", "lock"])
def test_a_planted_second_name_of_an_original_is_refused(
    output: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "original").write_bytes(b"precious")
    (output / WORK).mkdir(parents=True)
    (output / WORK / place).hardlink_to(tmp_path / "original")
    with (
        pytest.raises(OutputProblem, match="is a link"),
        Journal(output, RUN, "overwrite") as journal,
    ):
        protect(journal, "a.jpg")
    assert (tmp_path / "original").read_bytes() == b"precious"
    assert not (output / "a.jpg").exists()


def test_a_planted_scratch_file_is_removed_and_its_target_stays(
    output: Path, tmp_path: Path
) -> None:
    (tmp_path / "original").write_bytes(b"precious")
    (output / WORK).mkdir(parents=True)
    (output / WORK / f"{SCRATCH}1").symlink_to(tmp_path / "original")
    with Journal(output, RUN, "skip") as journal:
        protect(journal, "a.jpg")
        journal.finish({})
    assert (tmp_path / "original").read_bytes() == b"precious"
    assert files(output) == {"a.jpg", MANIFEST}


def test_differences_are_told_in_short() -> None:
    told = describe_differences({"format": "x" * 10**6, "y" * 10**6: 1}, {"format": "keep"})
    assert "format xxx" in told and "→ keep" in told
    assert len(told) < 400
    noise = {"settings": {"method": "tue", "noise": {"radius": 8 / 255, "gray_ratio": 1.0}}}
    weaker = {"settings": {"method": "tue", "noise": {"radius": 4 / 255}}}
    told = "gray 1 → not set, radius 8 → 4"
    assert describe_differences(noise, weaker) == told
    assert describe_differences(noise, {"settings": {"method": "lsp"}}) == "method tue → lsp"
    weights = {"weights": {"name": "cifar10", "sha256": "0" * 64}}
    assert describe_differences(weights, {"weights": {"name": "cifar10"}}) == "weights changed"
    mine = {"weights": {"name": "mine", "sha256": "1" * 64}}
    assert describe_differences(weights, mine) == "weights cifar10 → mine"
