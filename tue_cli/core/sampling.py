"""The randomness of the noise, drawn without torch: each picture's start and each step's EoT
samples, the moves. torch's generator on the CPU draws the same moves, so both engines make the same
noise.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PADDING = 4
"""Black pixels around a picture before a random crop (REM, Fu et al. 2022)."""

Places = NDArray[np.int64]
Move = tuple[int, int, bool]
"""An EoT sample: how far down and right a picture is cropped, 0 to 8, and whether it is flipped."""
STAY: Move = (PADDING, PADDING, False)


def draw_starts(shape: tuple[int, ...], seeds: list[int], radius: float) -> NDArray[np.float32]:
    """Draw each picture's first delta, uniform in the ball, from its own seed."""
    draws = [np.random.Generator(np.random.Philox(seed)).random(shape[1:]) for seed in seeds]
    return ((2 * np.stack(draws) - 1) * radius).astype(np.float32)


def derive_seed(seed: int, stream: str, step: int) -> int:
    """Return the seed of one step of one named stream of a run, below 2**63."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_moves(seed: int, count: int) -> list[Move]:
    """Draw moves, as `torch.randint(0, 9, (2,))` and `torch.rand(()) < 0.5` in turns do.

    That is from `torch.Generator().manual_seed(seed)`, a Mersenne twister, of which the one takes
    remainders and the other the lower 24 bits.
    """
    twister = np.random.MT19937()
    twister._legacy_seeding(seed & 0xFFFFFFFF)
    side = 2 * PADDING + 1
    drawn = twister.random_raw(3 * count).reshape(count, 3).tolist()
    return [(top % side, left % side, flip & 0xFFFFFF < 1 << 23) for top, left, flip in drawn]


def locate_pixels(moves: list[Move], height: int, width: int) -> tuple[Places, Places]:
    """Return where each pixel of a moved picture comes from, and where its gradient goes back to.

    Both are (M, H * W), a row a move; places count along a picture's rows, and H * W is the place
    of black.
    """
    rows, columns = np.arange(height), np.arange(width)
    there, back = [], []
    for top, left, flip in moves:
        # The way back is the shift the other way; the flip comes last there, and first here.
        come = (width - 1 - columns if flip else columns) + left - PADDING
        go = columns + PADDING - left
        there.append(_index_pixels(rows + top - PADDING, come, height, width))
        back.append(
            _index_pixels(rows + PADDING - top, width - 1 - go if flip else go, height, width)
        )
    return np.stack(there), np.stack(back)


def _index_pixels(rows: Places, columns: Places, height: int, width: int) -> Places:
    """Return the places of rows and columns, (H * W,), of which those outside are black."""
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return np.where(inside, rows[:, None] * width + columns, height * width).ravel()
