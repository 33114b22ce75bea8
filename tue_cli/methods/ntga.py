"""NTGA, neural tangent generalisation attacks: Yuan and Wu 2021, "Neural Tangent Generalization
Attacks", for their fully connected surrogate, whose kernel is known in closed form.

A learner is given a block of pictures and descends for a time; the noise on the block makes it
wrong about held-out pictures, by the gradient through kernel and learning alike.

- The weights are a block of 512 pictures, whose noise is made jointly in training. Every other
  picture joins that block as one more, so that its noise does not depend on which pictures come
  with it; in the paper every picture belongs to a block of its own.
- Ten true steps, each from where the last one ended; the released code takes the first one only.
- Held-out pictures come from the weights' own training pictures, and none of them from a test set.
- Their convolutional surrogate protects better and its kernel costs thousands of times as much: it
  is not here.
- What it costs, at 32 x 32 and ten steps on one core, 1.3 s for 32 pictures of 10 classes (25 a
  second), and 17 s where there are 100 classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.config import KernelSettings, TrainSettings
from tue_cli.core.batches import Images, draw_batch
from tue_cli.core.capture import Run, run_eagerly
from tue_cli.core.kernel import (
    compute_kernel_diagonal,
    fit_coefficients,
    fit_with_last_image,
    tangent_kernel,
)
from tue_cli.core.loop import Plan, Training
from tue_cli.core.pgd import Term, make_gradient, pgd
from tue_cli.methods.surrogate import FrozenNets, NetFit, list_mask, make_noise
from tue_cli.nets.block import NtgaBlock
from tue_cli.noise import NtgaNoise

KERNEL = KernelSettings()


def make_targets(labels: Tensor, classes: int) -> Tensor:
    """Return what the learner regresses on, (N, C): 1 at the label, the mean taken off."""
    return F.one_hot(labels, classes).float() - 1 / classes


def compute_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel (N, M) of pictures (N, 3, H, W) and (M, 3, H, W)."""
    return tangent_kernel(a.flatten(1), b.flatten(1), KERNEL)


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: NtgaNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W): each picture, joining the block, makes the learner more wrong."""
    block = nets["block"]
    assert isinstance(block, NtgaBlock)
    shared = block.pixels + block.delta
    kernel = compute_kernel(shared, shared)
    scale = kernel.diagonal().mean()
    # On the CPU, which every machine has an eigensolver for.
    spectrum, basis = (part.to(pixels) for part in torch.linalg.eigh((kernel / scale).cpu()))
    held_out = compute_kernel(block.held_out, shared) @ basis / scale
    targets = basis.T @ make_targets(block.labels, block.classes)
    target = make_targets(labels, block.classes)

    def objective(moved: Tensor) -> Tensor:
        rows = compute_kernel(moved, shared) @ basis / scale
        own = compute_kernel_diagonal(moved.flatten(1), KERNEL) / scale
        known, last = fit_with_last_image(spectrum, rows, own, targets, target, KERNEL.time)
        seen = compute_kernel(moved, block.held_out) / scale
        logits = held_out @ known + seen[:, :, None] * last[:, None]
        wanted = block.held_out_labels.expand(len(moved), -1)
        return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)

    term = Term(make_gradient(objective), -noise.step)
    return make_noise(pixels, [term], noise, start, *list_mask(mask))


def compute_held_out_losses(block: NtgaBlock, moved: Tensor) -> Tensor:
    """Return the learner's cross-entropy on each held-out picture, given the block moved so."""
    kernel = compute_kernel(moved, moved)
    scale = kernel.diagonal().mean().detach()
    known = fit_coefficients(kernel / scale, make_targets(block.labels, block.classes), KERNEL.time)
    logits = compute_kernel(block.held_out, moved) / scale @ known
    return F.cross_entropy(logits, block.held_out_labels, reduction="none")


def fit_block(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Choose the block and make its noise, a step of ascent at a time; yield the learner's loss."""
    block, noise = training.net, settings.noise
    assert isinstance(block, NtgaBlock) and isinstance(noise, NtgaNoise)
    if not training.step:
        order = draw_batch(len(pictures), len(pictures), seed=settings.seed, step=0)
        block.fill(pictures, order)
    term = Term(make_gradient(lambda moved: compute_held_out_losses(block, moved)), -noise.step)
    while training.step < training.plan.steps:
        start = block.delta.detach()
        delta = pgd(block.pixels, [term], radius=noise.radius, steps=1, start=start)
        with torch.no_grad():
            block.delta.copy_(delta)
            loss = compute_held_out_losses(block, block.pixels + delta).mean()
        training.step += 1
        yield loss


def plan_block(settings: TrainSettings, name: str) -> Plan:
    """Return the plan of the block: a step of training is one of its noise."""
    assert isinstance(settings.noise, NtgaNoise)
    return Plan(settings.noise.steps, settings.batch, settings.rate, "sgd", settings.seed, name)


FITS = {"block": NetFit(fit_block, plan_block)}
