"""The linear probe: a classifier on the features of a pretrained net that stays as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.config import VictimSettings
from tue_cli.core.batches import Images, crop_middle
from tue_cli.engine.torch import ComputeDevice
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.verify.pretrained import build_pretrained
from tue_cli.verify.victim import TrainingResult, balanced_accuracy

PENALTY = 0.1
"""Of half the squared weights of standardized features, beside the mean cross-entropy.

On the features of 2000 originals of CIFAR-10, the best of 0.0001 to 0.3 but one, which is 0.3.
"""
ITERATIONS = 100


class Probe:
    """A logistic regression on features of each picture as it is, and flipped."""

    def __init__(
        self,
        settings: VictimSettings,
        *,
        classes: int,
        size: int,
        steps: int,
        computer: ComputeDevice,
    ) -> None:
        """`steps` are batches of features; `size` is the width and height of what is seen.

        Raises WeightsProblem where the pretrained weights are not what they were.
        """
        net = build_pretrained(settings, classes).to(computer.device)
        self._net = FrozenClassifier(net, computer.dtype)
        self._settings = settings
        self._classes = classes
        self._size = size
        self._steps = steps
        self._device = computer.device
        self._classify: Callable[[Tensor], Tensor] | None = None

    def freeze_net(self) -> FrozenClassifier:
        """Return the pretrained net, whose features are those of the probe."""
        return self._net

    def train(
        self, pictures: Images, test: Images, *, points: int
    ) -> Generator[float, None, TrainingResult]:
        """Fit the classifier, and yield its test accuracy once; `points` must be 1.

        The same pictures and machine give the same classifier.
        """
        assert points == 1
        pictures = self.crop_middle(pictures.to(self._device))
        test = self.crop_middle(test.to(self._device))
        began = time.monotonic()
        # A fold, or a part of the pictures, may have fewer batches than `steps` were planned for.
        steps = 2 * -(-len(pictures) // self._settings.batch)
        features = torch.cat(list(self._compute_features(pictures, steps)))
        mean, deviation = features.mean(0), features.std(0) + 1e-6
        labels = pictures.labels.repeat(2)
        weight, bias = self._fit((features - mean) / deviation, labels)
        spent = time.monotonic() - began

        def classify(pixels: Tensor) -> Tensor:
            return (self._net.features(pixels) - mean) / deviation @ weight + bias

        self._classify = classify
        with torch.no_grad():
            accuracy = balanced_accuracy(classify, test, self._classes)
            yield accuracy
            train = balanced_accuracy(classify, pictures, self._classes)
        return TrainingResult(curve=(accuracy,), train=train, attacked=None, seconds=spent)

    def measure_accuracy(self, pictures: Images) -> float:
        """Return the mean over their classes of the share that it classifies correctly, 0 to 1.

        The classifier must be trained.
        """
        assert self._classify is not None
        pictures = self.crop_middle(pictures.to(self._device))
        return balanced_accuracy(self._classify, pictures, self._classes)

    def crop_middle(self, pictures: Images) -> Images:
        """Return what the probe sees of pictures."""
        return crop_middle(pictures, self._size)

    def run_updates(self, pictures: Images) -> Generator[Tensor, None, None]:
        """Yield the features of each batch, (N, D): all pictures in order, then all flipped."""
        yield from self._compute_features(pictures, self._steps)

    def _compute_features(self, pictures: Images, steps: int) -> Generator[Tensor, None, None]:
        batches = torch.split(torch.arange(len(pictures)), self._settings.batch)
        for step in range(steps):
            flipped, place = divmod(step, len(batches))
            pixels, _ = pictures.take_batch(batches[place])
            with torch.no_grad():
                features = self._net.features(pixels.flip(3) if flipped % 2 else pixels)
            yield features

    def _fit(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (D, K) and biases (K,) that minimize the penalized cross-entropy."""
        weight = torch.zeros(features.shape[1], self._classes, device=self._device)
        bias = torch.zeros(self._classes, device=self._device)
        weight.requires_grad_()
        bias.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def compute_loss() -> Tensor:
            loss = F.cross_entropy(features @ weight + bias, labels)
            loss = loss + PENALTY / 2 * weight.square().sum()
            weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
            return loss

        optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
        return weight.detach(), bias.detach()
