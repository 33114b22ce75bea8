"""The class-conditional score network s(x, y), an estimate of the gradient of log p(x | y)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x) scaled and shifted by the class))."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Embedding(classes, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        scale, shift = self.film(labels)[:, :, None, None].chunk(2, dim=1)
        return x + cast(Tensor, self.second((self.first(x) * (1 + scale) + shift).relu()))


class ScoreNet(nn.Module):
    """A two-level residual denoiser; it predicts the noise e, and s = -e / sigma.

    The first level works on `block` x `block` pixels at once, and no layer normalises: at width 2w
    it costs less than a ResNet-18 of width w. Height and width must be multiples of twice `block`.
    """

    def __init__(self, *, classes: int, width: int, sigma: float, block: int = 2) -> None:
        super().__init__()
        self.sigma = sigma
        self.block = block
        self.enter = nn.Conv2d(3 * block**2, width, 3, padding=1)
        self.fine = nn.ModuleList(ResidualBlock(width, classes) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 2, 2)
        self.coarse = nn.ModuleList(ResidualBlock(2 * width, classes) for _ in range(3))
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.leave = nn.Conv2d(width, 3 * block**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def estimate_noise(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the estimated noise e in pixels = x + sigma * e; (N, 3, H, W)."""
        x = fine = self.fine[0](self.enter(F.pixel_unshuffle(pixels - 0.5, self.block)), labels)
        x = self.down(x)
        for block in self.coarse:
            x = block(x, labels)
        x = fine + F.pixel_shuffle(self.up(x), 2)
        return F.pixel_shuffle(self.leave(self.fine[1](x, labels)), self.block)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return s(x, y), (N, 3, H, W), of pixels in [0, 1] and class numbers (N,)."""
        return self.estimate_noise(pixels, labels) / -self.sigma
