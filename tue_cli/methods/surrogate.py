"""What methods with a surrogate have in common: its term, its adversary, and training it on the
noise that it makes itself (em, rem, tue).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.config import AdversarySettings, TrainSettings
from tue_cli.core.batches import Images, crop_and_flip, sample_moves, shift_and_flip
from tue_cli.core.capture import Captured, Run, Tensors, run_eagerly
from tue_cli.core.loop import Loss, Plan, Training, fit
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import Objective, Term, draw_uniform_start, make_gradient, pgd
from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.frozen import Frozen, FrozenClassifier
from tue_cli.noise import Noise, SampledNoise, SteppedNoise

FrozenNets = Mapping[str, Frozen]
"""The frozen nets of a method, by role."""


Own = TypeVar("Own", bound=Noise, contravariant=True)
"""The noise settings of one method."""


class Perturb(Protocol[Own]):
    """A method's noise; `methods.tue.perturb` says what the arguments are."""

    def __call__(
        self,
        nets: FrozenNets,
        pixels: Tensor,
        labels: Tensor,
        noise: Own,
        *,
        start: Tensor,
        generator: torch.Generator,
        mask: Tensor | None = None,
        run: Run = run_eagerly,
    ) -> Tensor:
        """Return delta, (N, 3, H, W), within the method's bound."""


Fit = Callable[[Training, FrozenNets, Images, TrainSettings, torch.dtype], Iterator[Tensor]]
"""A net's training, the nets trained before it, pictures, settings and precision to losses."""


@dataclass(frozen=True)
class NetFit:
    """How one net of a recipe is trained: by what, and for how long."""

    fit: Fit
    plan: Callable[[TrainSettings, str], Plan]
    """From the settings and the net's name, which also names its random stream."""


def plan_surrogate(settings: TrainSettings, name: str) -> Plan:
    """Return the plan of a classifier: SGD, as REM has it."""
    return Plan(settings.steps, settings.batch, settings.rate, "sgd", settings.seed, name)


def plan_score(settings: TrainSettings, name: str) -> Plan:
    """Return the plan of a score network, or of noises that are trained themselves: Adam."""
    return Plan(
        settings.score_steps, settings.batch, settings.score_rate, "adam", settings.seed, name
    )


def get_surrogate(nets: FrozenNets) -> FrozenClassifier:
    """Return the net of the role `surrogate`."""
    surrogate = nets["surrogate"]
    assert isinstance(surrogate, FrozenClassifier)
    return surrogate


def quantize(delta: Tensor) -> Tensor:
    """Round to whole 8-bit levels, which is all that a file can hold."""
    return (delta * 255).round() / 255


def average_over_moves(loss: Objective, samples: int, moves: Tensor) -> Objective:
    """Return the mean of a loss over EoT samples of the pixels: at every call the next ones.

    Args:
        loss: of moved pixels.
        samples: moves a call.
        moves: of all calls, rows of `sample_moves`.
    """
    rest = iter(moves)

    def objective(pixels: Tensor) -> Tensor:
        seen = [loss(shift_and_flip(pixels, next(rest))) for _ in range(samples)]
        return torch.stack(seen).mean(0)

    return objective


def make_noise(
    pixels: Tensor,
    terms: Sequence[Term],
    noise: SteppedNoise,
    start: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the noise that the terms pull to, by the steps and the radius of a method."""
    return pgd(pixels, terms, radius=noise.radius, steps=noise.steps, start=start, mask=mask)


def list_mask(mask: Tensor | None) -> Tensors:
    """Return the mask as the last inputs of a run, where there is one."""
    return () if mask is None else (mask,)


def sample_eot_moves(noise: SampledNoise, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the EoT samples (a crop and a flip each) of all steps, on the pixels' device."""
    return sample_moves(noise.steps * noise.samples, generator).to(pixels.device)


def make_surrogate_term(
    surrogate: FrozenClassifier, labels: Tensor, noise: SampledNoise, moves: Tensor
) -> Term:
    """Descend l(f'(t(x + delta)), y) over the next EoT samples t at every step."""
    loss = average_over_moves(cross_entropy(surrogate, labels), noise.samples, moves)
    return Term(make_gradient(loss), noise.step)


def ascend_loss(
    loss: Objective, pixels: Tensor, adversary: AdversarySettings, start: Tensor
) -> Tensor:
    """Return delta-a, of the pixels' shape, within the adversary's radius: the loss grows by it.

    Without a step it is the start, cut to the radius and the pixels' range.
    """
    term = Term(make_gradient(loss), -adversary.step)
    return pgd(pixels, [term], radius=adversary.radius, steps=adversary.steps, start=start)


def make_training_loss(net: Classifier, dtype: torch.dtype) -> Loss:
    """Return the mean cross-entropy of a net in training, computed in a precision."""

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            logits = net(pixels.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    return loss


def fit_on_own_noise(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    perturb: Perturb[Own],
    noise: Own,
    adversary: AdversarySettings | None,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train a classifier on its own unlearnable examples, yielding each step's loss.

    With an adversary this is Fang et al., Eq. 7; without one it is standard training on x + delta.
    The noise lives on the pictures as they are; crops and flips come after it, so that what is
    learned here is what a file can carry.
    """
    net = training.net
    assert isinstance(net, Classifier)
    surrogate = FrozenClassifier(net, dtype)
    nets = {**nets, "surrogate": surrogate}
    run_noise, run_adversary = Captured(pictures.pixels.device), Captured(pictures.pixels.device)

    def attack(pixels: Tensor, labels: Tensor, start: Tensor) -> Tensors:
        assert adversary is not None
        return (pixels + ascend_loss(cross_entropy(surrogate, labels), pixels, adversary, start),)

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensors:
        surrogate.follow(net)
        start = draw_uniform_start(pixels, noise.radius, generator)
        delta = perturb(
            nets, pixels, labels, noise, start=start, generator=generator, run=run_noise
        )
        pixels = crop_and_flip(pixels + quantize(delta), generator)
        if adversary is not None:
            start = draw_uniform_start(pixels, adversary.radius, generator)
            (pixels,) = run_adversary(attack, pixels, labels, start)
        return pixels, labels

    yield from fit(training, pictures, loss=make_training_loss(net, dtype), prepare=prepare)
