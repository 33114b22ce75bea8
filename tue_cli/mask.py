"""The mask: which share of the noise each pixel gets, in luma and in chroma.

Noise lies in the ball of the radius; what a picture gets is `apply_mask` of it. The steps of PGD
take gradients through the mask, so that what is left pulls as hard as it can. For arrays of numpy
and tensors of torch alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

LUMA: Final = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grayscale (ITU-R 601, as JPEG and Pillow have it)."""
RED_GREEN: Final = 0.4
"""How much of the chroma from green to red, Cr, is kept beside that from yellow to blue, Cb. Of as
many levels, a cast of pink or green is seen twice as well as a blue one (CIEDE2000)."""
_RED = tuple(RED_GREEN * ((channel == 0) - LUMA[channel]) for channel in range(3))
_BLUE = tuple((channel == 2) - LUMA[channel] for channel in range(3))
_GREEN = tuple(-(LUMA[0] * r + LUMA[2] * b) / LUMA[1] for r, b in zip(_RED, _BLUE, strict=True))
CHROMA: Final = (_RED, _GREEN, _BLUE)
"""The chroma of noise: a row for each of its channels, of the weights of those of the noise. Its
luma is 0."""


def apply_mask(delta: Any, mask: Any) -> Any:
    """Return what is left of noise (N, 3, H, W): its luma and its chroma, each by its share.

    Args:
        delta: noise in any unit.
        mask: (N, 2, H, W), the shares of luma and chroma, in [0, 1].
    """
    luma, chroma = mask[:, :1], mask[:, 1:]
    light = luma * _mix(LUMA, delta)
    left = delta * 0
    for channel, weights in enumerate(CHROMA):
        left[:, channel : channel + 1] = light + chroma * _mix(weights, delta)
    return left


def mask_gradient(gradient: Any, mask: Any) -> Any:
    """Return the gradient with respect to noise from that with respect to `apply_mask` of it."""
    luma, chroma = mask[:, :1], mask[:, 1:]
    light = luma * _mix((1.0, 1.0, 1.0), gradient)
    masked = gradient * 0
    for channel, weights in enumerate(zip(*CHROMA, strict=True)):
        masked[:, channel : channel + 1] = LUMA[channel] * light + chroma * _mix(weights, gradient)
    return masked


def _mix(weights: Sequence[float], planes: Any) -> Any:
    """Return the weighted sum of channels (N, 3, H, W), (N, 1, H, W)."""
    red, green, blue = (weights[channel] * planes[:, channel : channel + 1] for channel in range(3))
    return red + green + blue
