"""The mask: which share of the noise each pixel gets, in luma and in chroma.

Noise lies in the ball of the radius; what a picture gets is `apply_mask` of it. The steps of PGD
take gradients through the mask, so that what is left pulls as hard as it can. For arrays of numpy
and tensors of torch alike.
"""

from __future__ import annotations

from typing import Any, Final

LUMA: Final = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grayscale (ITU-R 601, as JPEG and Pillow have it)."""


def apply_mask(delta: Any, mask: Any) -> Any:
    """Return what is left of noise (N, 3, H, W): its luma and its chroma, each by its share.

    Args:
        delta: noise in any unit.
        mask: (N, 2, H, W), the shares of luma and chroma, in [0, 1]. As long as the share of chroma
            is the smaller one, no value grows.
    """
    luma, chroma = mask[:, :1], mask[:, 1:]
    return chroma * delta + (luma - chroma) * _compute_luma(delta)


def mask_gradient(gradient: Any, mask: Any) -> Any:
    """Return the gradient with respect to noise from that with respect to `apply_mask` of it."""
    luma, chroma = mask[:, :1], mask[:, 1:]
    total = (luma - chroma) * (gradient[:, :1] + gradient[:, 1:2] + gradient[:, 2:])
    weighted = gradient * 0
    for channel, weight in enumerate(LUMA):
        weighted[:, channel : channel + 1] = weight * total
    return chroma * gradient + weighted


def _compute_luma(delta: Any) -> Any:
    """Return the luma of noise, (N, 1, H, W)."""
    red, green, blue = (LUMA[channel] * delta[:, channel : channel + 1] for channel in range(3))
    return red + green + blue
