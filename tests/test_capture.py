"""A function that is recorded once and replayed must do what calling it does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import make_toy, mark_slow
from torch import Tensor

from tue_cli.config import METHODS, AdversarySettings, VictimSettings
from tue_cli.core import capture
from tue_cli.core.batches import Images, make_generator
from tue_cli.core.capture import (
    Captured,
    Function,
    Record,
    Replay,
    Tensors,
    record_call,
    record_graph,
    use_recorder,
)
from tue_cli.core.pgd import draw_uniform_start
from tue_cli.engine.torch import ComputeDevice
from tue_cli.methods import load_method
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.nets.classifiers import ConvNorm, build_classifier
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.noise import RemNoise, SampledNoise
from tue_cli.verify.victim import Victim

CPU = torch.device("cpu")
MACHINE = ComputeDevice(CPU, torch.float32, "test")


def recording(record: Record = record_call) -> Captured:
    with use_recorder(record):
        return Captured(CPU)


def add(one: Tensor, other: Tensor) -> Tensors:
    return one + other, one - other


def test_a_recorded_function_takes_new_values_and_keeps_old_results() -> None:
    run = recording()
    first = run(add, torch.ones(3), torch.ones(3))
    second = run(add, 2 * torch.ones(3), torch.ones(3))
    assert [result.tolist() for result in first] == [[2.0] * 3, [0.0] * 3]
    assert [result.tolist() for result in second] == [[3.0] * 3, [1.0] * 3]


def test_inputs_of_another_shape_are_not_replayed() -> None:
    run = recording()
    run(add, torch.ones(3), torch.ones(3))
    assert run(add, torch.ones(2), torch.ones(2))[0].tolist() == [2.0] * 2
    assert run(add, torch.ones(3), torch.ones(3))[0].tolist() == [2.0] * 3


def test_a_capture_that_fails_is_warned_of_once_and_the_function_is_called() -> None:
    run = recording(refuse)
    with pytest.warns(RuntimeWarning, match="slowly: no graph today"):
        assert run(add, torch.ones(3), torch.ones(3))[0].tolist() == [2.0] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(add, torch.ones(3), torch.ones(3))[0].tolist() == [2.0] * 3


def refuse(function: Function, inputs: Sequence[Tensor]) -> Replay:
    function(*inputs)
    raise RuntimeError("no graph today")


def test_without_cuda_a_graph_cannot_be_recorded_and_nothing_is_lost() -> None:
    with pytest.raises(RuntimeError, match="cpu has no CUDA graphs"):
        record_graph(add, (torch.ones(3), torch.ones(3)))
    run = recording(record_graph)
    with pytest.warns(RuntimeWarning, match="more slowly: cpu has no CUDA graphs"):
        assert run(add, torch.ones(3), torch.ones(3))[0].tolist() == [2.0] * 3


def test_what_recording_changes_is_put_back() -> None:
    counted = torch.zeros(())

    def count(pixels: Tensor) -> Tensors:
        counted.add_(1)
        return (pixels + counted,)

    def warmed_up(function: Function, inputs: Sequence[Tensor]) -> Replay:
        for _ in range(3):
            function(*inputs)
        return lambda: function(*inputs)

    with use_recorder(warmed_up):
        run = Captured(CPU, keeps=(counted,))
    assert [float(run(count, torch.zeros(()))[0]) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["tue", "em", "rem", "tap"])
def test_recorded_noise_is_the_noise(name: str, tiny_frozen: FrozenNets) -> None:
    noise = METHODS[name].noise
    assert isinstance(noise, SampledNoise)
    noise = replace(noise, steps=2, samples=2)
    if isinstance(noise, RemNoise):
        noise = replace(noise, inner_steps=1)
    run = recording()
    # Later calls bring other pictures, labels, starts and draws; nothing of the first may stick.
    for seed in range(3):
        toy = make_toy(count=6, seed=seed)
        pixels, labels = toy.take_batch(
            torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        )
        found = [
            load_method(name)(
                tiny_frozen,
                pixels,
                labels,
                noise,
                start=draw_uniform_start(
                    pixels, noise.radius, make_generator(seed, "start", 0, CPU)
                ),
                generator=make_generator(seed, "perturb", 0, CPU),
                run=way,
            )
            for way in (capture.run_eagerly, run)
        ]
        assert torch.equal(*found)


@pytest.mark.parametrize("mixing", ["", "mixup"])
def test_a_recorded_victim_is_the_victim(mixing: str, toy: Images) -> None:
    def trained() -> Victim:
        victim = Victim(
            VictimSettings(width=4, batch=16),
            classes=3,
            size=16,
            steps=4,
            seed=0,
            computer=MACHINE,
            adversary=AdversarySettings(steps=2),
            mixing=mixing,
        )
        list(victim.run_updates(toy))
        return victim

    plain = trained()
    with use_recorder(record_call):
        recorded = trained()
    for one, other in zip(plain.net.parameters(), recorded.net.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [b.tolist() for b in plain.net.buffers()] == [b.tolist() for b in recorded.net.buffers()]


def test_an_adversary_attacks_the_victim_as_it_is_now(toy: Images) -> None:
    def victim() -> Victim:
        return Victim(
            VictimSettings(width=4, batch=16),
            classes=3,
            size=16,
            steps=6,
            seed=0,
            computer=MACHINE,
            adversary=AdversarySettings(steps=2),
        )

    # `run_updates` copies the net when it is called: at every step, it copies it as it is then.
    anew = victim()
    losses = [float(next(anew.run_updates(toy))) for _ in range(6)]
    assert [float(loss) for loss in victim().run_updates(toy)] == losses


@pytest.mark.parametrize(
    "name", mark_slow(["resnet18", "resnet50", "densenet121", "vgg16"], but=("resnet18", "vgg16"))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_that_follows_is_a_copy_made_anew(name: str, dtype: torch.dtype) -> None:
    net = build_classifier(name, classes=3, width=4, size=32)
    copy = FrozenClassifier(net, dtype)
    places = [value.data_ptr() for value in copy.net.state_dict().values()]
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    copy.follow(net)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(copy(pixels), FrozenClassifier(net, dtype)(pixels))
    assert places == [value.data_ptr() for value in copy.net.state_dict().values()]
    assert any(isinstance(module, ConvNorm) for module in net.modules())
