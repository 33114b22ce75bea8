"""An attacker that learns to restore originals from pairs of an original and its copy.

Everybody can make such pairs: tue and its weights are public, and only the secret is not. So the
attacker protects other pictures, with a secret and random codes of its own, and trains a small net
that maps the copies back. The idea is that of BridgePure (Wang et al. 2024) and of LightShed
(Foerster et al. 2025); the net here is a plain residual denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tue_cli.attacks.filters import Levels
from tue_cli.config import METHODS, ProtectSettings
from tue_cli.core.batches import Images, crop_and_flip
from tue_cli.core.capture import Tensors
from tue_cli.core.loop import Plan, Training, fit
from tue_cli.engine.canvas import make_canvas, perturb_canvases
from tue_cli.engine.torch import ComputeDevice, Floats, TorchEngine
from tue_cli.errors import ImageProblem
from tue_cli.images import codec, encode, resize
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.visibility import Mask
from tue_cli.nets.score import ScoreNet
from tue_cli.weights import Weights

View = Callable[[Pixels], Levels]
"""A picture (H, W, C) to (3, S, S), as victims see it."""

MOST_PICTURES: Final = 300
FEWEST_PICTURES: Final = 50
"""Of fewer the net learns too little to tell anything."""
COPIES: Final = 4
"""Of each picture, each with a code and noise of its own."""
BATCH: Final = 32
"""Pictures that the engine, and the net, take at once."""
WIDTH: Final = 16
CELLS: Final = 16
"""Blocks of pixels along a side that the net works on, at least: it costs the same at each size."""
STEPS: Final = 1500
RATE: Final = 3e-3
SCALE: Final = 255 / 8
"""In the loss, noise counts in the usual radius."""


@dataclass(frozen=True)
class Recipe:
    """How the attacker makes copies: as `tue protect` does, with a secret of its own."""

    settings: ProtectSettings
    weights: Weights
    machine: ComputeDevice

    def make_engine(self) -> TorchEngine:
        """Return the engine of the noise."""
        settings = self.settings
        return TorchEngine(
            self.weights,
            settings.method,
            settings.noise,
            seed=settings.seed,
            machine=self.machine,
            batch=BATCH,
        )


def learn_to_restore(files: Sequence[Path], see: View, recipe: Recipe, *, seed: int) -> Restoration:
    """Make pairs of the attacker's pictures and return what a net learns from them.

    The arguments are those of `make_pairs`.
    """
    originals, copies = make_pairs(files, see, recipe, seed=seed)
    restoration = Restoration(recipe.machine, originals.shape[-1], seed=seed)
    for _ in restoration.learn(originals, copies):
        pass
    return restoration


def make_pairs(
    files: Sequence[Path], see: View, recipe: Recipe, *, seed: int
) -> tuple[Levels, Levels]:
    """Protect pictures in memory, and return originals and copies as victims see them.

    Both are (N, 3, S, S), N = `COPIES` times the pictures. Files of more than twice the victims'
    size are reduced first: what is finer is not seen.

    Args:
        files: pictures that the attacker has.
        see: how a picture becomes what victims see.
        recipe: how the copies are made.
        seed: stands for the attacker's secret; it decides the codes, too.

    Raises:
        ImageProblem: a file cannot be decoded.
    """
    engine, settings = recipe.make_engine(), recipe.settings
    size, codes = recipe.weights.card.size, len(recipe.weights.card.classes)
    draws = np.random.default_rng(seed)
    reach = METHODS[settings.method].find_reach(settings.noise)

    def load(file: Path) -> tuple[codec.DecodedImage, Levels]:
        picture = codec.decode(codec.read(file))
        seen = see(picture.shown)
        return _reduce(picture, 2 * seen.shape[-1]), seen

    originals: list[Levels] = []
    copies: list[Levels] = []
    with ThreadPoolExecutor() as pool:
        for place in range(0, len(files), BATCH):
            loaded = list(pool.map(load, files[place : place + BATCH]))
            canvases = [make_canvas(one.shown, size, settings) for one, _ in loaded]
            for _ in range(COPIES):
                keys = draws.integers(0, codes, len(loaded)).tolist()
                seeds = draws.integers(0, 2**62, len(loaded)).tolist()
                deltas = perturb_canvases(engine, canvases, keys, seeds)
                written = pool.map(
                    lambda one, delta, canvas: see(_write(one[0], delta, reach, canvas.mask)),
                    loaded,
                    deltas,
                    canvases,
                )
                copies += written
                originals += [seen for _, seen in loaded]
    return np.stack(originals), np.stack(copies)


def _reduce(picture: codec.DecodedImage, most: int) -> codec.DecodedImage:
    """Return a picture whose shorter side is less than twice `most`, by a whole factor.

    A reduced one loses nothing in its file: what a large file loses is too fine to be seen.
    """
    factor = min(picture.pixels.shape[:2]) // most
    if factor < 2:
        return picture
    pixels = reduce_to_8_bits(picture.shown)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).reduce(factor)
    levels = np.asarray(image)
    return codec.DecodedImage(np.atleast_3d(levels), None, "PNG")


def _write(picture: codec.DecodedImage, delta: Floats, reach: float, mask: Mask | None) -> Pixels:
    """Return what a viewer shows of the copy, after its file has lost what it loses."""
    try:
        whole = encode.fit_format(picture, "keep", PurePath())
        protected = resize.add_upsampled(delta, whole.pixels, reach, mask)
        return encode.encode(whole, protected).decoded.shown
    except ImageProblem:  # its format cannot hold the copy
        protected = resize.add_upsampled(delta, picture.pixels, reach, mask)
        return replace(picture, pixels=protected).shown


class Restoration:
    """A net that takes out of pictures what it learned to be noise."""

    def __init__(self, machine: ComputeDevice, size: int, *, seed: int, steps: int = STEPS) -> None:
        """Draw the net from a seed; it changes nothing until it has learned.

        `size` is the width and height of pictures, a multiple of 4 and 32 at least.
        """
        block = max(b for b in range(2, size // CELLS + 1) if size % (2 * b) == 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = ScoreNet(classes=1, width=WIDTH, sigma=1.0, block=block)
        assert net.leave.bias is not None
        torch.nn.init.zeros_(net.leave.bias)
        self._net = net.to(machine.device)
        self._machine = machine
        plan = Plan(steps, BATCH, RATE, "adam", seed, "restore")
        self._training = Training(self._net, plan)

    def learn(self, originals: Levels, copies: Levels) -> Iterator[Tensor]:
        """Train to the last step on pairs (N, 3, S, S), yielding each step's loss."""
        device, dtype = self._machine.device, self._machine.dtype
        clean = torch.from_numpy(originals).to(device)
        pairs = Images(torch.from_numpy(copies), torch.arange(len(copies))).to(device)

        def prepare(pixels: Tensor, places: Tensor, generator: torch.Generator) -> Tensors:
            noise = pixels - clean[places].float().div(255)
            # The same crops and flips of both: without them the net learns its pictures by heart.
            both = crop_and_flip(torch.cat([pixels, noise], 1), generator)
            return both[:, :3], both[:, 3:]

        def loss(pixels: Tensor, noise: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                found = self._estimate_noise(pixels)
            return F.mse_loss(SCALE * found.float(), SCALE * noise)

        yield from fit(self._training, pairs, loss=loss, prepare=prepare)

    @torch.no_grad()
    def __call__(self, pixels: Levels) -> Levels:
        """Return pictures (N, 3, S, S) without what the net takes for noise."""
        self._net.eval()
        result = np.empty_like(pixels)
        for place in range(0, len(pixels), BATCH):
            part = slice(place, place + BATCH)
            few = torch.from_numpy(pixels[part]).to(self._machine.device).float().div(255)
            restored = (few - self._estimate_noise(few)).clamp(0, 1)
            result[part] = (255 * restored).round().to(torch.uint8).cpu().numpy()
        return result

    def _estimate_noise(self, pixels: Tensor) -> Tensor:
        labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        return self._net.estimate_noise(pixels, labels)
