"""A surrogate trained on the noise that it makes itself: what em, rem and tue have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore
from tue_cli.numerics.batches import Pictures, crop_and_flip, sample_shift_and_flip
from tue_cli.numerics.loop import Training, fit
from tue_cli.numerics.losses import cross_entropy
from tue_cli.numerics.pgd import Term, gradient_of, pgd, uniform_start
from tue_cli.settings import AdversarySettings, NoiseSettings

FrozenNets = Mapping[str, FrozenClassifier | FrozenScore]
"""The frozen nets of a method, by role."""


class Perturb(Protocol):
    """A method's noise; `methods.tue.perturb` says what the arguments are."""

    def __call__(
        self,
        nets: FrozenNets,
        pixels: Tensor,
        labels: Tensor,
        noise: NoiseSettings,
        *,
        start: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return delta, (N, 3, H, W), within the radius."""


def surrogate_of(nets: FrozenNets) -> FrozenClassifier:
    """Return the net of the role `surrogate`."""
    surrogate = nets["surrogate"]
    assert isinstance(surrogate, FrozenClassifier)
    return surrogate


def snapped(delta: Tensor) -> Tensor:
    """Round to whole 8-bit levels, which is all that a file can hold."""
    return (delta * 255).round() / 255


def surrogate_term(
    surrogate: FrozenClassifier,
    labels: Tensor,
    noise: NoiseSettings,
    generator: torch.Generator,
) -> Term:
    """Descend l(f'(t(x + delta)), y) over fresh shifts and flips t at every step."""
    loss = cross_entropy(surrogate, labels)

    def objective(pixels: Tensor) -> Tensor:
        draws = [sample_shift_and_flip(generator) for _ in range(noise.samples)]
        return torch.stack([loss(draw(pixels)) for draw in draws]).mean(0)

    return Term(gradient_of(objective), noise.step)


def fit_on_own_noise(
    training: Training,
    nets: FrozenNets,
    pictures: Pictures,
    perturb: Perturb,
    noise: NoiseSettings,
    adversary: AdversarySettings | None,
    dtype: torch.dtype,
) -> Iterator[float]:
    """Train a classifier on its own unlearnable examples, yielding each step's loss.

    With an adversary this is Fang et al., Eq. 7; without one it is standard training on x + delta.
    The noise lives on the pictures as they are; shifts and flips come after it, so that what is
    learned here is what a file can carry.
    """
    net, device = training.net, pictures.pixels.device
    assert isinstance(net, Classifier)

    def corrupt(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        surrogate = FrozenClassifier(net, dtype)
        delta = perturb(
            {**nets, "surrogate": surrogate},
            pixels,
            labels,
            noise,
            start=uniform_start(pixels, noise.radius, generator),
            generator=generator,
        )
        pixels = crop_and_flip(pixels + snapped(delta), generator)
        if adversary is None:
            return pixels
        ascend = Term(gradient_of(cross_entropy(surrogate, labels)), -adversary.step)
        start = uniform_start(pixels, adversary.radius, generator)
        return pixels + pgd(
            pixels, [ascend], radius=adversary.radius, steps=adversary.steps, start=start
        )

    def loss(pixels: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(pixels.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    yield from fit(training, pictures, loss=loss, corrupt=corrupt)
