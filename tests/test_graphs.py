"""The step graph: every net's gradients are torch's, files are small, nothing wrong is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import mark_slow
from torch import nn

from tue_cli.engine.onnx import import_runtime
from tue_cli.engine.onnx_graph.layers import GraphBuilder, write_layer
from tue_cli.engine.onnx_graph.parity import measure_parity
from tue_cli.engine.onnx_graph.step import build_step_graph, embed_weights
from tue_cli.errors import BadSetting, ExitCode, OutputProblem, WeightsProblem
from tue_cli.events import Done
from tue_cli.nets.classifiers import NETS
from tue_cli.train.export import ExportSpec, export, make_runner
from tue_cli.train.result import ExportSummary
from tue_cli.weights import Card, Weights, draw_nets, pack, read, read_graph

CARD = Card("tue", "resnet18", 4, 16, ("a", "b", "c"), 8, 0.1, {})


def random_weights(card: Card, path: Path) -> Weights:
    """Write and read weights that are random all over: fresh nets have zeros that hide mistakes."""
    random = np.random.default_rng(0)
    tensors = {}
    for role, net in draw_nets(card, ("surrogate", "score"), seed=0).items():
        for name, value in net.state_dict().items():
            array = value.numpy().copy()
            if array.dtype == np.float32:
                noise = random.standard_normal(array.shape, np.float32)
                if name.endswith("running_var"):
                    array = 1 + 0.3 * np.abs(noise)
                elif array.ndim == 1:
                    array = array + 0.1 * noise
                elif role == "score":
                    array = noise / np.sqrt(np.prod(array.shape[1:]))
            tensors[f"{role}.{name}"] = array.astype(value.numpy().dtype)
    path.write_bytes(pack(card, tensors))
    return read(path, name=path.stem)


def done(weights: Path, output: Path | None = None) -> Done[ExportSummary]:
    last = list(export(ExportSpec(str(weights), output)))[-1]
    assert isinstance(last, Done)
    return last


@pytest.mark.parametrize("size", mark_slow([32, 96], but=(32,)))
@pytest.mark.parametrize("net", mark_slow(NETS, but=("resnet18", "vgg16")))
def test_every_net_s_gradients_are_torch_s(net: str, size: int, tmp_path: Path) -> None:
    card = replace(CARD, net=net, size=size)
    weights = random_weights(card, tmp_path / "w.safetensors")
    found = measure_parity(
        make_runner(build_step_graph(weights).SerializeToString(), weights), weights
    )
    assert found.within, found


def test_only_a_graph_that_protecting_finds_is_told_to_be_used_next(tmp_path: Path) -> None:
    random_weights(CARD, tmp_path / "w.safetensors")
    beside = done(tmp_path / "w.safetensors").said
    elsewhere = done(tmp_path / "w.safetensors", tmp_path / "x.onnx").said
    assert beside[-1].startswith("Next: tue protect") and "Next" not in " ".join(elsewhere)


@pytest.mark.slow
def test_the_graph_lies_beside_the_weights_and_holds_none(tmp_path: Path) -> None:
    card = replace(CARD, width=16, score_width=32)
    weights = random_weights(card, tmp_path / "w.safetensors")
    written = done(tmp_path / "w.safetensors").result
    graph = tmp_path / "w.onnx"
    assert written.graph == graph and not written.holds_weights
    assert written.bytes == graph.stat().st_size < 100_000
    assert read_graph(weights) == graph.read_bytes()
    onnx.checker.check_model(str(graph), full_check=True)
    # Whatever reads ONNX finds the weights in the file beside it.
    session = import_runtime().InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    assert measure_parity(session_runner(session), weights).within
    props = session.get_modelmeta().custom_metadata_map
    assert json.loads(props["card"]) == json.loads(card.to_json())
    assert props["weights"] == weights.sha256


def session_runner(session: Any):  # type: ignore[no-untyped-def]
    names = [output.name for output in session.get_outputs()]
    return lambda values: dict(zip(names, session.run(names, dict(values)), strict=True))


def test_elsewhere_the_graph_holds_its_weights(tmp_path: Path) -> None:
    weights = random_weights(CARD, tmp_path / "w.safetensors")
    place = tmp_path / "far" / "alone.onnx"
    written = done(tmp_path / "w.safetensors", place).result
    assert written.holds_weights and written.bytes == place.stat().st_size
    session = import_runtime().InferenceSession(
        place.read_bytes(), providers=["CPUExecutionProvider"]
    )
    assert measure_parity(session_runner(session), weights).within
    # Each weight once: not turned round a second time for its gradient.
    floats = sum(a.size for a in weights.tensors.values() if a.dtype == np.float32)
    assert place.stat().st_size < 4 * floats + 100_000


@pytest.mark.slow
def test_the_same_weights_give_the_same_graph(tmp_path: Path) -> None:
    random_weights(CARD, tmp_path / "w.safetensors")
    digests = [done(tmp_path / "w.safetensors").result.sha256 for _ in range(2)]
    assert digests[0] == digests[1]


def test_without_a_score_network_the_graph_has_the_surrogate_s_terms_alone(tmp_path: Path) -> None:
    whole = random_weights(CARD, tmp_path / "w.safetensors")
    tensors = {k: v for k, v in whole.tensors.items() if k.startswith("surrogate.")}
    (tmp_path / "em.safetensors").write_bytes(pack(replace(CARD, method="em"), tensors))
    done(tmp_path / "em.safetensors")
    graph = onnx.load(tmp_path / "em.onnx", load_external_data=False).graph
    assert {o.name for o in graph.output} == {
        "surrogate_gradient",
        "gray_gradient",
        "features",
        "logits",
        "alone",
    }


@pytest.mark.parametrize("kind", mark_slow(["Conv", "Sub", "Add"], but=("Conv",)))
def test_a_graph_that_is_wrong_anywhere_is_not_within(kind: str, tmp_path: Path) -> None:
    weights = random_weights(CARD, tmp_path / "w.safetensors")
    wrong = build_step_graph(weights)
    last = [n for n in wrong.graph.node if n.op_type == kind][-1]
    if kind == "Conv":
        pads = next(a for a in last.attribute if a.name == "pads")
        pads.ints[:] = [pads.ints[0] + 1, pads.ints[1], pads.ints[2] - 1, pads.ints[3]]
    elif kind == "Sub":
        last.op_type = "Add"
    else:
        last.op_type = "Sub"
    assert not measure_parity(make_runner(wrong.SerializeToString(), weights), weights).within


def test_weights_that_the_graph_does_not_follow_fail_the_export(tmp_path: Path) -> None:
    weights = random_weights(CARD, tmp_path / "w.safetensors")
    large = np.full_like(weights.tensors["surrogate.head.weight"], 3e38)
    broken = {**weights.tensors, "surrogate.head.weight": large}
    (tmp_path / "large.safetensors").write_bytes(pack(CARD, broken))
    with pytest.raises(WeightsProblem, match="does not agree with torch") as caught:
        done(tmp_path / "large.safetensors")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert not (tmp_path / "large.onnx").exists()


def test_an_output_of_another_name_or_where_nothing_can_be_is_refused(tmp_path: Path) -> None:
    random_weights(CARD, tmp_path / "w.safetensors")
    with pytest.raises(BadSetting, match=r"does not end in \.onnx"):
        done(tmp_path / "w.safetensors", tmp_path / "w.bin")
    with pytest.raises(OutputProblem):
        done(tmp_path / "w.safetensors", tmp_path / "w.safetensors" / "w.onnx")


def test_a_layer_that_cannot_be_written_is_named() -> None:
    with pytest.raises(BadSetting, match="GELU"):
        write_layer(GraphBuilder(), nn.GELU(), "net", "x")


def test_weights_held_in_the_graph_are_those_of_the_file(tmp_path: Path) -> None:
    weights = random_weights(CARD, tmp_path / "w.safetensors")
    model = build_step_graph(weights)
    embed_weights(model, weights)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    used = held.keys() & weights.tensors.keys()
    assert used == {k for k, v in weights.tensors.items() if v.dtype == np.float32}
    assert all(np.array_equal(held[name], weights.tensors[name]) for name in used)
