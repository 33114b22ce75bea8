"""Data sets by URL: shards in, protected shards out, all else as it was; nothing unsafe is read."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_json import check_event
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.config import ProtectSettings
from tue_cli.dataset.manifest import MANIFEST
from tue_cli.dataset.remote import Place, expand, redact
from tue_cli.dataset.secret import make_secret
from tue_cli.dataset.shards import BadShard, read_tar, split_name
from tue_cli.errors import BadSetting, ExitCode, OutputProblem, TueError
from tue_cli.events import Done, Failed, Note
from tue_cli.protect import collection_plan
from tue_cli.protect.collection import CollectionSpec, CollectionSummary, protect_collection
from tue_cli.protect.collection_plan import Known, choose_looks, read_plan, write_plan
from tue_cli.protect.distributed import Stage, Workers, open_workers
from tue_cli.protect.protector import Protector
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.sharding import Listing, Recipe, Shard, read_samples
from tue_cli.protect.worker import group_items

USUAL: Any = ProtectSettings().noise
SHORT = ProtectSettings(noise=replace(USUAL, steps=1, samples=1))
NAMES = ("cat", "dog", "cow")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def has_loopback() -> bool:
    with socket.socket() as heard:
        try:
            heard.bind(("127.0.0.1", 0))
        except OSError:
            return False
    return True


PATIENCE = 300
"""Seconds that a test waits for another process, at most: the machine may be busy."""
needs_loopback = pytest.mark.skipif(not has_loopback(), reason="nothing can listen on 127.0.0.1")


def draw(number: int, side: int = 40) -> bytes:
    levels = np.random.default_rng(number).normal(128, 30, (side, side, 3)).clip(0, 255)
    made = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(made, "PNG")
    return made.getvalue()


Members = list[tuple[str, bytes]]


def make_tar(place: Path, members: Members) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size, about.mtime, about.uname = len(data), 1_700_000_000, "ann"
            tar.addfile(about, io.BytesIO(data))
    return place


def list_members(first: int, count: int) -> Members:
    members: Members = []
    for number in range(first, first + count):
        name = f"{number:04d}"
        members += [
            (f"{name}.png", draw(number)),
            (f"{name}.cls", str(number % 3).encode()),
            (f"{name}.seg.png", b"a mask"),
        ]
    return members


def read_members(place: Path) -> dict[str, bytes]:
    with tarfile.open(place) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


def make_parquet(place: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    told = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
    kinds = {"image": IMAGE, "label": pa.int64(), "note": pa.string()} | types
    schema = pa.schema(
        [(name, kinds[name]) for name in rows[0]], metadata={"huggingface": json.dumps(told)}
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), place, row_group_size=4)
    return place


def list_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": draw(n), "path": f"{n}.png"}, "label": n % 3, "note": f"note {n}"}
        for n in range(count)
    ]


@pytest.fixture
def base(twin: Path) -> ProtectSpec:
    return ProtectSpec((), settings=SHORT, weights=str(twin), backend="onnx", jobs=1)


Run = Callable[..., tuple[list[Any], CollectionSummary]]


@pytest.fixture
def run(base: ProtectSpec, tmp_path: Path) -> Run:
    def go(
        source: object, output: object = None, **more: Any
    ) -> tuple[list[Any], CollectionSummary]:
        target = str(output or (tmp_path / "out").as_uri())
        asked = CollectionSpec((str(source),), target, replace(base, **more))
        events = list(protect_collection(asked))
        done = events[-1]
        assert isinstance(done, Done)
        return events, done.result

    return go


def failures_of(events: list[Any]) -> list[tuple[str, str]]:
    return [(event.path.as_posix(), event.reason) for event in events if isinstance(event, Failed)]


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# What a shard becomes.


@pytest.mark.slow
def test_a_tar_keeps_all_members_but_its_pictures_which_are_protected_as_files_are(
    run: Run, twin: Path, tmp_path: Path
) -> None:
    members = [("about/", b""), *list_members(0, 4), ("README.txt", b"hello")][1:]
    source = make_tar(tmp_path / "in" / "part-0.tar", members)
    events, result = run(source.parent.as_uri())
    assert (result.shards, result.protected, result.failed) == (1, 4, 0), events
    made = read_members(tmp_path / "out" / "part-0.tar")
    assert list(made) == [name for name, _ in members]
    plan = json.loads((tmp_path / "out" / ".tue" / "plan.json").read_text())
    library = Protector(twin, settings=SHORT, backend="onnx", classes=plan["keys"])
    for name, data in members:
        if name.endswith(".png") and ".seg" not in name:
            label = str(int(name[:4]) % 3)
            assert made[name] == library.protect_file(data, label) != data
        else:
            assert made[name] == data
    with tarfile.open(tmp_path / "out" / "part-0.tar") as tar:
        assert {(m.uname, m.mtime) for m in tar} == {("ann", 1_700_000_000)}
    (part,) = (tmp_path / "out" / ".tue" / "parts").iterdir()
    rows = pq.read_table(part).to_pylist()
    assert [row["path"] for row in rows] == [f"{n:04d}.png" for n in range(4)]
    assert all(row["state"] == "protected" and row["largest"] > 0 for row in rows)


@pytest.mark.slow
def test_a_parquet_file_keeps_its_schema_and_its_other_columns(run: Run, tmp_path: Path) -> None:
    source = make_parquet(tmp_path / "in" / "train-0.parquet", list_rows(9))
    _, result = run(source.parent)
    assert (result.shards, result.protected) == (1, 9)
    before, after = pq.read_table(source), pq.read_table(tmp_path / "out" / "train-0.parquet")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.drop_columns("image").equals(before.drop_columns("image"))
    for old, new in zip(before["image"].to_pylist(), after["image"].to_pylist(), strict=True):
        assert old["path"] == new["path"] and old["bytes"] != new["bytes"]
    plan = json.loads((tmp_path / "out" / ".tue" / "plan.json").read_text())
    assert set(plan["keys"]) == set(NAMES)


@pytest.mark.slow
def test_a_folder_of_pictures_becomes_a_folder_of_copies(run: Run, tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / "in" / NAMES[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(draw(number))
    (tmp_path / "in" / "cat" / "notes.txt").write_text("x")
    _, result = run((tmp_path / "in").as_uri())
    assert result.protected == 6
    made = {name for name in snapshot(tmp_path / "out") if not name.startswith(".tue/")}
    assert made == {f"{NAMES[n % 2]}/{n}.png" for n in range(6)}
    plan = json.loads((tmp_path / "out" / ".tue" / "plan.json").read_text())
    assert set(plan["keys"]) == {"cat", "dog"}


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_how_many_workers_there_are_and_finished_shards_stay(
    run: Run, tmp_path: Path, own_home: Path
) -> None:
    for number in range(3):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(4 * number, 4))
    run(tmp_path / "in", jobs=2)
    first = snapshot(tmp_path / "out")
    assert len([name for name in first if name.endswith(".tar")]) == 3
    run(tmp_path / "in", tmp_path / "another place", jobs=1)
    assert snapshot(tmp_path / "another place") == first
    (tmp_path / "out" / "1.tar").unlink()
    events, result = run(tmp_path / "in")
    assert (result.shards, result.already_done) == (0, 3)
    # A shard that changed is made again, and its part of the manifest replaced.
    make_tar(tmp_path / "in" / "1.tar", list_members(40, 5))
    _, result = run(tmp_path / "in")
    assert (result.shards, result.already_done, result.protected) == (1, 2, 5)
    assert len(list((tmp_path / "out" / ".tue" / "parts").iterdir())) == 3
    with pytest.raises(BadSetting, match="other settings: mark"):
        run(tmp_path / "in", mark=True)
    (own_home / "secret").unlink()  # as on another machine, where a new one is made
    with pytest.raises(BadSetting, match="other settings: secret"):
        run(tmp_path / "in")


@pytest.mark.slow
def test_new_shards_keep_the_codes_of_known_classes_and_get_one_for_a_new_class(
    run: Run, tmp_path: Path, own_home: Path
) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 6))
    run(tmp_path / "in")
    plan = tmp_path / "out" / ".tue" / "plan.json"
    before = json.loads(plan.read_text())["keys"]
    (own_home / "codes.jsonl").unlink()  # the output itself must know them
    make_tar(tmp_path / "in" / "1.tar", [("9.png", draw(99)), ("9.json", b'{"label": "fox"}')])
    _, result = run(tmp_path / "in")
    assert (result.shards, result.already_done) == (1, 1)
    after = json.loads(plan.read_text())["keys"]
    assert after == {**before, "fox": after["fox"]}


def test_classes_are_looked_at_in_few_shards_that_do_not_depend_on_their_order() -> None:
    shards = [Shard(0, f"{n}", f"{n}.tar", "tar", n, "") for n in range(100)]
    counts = {shard.mark: {"a": 10, "b": 90 - n} for n, shard in enumerate(shards)}
    found = Listing(tuple(shards), (), 0)
    told = choose_looks(found, counts, ["a", "b"])
    assert told["wanted"] == {"a": 64, "b": 64}
    assert 7 <= len(told["shards"]) <= 8
    backwards = dict(reversed(counts.items()))
    assert choose_looks(found, backwards, ["a", "b"]) == told
    assert choose_looks(found, counts, [])["shards"] == []


# What goes wrong.


@pytest.mark.slow
def test_what_is_bad_is_told_in_a_line_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    members = list_members(0, 4)
    members[3] = ("0001.png", b"no picture")
    members[7] = ("0002.txt", b"a caption, and no label")
    make_tar(folder / "good.tar", members)
    (folder / "noise.tar").write_bytes(b"no tar" * 400)
    whole = make_tar(folder / "cut.tar", list_members(10, 4)).read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "packed.tar.gz").write_bytes(b"")
    (folder / "noise.parquet").write_bytes(b"PAR1")
    make_parquet(folder / "text.parquet", [{"note": "x", "label": 1}])
    unlabelled = [{"image": row["image"], "note": "x"} for row in list_rows(2)]
    make_parquet(folder / "unlabelled.parquet", unlabelled)
    events, result = run(folder)
    assert dict(failures_of(events)) == {
        "good.tar/0001.png": "not-a-picture",
        "good.tar/0002.png": "no-label",
        "noise.tar": "not-a-tar",
        "cut.tar": "not-a-tar",
        "packed.tar.gz": "unsupported",
        "noise.parquet": "not-parquet",
        "text.parquet": "no-pictures",
        "unlabelled.parquet": "no-labels",
    }
    assert (result.shards, result.protected, result.failed) == (1, 2, 2)
    # What could not be protected is not published: the whole sample is missing.
    kept = read_members(tmp_path / "out" / "good.tar")
    assert {name[:4] for name in kept} == {"0000", "0003"}
    assert not list((tmp_path / "out").glob("*.parquet"))
    _, again = run(folder)
    assert (again.already_done, again.incomplete, again.shards_failed) == (1, 1, 6)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


@pytest.mark.parametrize(
    "about",
    [
        tarfile.TarInfo("../0.png"),
        tarfile.TarInfo("/etc/0.png"),
        tarfile.TarInfo("a\\..\\0.png"),
        link("0.png", "/etc/passwd", tarfile.SYMTYPE),
        link("0.png", "1.png", tarfile.LNKTYPE),
        link("0.png", "", tarfile.CHRTYPE),
        link("0.png", "", tarfile.FIFOTYPE),
    ],
    ids=lambda about: f"{about.name} {about.type.decode()}",
)
def test_unsafe_members_are_refused(about: tarfile.TarInfo) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(about)
    made.seek(0)
    with pytest.raises(BadShard) as caught:
        list(read_tar(made, "auto"))
    assert caught.value.reason == "unsafe"


def pack(about: tarfile.TarInfo, data: bytes = b"") -> bytes:
    made = io.BytesIO()
    about.size = len(data)
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(about, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,1,5,2", "GNU.sparse.size": "9"},
        {"GNU.sparse.map": "x"},
        {"GNU.sparse.size": "9"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "0.png"},
    ],
    ids=str,
)
def test_a_sparse_file_is_refused_before_its_map_is_read(headers: dict[str, str]) -> None:
    about = tarfile.TarInfo("0.png")
    about.pax_headers = headers
    with pytest.raises(BadShard, match="a sparse file"):
        list(read_tar(io.BytesIO(pack(about, b"9999999\n" + b"1" * 4096)), "auto"))


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"path": "../0.png"}, "unsafe"),
        ({"size": str(1 << 45)}, "unsafe"),
        ({"size": "-5"}, "not-a-tar"),
    ],
    ids=str,
)
def test_further_headers_of_a_member_are_not_trusted(headers: dict[str, str], reason: str) -> None:
    about = tarfile.TarInfo("0.png")
    about.pax_headers = headers
    with pytest.raises(BadShard) as caught:
        list(read_tar(io.BytesIO(pack(about, b"x")), "auto"))
    assert caught.value.reason == reason


def test_headers_that_never_end_are_a_damaged_tar() -> None:
    about = tarfile.TarInfo("0.png")
    about.type = tarfile.XHDTYPE
    header = pack(about, b"13 comment=a\n")[:1024]
    with pytest.raises(BadShard) as caught:
        list(read_tar(io.BytesIO(header * 3000 + bytes(1024)), "auto"))
    assert caught.value.reason == "not-a-tar"


@pytest.mark.parametrize("between", [b"", bytes(512)], ids=["two tars", "a block of zeros"])
def test_what_follows_the_end_of_a_tar_is_not_lost_in_silence(between: bytes) -> None:
    first, second = (pack(tarfile.TarInfo(f"{n}.png"), b"x") for n in range(2))
    whole = (first[:1024] + between + second) if between else first + second
    with pytest.raises(BadShard, match="More follows the end"):
        list(read_tar(io.BytesIO(whole), "auto"))


def test_a_text_too_long_for_a_name_is_no_label() -> None:
    for length, label in ((1000, "a" * 1000), (1001, None)):
        found = read_tar(io.BytesIO(pack(tarfile.TarInfo("0.cls"), b"a" * length)), "auto")
        assert next(iter(found)).label == label


def test_a_tar_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    for kind, size in ((tarfile.REGTYPE, 1 << 40), (tarfile.XHDTYPE, 1 << 33)):
        about = tarfile.TarInfo("0.png")
        about.type, about.size = kind, size
        bomb = io.BytesIO(about.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        with pytest.raises(BadShard) as caught:
            list(read_tar(bomb, "auto"))
        assert caught.value.reason == "unsafe"


@pytest.mark.parametrize("damage", [slice(1024, 1088), slice(1024, None)])
def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(
    damage: slice, tmp_path: Path
) -> None:
    whole = make_tar(tmp_path / "0.tar", [("0.txt", b"a"), ("1.txt", b"b")]).read_bytes()
    data = bytearray(whole)
    data[damage] = b"" if damage.stop is None else b"\xff" * 64
    with pytest.raises(BadShard, match="not a tar file, or it is damaged"):
        list(read_tar(io.BytesIO(bytes(data)), "auto"))


def test_the_picture_of_a_sample_is_the_member_with_the_plain_extension() -> None:
    assert split_name("a.b/0001.seg.png") == ("a.b/0001", "seg.png")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in (
            ("0.jpg", b"picture"),
            ("0.seg.png", b"mask"),
            ("0.json", b'{"label": 7, "kind": "x"}'),
            ("1.left.png", b"l"),
            ("1.right.png", b"r"),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    for labels, label in (("auto", "7"), ("field:kind", "x"), ("field:none", None)):
        made.seek(0)
        first, second = read_tar(made, labels)
        assert first.names == ("0.jpg",) and first.label == label
        assert second.names == ("1.left.png", "1.right.png") and second.label is None


def test_no_text_tells_a_secret_of_a_url() -> None:
    told = redact("GET https://ann:pw@host/a.tar?X-Amz-Signature=abc#x failed; s3://k:s@b/c")
    assert told == "GET https://host/a.tar?… failed; s3://b/c"
    for url in ("https://ann:it's-pw@h/a", "s3://key:se/pw@h/a", "https://ann:p?pw@h/a"):
        assert "pw" not in redact(f"{url} failed"), url
    place = Place("https://ann:pw@127.0.0.1:9/x?token=abc")
    with pytest.raises(TueError) as caught:
        place.list_files()
    for text in (str(caught.value), repr(place), place.shown):
        assert "pw" not in text and "abc" not in text


def test_a_range_in_braces_names_files() -> None:
    assert expand("https://h/a-{08..10}.tar") == [
        f"https://h/a-{n}.tar" for n in ("08", "09", "10")
    ]
    with pytest.raises(BadSetting, match="names no file"):
        expand("s3://b/{3..1}.tar")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ftp://h/x", "-o", "file:///tmp/x"), "ftp:// are not supported"),
        (("file:///tmp/in", "-o", "https://h/x"), "can only be read"),
        (("file:///tmp/in", "-o", "file:///tmp/in/out"), "lie within each other"),
        (("file:///tmp/in",), "The output is not named"),
        (("file:///tmp/in", "-o", "file:///tmp/x", "--watch"), "--watch is for folders"),
        (("file:///tmp/in", "-o", "file:///tmp/x", "--labels", "cluster:3"), "cluster:3 is for"),
        (("file:///tmp/in", "-o", "file:///tmp/x", "--address", "auto"), "Add --engine ray"),
        (("file:///tmp/in", "-o", "file:///tmp/x", "--engine", "spark"), "'spark' is unknown"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(arguments: tuple[str, ...], said: str) -> None:
    ran = CliRunner().invoke(app, ["protect", *arguments])
    assert isinstance(ran.exception, BadSetting) and said in str(ran.exception)


def test_a_cluster_that_does_not_answer_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with (
            pytest.raises(TueError, match=rf"No Ray cluster answers at {address}"),
            open_workers("ray", 1, address, "cpu"),
        ):
            pass


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('gcsfs', 's3fs'): raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from tue_cli.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for source, install in (("s3://b/in", "'tue-cli[ray]'"), ("gs://b/in", "gcsfs")):
        asked = [sys.executable, "-c", code, "protect", source, "-o", "file:///tmp/x"]
        ran = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert ran.returncode == ExitCode.ENVIRONMENT
        assert f"pip install {install}" in " ".join(ran.stderr.split())


def test_an_output_that_is_not_ours_is_left_alone(run: Run, tmp_path: Path) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 1))
    make_tar(tmp_path / "out" / "theirs.tar", list_members(0, 1))
    before = snapshot(tmp_path / "out")
    with pytest.raises(BadSetting, match="is not empty"):
        run(tmp_path / "in")
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("sign", [MANIFEST, ".tue/journal.jsonl", ".tue/plan.json"])
def test_the_output_of_an_earlier_run_is_not_protected_again(
    run: Run, tmp_path: Path, sign: str
) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 1))
    for name in ("train/0.tar", f"train/{sign}"):  # what an earlier run left among the shards
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((tmp_path / "in" / "0.tar").read_bytes())
    events, result = run(tmp_path / "in", dry_run=True)
    assert result.shards == 1
    (told,) = [event.message for event in events if isinstance(event, Note)]
    assert told == "1 file ignored (in the output of an earlier run)."
    with pytest.raises(BadSetting, match="is the output of an earlier run"):
        run(tmp_path / "in" / "train", existing="overwrite")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 1))
    events, result = run(tmp_path / "in", dry_run=True)
    assert result.dry_run and result.shards == 1 and not (tmp_path / "out").exists()
    assert not [event for event in events if isinstance(event, Note)]


def test_the_output_is_not_the_input_however_it_is_spelled(run: Run, tmp_path: Path) -> None:
    source = make_tar(tmp_path / "in" / "0.tar", list_members(0, 1)).parent
    before = snapshot(source)
    (tmp_path / "link").symlink_to(source)
    for output in ("in/../in", "link", "link/inner", "."):
        for existing in ("skip", "overwrite"):
            with pytest.raises(BadSetting, match="lie within each other"):
                run(source, tmp_path / output, existing=existing)
    with pytest.raises(BadSetting, match="lie within each other"):
        run(source.as_uri(), f"FILE://{source}")
    assert snapshot(source) == before


def test_nothing_is_written_through_a_link_out_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputProblem, match="a link leads out of the output"):
        Place((tmp_path / "out").as_uri()).write("a/0.tar", b"x")
    assert not list((tmp_path / "theirs").iterdir())


def test_a_pipe_in_a_folder_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(draw(1))
    (tmp_path / "2.png").symlink_to("1.png")
    assert [file.name for file in Place(tmp_path.as_uri()).list_files()] == ["1.png"]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    base: ProtectSpec, tmp_path: Path
) -> None:
    (tmp_path / "0.png").mkdir()
    (tmp_path / "1.png").write_bytes(draw(1))
    place = Place(tmp_path.as_uri())
    recipe = Recipe((place,), place, base, make_secret())
    files = (("0.png", 9, "a"), ("1.png", 9, "a"))
    bad, good = read_samples(recipe, Shard(0, "", "0", "folder", 18, "", files))
    assert bad.problem is not None and "Is a directory" in bad.problem.message
    assert good.pictures == (draw(1),) and good.problem is None


def test_more_classes_than_a_plan_holds_are_refused_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_plan, "MOST_STATE", 1000)
    place = Place(tmp_path.as_uri())
    with pytest.raises(BadSetting, match="100 classes, too many"):
        write_plan(place, Known(keys={f"class {n}": "a" for n in range(100)}))
    assert read_plan(place) is None


@pytest.mark.slow
def test_names_keep_all_but_the_extension_and_two_copies_never_have_one_name(
    run: Run, tmp_path: Path
) -> None:
    latin = "caf\udce9"  # a byte that is no UTF-8
    names = ("./0.png", "./0.cls", "1.png", "1.bmp", "1.cls", f"{latin}.png", f"{latin}.cls")
    members = [(name, b"7" if name.endswith("cls") else draw(n)) for n, name in enumerate(names)]
    make_tar(tmp_path / "in" / "0.tar", members)
    events, result = run(tmp_path / "in", format="webp")
    assert failures_of(events) == [("0.tar/1.png", "in-the-way"), ("0.tar/1.bmp", "in-the-way")]
    made = list(read_members(tmp_path / "out" / "0.tar"))
    assert made == ["./0.webp", "./0.cls", f"{latin}.webp", f"{latin}.cls"]
    (part,) = (tmp_path / "out" / ".tue" / "parts").iterdir()
    told = pq.read_table(part)["path"].to_pylist()
    assert told == ["./0.webp", None, None, "caf\\udce9.webp"]


def test_pictures_are_held_decoded_as_far_as_there_is_memory_for_them() -> None:
    made = io.BytesIO()
    Image.new("L", (8000, 8000)).save(made, "PNG")  # a file of a few kilobytes
    few = [made.getvalue()] * 3 + [draw(0)] * 40
    groups = group_items(few, lambda data: [data])
    assert [len(group) for group in groups] == [1, 1, 1, 32, 8]


@pytest.mark.slow
def test_a_sample_may_have_more_pictures_than_a_batch(run: Run, tmp_path: Path) -> None:
    members = [(f"0.{n:02d}.png", draw(n)) for n in range(40)]
    make_tar(tmp_path / "in" / "0.tar", [*members, ("0.cls", b"7"), *list_members(50, 2)])
    _, result = run(tmp_path / "in")
    assert (result.protected, result.failed) == (42, 0)
    made = read_members(tmp_path / "out" / "0.tar")
    assert all(made[name] != data for name, data in members)


@pytest.mark.slow
def test_codes_of_other_settings_are_not_those_of_a_run_that_overwrites(
    run: Run, tmp_path: Path
) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 6))
    run(tmp_path / "in", key="a", labels="single")
    run(tmp_path / "in", existing="overwrite")
    plan = json.loads((tmp_path / "out" / ".tue" / "plan.json").read_text())
    assert plan["keys"].keys() == {"0", "1", "2"} and len(set(plan["keys"].values())) == 3
    _, again = run(tmp_path / "in")
    assert (again.shards, again.already_done) == (0, 1)


@pytest.mark.slow
def test_a_folder_may_be_called_like_the_parts_of_the_one_that_it_is_in(
    run: Run, tmp_path: Path
) -> None:
    for name in ("0.png", "pictures/1.png", "00000/2.png"):
        place = tmp_path / "in" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(draw(ord(name[-5])))
    _, result = run(tmp_path / "in")
    assert (result.shards, result.protected) == (3, 3)


@pytest.mark.slow
def test_a_parquet_file_may_have_nested_dictionary_and_null_columns(
    run: Run, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = list_rows(9)
    for number, row in enumerate(rows):
        boxes = [{"x": number, "of": [1.5, None]}] * (number % 3)
        row.update(label=NAMES[number % 3], boxes=boxes, none=None)
    rows[2]["image"] = None
    rows[5]["image"] = {"bytes": None, "path": "elsewhere.png"}
    rows[7]["label"] = None
    box = pa.struct([("x", pa.int32()), ("of", pa.list_(pa.float32()))])
    kinds = {
        "label": pa.dictionary(pa.int8(), pa.string()),
        "boxes": pa.list_(box),
        "none": pa.null(),
    }
    source = make_parquet(tmp_path / "in" / "0.parquet", rows, **kinds)
    events, result = run(source.parent)
    assert (result.protected, result.failed) == (6, 3)
    assert [reason for _, reason in failures_of(events)] == [
        "not-a-picture", "not-a-picture", "no-label",
    ]  # fmt: skip
    before, after = pq.read_table(source), pq.read_table(tmp_path / "out" / "0.parquet")
    assert after.schema.equals(before.schema, check_metadata=True)
    kept = before.take([0, 1, 3, 4, 6, 8]).drop_columns("image").to_pylist()
    assert after.drop_columns("image").to_pylist() == kept


@pytest.mark.slow
def test_two_runs_at_once_into_one_output_write_what_one_does(
    run: Run, start: Start, twin: Path, tmp_path: Path
) -> None:
    for number in range(3):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(4 * number, 4))
    run(tmp_path / "in", tmp_path / "one")
    asked = command(str(tmp_path / "in"), (tmp_path / "both").as_uri(), twin, "--jobs", "1")
    for driver in [start(asked), start(asked)]:
        _, said = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 0, said
    assert snapshot(tmp_path / "both") == snapshot(tmp_path / "one")


# Object storage, and Ray.


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server on loopback with a bucket; the environment has its address, as users set it."""
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert moto.stdout is not None
    said = []
    for line in moto.stdout:
        said.append(line)
        if "Running on" in line:
            break
    else:
        moto.wait()
        moto.stdout.close()
        pytest.fail("The S3 server did not start: " + "".join(said))
    address = said[-1].split()[-1]
    own = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key-of-ann",
        "AWS_SECRET_ACCESS_KEY": "secret-of-ann",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    former = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "bucket"
    finally:
        moto.kill()
        moto.wait()
        moto.stdout.close()
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def download(name: str) -> dict[str, bytes]:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    found = system.find(name)
    return {path.removeprefix(f"{name}/"): system.cat_file(path) for path in found}


def upload(folder: Path, name: str) -> None:
    import s3fs

    for path in folder.iterdir():
        s3fs.S3FileSystem().put_file(str(path), f"{name}/{path.name}")


@pytest.mark.slow
@needs_loopback
def test_a_bucket_gets_what_a_folder_gets(run: Run, bucket: str, tmp_path: Path) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 4))
    make_parquet(tmp_path / "in" / "1.parquet", list_rows(5))
    upload(tmp_path / "in", f"{bucket}/in")
    run(f"s3://{bucket}/in", f"s3://{bucket}/out")
    run(tmp_path / "in")
    made, there = download(f"{bucket}/out"), snapshot(tmp_path / "out")
    shards = {name for name in there if not name.startswith(".tue/")}
    assert shards == {"0.tar", "1.parquet"}
    assert {name: made[name] for name in shards} == {name: there[name] for name in shards}
    told = b"".join(made.values())
    assert b"secret-of-ann" not in told and b"key-of-ann" not in told
    _, again = run(f"s3://{bucket}/in", f"s3://{bucket}/out")
    assert (again.shards, again.already_done) == (0, 2)


@pytest.mark.slow
@needs_loopback
def test_a_missing_bucket_and_missing_credentials_end_a_run_before_any_work(
    run: Run, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 1))
    with pytest.raises(TueError, match="bucket does not exist") as caught:
        run("s3://nowhere/in")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    with pytest.raises(TueError, match="bucket does not exist"):
        run(tmp_path / "in", "s3://nowhere/out")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(TueError, match=r"credentials.* Set the credentials in the environment"):
        run(f"s3://{bucket}/in")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def guarded(bucket: str) -> Iterator[str]:
    """The bucket, whose server asks who one is."""

    def ask_after(count: str) -> None:
        address, plain = os.environ["AWS_ENDPOINT_URL"], {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{address}/moto-api/reset-auth", count.encode(), plain)
        urllib.request.urlopen(asked).close()

    ask_after("0")
    yield bucket
    ask_after("inf")


@pytest.mark.slow
@needs_loopback
def test_wrong_credentials_end_a_run_before_any_work(
    guarded: str, twin: Path, tmp_path: Path
) -> None:
    make_tar(tmp_path / "in" / "0.tar", list_members(0, 1))
    here, there = (tmp_path / "in").as_uri(), f"s3://{guarded}/x"
    for source, output in ((there, (tmp_path / "out").as_uri()), (here, there)):
        asked = command(source, output, twin)
        ran = subprocess.run(asked, capture_output=True, text=True, check=False)
        said = " ".join(ran.stderr.split())
        assert ran.returncode == ExitCode.ENVIRONMENT and f"{there} cannot be read" in said
        assert "Set the credentials in the environment" in said and "Reading labels" not in said
        assert "of-ann" not in ran.stdout + ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_loopback
def test_a_write_that_is_rejected_ends_the_run_and_loses_nothing(
    run: Run, bucket: str, tmp_path: Path
) -> None:
    import boto3

    for number in range(2):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(4 * number, 4))
    store, target = boto3.client("s3"), f"{bucket}/rejected"

    def deny(name: str) -> None:
        place = f"arn:aws:s3:::{target}/{name}"
        rule = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": place, "Principal": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        store.put_bucket_policy(Bucket=bucket, Policy=policy)

    deny("1.tar")
    try:
        with pytest.raises(OutputProblem, match=r"1\.tar cannot be written.* Finished shards are"):
            run(tmp_path / "in", f"s3://{target}")
        assert "1.tar" not in download(target)
        deny("0.tar")  # it is finished, and not written again
        _, result = run(tmp_path / "in", f"s3://{target}")
    finally:
        store.delete_bucket_policy(Bucket=bucket)
    assert (result.shards, result.already_done) == (1, 1)
    run(tmp_path / "in")
    made, whole = download(target), snapshot(tmp_path / "out")
    assert {name: made[name] for name in ("0.tar", "1.tar")} == {
        name: whole[name] for name in ("0.tar", "1.tar")
    }


@pytest.mark.slow
@needs_loopback
def test_shards_are_read_over_http(run: Run, tmp_path: Path) -> None:
    make_tar(tmp_path / "in" / "a-0.tar", list_members(0, 2))
    make_tar(tmp_path / "in" / "a-1.tar", list_members(2, 2))
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "-b", "127.0.0.1"],
        cwd=tmp_path / "in",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        _, result = run(f"http://127.0.0.1:{port}/a-{{0..1}}.tar?token=abc")
        assert result.shards == 2
        assert {path.name for path in (tmp_path / "out").glob("*.tar")} == {"a-0.tar", "a-1.tar"}
        assert b"abc" not in b"".join(snapshot(tmp_path / "out").values())
        with pytest.raises(TueError, match="cannot be read: there is nothing") as caught:
            run(f"http://127.0.0.1:{port}/a-2.tar?token=abc")
        assert caught.value.exit_code == ExitCode.ENVIRONMENT and "abc" not in str(caught.value)
    finally:
        server.kill()
        server.wait()
        server.stdout.close() if server.stdout else None


def command(source: str, output: str, twin: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tue_cli", "protect", source, "-o", output, "--weights",
            str(twin), "--steps", "1", "--samples", "1", "--backend", "onnx", *more]  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(twin: Path, tmp_path: Path) -> None:
    source = make_tar(tmp_path / "in" / "0.tar", list_members(0, 8)).parent
    small = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY)); " \
        "from tue_cli.cli import main; main(sys.argv[1:])"  # fmt: skip
    asked = command(source.as_uri(), (tmp_path / "out").as_uri(), twin, "--jobs", "1")
    ran = subprocess.run(
        [asked[0], "-c", small, *asked[3:]], capture_output=True, text=True, check=False
    )
    assert ran.returncode == ExitCode.ENVIRONMENT, ran.stderr
    assert "File too large" in ran.stderr and "Finished shards are kept" in ran.stderr
    assert not (tmp_path / "out" / "0.tar").exists()
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "0.tar").exists()


def find_children(process: int) -> Path:
    """Where Linux, as most are built, lists a process's children."""
    return Path(f"/proc/{process}/task/{process}/children")


def is_alive(process: int | str) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands; those that a failed test leaves are killed."""
    with ExitStack() as stack:

        def go(asked: list[str], stdout: int | None = None) -> subprocess.Popen[str]:
            driver = subprocess.Popen(asked, stdout=stdout, stderr=subprocess.PIPE, text=True)
            stack.enter_context(driver)
            stack.callback(driver.kill)
            return driver

        yield go


@pytest.mark.slow
def test_what_the_command_prints_as_json_is_what_the_page_says(
    start: Start, twin: Path, tmp_path: Path
) -> None:
    latin = "caf\udce9"
    members = [(f"{latin}.png", b"no picture"), (f"{latin}.cls", b"1"), *list_members(0, 2)]
    make_tar(tmp_path / "in" / "0.tar", members)
    (tmp_path / "in" / "1.tar").write_bytes(b"no tar" * 400)
    asked = command((tmp_path / "in").as_uri(), (tmp_path / "out").as_uri(), twin, "--json")
    driver = start(asked, subprocess.PIPE)
    said, problems = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == ExitCode.SOME_FAILED, problems
    events = [json.loads(line) for line in said.splitlines()]
    for event in events:
        if event.get("title") != "Reading labels":
            check_event(dict(event), "tue protect URL")
    found = [(e["event"], e.get("path", "").encode("utf-8", "backslashreplace")) for e in events]
    assert found[0] == ("started", b"") and found[-1] == ("done", b"")
    assert {place for kind, place in found if kind == "failed"} == {
        rb"0.tar/caf\udce9.png", b"1.tar"
    }  # fmt: skip
    assert (events[-1]["protected"], events[-1]["failed"], events[-1]["shards_failed"]) == (2, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_loopback)])
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_run_goes_on_with_the_same_command(
    start: Start, run: Run, twin: Path, tmp_path: Path, engine: str
) -> None:
    for number in range(4):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(8 * number, 8))
    output = tmp_path / "stopped"
    more = ("--jobs", "1", "--engine", engine)
    asked = command((tmp_path / "in").as_uri(), output.as_uri(), twin, *more)
    driver = start(asked)
    wait_for(lambda: list((output / ".tue" / "parts").glob("*")))
    workers = find_ray_workers(driver.pid)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=PATIENCE)
    if driver.returncode:  # it may have been faster
        assert driver.returncode == ExitCode.INTERRUPTED and "Traceback" not in said, said
        assert "To continue:" in said
        assert workers or engine == "local" or not sys.platform.startswith("linux")
    wait_for(lambda: not any(map(is_alive, workers)))
    assert not list(Path(tempfile.gettempdir()).glob(f"tue-ray-{driver.pid}-*"))
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    subprocess.run(asked, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    run(tmp_path / "in", (tmp_path / "whole").as_uri())
    assert snapshot(output) == snapshot(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not find_children(os.getpid()).exists(), reason="finds workers in /proc")
def test_a_killed_process_ends_the_run_and_the_next_one_goes_on(
    start: Start, twin: Path, tmp_path: Path
) -> None:
    for number in range(3):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(8 * number, 8))
    output = tmp_path / "out"
    asked = command((tmp_path / "in").as_uri(), output.as_uri(), twin, "--jobs", "1")
    driver = start(asked)
    wait_for(lambda: list((output / ".tue" / "parts").glob("*")))
    children = find_children(driver.pid).read_text().split()
    for child in children:
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    _, said = driver.communicate(timeout=PATIENCE)
    if driver.returncode:  # it may have been faster
        assert driver.returncode == ExitCode.ENVIRONMENT and "A worker died" in said
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in output.glob("*.tar")} == {"0.tar", "1.tar", "2.tar"}
    assert not list((output / ".tue").glob("tue-scratch-*"))


@pytest.mark.slow
@pytest.mark.skipif(not find_children(os.getpid()).exists(), reason="finds workers in /proc")
def test_workers_end_when_the_process_that_started_them_is_killed(
    start: Start, twin: Path, tmp_path: Path
) -> None:
    for number in range(6):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(8 * number, 8))
    output = tmp_path / "out"
    driver = start(command((tmp_path / "in").as_uri(), output.as_uri(), twin, "--jobs", "1"))
    wait_for(lambda: list((output / ".tue" / "parts").glob("*")))
    children = find_children(driver.pid).read_text().split()
    driver.kill()
    driver.wait()
    assert children
    wait_for(lambda: not any(map(is_alive, children)))


def find_ray_workers(driver: int) -> list[int]:
    """The processes in which Ray runs the workers of a driver that is alive; on Linux."""
    parents, workers = {}, []
    for entry in Path("/proc").glob("*"):
        if entry.name.isdecimal():
            try:
                called = (entry / "cmdline").read_bytes()
                # Behind the name, which may have spaces, stand the state and the parent.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents[int(entry.name)] = parent
            if called.startswith(b"ray::MapWorker"):
                workers.append(int(entry.name))
    return [worker for worker in workers if parents.get(parents[worker]) == driver]


def wait_for(holds: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.slow
@needs_loopback
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers in /proc")
def test_ray_writes_what_one_machine_writes_though_a_worker_and_the_driver_are_killed(
    run: Run, start: Start, twin: Path, tmp_path: Path
) -> None:
    for number in range(6):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(8 * number, 8))
    run(tmp_path / "in", (tmp_path / "local").as_uri())
    output = tmp_path / "ray"
    asked = command(
        str(tmp_path / "in"), str(output), twin, "--engine", "ray", "--jobs", "2", "--json"
    )
    driver = start(asked, subprocess.PIPE)
    parts = output / ".tue" / "parts"
    wait_for(lambda: parts.is_dir() and len(list(parts.iterdir())) >= 1)
    workers = find_ray_workers(driver.pid)
    assert workers
    driver.kill()
    driver.communicate()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert finished
    wait_for(lambda: not any(map(is_alive, workers)))  # Ray's processes end with the driver's
    driver = start(asked, subprocess.PIPE)
    done = len(list(parts.iterdir()))
    if done < 5:

        def find_busy() -> list[int]:
            found = find_ray_workers(driver.pid)
            return [w for w in found if any((output / ".tue").glob(f"tue-scratch-*-{w}-*"))]

        os.kill(wait_for(find_busy)[0], signal.SIGKILL)
    said, problems = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, problems
    events = [json.loads(line) for line in said.splitlines()]
    for event in events:
        if event.get("title") != "Reading labels":
            check_event(dict(event), "tue protect URL")
    assert events[-1]["event"] == "done"
    assert events[-1]["already_done"] + events[-1]["shards"] == 6
    assert {p: p.stat().st_mtime_ns for p in finished if p.exists()} == finished
    assert snapshot(output) == snapshot(tmp_path / "local")


def meet(item: Any, *, place: Path) -> dict[str, int]:
    """Return this process once all items have been begun."""
    (place / str(item["number"])).touch()
    end = time.monotonic() + 30
    while len(list(place.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return {"worker": os.getpid()}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_what_needs_no_gpu_runs_on_every_processor_beside_one(tmp_path: Path) -> None:
    items = [{"number": 0}, {"number": 1}]
    workers = Workers(0, "cuda")
    assert workers.count == 1
    found = list(workers.run(Stage(meet, dict, on_device=False), {"place": tmp_path}, items))
    assert len({told["worker"] for told in found}) == 2


@pytest.mark.slow
@needs_loopback
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_shard_that_no_worker_survives_is_named_and_the_others_are_written(
    run: Run, twin: Path, tmp_path: Path
) -> None:
    for number in range(4):
        make_tar(tmp_path / "in" / f"{number}.tar", list_members(8 * number, 8))
    script = """
import os, signal, sys
from dataclasses import replace
from tue_cli.cli import main
from tue_cli.protect import collection, collection_plan

def go(deaths):
    def die(told, letter):
        if told["path"] == "1.tar":
            with open(deaths, "a") as file:
                file.write(letter)
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is full

    def scan(told, *, recipe, call=collection_plan.SCAN.call):
        die(told, "s")
        return call(told, recipe=recipe)

    class Dies(collection.Worker):
        def __call__(self, told):
            die(told, "w")
            return super().__call__(told)

    collection_plan.SCAN = replace(collection_plan.SCAN, call=scan)
    collection.PROTECT = replace(collection.PROTECT, call=Dies)
    main(sys.argv[2:])

go(sys.argv[1])
"""
    output, deaths = tmp_path / "out", tmp_path / "deaths"
    more = ("--engine", "ray", "--jobs", "2")
    asked = command((tmp_path / "in").as_uri(), output.as_uri(), twin, *more)
    ran = subprocess.run(
        [asked[0], "-c", script, str(deaths), *asked[3:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.returncode == ExitCode.SOME_FAILED, ran.stderr
    assert "1.tar" in ran.stderr and "Every worker that began it died" in ran.stderr
    assert deaths.read_text() == "ssswww"
    assert {path.name for path in output.glob("*.tar")} == {"0.tar", "2.tar", "3.tar"}
    # The next run begins it again.
    subprocess.run(asked, check=True, capture_output=True, timeout=PATIENCE)
    run(tmp_path / "in", (tmp_path / "whole").as_uri())
    assert snapshot(output) == snapshot(tmp_path / "whole")


@pytest.mark.slow
@needs_loopback
def test_no_item_waits_for_a_busy_actor_while_another_is_idle(tmp_path: Path) -> None:
    script = """
import os, sys, time
from tue_cli.protect.distributed import Stage, open_workers

def main():
    driver = os.getpid()

    def arrive(path):
        if os.getpid() != driver:
            try:
                open(path, "x").close()
            except FileExistsError:  # this is the second actor, which begins late
                time.sleep(2)
                open(path + "-both", "x").close()
        return Place(path)

    class Place:
        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return arrive, (self.path,)

    class Wait:
        def __init__(self, place):
            self.path = place.path

        def __call__(self, item):
            end = time.monotonic() + 60
            while not os.path.exists(self.path + "-both") and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(2)
            return {"worker": os.getpid()}

    with open_workers("ray", 2, None, "cpu") as workers:
        found = list(workers.run(Stage(Wait, dict), {"place": Place(sys.argv[1])}, [{}, {}]))
    print(len({told["worker"] for told in found}))

main()
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "first")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.stdout == "2\n", ran.stderr


def test_ray_and_fsspec_are_not_imported_for_a_folder(
    small_photos: Path, twin: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom tue_cli.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "found = {'ray', 'fsspec', 'pyarrow', 's3fs'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    asked = command(str(small_photos), str(tmp_path / "out"), twin)
    subprocess.run([sys.executable, "-c", code, *asked[3:]], check=True, capture_output=True)
