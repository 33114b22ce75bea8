"""The pictures that ntga's learner has, and those that it is to get wrong: data in a net's place.

They are pictures of the folder that the weights were made of, and anybody can extract them from the
weights file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tue_cli.core.batches import Images


class NtgaBlock(nn.Module):
    """A labelled block with its noise, `delta`, and held-out pictures; all of one size."""

    levels: Tensor
    labels: Tensor
    held_out_levels: Tensor
    held_out_labels: Tensor

    def __init__(self, *, classes: int, size: int, count: int, held_out: int) -> None:
        super().__init__()
        self.classes = classes
        self.delta = nn.Parameter(torch.zeros(count, 3, size, size))
        self.register_buffer("levels", torch.zeros(count, 3, size, size, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))
        self.register_buffer(
            "held_out_levels", torch.zeros(held_out, 3, size, size, dtype=torch.uint8)
        )
        self.register_buffer("held_out_labels", torch.zeros(held_out, dtype=torch.int64))

    def fill(self, pictures: Images, order: Tensor) -> None:
        """Take the pictures in an order: a share of them is held out, the others are the block.

        No picture is in both; where there are too few, they come up more than once in their part.
        """
        parts = len(self.held_out_labels), len(self.labels)
        first = min(len(order) - 1, max(1, len(order) * parts[0] // sum(parts)))
        for rows, levels, labels in (
            (order[:first], self.held_out_levels, self.held_out_labels),
            (order[first:], self.levels, self.labels),
        ):
            chosen = rows[torch.arange(len(labels)) % len(rows)].to(pictures.labels.device)
            levels.copy_(pictures.pixels[chosen])
            labels.copy_(pictures.labels[chosen])

    @property
    def pixels(self) -> Tensor:
        """The block without its noise, float32 in [0, 1]."""
        return self.levels.float() / 255

    @property
    def held_out(self) -> Tensor:
        """The pictures held out, float32 in [0, 1]."""
        return self.held_out_levels.float() / 255
