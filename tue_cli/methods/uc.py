"""UC, unlearnable clusters: Zhang et al. 2023, "Unlearnable Clusters: Towards Label-agnostic
Unlearnable Examples".

Nobody's labels are needed: a clean net's features fall into clusters, and each cluster has one
noise for all its pictures, which pulls any picture's features to the centre of the next cluster. So
it serves a folder without classes (`--labels cluster`), whatever labels a victim gives them.

- The clean net is trained here, where the paper takes one that was trained on ImageNet.
- The noises themselves are trained, where the paper trains a generator for each of them, a ResNet
  with one fixed input.
- They are bounded by tanh; the paper's are cut at the radius, which stops their gradient.
- Every noise learns from all pictures, of whatever cluster, as in the paper's code.
- As many clusters as the weights have classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Images, apply_crops, sample_crops
from tue_cli.core.capture import Run, Tensors, run_eagerly
from tue_cli.core.clustering import cluster
from tue_cli.core.loop import Training, fit
from tue_cli.core.losses import divergence
from tue_cli.methods import clean
from tue_cli.methods.surrogate import FrozenNets, NetFit, get_surrogate, plan_score
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.nets.patterns import Patterns
from tue_cli.noise import UcNoise

CLUSTERED = 10_000
"""At most so many pictures decide where the centres are."""
TESTED = 500
"""Pictures a forward pass."""


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: UcNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W): that of each picture's cluster, cut to the pixels' range."""
    patterns = nets["patterns"]
    assert isinstance(patterns, Patterns)
    with torch.no_grad():
        delta: Tensor = noise.radius * patterns(labels)
        return (pixels + delta).clamp(0, 1) - pixels


def find_centres(surrogate: FrozenClassifier, pictures: Images, count: int, seed: int) -> Tensor:
    """Return the centres (count, D) of clusters of clean pictures' features, by k-means."""
    few = torch.split(torch.arange(min(len(pictures), CLUSTERED)), TESTED)
    with torch.no_grad():
        features = torch.cat([surrogate.features(pictures.take_batch(part)[0]) for part in few])
    numbers = torch.from_numpy(cluster(features.cpu().numpy(), count, seed)).to(features.device)
    found = [features[numbers == number].mean(0) for number in range(int(numbers.max()) + 1)]
    return torch.stack([found[number % len(found)] for number in range(count)])


def fit_patterns(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the clusters' noises, with the clean surrogate frozen in `nets`."""
    patterns, surrogate = training.net, get_surrogate(nets)
    assert isinstance(patterns, Patterns)
    count, radius = len(patterns.raw), settings.noise.radius
    centres = find_centres(surrogate, pictures, count, settings.seed)

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensors:
        drawn = torch.randint(0, count, labels.shape, generator=generator, device=generator.device)
        return pixels, drawn, *sample_crops(len(pixels), generator)

    def loss(pixels: Tensor, drawn: Tensor, *crops: Tensor) -> Tensor:
        moved = (pixels + radius * patterns(drawn)).clamp(0, 1)
        features = surrogate.features(apply_crops(moved, crops))
        return divergence(features, centres[(drawn + 1) % count]).mean()

    yield from fit(training, pictures, loss=loss, prepare=prepare)


FITS = {**clean.FITS, "patterns": NetFit(fit_patterns, plan_score)}
