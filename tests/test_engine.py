"""The engine: a picture's noise is its own, on whatever device there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shorten
from numpy.typing import NDArray
from onnx import numpy_helper

from tue_cli.config import METHODS
from tue_cli.core.batches import Images
from tue_cli.core.sampling import draw_starts
from tue_cli.engine.canvas import Canvas, perturb_canvases
from tue_cli.engine.onnx import OnnxEngine
from tue_cli.engine.onnx_graph.step import build_step_graph
from tue_cli.engine.torch import ComputeDevice, Engine, TorchEngine, choose_device
from tue_cli.errors import BadSetting, DeviceUnavailable, ExitCode, WeightsProblem
from tue_cli.images.visibility import reduce_mask
from tue_cli.noise import EmNoise, Noise, SampledNoise, TueNoise
from tue_cli.weights import Weights, build

NOISE = TueNoise(steps=4)
EM = EmNoise(steps=4)
BATCH = 6
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 on this processor"
        ),
    ),
]
ONNX = "onnx"
"""In the place of torch's precision: the other engine."""
GRAPHS: dict[tuple[str, int], bytes] = {}
"""What was written of the graphs of weights, which takes longer than a run of one."""
every_dtype = pytest.mark.parametrize("dtype", [*DTYPES, ONNX], ids=str)
VARIANTS: list[tuple[str, SampledNoise]] = [
    ("tue", NOISE),
    ("em", EM),
    ("tue", replace(NOISE, score_mode="ascent")),
    ("tue", replace(NOISE, gray_ratio=0.0)),
    ("tue", replace(NOISE, score_ratio=0.0)),
]
every_variant = pytest.mark.parametrize(
    ("method", "noise"),
    [VARIANTS[0], *(pytest.param(*variant, marks=pytest.mark.slow) for variant in VARIANTS[1:])],
    ids=["norm", "em", "ascent", "colour", "no-score"],
)


def engine(
    weights: Weights,
    method: str = "tue",
    noise: Noise = NOISE,
    *,
    dtype: torch.dtype | str = torch.float32,
    seed: int = 0,
    batch: int = BATCH,
) -> Engine:
    if isinstance(dtype, str):
        # Weights that lack a net keep the name and the sum of those that have it.
        known = (weights.sha256, len(weights.tensors))
        if known not in GRAPHS:
            GRAPHS[known] = build_step_graph(weights).SerializeToString()
        return OnnxEngine(
            weights, GRAPHS[known], method, noise, seed=seed, device="cpu", batch=batch
        )
    cpu = ComputeDevice(torch.device("cpu"), dtype, "CPU")
    return TorchEngine(weights, method, noise, seed=seed, machine=cpu, batch=batch)


@pytest.fixture
def batch(toy: Images) -> tuple[NDArray[Any], NDArray[Any], list[int]]:
    """Return a full batch of pixels, keys and seeds."""
    pixels, labels = toy.take_batch(torch.arange(BATCH))
    return pixels.numpy(), labels.numpy(), [11, 22, 33, 44, 55, 2**63]


def draw_mask(pixels: NDArray[Any]) -> NDArray[Any]:
    """Draw a mask (N, 2, S, S) whose shares of chroma are the smaller ones."""
    random = np.random.default_rng(0)
    luma = random.uniform(0, 1, (len(pixels), 1, *pixels.shape[2:]))
    mask = np.concatenate([luma, luma * random.uniform(0, 1, luma.shape)], axis=1)
    return mask.astype(np.float32)


@every_dtype
@every_variant
def test_the_same_input_and_seed_give_identical_noise(
    method: str,
    noise: SampledNoise,
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    first = engine(tiny, method, noise, dtype=dtype).perturb(*batch)
    torch.rand(3)
    np.random.default_rng().random(3)
    assert first.dtype == np.float32
    assert first.shape == batch[0].shape
    assert np.array_equal(first, engine(tiny, method, noise, dtype=dtype).perturb(*batch))
    running = engine(tiny, method, noise, dtype=dtype)
    running.perturb(*batch)
    assert np.array_equal(first, running.perturb(*batch))


@every_dtype
def test_another_seed_of_the_run_or_of_a_picture_is_another_noise(
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    pixels, keys, seeds = batch
    first = engine(tiny, dtype=dtype).perturb(*batch)
    assert not np.array_equal(first, engine(tiny, dtype=dtype, seed=1).perturb(*batch))
    changed = engine(tiny, dtype=dtype).perturb(pixels, keys, [99, *seeds[1:]])
    assert not np.array_equal(first[0], changed[0])
    assert np.array_equal(first[1:], changed[1:])


@every_dtype
@every_variant
def test_a_picture_s_noise_does_not_depend_on_the_pictures_beside_it(
    method: str,
    noise: SampledNoise,
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    pixels, keys, seeds = batch
    worker = engine(tiny, method, noise, dtype=dtype)
    first = worker.perturb(*batch)

    others = np.random.default_rng(0).random(pixels.shape).astype(np.float32)
    others[2] = pixels[2]
    strange = (keys + 1) % 3
    strange[2] = keys[2]
    again = worker.perturb(others, strange, [0, 1, seeds[2], 3, 4, 5])
    assert np.array_equal(again[2], first[2]) and not np.array_equal(again[1], first[1])

    order = [3, 5, 0, 4, 2, 1]
    moved = worker.perturb(pixels[order], keys[order], [seeds[place] for place in order])
    assert np.array_equal(moved, first[order]), "nor on its place"

    for count in (1, BATCH - 1):
        few = worker.perturb(pixels[-count:], keys[-count:], seeds[-count:])
        assert np.array_equal(few, first[-count:]), "nor on how many there are"
    many = worker.perturb(
        np.concatenate([pixels, pixels[:1]]), np.concatenate([keys, keys[:1]]), [*seeds, seeds[0]]
    )
    assert np.array_equal(many, np.concatenate([first, first[:1]]))


@every_dtype
@every_variant
def test_noise_keeps_bound_and_range(
    method: str,
    noise: SampledNoise,
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    pixels, keys, seeds = batch
    pixels = pixels.copy()
    pixels[0], pixels[1] = 0, 1
    before = pixels.copy()
    delta = engine(tiny, method, noise, dtype=dtype).perturb(pixels, keys, seeds)
    assert np.abs(delta).max() <= np.float32(noise.radius)
    assert (pixels + delta).min() >= 0
    assert (pixels + delta).max() <= 1
    assert (np.abs(delta).reshape(BATCH, -1).max(1) > 1 / 255).all()
    assert np.array_equal(pixels, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_noise_is_a_picture_s_own(
    name: str,
    tiny_of: dict[str, Weights],
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    pixels, keys, seeds = batch
    noise = shorten(METHODS[name].noise)
    worker = engine(tiny_of[name], name, noise)
    first = worker.perturb(*batch)
    assert np.array_equal(first, engine(tiny_of[name], name, noise).perturb(*batch))
    assert np.abs(first).max() <= np.float32(METHODS[name].find_reach(noise))
    assert (np.abs(first).reshape(BATCH, -1).max(1) > 1 / 255).all()
    others = np.random.default_rng(0).random(pixels.shape).astype(np.float32)
    others[2] = pixels[2]
    strange = (keys + 1) % 3
    strange[2] = keys[2]
    assert np.array_equal(worker.perturb(others, strange, [0, 1, seeds[2], 3, 4, 5])[2], first[2])
    order = [3, 5, 0, 4, 2, 1]
    moved = worker.perturb(pixels[order], keys[order], [seeds[place] for place in order])
    assert np.array_equal(moved, first[order])
    few = worker.perturb(pixels[-2:], keys[-2:], seeds[-2:])
    assert np.array_equal(few, first[-2:])
    assert not np.array_equal(worker.perturb(pixels, (keys + 1) % 3, seeds), first)


@every_dtype
def test_another_key_is_another_noise(
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    pixels, keys, seeds = batch
    worker = engine(tiny, dtype=dtype)
    other = worker.perturb(pixels, (keys + 1) % 3, seeds)
    assert not np.array_equal(other, worker.perturb(pixels, keys, seeds))


@pytest.mark.parametrize("dtype", [torch.float32, ONNX], ids=str)
def test_without_its_score_tue_needs_no_score_network(
    dtype: torch.dtype | str,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    bare = replace(
        tiny, tensors={k: v for k, v in tiny.tensors.items() if not k.startswith("score.")}
    )
    control = replace(NOISE, score_ratio=0.0, gray_ratio=0.0)
    delta = engine(bare, "tue", control, dtype=dtype).perturb(*batch)
    assert np.array_equal(delta, engine(bare, "em", EM, dtype=dtype).perturb(*batch))
    with pytest.raises(WeightsProblem, match="score"):
        engine(bare, "tue", dtype=dtype)


def test_a_graph_of_an_older_tue_is_to_be_written_anew(tiny: Weights) -> None:
    graph = build_step_graph(tiny)
    for place, given in enumerate(graph.graph.input):
        if given.name == "gray_step":
            del graph.graph.input[place]
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "gray_step"))
    data = graph.SerializeToString()
    with pytest.raises(WeightsProblem, match="older version of tue") as caught:
        OnnxEngine(tiny, data, "tue", NOISE, seed=0, device="cpu", batch=BATCH)
    assert "tue export" in caught.value.remedy


@pytest.mark.parametrize("dtype", [torch.float32, ONNX], ids=str)
def test_an_unknown_method_is_refused(dtype: torch.dtype | str, tiny: Weights) -> None:
    with pytest.raises(BadSetting, match="tea"):
        engine(tiny, "tea", dtype=dtype)


@pytest.mark.parametrize("samples", [1, 3])
@every_variant
def test_onnx_runtime_makes_the_noise_that_torch_makes(
    method: str,
    noise: SampledNoise,
    samples: int,
    tiny: Weights,
    batch: tuple[NDArray[Any], NDArray[Any], list[int]],
) -> None:
    # More steps drift apart by themselves: two float32 runtimes round differently.
    for (steps, least), mask in product(((1, 0.999), (4, 0.95)), (None, draw_mask(batch[0]))):
        few = replace(noise, steps=steps, samples=samples)
        ours = engine(tiny, method, few, dtype=ONNX, seed=3).perturb(*batch, mask)
        theirs = engine(tiny, method, few, seed=3).perturb(*batch, mask)
        assert (np.abs(ours - theirs) < 1e-6).mean() >= least


def test_the_noise_of_pictures_is_made_under_their_masks(
    tiny: Weights, batch: tuple[NDArray[Any], NDArray[Any], list[int]]
) -> None:
    pixels, keys, seeds = batch
    made, size = engine(tiny, noise=TueNoise(steps=2)), pixels.shape[-1]
    mask = np.random.default_rng(0).integers(0, 256, (2, 40, 60)).astype(np.uint8)
    mask[1] = np.minimum(*mask)
    small = np.stack([reduce_mask(mask, size)] * len(pixels))
    for given, expected in ((mask, small), (None, None)):
        canvases = [Canvas(one, given) for one in pixels]
        found = perturb_canvases(made, canvases, keys.tolist(), seeds)
        assert np.array_equal(found, made.perturb(pixels, keys, seeds, expected))


@every_dtype
def test_noise_made_under_a_mask_is_other_noise_and_depends_on_no_neighbour(
    dtype: Any, tiny: Weights, batch: tuple[NDArray[Any], NDArray[Any], list[int]]
) -> None:
    pixels, keys, seeds = batch
    mask = draw_mask(pixels)
    few = TueNoise(steps=2)
    made = engine(tiny, "tue", few, dtype=dtype)
    all_of_them = made.perturb(pixels, keys, seeds, mask)
    assert not np.array_equal(all_of_them, made.perturb(pixels, keys, seeds))
    alone = made.perturb(pixels[1:2], keys[1:2], seeds[1:2], mask[1:2])
    assert np.array_equal(alone[0], all_of_them[1])
    assert np.abs(all_of_them).max() <= few.radius + 1e-6


def test_onnx_runtime_sees_what_torch_sees(
    tiny: Weights, batch: tuple[NDArray[Any], NDArray[Any], list[int]]
) -> None:
    ours, theirs = (engine(tiny, dtype=d) for d in (ONNX, torch.float32))
    for of in ("features", "logits"):
        assert np.allclose(
            getattr(ours, of)(batch[0]), getattr(theirs, of)(batch[0]), rtol=1e-3, atol=1e-4
        )


@every_dtype
def test_logits_are_those_of_the_surrogate(
    dtype: torch.dtype | str, tiny: Weights, batch: tuple[NDArray[Any], NDArray[Any], list[int]]
) -> None:
    net = build(tiny, ("surrogate",))["surrogate"].eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(batch[0])).numpy()
    close = 0.1 if dtype == torch.bfloat16 else 1e-3
    assert np.allclose(engine(tiny, dtype=dtype).logits(batch[0]), expected, rtol=close, atol=close)


@every_dtype
def test_a_picture_s_features_are_its_own(
    dtype: torch.dtype | str, tiny: Weights, batch: tuple[NDArray[Any], NDArray[Any], list[int]]
) -> None:
    worker = engine(tiny, dtype=dtype)
    features = worker.features(batch[0])
    assert features.shape == (BATCH, 32)
    assert features.dtype == np.float32
    assert np.array_equal(worker.features(batch[0][3:4]), features[3:4])
    twice = worker.features(np.concatenate([batch[0], batch[0][::-1]]))
    assert np.array_equal(twice, np.concatenate([features, features[::-1]]))


def test_starts_fill_the_ball_and_are_each_picture_s_own() -> None:
    drawn = draw_starts((3, 3, 16, 16), [7, 8, 9], 8 / 255)
    assert drawn.dtype == np.float32
    assert np.abs(drawn).max() <= np.float32(8 / 255)
    assert drawn.max() > 0.99 * 8 / 255
    assert drawn.min() < -0.99 * 8 / 255
    assert np.array_equal(draw_starts((1, 3, 16, 16), [8], 8 / 255), drawn[1:2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_the_cpu_is_always_there() -> None:
    computer = choose_device("cpu")
    assert computer.device.type == "cpu"
    assert computer.dtype in (torch.float32, torch.bfloat16)
    assert "CPU" in computer.description


def test_auto_finds_a_device_that_works() -> None:
    computer = choose_device()
    assert float(torch.ones(2, device=computer.device).sum()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_asked_for_and_not_there_is_told(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=name) as caught:
        choose_device(name)
    assert "--device" in caught.value.remedy
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_mps_asked_for_and_not_there_is_told() -> None:
    with pytest.raises(DeviceUnavailable, match="mps") as caught:
        choose_device("mps")
    assert "--device" in caught.value.remedy


@pytest.mark.parametrize("name", ["", "gpu", "tpu", "CUDA", "cuda:x", "cuda:-1", "cpu:1", "mps:0"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(BadSetting) as caught:
        choose_device(name)
    assert repr(name) in caught.value.message
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("name", ["cuda:", "cuda:99999999999999999999", "cuda:²"])
def test_an_ill_written_device_number_is_an_error_with_a_remedy(name: str) -> None:
    with pytest.raises((BadSetting, DeviceUnavailable)) as caught:
        choose_device(name)
    assert caught.value.remedy
