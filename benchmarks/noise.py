"""The noise that benchmarks make: a method's own, and as its paper has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tue_cli.config import METHODS, NoiseSettings


def noise_of(method: str = "tue", **changes: Any) -> NoiseSettings:
    """Return a method's noise as `tue protect` makes it, but for the changes."""
    return replace(METHODS[method].noise, **changes)


def published_noise(method: str = "tue", **changes: Any) -> NoiseSettings:
    """Return a method's noise as its paper has it, but for the changes: no term in grey."""
    return noise_of(method, **{"gray_ratio": 0.0, **changes})
