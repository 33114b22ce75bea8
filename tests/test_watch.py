"""`tue protect --watch`: what comes later is protected too, until Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_growing import labels_of, notes, stamps
from test_jobs import done, run, spec_of

from tue_cli.dataset.journal import Journal
from tue_cli.dataset.manifest import MANIFEST, read_manifest
from tue_cli.dataset.output import WORK
from tue_cli.errors import BadSetting, ExitCode, OutputProblem
from tue_cli.events import AnyEvent, Done, Failed, Job, Note, Saved, Started
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import ProtectForecast, ProtectSummary, WatchSummary
from tue_cli.protect.watch import watch

Watching = Job[ProtectForecast | ProtectSummary | WatchSummary]
PHOTOS = Path(__file__).parent.parent / "assets" / "photos"
ROCKET, CAT = PHOTOS / "space" / "rocket.jpg", PHOTOS / "everyday" / "cat.png"
LONGEST = 120
"""Seconds that anything may take on a busy machine."""


@pytest.fixture
def inbox(tmp_path: Path, small_photos: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    shutil.copy(small_photos / "space" / "rocket.jpg", tmp_path / "inbox" / "rocket.jpg")
    return tmp_path / "inbox"


@pytest.fixture
def spec(inbox: Path, tmp_path: Path, tiny_weights: Path) -> ProtectSpec:
    return spec_of(inbox, tmp_path / "out", tiny_weights, watch=True)


@pytest.fixture
def in_time() -> Iterator[None]:
    """End a test that waits for what never comes."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("nothing came"))
    signal.alarm(2 * LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def until(job: Watching, holds: Callable[[AnyEvent], bool]) -> list[AnyEvent]:
    """The events of a watch up to one of which this holds."""
    events: list[AnyEvent] = []
    for event in job:
        events.append(event)
        if holds(event):
            return events
    raise AssertionError(events)


def is_waiting(event: AnyEvent) -> bool:
    return isinstance(event, Note) and event.message.startswith("Watching ")


def is_over(event: AnyEvent) -> bool:
    return isinstance(event, Done)


def names(events: list[AnyEvent], kind: type[Saved[None]] | type[Failed]) -> list[str]:
    return [event.path.name for event in events if isinstance(event, kind)]


# --- in a process of its own --------------------------------------------------------------------


class Command:
    """`tue protect --watch` as a person runs it; the packaged weights need no torch."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.out, self.err = folder.with_name("stdout"), folder.with_name("stderr")
        command = [sys.executable, "-m", "tue_cli", "protect", str(folder), "--watch", *options]

        def heed_ctrl_c() -> None:
            # Whoever started the tests in the background may have had it ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, preexec_fn=heed_ctrl_c)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST
        while not holds():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.05)

    def says(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.err.read_text() + self.out.read_text()

    def stop(self) -> int:
        """Press Ctrl-C a moment after the last words were shown, as people do."""
        time.sleep(0.5)
        return self.interrupt()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LONGEST)


@pytest.fixture
def start(inbox: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def begin(*options: str) -> Command:
        started.append(Command(inbox, *options))
        return started[-1]

    yield begin
    for command in started:
        command.process.kill()
        command.process.wait()


@pytest.mark.slow
def test_a_new_picture_is_protected_and_ctrl_c_ends_an_idle_watch(
    inbox: Path, start: Callable[..., Command]
) -> None:
    output = inbox.with_name("inbox-protected")
    command = start("--steps", "1")
    command.wait_for(command.says("Watching"))
    first = stamps(output)["rocket.jpg"]
    shutil.copy(CAT, inbox / "cat.png")
    command.wait_for(lambda: (output / "cat.png").exists())
    (inbox / "cat.png").rename(inbox / "renamed.png")
    command.wait_for(lambda: (output / "renamed.png").exists())
    (inbox / "rocket.jpg").unlink()
    (inbox.with_name("more") / "below").mkdir(parents=True)
    shutil.copy(ROCKET, inbox.with_name("more") / "below" / "late.jpg")
    inbox.with_name("more").rename(inbox / "more")
    command.wait_for(lambda: (output / "more" / "below" / "late.jpg").exists())
    command.wait_for(lambda: command.out.read_text().count("Protected 1 picture") == 4)
    command.wait_for(lambda: not (output / WORK).exists())
    assert command.stop() == ExitCode.OK
    assert command.out.read_text().splitlines()[-1] == "Stopped watching."
    said = command.err.read_text()
    assert "Traceback" not in said
    # What holds for all runs is said once, and again when there is another class.
    assert said.count("engine:") <= 2 and said.count("Protecting:") >= 4
    assert stamps(output)["rocket.jpg"] == first
    listed = {record["path"] for record in read_manifest(output)["pictures"]}
    assert listed == {"rocket.jpg", "cat.png", "renamed.png", "more/below/late.jpg"}


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_run_ends_it_as_without_watching(
    inbox: Path, start: Callable[..., Command]
) -> None:
    for number in range(40):
        shutil.copy(inbox / "rocket.jpg", inbox / f"{number}.jpg")
    output = inbox.with_name("inbox-protected")
    command = start("--steps", "100")
    command.wait_for(lambda: len(list(output.glob("*.jpg"))) > 0)
    assert command.interrupt() == ExitCode.INTERRUPTED
    said = command.err.read_text()
    assert "Interrupted. Finished work is kept. To continue:" in said and "--watch" in said
    assert not (output / MANIFEST).exists()


@pytest.mark.slow
def test_json_has_the_events_of_each_run_and_then_the_sum(
    inbox: Path, start: Callable[..., Command]
) -> None:
    command = start("--steps", "1", "--json")
    command.wait_for(command.says("Watching"))
    shutil.copy(CAT, inbox / "cat.png")
    command.wait_for(lambda: command.out.read_text().count('"done"') == 2)
    assert command.stop() == ExitCode.OK
    events = [json.loads(line) for line in command.out.read_text().splitlines()]
    told = [event["event"] for event in events if event["event"] != "note"]
    assert told == ["started", "saved", "done"] * 2 + ["done"]
    assert (events[-1]["runs"], events[-1]["protected"], events[-1]["failed"]) == (2, 2, 0)


# --- in this process ----------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_when_all_copies_are_written_ends_the_watch_and_not_a_run(
    inbox: Path, spec: ProtectSpec, in_time: None
) -> None:
    job = watch(spec)
    until(job, is_over)
    try:
        result = job.throw(KeyboardInterrupt())
    except KeyboardInterrupt:  # which would end all tests
        pytest.fail("the run was interrupted")
    assert isinstance(result, Done) and result.said == ("Stopped watching.",)
    assert isinstance(result.result, WatchSummary) and result.result.protected == 1
    assert not (spec.output or inbox).joinpath(WORK).exists()


@pytest.mark.slow
def test_ctrl_c_before_all_copies_are_written_interrupts_the_run(
    inbox: Path, spec: ProtectSpec, in_time: None
) -> None:
    job = watch(spec)
    until(job, lambda event: isinstance(event, Started))
    with pytest.raises(KeyboardInterrupt):
        job.throw(KeyboardInterrupt())


@pytest.mark.slow
def test_a_half_written_picture_is_waited_for_or_tried_again(
    inbox: Path, spec: ProtectSpec, in_time: None
) -> None:
    whole = ROCKET.read_bytes()
    job = watch(spec)
    until(job, is_waiting)
    (inbox / "late.jpg").write_bytes(whole[:5000])  # and then nothing for a long time
    events = until(job, is_over)
    assert names(events, Failed) == ["late.jpg"]
    (inbox / "late.jpg").write_bytes(whole)
    events = until(job, is_over)
    assert names(events, Saved) == ["late.jpg"]
    job.close()


@pytest.mark.slow
def test_a_picture_that_still_grows_is_left_until_it_is_whole(
    inbox: Path, tmp_path: Path, spec: ProtectSpec, in_time: None
) -> None:
    job = watch(spec)
    until(job, is_waiting)
    script = (
        "import sys, time, pathlib\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "with open(sys.argv[2], 'wb') as file:\n"
        "    for place in range(0, len(data), len(data) // 12 + 1):\n"
        "        file.write(data[place:place + len(data) // 12 + 1]); file.flush()\n"
        "        time.sleep(0.25)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(ROCKET), str(inbox / "slow.jpg")]):
        events = until(job, is_over)
    assert names(events, Saved) == ["slow.jpg"] and not names(events, Failed)
    job.close()


@pytest.mark.slow
def test_later_runs_look_only_at_what_changed_and_keep_the_failures_of_the_others(
    inbox: Path, tmp_path: Path, spec: ProtectSpec, in_time: None
) -> None:
    (inbox / "bad.jpg").write_text("<html>")
    (inbox / "broken.jpg").symlink_to("nowhere")
    job = watch(replace(spec, existing="overwrite"))
    until(job, is_waiting)
    before = stamps(tmp_path / "out")
    shutil.copy(CAT, inbox / "cat.png")
    events = until(job, is_over)
    assert [event.total for event in events if isinstance(event, Started)] == [1]
    assert names(events, Saved) == ["cat.png"] and not names(events, Failed)
    assert stamps(tmp_path / "out")["rocket.jpg"] == before["rocket.jpg"]
    failed = read_manifest(tmp_path / "out")["summary"]["failed"]
    assert {Path(entry["path"]).name for entry in failed} == {"bad.jpg", "broken.jpg"}
    (inbox / "bad.jpg").unlink()
    shutil.copy(PHOTOS / "space" / "astronaut.jpg", inbox / "rocket.jpg")  # it changes
    events = until(job, is_over)
    assert names(events, Saved) == ["rocket.jpg"]
    failed = read_manifest(tmp_path / "out")["summary"]["failed"]
    assert {Path(entry["path"]).name for entry in failed} == {"broken.jpg"}
    job.close()


@pytest.mark.slow
def test_the_output_is_free_while_nothing_happens_and_waited_for_where_it_is_not(
    inbox: Path,
    tmp_path: Path,
    spec: ProtectSpec,
    in_time: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tue_cli.protect.watch.BUSY_SECONDS", 1.0)
    job = watch(spec)
    until(job, is_waiting)
    assert done(run(replace(spec, watch=False))).already_done == 1
    with Journal(tmp_path / "out", read_manifest(tmp_path / "out")["run"], "skip"):
        shutil.copy(CAT, inbox / "cat.png")
        events = until(job, lambda event: isinstance(event, Note))
        assert "Another run of tue is using" in notes(events)
    assert names(until(job, is_over), Saved) == ["cat.png"]
    job.close()


@pytest.mark.slow
def test_a_folder_without_pictures_is_watched_and_what_cannot_be_done_waits_for_a_change(
    inbox: Path, tmp_path: Path, spec: ProtectSpec, in_time: None
) -> None:
    (inbox / "rocket.jpg").rename(tmp_path / "rocket.jpg")
    job = watch(replace(spec, format="png"))
    assert "No picture was found" in notes(until(job, is_waiting))
    shutil.copy(tmp_path / "rocket.jpg", inbox)
    assert names(until(job, is_over), Saved) == ["rocket.png"]
    shutil.copy(CAT, inbox / "rocket.png")
    assert names(until(job, is_over), Failed) == ["rocket.png"]  # whose copy has a name in use
    manifest = tmp_path / "out" / MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(b"nonsense")
    (inbox / "rocket.png").rename(inbox / "late.png")
    events = until(job, lambda event: isinstance(event, Note) and "Nothing" in event.message)
    assert "cannot be read" in notes(events)
    manifest.write_bytes(whole)
    (inbox / "late.png").rename(inbox / "cat.png")
    assert names(until(job, is_over), Saved) == ["cat.png"]
    job.close()


@pytest.mark.slow
def test_clusters_stay_while_the_folder_is_watched(
    inbox: Path, tmp_path: Path, small_photos: Path, spec: ProtectSpec, in_time: None
) -> None:
    shutil.copy(small_photos / "everyday" / "cat.png", inbox)
    job = watch(replace(spec, labels="cluster:2"))
    until(job, is_waiting)
    was = labels_of(tmp_path / "out")
    (inbox / "a.png").write_bytes((inbox / "cat.png").read_bytes() + b"\0")
    assert names(until(job, is_over), Saved) == ["a.png"]
    assert labels_of(tmp_path / "out") == was | {"a.png": was["cat.png"]}
    job.close()


@pytest.mark.slow
def test_a_full_disk_ends_the_watch(
    inbox: Path, spec: ProtectSpec, in_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = watch(spec)
    until(job, is_waiting)
    shutil.copy(CAT, inbox / "cat.png")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputProblem, match="is full") as caught:
        until(job, is_over)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_watched_folder_that_is_removed_ends_the_watch(
    comes_back: bool, inbox: Path, tmp_path: Path, spec: ProtectSpec, in_time: None
) -> None:
    job = watch(spec)
    until(job, is_waiting)
    inbox.rename(tmp_path / "away")
    if comes_back:
        inbox.mkdir()
    with pytest.raises(BadSetting, match="was removed or renamed"):
        until(job, is_over)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dry_run": True}, "--dry-run"),
        ({"paths": (ROCKET,)}, "is a file"),
        ({"paths": (PHOTOS / "nowhere",)}, "does not exist"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    changes: dict[str, object], says: str, spec: ProtectSpec, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=says):
        list(watch(replace(spec, **changes)))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
