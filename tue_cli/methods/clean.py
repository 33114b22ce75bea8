"""A surrogate that is trained on pictures as they are: no method, but what tap and uc attack."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Images, crop_and_flip
from tue_cli.core.loop import Training, fit
from tue_cli.methods.surrogate import FrozenNets, NetFit, make_training_loss, plan_surrogate
from tue_cli.nets.classifiers import Classifier


def fit_surrogate(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the surrogate by standard training, with crops and flips."""
    assert isinstance(training.net, Classifier)
    yield from fit(
        training,
        pictures,
        loss=make_training_loss(training.net, dtype),
        prepare=lambda pixels, labels, generator: (crop_and_flip(pixels, generator), labels),
    )


FITS = {"surrogate": NetFit(fit_surrogate, plan_surrogate)}
