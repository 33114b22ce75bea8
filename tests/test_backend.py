"""Which engine a run gets, and that what was asked for by name is used or refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tue_cli.engine import select as rooms
from tue_cli.engine.onnx import import_runtime
from tue_cli.engine.select import MANY, choose_backend, choose_engine
from tue_cli.engine.torch import Engine
from tue_cli.errors import BadSetting, DeviceUnavailable, ExitCode, WeightsProblem
from tue_cli.noise import TueNoise
from tue_cli.train.export import write_graph
from tue_cli.weights import Weights, pack, read, read_graph

HAS_CUDA = Path("/proc/driver/nvidia").is_dir()


@pytest.fixture(scope="module")
def twin(twin: Path) -> Weights:
    """The tiny weights with their graph beside them, read."""
    return read(twin, name="tiny")


def opened(weights: Weights, **changes: object) -> Engine:
    arguments = {
        "seed": 0,
        "backend": "auto",
        "device": "cpu",
        "batch": 4,
        "pictures": 1,
        **changes,
    }
    return choose_engine(weights, "tue", TueNoise(steps=1), **arguments)  # type: ignore[arg-type]


def test_auto_takes_onnx_for_few_pictures_and_torch_without_a_graph(
    twin: Weights, tiny: Weights
) -> None:
    assert opened(twin).description.startswith("ONNX Runtime, CPU, ")
    assert opened(tiny).description.startswith("torch, CPU, ")


def test_auto_takes_torch_for_many_pictures_where_it_has_bfloat16(twin: Weights) -> None:
    expected = "torch" if torch.cpu._is_avx512_bf16_supported() else "onnx"
    many = MANY * (16 // twin.card.width) ** 2
    assert choose_backend(twin, "tue", "cpu", pictures=many) == expected
    assert choose_backend(twin, "tue", "cpu", pictures=many - 1) == "onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells without torch")
def test_bfloat16_is_found_without_torch_as_torch_finds_it() -> None:
    assert rooms._has_bfloat16() == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize("former", ["torch, cpu, bfloat16", "onnx, cpu, float32, graph 0"])
@pytest.mark.parametrize("pictures", [1, 1000 * MANY])
def test_auto_goes_on_with_what_began(former: str, pictures: int, twin: Weights) -> None:
    found = choose_backend(twin, "tue", "cpu", pictures=pictures, former=former)
    assert found == former.partition(",")[0]


def test_auto_takes_torch_for_a_method_that_onnx_has_not(twin: Weights) -> None:
    assert choose_backend(twin, "lsp", "cpu", pictures=1) == "torch"
    with pytest.raises(BadSetting, match="lsp") as caught:
        choose_engine(
            twin,
            "lsp",
            TueNoise(),
            seed=0,
            backend="onnx",
            device="cpu",
            batch=4,
            pictures=1,
        )
    assert "--backend torch" in caught.value.remedy


def test_a_gpu_asked_for_by_torch_s_name_is_torch_s(twin: Weights) -> None:
    assert choose_backend(twin, "tue", "cuda:1", pictures=1) == "torch"
    assert choose_backend(twin, "tue", "mps", pictures=1) == "torch"
    assert choose_backend(twin, "tue", "directml", pictures=1000 * MANY) == "onnx"


def test_kinds_differ_by_backend_and_by_graph(twin: Weights, tmp_path: Path) -> None:
    kind = opened(twin, backend="onnx").kind
    assert kind.startswith("onnx, cpu, float32, graph ")
    assert opened(twin, backend="torch").kind.startswith("torch, cpu, ")
    card = replace(twin.card, classes=("x", "y", "z"))
    (tmp_path / "other.safetensors").write_bytes(pack(card, twin.tensors))
    other = read(tmp_path / "other.safetensors", name="other")
    list(write_graph(other, tmp_path / "other.onnx", beside=True))
    assert opened(other, backend="onnx").kind != kind


def test_an_unknown_backend_is_refused(twin: Weights) -> None:
    with pytest.raises(BadSetting, match="tensorflow"):
        opened(twin, backend="tensorflow")


@pytest.mark.skipif(HAS_CUDA, reason="there may be a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "directml"])
def test_a_device_that_is_not_in_force_is_an_error(device: str, twin: Weights) -> None:
    if device == "mps" and sys.platform == "darwin":
        pytest.skip("there may be CoreML")
    with pytest.raises(DeviceUnavailable) as caught:
        opened(twin, backend="onnx", device=device)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "--device" in caught.value.remedy


@pytest.mark.parametrize("device", ["", "gpu", "CUDA", "cuda:x", "cuda:", "cpu:1", "mps:0"])
def test_an_unknown_device_is_refused(device: str, twin: Weights) -> None:
    with pytest.raises(BadSetting) as caught:
        opened(twin, backend="onnx", device=device)
    assert repr(device) in caught.value.message


def test_auto_says_the_provider_in_force(twin: Weights) -> None:
    engine = opened(twin, backend="onnx", device="auto")
    if not HAS_CUDA and sys.platform == "linux":
        # What the runtime lists is no evidence: onnxruntime-gpu lists CUDA everywhere.
        assert import_runtime().get_available_providers()
        assert engine.description.startswith("ONNX Runtime, CPU, ")


def test_the_runtime_says_nothing_on_the_screen(twin: Weights) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tue_cli.engine.select import choose_engine\n"
        "from tue_cli.errors import TueError\nfrom tue_cli.noise import TueNoise\n"
        "from tue_cli.weights import read\n"
        "for device in ('auto', 'cpu', 'cuda', 'mps', 'directml'):\n"
        "    try:\n"
        "        choose_engine(read(Path(sys.argv[1]), name='w'), 'tue', TueNoise(steps=1),\n"
        "            seed=0, backend='onnx', device=device, batch=2, pictures=1)\n"
        "    except TueError:\n"
        "        pass\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(twin.path)], capture_output=True, check=True
    )
    assert ran.stdout + ran.stderr == b""


def test_a_graph_of_other_weights_is_refused(twin: Weights, tiny: Weights, tmp_path: Path) -> None:
    card = replace(tiny.card, classes=("x", "y", "z"))
    (tmp_path / "w.safetensors").write_bytes(pack(card, tiny.tensors))
    (tmp_path / "w.onnx").write_bytes(read_graph(twin))
    weights = read(tmp_path / "w.safetensors", name="w")
    with pytest.raises(WeightsProblem, match="does not belong to the weights") as caught:
        opened(weights, backend="onnx")
    assert "tue export" in caught.value.remedy
    assert choose_backend(weights, "tue", "cpu", pictures=1) == "torch"


def test_weights_without_a_graph_say_how_to_get_one(tiny: Weights) -> None:
    with pytest.raises(WeightsProblem, match="no graph") as caught:
        opened(tiny, backend="onnx")
    assert f"tue export {tiny.path}" in caught.value.remedy


def test_a_damaged_graph_is_an_error_with_a_remedy(twin: Weights, tmp_path: Path) -> None:
    assert twin.path is not None
    (tmp_path / "w.safetensors").write_bytes(twin.path.read_bytes())
    (tmp_path / "w.onnx").write_bytes(b"\x00" * 64 + read_graph(twin)[64:])
    with pytest.raises(WeightsProblem, match="cannot be opened") as caught:
        opened(read(tmp_path / "w.safetensors", name="w"), backend="onnx")
    assert "tue export" in caught.value.remedy
