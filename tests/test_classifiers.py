"""The five nets and their frozen copies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tue_cli.core.batches import Images
from tue_cli.errors import BadSetting
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.nets.classifiers import NETS, Classifier, ConvNorm, Pointwise, build_classifier
from tue_cli.nets.frozen import (
    FrozenClassifier,
    FrozenScore,
    convert_to_channels_last,
    fold_batch_norms,
    freeze,
)
from tue_cli.nets.score import ScoreNet

NARROW = [(name, 4 if name == "wrn34-10" else 8) for name in NETS]

PUBLISHED = {
    # torchvision's sum for 1000 classes and the ImageNet stem.
    ("resnet18", 224, 1000): 11_689_512,
    ("resnet50", 224, 1000): 25_557_032,
    ("densenet121", 224, 1000): 7_978_856,
    # kuangliu's pytorch-cifar for 10 classes and the small stem.
    ("resnet18", 32, 10): 11_173_962,
    ("resnet50", 32, 10): 23_520_842,
    # Its 6,956,298 and the norm behind the stem, which it lacks.
    ("densenet121", 32, 10): 6_956_298 + 2 * 64,
    # REM's 46,160,474, and 2,240 because norms that come after have the outputs' channels.
    ("wrn34-10", 32, 10): 46_160_474 + 2_240,
}


def shaken(net: nn.Module) -> nn.Module:
    """Give every batch norm statistics and scales of its own."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("name", "width"), NARROW)
@pytest.mark.parametrize("size", [32, 96])
def test_a_narrow_net_gives_one_logit_a_class(name: str, width: int, size: int) -> None:
    net = build_classifier(name, classes=7, width=width, size=size).eval()
    pixels = torch.rand(2, 3, size, size)
    assert net(pixels).shape == (2, 7)
    assert net.features(pixels).ndim == 2
    assert torch.equal(net.head(net.features(pixels)), net(pixels))


@pytest.mark.parametrize(("name", "width"), NARROW)
def test_a_net_takes_pictures_that_are_not_square(name: str, width: int) -> None:
    net = build_classifier(name, classes=3, width=width, size=32).eval()
    assert net(torch.rand(1, 3, 33, 47)).shape == (1, 3)


@pytest.mark.parametrize("inputs", [4, 16])
@pytest.mark.parametrize("side", [16, 17])
def test_a_strided_convolution_of_one_pixel_has_the_gradient_that_float64_has(
    inputs: int, side: int
) -> None:
    conv = convert_to_channels_last(Pointwise(inputs, 8, 1, 2, bias=False))
    exact = nn.Conv2d(inputs, 8, 1, 2, bias=False).double()
    exact.load_state_dict(conv.state_dict())
    pixels = torch.randn(24, inputs, side, 16).contiguous(memory_format=torch.channels_last)
    seen, expected = conv(pixels), exact(pixels.double())
    torch.testing.assert_close(seen.double(), expected, rtol=1e-4, atol=1e-5)
    for result in (seen, expected):
        result.square().sum().backward()
    assert conv.weight.grad is not None and exact.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)


MANY_GRADIENTS = """
import torch
from tue_cli.nets.classifiers import Pointwise
from tue_cli.nets.frozen import convert_to_channels_last
for _ in range(60):
    conv = convert_to_channels_last(Pointwise(4, 8, 1, 2, bias=False))
    pixels = torch.rand(24, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    conv(pixels.requires_grad_()).square().sum().backward()
"""


@pytest.mark.slow
def test_a_narrow_strided_convolution_leaves_memory_whole() -> None:
    # Where oneDNN writes beside the gradient the process dies, sooner or later; so one of its own,
    # on the instructions with which it does.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MANY_GRADIENTS]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", NETS)
def test_a_net_takes_its_size_or_refuses_it_when_built(name: str) -> None:
    # 16 pixels is the smallest working size that `tue train` allows.
    try:
        net = build_classifier(name, classes=3, width=4, size=16).eval()
    except BadSetting as error:
        assert error.remedy
    else:
        assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize(("key", "parameters"), PUBLISHED.items(), ids=str)
def test_the_published_width_has_the_published_parameters(
    key: tuple[str, int, int], parameters: int
) -> None:
    name, size, classes = key
    with torch.device("meta"):
        assert count(build_classifier(name, classes=classes, size=size)) == parameters


def test_vgg16_has_the_published_body() -> None:
    with torch.device("meta"):
        net = build_classifier("vgg16", classes=10)
    # torchvision's vgg16_bn features, less the biases that its norms make idle.
    assert count(net.body) == 14_723_136 - 4_224


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "wrn34-10"])
def test_pictures_from_96_pixels_get_the_imagenet_stem(name: str) -> None:
    def stem(size: int) -> tuple[int, ...]:
        convolution = next(
            m
            for m in build_classifier(name, classes=2, width=4, size=size).modules()
            if isinstance(m, nn.Conv2d)
        )
        return (*convolution.kernel_size, *convolution.stride)

    assert stem(95) == (3, 3, 1, 1)
    assert stem(96) == (7, 7, 2, 2)


def test_fresh_weights_follow_torch_s_seed() -> None:
    def first() -> Tensor:
        return next(build_classifier("resnet18", classes=2, width=4).parameters())

    torch.manual_seed(3)
    one = first()
    assert not torch.equal(one, first())
    torch.manual_seed(3)
    assert torch.equal(one, first())


def test_an_unknown_net_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadSetting) as caught:
        build_classifier("resnet19", classes=2)
    assert "resnet19" in caught.value.message
    assert all(name in caught.value.remedy for name in NETS)


@pytest.mark.parametrize("width", [3, 0, -8])
def test_too_narrow_a_net_is_refused(width: int) -> None:
    with pytest.raises(BadSetting, match="4 channels or more"):
        build_classifier("resnet18", classes=2, width=width)


@pytest.mark.parametrize(("name", "width"), NARROW)
@pytest.mark.parametrize("size", [32, 96])
def test_folding_keeps_the_logits(name: str, width: int, size: int) -> None:
    net = shaken(build_classifier(name, classes=5, width=width, size=size)).double().eval()
    assert isinstance(net, Classifier)
    copy = fold_batch_norms(net)
    assert not any(isinstance(module, ConvNorm) for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    pixels = torch.rand(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        logits = net(pixels)
        assert logits.std() > 1e-3
        assert torch.allclose(copy(pixels), logits, rtol=1e-9, atol=1e-12)


def test_freezing_leaves_the_net_as_it_was() -> None:
    net = build_classifier("resnet18", classes=3, width=4, size=16)
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    copy = FrozenClassifier(net, torch.float32)
    pixels = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert torch.autograd.grad(copy(pixels).sum(), pixels)[0].any()
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_a_frozen_copy_shares_nothing_with_its_net() -> None:
    net = build_classifier("resnet18", classes=3, width=4, size=16)
    copy = FrozenClassifier(net, torch.float32)
    pixels = torch.rand(2, 3, 16, 16)
    before = copy(pixels)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.zero_()
    assert torch.equal(copy(pixels), before)


def test_a_frozen_net_answers_as_its_net_in_eval_mode(
    tiny_nets: dict[str, nn.Module], toy: Images
) -> None:
    pixels, labels = toy.take_batch(torch.arange(8))
    surrogate, score = tiny_nets["surrogate"].eval(), tiny_nets["score"].eval()
    assert isinstance(surrogate, Classifier)
    copy = FrozenClassifier(surrogate, torch.float32)
    assert torch.allclose(copy(pixels), surrogate(pixels), atol=1e-5)
    assert torch.allclose(copy.features(pixels), surrogate.features(pixels), atol=1e-5)
    assert isinstance(score, ScoreNet)
    field = FrozenScore(score, torch.float32)(pixels, labels)
    assert torch.allclose(field, score(pixels, labels), rtol=1e-4, atol=1e-4)


def test_bf16_stays_close_to_float32(
    tiny_nets: dict[str, nn.Module], tiny_frozen: FrozenNets, toy: Images
) -> None:
    pixels, labels = toy.take_batch(torch.arange(24))
    lowered = {role: freeze(net, torch.bfloat16) for role, net in tiny_nets.items()}
    exact, close = tiny_frozen["surrogate"], lowered["surrogate"]
    assert isinstance(exact, FrozenClassifier)
    assert isinstance(close, FrozenClassifier)
    logits = exact(pixels)
    assert close(pixels).dtype == close.features(pixels).dtype == torch.float32
    assert (close(pixels) - logits).norm() < 0.03 * logits.norm()
    exact_field, field = tiny_frozen["score"], lowered["score"]
    assert isinstance(exact_field, FrozenScore)
    assert isinstance(field, FrozenScore)
    found = field(pixels, labels)
    assert found.dtype == torch.float32
    assert (found - exact_field(pixels, labels)).norm() < 0.05 * found.norm()


def test_gradients_through_bf16_come_back_in_float32_and_point_the_same_way(
    tiny_nets: dict[str, nn.Module], toy: Images
) -> None:
    pixels, labels = toy.take_batch(torch.arange(24))
    net = tiny_nets["surrogate"]
    assert isinstance(net, Classifier)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = pixels.clone().requires_grad_()
        logits = FrozenClassifier(net, dtype)(leaf)
        return torch.autograd.grad(nn.functional.cross_entropy(logits, labels), leaf)[0]

    exact, close = gradient(torch.float32), gradient(torch.bfloat16)
    assert close.dtype == torch.float32
    assert torch.cosine_similarity(exact.flatten(), close.flatten(), dim=0) > 0.97
