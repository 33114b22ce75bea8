"""One noise a cluster, the same for all its pictures: what uc trains in a net's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Patterns(nn.Module):
    """A square of noise for each cluster, before `tanh` and its radius."""

    def __init__(self, *, count: int, size: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(2 * torch.rand(count, 3, size, size) - 1)

    def forward(self, clusters: Tensor) -> Tensor:
        """Return the noise (N, 3, size, size) of clusters (N,), in (-1, 1)."""
        return self.raw[clusters].tanh()
