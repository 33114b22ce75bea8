"""Noise by the published loops, written plainly: what the engines are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tue_cli.config import AdversarySettings
from tue_cli.core.batches import crop_and_flip, make_generator, sample_moves, shift_and_flip
from tue_cli.core.losses import cross_entropy, score_norm
from tue_cli.core.pgd import Objective, Term, draw_uniform_start, pgd
from tue_cli.core.sampling import draw_starts
from tue_cli.noise import RemNoise, TueNoise

CPU = torch.device("cpu")
Gradient = Callable[[Objective, nn.Module], Callable[[Tensor], Tensor]]


def backward_through(objective: Objective, net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the gradient by pixels as `loss.backward()` gives it, with that of all parameters."""

    def gradient(at: Tensor) -> Tensor:
        net.zero_grad()
        with torch.enable_grad():
            leaf = at.detach().requires_grad_()
            objective(leaf).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    return gradient


def perturb_plainly(
    nets: Mapping[str, nn.Module],
    pixels: NDArray[np.float32],
    keys: NDArray[np.int64],
    seeds: list[int],
    noise: TueNoise,
    gradient: Gradient,
) -> Tensor:
    """Return the noise of tue without the grayscale term, in float32 and NCHW."""
    labels, generator = torch.from_numpy(keys), make_generator(0, "perturb", 0, CPU)
    loss = cross_entropy(nets["surrogate"], labels)

    def move(at: Tensor) -> Tensor:
        return loss(shift_and_flip(at, sample_moves(1, generator)[0]))

    terms = [Term(gradient(move, nets["surrogate"]), noise.step)]
    if noise.score_ratio:
        norm = score_norm(nets["score"], labels)
        terms.append(Term(gradient(norm, nets["score"]), noise.score_ratio * noise.step))
    start = torch.from_numpy(draw_starts(pixels.shape, seeds, noise.radius))
    at = torch.from_numpy(pixels)
    return pgd(at, terms, radius=noise.radius, steps=noise.steps, start=start)


def perturb_rem_plainly(
    net: nn.Module,
    pixels: NDArray[np.float32],
    keys: NDArray[np.int64],
    seeds: list[int],
    noise: RemNoise,
) -> Tensor:
    """Return the noise of rem by its published loop (Fu et al. 2022), in float32 and NCHW.

    Each picture has EoT samples of its own; for each of the samples there is an adversary, and the
    gradient there is sent back through the shift.
    """
    clean, labels = torch.from_numpy(pixels), torch.from_numpy(keys)
    inner = AdversarySettings(radius=noise.inner_radius, steps=noise.inner_steps)
    generator = make_generator(0, "perturb", 0, CPU)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.detach().requires_grad_()
        F.cross_entropy(net(leaf), labels).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    delta = torch.from_numpy(draw_starts(pixels.shape, seeds, noise.radius))
    for _ in range(noise.steps):
        delta.requires_grad_()
        for _ in range(noise.samples):
            moved = crop_and_flip((clean + delta).clamp(0, 1), generator)
            fixed = moved.detach()
            attacked = fixed + draw_uniform_start(fixed, inner.radius, generator)
            for _ in range(inner.steps):
                attacked = attacked + inner.step * gradient(attacked).sign()
                attacked = fixed + (attacked - fixed).clamp(-inner.radius, inner.radius)
                attacked = attacked.clamp(0, 1)
            (moved * gradient(attacked)).sum().backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        delta = (delta.detach() - noise.step * delta.grad.sign()).clamp(-noise.radius, noise.radius)
    return delta
