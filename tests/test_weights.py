"""Weights files: what goes in comes out, and what was touched is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import mark_slow
from numpy.typing import NDArray
from safetensors.numpy import save

import tue_cli.weights
from tue_cli.errors import ExitCode, WeightsProblem
from tue_cli.nets.classifiers import NETS
from tue_cli.weights import Card, Weights, build, digest, draw_nets, list_folders, load, pack, read

ROLES = ("score", "surrogate")


def odd_card(net: str, size: int) -> Card:
    """Return a card that no default could be taken for."""
    return Card(
        "tue", net, 5, size, ("zebra", "ünïcode", "a b"), 6, 0.07, {"note": "→ odd", "n": 3}
    )


def packed(card: Card, seed: int = 0) -> bytes:
    nets = draw_nets(card, ROLES, seed)
    return pack(
        card,
        {f"{r}.{k}": v.numpy() for r, net in nets.items() for k, v in net.state_dict().items()},
    )


@pytest.fixture
def shipped(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that the tiny weights were packaged, and return their folder."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    data = tiny_weights.read_bytes()
    (folder / "small.safetensors").write_bytes(data)
    entry = {"file": "small.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps({"default": "tiny", "weights": {"tiny": entry}}))
    monkeypatch.setattr(tue_cli.weights, "SHIPPED", folder)
    return folder


def refused(path: Path) -> WeightsProblem:
    """Return the error of reading a file, which must have a remedy."""
    with pytest.raises(WeightsProblem) as caught:
        load(str(path))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.message
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("size", mark_slow([32, 96], but=(32,)))
@pytest.mark.parametrize("net", NETS)
def test_odd_hyperparameters_come_back(net: str, size: int, tmp_path: Path) -> None:
    card = odd_card(net, size)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(packed(card, seed=9))
    weights = load(str(path))
    assert weights.card == card
    assert weights.name == "odd"
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    pixels, labels = torch.rand(2, 3, size, size), torch.tensor([0, 2])
    for role, original in draw_nets(card, ROLES, seed=9).items():
        rebuilt = build(weights, (role,))[role].eval()
        state = rebuilt.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
        inputs = (pixels, labels) if role == "score" else (pixels,)
        assert torch.equal(rebuilt(*inputs), original.eval()(*inputs))


def test_fresh_nets_follow_their_seed_and_leave_torch_s_alone() -> None:
    card = odd_card("resnet18", 32)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first = draw_nets(card, ROLES, seed=1)["surrogate"].state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = draw_nets(card, ROLES, seed=1)["surrogate"].state_dict()
    other = draw_nets(card, ROLES, seed=2)["surrogate"].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_other_cards_are_other_bytes() -> None:
    card = odd_card("resnet18", 32)
    assert packed(card) != packed(replace(card, sigma=0.08))


def test_the_same_weights_are_the_same_bytes() -> None:
    card, tensors = odd_card("resnet18", 32), {"a": np.ones(2, np.float32)}
    assert len({pack(card, tensors) for _ in range(20)}) == 1


def test_building_does_not_share_memory_with_the_file(tiny: Weights) -> None:
    before = digest(tiny.tensors)
    for net in build(tiny, ROLES).values():
        for value in net.state_dict().values():
            value.zero_()
    assert digest(tiny.tensors) == before


def test_the_digest_sees_names_shapes_types_and_values_but_no_order() -> None:
    one, two = np.arange(6, dtype=np.float32), np.ones(2, np.float32)
    base = digest({"a": one, "b": two})
    assert digest({"b": two, "a": one}) == base
    others: list[dict[str, NDArray[Any]]] = [
        {"a": one, "c": two},
        {"a": one.reshape(2, 3), "b": two},
        {"a": one.view(np.int32), "b": two},
        {"a": one + 1, "b": two},
        {"a": one},
    ]
    assert len({base, *(digest(tensors) for tensors in others)}) == 1 + len(others)


def test_a_name_is_found_in_tue_weights_and_in_the_user_s_folder(
    shipped: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = list_folders()[-1]
    own.mkdir(parents=True)
    (own / "mine.safetensors").write_bytes(tiny_weights.read_bytes())
    try:
        assert load("mine").name == "mine"
    finally:
        (own / "mine.safetensors").unlink()
        own.rmdir()
    with pytest.raises(WeightsProblem):
        load("mine")
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "mine.safetensors").write_bytes(tiny_weights.read_bytes())
    monkeypatch.setenv("TUE_WEIGHTS", str(extra))
    assert list_folders()[0] == extra
    assert load("mine").name == "mine"


def test_the_packaged_default_is_loaded_without_a_name(shipped: Path, tiny: Weights) -> None:
    for weights in (load(), load("tiny")):
        assert weights.name == "tiny"
        assert weights.card == tiny.card
        assert weights.sha256 == tiny.sha256


def test_a_path_needs_no_index(shipped: Path, tiny_weights: Path) -> None:
    (shipped / "index.json").unlink()
    assert load(str(tiny_weights)).name == "tiny"


def test_packaged_weights_other_than_the_index_says_are_refused(shipped: Path) -> None:
    # A whole and sealed file, but not the one that was shipped.
    (shipped / "small.safetensors").write_bytes(packed(odd_card("resnet18", 32)))
    with pytest.raises(WeightsProblem, match="not those shipped") as caught:
        load("tiny")
    assert caught.value.remedy
    with pytest.raises(WeightsProblem, match="not those shipped"):
        load()


def test_packaged_weights_that_are_gone_are_named(shipped: Path) -> None:
    (shipped / "small.safetensors").unlink()
    with pytest.raises(WeightsProblem, match=r"small\.safetensors") as caught:
        load()
    assert caught.value.remedy


@pytest.mark.parametrize("text", [None, "", "{", "<html>"])
def test_an_index_that_cannot_be_read_is_reported(shipped: Path, text: str | None) -> None:
    (shipped / "index.json").unlink()
    if text is not None:
        (shipped / "index.json").write_text(text)
    with pytest.raises(WeightsProblem, match=r"index\.json") as caught:
        load()
    assert caught.value.remedy


def test_a_missing_name_is_told_with_what_there_is_and_where_it_was_sought(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUE_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsProblem, match="huge") as caught:
        load("huge")
    assert "tiny" in caught.value.remedy
    assert str(tmp_path / "nowhere") in caught.value.remedy


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_one_flipped_bit_of_a_tensor_is_noticed(
    share: float, tiny_weights: Path, tmp_path: Path
) -> None:
    data = bytearray(tiny_weights.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    data[begin + int(share * (len(data) - begin))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    assert "cannot be used as weights" in refused(path).message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"a\", \"b\"", rb"\"b\", \"a\""),
        (rb"\"sigma\": 0.1", rb"\"sigma\": 0.2"),
        (rb"\"method\": \"tue\"", rb"\"method\": \"tua\""),
        (rb"\"size\": 16", rb"\"size\": 32"),
        (rb"\"classes\"", rb"\"klasses\""),
        (rb"{\"classes", rb"[\"classes"),
    ],
)
def test_a_changed_card_is_noticed(
    old: bytes, new: bytes, tiny_weights: Path, tmp_path: Path
) -> None:
    data = tiny_weights.read_bytes()
    assert data.count(old) == 1
    path = tmp_path / "edited.safetensors"
    path.write_bytes(data.replace(old, new))
    assert "cannot be used as weights" in refused(path).message


def test_a_renamed_tensor_is_noticed(tiny_weights: Path, tmp_path: Path) -> None:
    data = tiny_weights.read_bytes()
    path = tmp_path / "renamed.safetensors"
    path.write_bytes(data.replace(b'"surrogate.head.bias"', b'"surrogate.head.bios"'))
    assert path.read_bytes() != data
    assert "cannot be used as weights" in refused(path).message


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 500, -1000, -1])
def test_a_truncated_file_is_refused(kept: int, tiny_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_weights.read_bytes()[:kept])
    assert str(path) in refused(path).message


def test_a_file_of_another_length_than_its_header_says_is_not_read(
    tiny_weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    with path.open("r+b") as file:
        file.truncate(400_000_000)  # sparse
    tracemalloc.start()
    message = refused(path).message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "400,000,000" in message and peak < 100_000_000


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"data_offsets": [0]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, True]},
        {"data_offsets": [-4, 0]},
        {"data_offsets": [0, 1 << 62]},
        {"dtype": "F99"},
        {"dtype": []},
    ],
)
def test_a_tensor_that_cannot_be_is_refused_before_it_is_read(
    entry: Any, tiny_weights: Path, tmp_path: Path
) -> None:
    data = tiny_weights.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name] = {**header[name], **entry} if entry and isinstance(entry, dict) else entry
    text = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "describes an impossible tensor" in refused(path).message


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
        b"PK\x03\x04" + bytes(200),
        b"\xff" * 300,
        bytes(300),
    ],
    ids=["html", "lfs pointer", "zip", "ones", "zeros"],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "page.safetensors"
    path.write_bytes(data)
    assert str(path) in refused(path).message


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"seal": "0"}])
def test_a_safetensors_file_without_a_card_is_refused(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(save({"weight": np.ones(3, np.float32)}, metadata=metadata))
    problem = refused(path)
    assert "tue did not write it" in problem.message
    assert "tue train" in problem.remedy


@pytest.mark.parametrize("card", ["", "[]", "{}", "null", "3", '{"classes": 3}', "{"])
def test_a_card_that_is_none_is_refused(card: str, tmp_path: Path) -> None:
    path = tmp_path / "badcard.safetensors"
    tensors = {"weight": np.ones(3, np.float32)}
    path.write_bytes(save(tensors, metadata={"card": card, "seal": "0"}))
    refused(path)


def test_a_card_without_a_seal_is_refused(tiny: Weights, tmp_path: Path) -> None:
    path = tmp_path / "unsealed.safetensors"
    path.write_bytes(save(dict(tiny.tensors), metadata={"card": tiny.card.to_json()}))
    refused(path)


def test_a_missing_file_and_a_folder_are_refused(shipped: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing.safetensors")
    refused(tmp_path)
    with pytest.raises(WeightsProblem, match="cannot be read"):
        read(tmp_path, name="folder")


def test_a_name_longer_than_any_file_s_is_refused(shipped: Path) -> None:
    refused(Path("x" * 300))


def test_a_net_that_the_file_does_not_hold_is_told(tmp_path: Path) -> None:
    card = replace(odd_card("resnet18", 32), method="em")
    net = draw_nets(card, ("surrogate",), seed=0)["surrogate"]
    path = tmp_path / "em.safetensors"
    path.write_bytes(
        pack(card, {f"surrogate.{key}": v.numpy() for key, v in net.state_dict().items()})
    )
    weights = load(str(path))
    assert set(build(weights, ("surrogate",))) == {"surrogate"}
    with pytest.raises(WeightsProblem, match="score") as caught:
        build(weights, ROLES)
    assert "the recipe em" in caught.value.message
    assert caught.value.remedy


def test_tensors_of_another_shape_than_the_card_says_are_refused(tiny: Weights) -> None:
    with pytest.raises(WeightsProblem):
        build(replace(tiny, card=replace(tiny.card, width=6)), ("surrogate",))


def test_the_card_reads_back_as_it_was_written() -> None:
    card = odd_card("vgg16", 96)
    assert Card.from_json(card.to_json()) == card


def test_the_packaged_weights_are_those_of_the_index() -> None:
    index = tue_cli.weights.index()
    assert index["default"] in index["weights"]
    for name in index["weights"]:
        weights = load(name)
        assert build(weights, ("surrogate",))
        assert (tue_cli.weights.SHIPPED / index["weights"][name]["file"]).stat().st_size < 50e6
