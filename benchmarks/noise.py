"""The noise of TUE as its paper has it, which benchmarks compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tue_cli.config import TRAINING_NOISE
from tue_cli.noise import TueNoise


def make_published_noise(**changes: Any) -> TueNoise:
    """Return TUE's noise as the paper has it, but for the changes: no term in grayscale."""
    noise = TRAINING_NOISE["tue"]
    assert isinstance(noise, TueNoise)
    return replace(noise, **changes)
