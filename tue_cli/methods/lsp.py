"""LSP, linearly separable patches: Yu et al. 2022, "Availability Attacks Create Shortcuts".

No net: each class has a centre among the corners of a cube, each picture a point around it, and
each coordinate colours a patch of the picture.

- What bounds it is its L2 norm, `radius` in the root mean square: single pixels move further.
- Every picture draws its own point, so that classes may be of any size; theirs must be equal.
- A class's centre comes from the run's seed and its key alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.core.batches import make_generator
from tue_cli.core.capture import Run, run_eagerly
from tue_cli.declare import fixed
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.noise import LspNoise


@dataclass(frozen=True)
class PatchSettings:
    """The pattern of lsp (Yu et al. 2022; sklearn's make_classification as they call it)."""

    side: int = fixed(
        8, "width and height of a patch, in pixels", source="Yu et al. 2022, CIFAR-10"
    )
    separation: float = fixed(
        10.0, "distance of the classes' centres from the middle, in each coordinate", source="same"
    )


PATCHES = PatchSettings()


def draw_class(key: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a class's centre (D,), a corner of the cube, and mixing matrix (D, D), as in sklearn."""
    own = make_generator(generator.initial_seed(), "lsp", key, torch.device("cpu"))
    centre = (2 * torch.randint(0, 2, (size,), generator=own) - 1) * PATCHES.separation
    return centre, 2 * torch.rand((size, size), generator=own) - 1


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: LspNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W), of the same L2 norm everywhere but where pixels end.

    A picture's normal draws are the means of its uniform start over each patch.
    """
    count, _, height, width = pixels.shape
    side, rows, columns = PATCHES.side, -(-height // PATCHES.side), -(-width // PATCHES.side)
    missing = (0, columns * side - width, 0, rows * side - height)
    cells = F.avg_pool2d(F.pad(start, missing, mode="replicate"), side)
    normal = cells.flatten(1) * side * math.sqrt(3) / noise.radius
    classes = [draw_class(key, normal.shape[1], generator) for key in labels.tolist()]
    centres, mixings = (torch.stack(part).to(normal) for part in zip(*classes, strict=True))
    points = torch.einsum("nd,nde->ne", normal, mixings) + centres
    grid = points.reshape(count, 3, rows, columns)
    pattern = grid.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
    scale = noise.radius / pattern.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (pixels + scale * pattern).clamp(0, 1) - pixels
