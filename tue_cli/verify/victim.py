"""Victims: classifiers trained as somebody would train them who took the pictures, and tested.

The training is REM's victim (SGD, momentum 0.9, weight decay 5e-4, crops and flips, no clean
picture), shortened; its adversary is REM's PGD. If pictures are larger than a victim's input, it
learns from random resized crops and is tested on their middle, as on ImageNet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.attacks.augment import AUGMENTATIONS
from tue_cli.config import AdversarySettings, VictimSettings
from tue_cli.core.batches import (
    Images,
    crop_and_flip,
    crop_and_resize,
    crop_middle,
    make_generator,
)
from tue_cli.core.capture import Captured, Tensors
from tue_cli.core.loop import Plan, Training, fit
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import draw_uniform_start
from tue_cli.engine.torch import ComputeDevice
from tue_cli.methods.surrogate import ascend_loss
from tue_cli.nets.classifiers import Classifier, build_classifier
from tue_cli.nets.frozen import FrozenClassifier, convert_to_channels_last
from tue_cli.verify.pretrained import build_pretrained

ATTACKED = 1000
"""At most so many of its own training pictures an adversarial victim is attacked on at the end."""
TESTED = 500
"""Pictures a forward pass when testing."""


@dataclass(frozen=True)
class TrainingResult:
    """What became of a victim; accuracies are means over the classes, 0 to 1."""

    curve: tuple[float, ...]
    """On the test pictures, at evenly spaced steps, the last one last."""
    train: float
    """On its own training pictures, as they are."""
    attacked: float | None
    """On its own training pictures under its own adversary; None for standard training."""
    seconds: float
    """Of training, without tests."""


class Attacker:
    """The adversary of adversarial training: it moves pictures so that a net's loss grows."""

    def __init__(self, net: FrozenClassifier, adversary: AdversarySettings) -> None:
        self.net = net
        self._adversary = adversary
        self._run = Captured(next(net.net.parameters()).device)

    def __call__(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return pixels (N, 3, H, W) in [0, 1], moved within the radius."""
        start = draw_uniform_start(pixels, self._adversary.radius, generator)
        return self._run(self._move, pixels, labels, start)[0]

    def _move(self, pixels: Tensor, labels: Tensor, start: Tensor) -> Tensors:
        loss = cross_entropy(self.net, labels)
        return (pixels + ascend_loss(loss, pixels, self._adversary, start),)


class Victim:
    """One victim, from fresh weights to its last step."""

    def __init__(
        self,
        settings: VictimSettings,
        *,
        classes: int,
        size: int,
        steps: int,
        seed: int,
        computer: ComputeDevice,
        adversary: AdversarySettings | None = None,
        mixing: str = "",
    ) -> None:
        """`mixing` is a key of `AUGMENTATIONS`, or nothing; `steps` are updates of the net.

        `size` is the width and height of its input.

        Raises BadSetting where there is no such net, or none for pictures of this size, and
        WeightsProblem where pretrained weights are not what they were.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.start:
                net = build_pretrained(settings, classes)
            else:
                net = build_classifier(
                    settings.net, classes=classes, width=settings.width, size=size
                )
        self.net: Classifier = convert_to_channels_last(net.to(computer.device))
        self._classes = classes
        self._size = size
        self._computer = computer
        self._adversary = adversary
        self._mixing = AUGMENTATIONS[mixing] if mixing else None
        plan = Plan(
            steps=steps,
            batch=settings.batch,
            rate=settings.rate,
            optimizer="sgd",
            seed=seed,
            stream="victim",
        )
        self._training = Training(self.net, plan)

    def freeze_net(self) -> FrozenClassifier:
        """Return the net as it is now, in the computer's precision."""
        return FrozenClassifier(self.net, self._computer.dtype)

    def train(
        self, pictures: Images, test: Images, *, points: int
    ) -> Generator[float, None, TrainingResult]:
        """Train to the last step, yielding the test accuracy at `points` evenly spaced steps.

        The same seed, pictures and machine give the same net.
        """
        device, steps = self._computer.device, self._training.plan.steps
        pictures = pictures.to(device)
        middles, test = self.crop_middle(pictures), self.crop_middle(test.to(device))
        marks = {math.ceil(steps * (point + 1) / points) for point in range(points)}
        curve: list[float] = []
        spent, began = 0.0, time.monotonic()
        for _ in self.run_updates(pictures):
            if self._training.step not in marks:
                continue
            spent += self._measure_elapsed(began)
            curve.append(balanced_accuracy(self.freeze_net(), test, self._classes))
            yield curve[-1]
            began = time.monotonic()
        return TrainingResult(
            curve=tuple(curve),
            train=balanced_accuracy(self.freeze_net(), middles, self._classes),
            attacked=self._attack_training(middles),
            seconds=spent,
        )

    def crop_middle(self, pictures: Images) -> Images:
        """Return what the victim sees of pictures that it is tested on."""
        return crop_middle(pictures, self._size)

    def measure_accuracy(self, pictures: Images) -> float:
        """Return the mean over their classes of the share that it classifies correctly, 0 to 1."""
        pictures = self.crop_middle(pictures.to(self._computer.device))
        return balanced_accuracy(self.freeze_net(), pictures, self._classes)

    def run_updates(self, pictures: Images) -> Generator[Tensor, None, None]:
        """Train to the last step, yielding each step's loss; pictures on the victim's device."""
        attack = Attacker(self.freeze_net(), self._adversary) if self._adversary else None

        def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensors:
            if pixels.shape[-1] > self._size:
                pixels = crop_and_resize(pixels, self._size, generator)
            else:
                pixels = crop_and_flip(pixels, generator)
            if attack is not None:
                attack.net.follow(self.net)
                pixels = attack(pixels, labels, generator)
            targets = F.one_hot(labels, self._classes).float()
            if self._mixing is not None:
                pixels, targets = self._mixing(pixels, targets, generator)
            return pixels, targets

        yield from fit(self._training, pictures, loss=self._compute_loss, prepare=prepare)

    def _compute_loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        device, dtype = self._computer.device, self._computer.dtype
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = self.net(pixels.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), targets)

    def _attack_training(self, pictures: Images) -> float | None:
        if self._adversary is None:
            return None
        device, batch, net = self._computer.device, self._training.plan.batch, self.freeze_net()
        attack = Attacker(net, self._adversary)
        generator = make_generator(0, "attacked", 0, device)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        right: list[Tensor] = []
        order = order[:ATTACKED].to(device)
        for few in torch.split(order, batch):
            pixels, labels = pictures.take_batch(few)
            moved = attack(pixels, labels, generator)
            with torch.no_grad():
                right.append(net(moved).argmax(1) == labels)
        return _average_over_classes(torch.cat(right), pictures.labels[order], self._classes)

    def _measure_elapsed(self, began: float) -> float:
        if self._computer.device.type == "cuda":
            torch.cuda.synchronize(self._computer.device)
        return time.monotonic() - began


@torch.no_grad()
def balanced_accuracy(logits: Callable[[Tensor], Tensor], pictures: Images, classes: int) -> float:
    """Return the mean over the classes of the share of pictures classified correctly, 0 to 1.

    So chance is one over the number of classes, however unequal they are.
    """
    right = [
        logits(pixels).argmax(1) == labels
        for pixels, labels in (
            pictures.take_batch(few) for few in torch.split(torch.arange(len(pictures)), TESTED)
        )
    ]
    return _average_over_classes(torch.cat(right), pictures.labels, classes)


def _average_over_classes(right: Tensor, labels: Tensor, classes: int) -> float:
    counts = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    present = counts > 0
    return float((hits[present].double() / counts[present].double()).mean())
