"""The protocol of an engine, and the engine on torch: a device, a precision, frozen nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tue_cli.config import METHODS
from tue_cli.core.sampling import draw_starts
from tue_cli.errors import BadSetting, DeviceUnavailable
from tue_cli.noise import Noise
from tue_cli.weights import Weights, build

if TYPE_CHECKING:
    import torch

    from tue_cli.core.capture import Run

Floats = NDArray[np.float32]


class Engine(Protocol):
    """Makes noise for batches of pictures at the weights' working size."""

    description: str
    """Device and precision, for people."""
    kind: str
    """What of these decides the bits of a result."""
    batch: int
    """Pictures it takes at once; fewer cost as much."""

    def perturb(
        self,
        pixels: Floats,
        keys: NDArray[np.int64],
        seeds: list[int],
        mask: Floats | None = None,
    ) -> Floats:
        """Return delta, (N, 3, S, S), for pixels of that shape in [0, 1].

        It is made for what `apply_mask` leaves of it under `mask`, (N, 2, S, S); None leaves all.
        A picture's delta depends on its pixels, mask, key and seed alone, not on its neighbours.
        """

    def features(self, pixels: Floats) -> Floats:
        """Return the surrogate's features, (N, D), of pixels (N, 3, S, S) in [0, 1]."""

    def logits(self, pixels: Floats) -> Floats:
        """Return the surrogate's logits, (N, K), of pixels (N, 3, S, S) in [0, 1]."""


@dataclass(frozen=True)
class ComputeDevice:
    """Where torch computes, and how precisely."""

    device: torch.device
    dtype: torch.dtype
    description: str


def choose_device(name: str = "auto") -> ComputeDevice:
    """Choose a device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; prove it by a small computation.

    Raises:
        BadSetting: no such kind of device.
        DeviceUnavailable: a device that was asked for by name does not work.
    """
    if name != "auto":
        return _open_device(name)
    for candidate in ("cuda", "mps"):
        try:
            return _open_device(candidate)
        except DeviceUnavailable:
            continue
    return _open_device("cpu")


def _open_device(name: str) -> ComputeDevice:
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (
        name != kind and not (kind == "cuda" and number.isdecimal())
    ):
        raise BadSetting(f"--device {name!r} is unknown.", "Choose auto, cpu, cuda, cuda:N or mps.")
    try:
        device = torch.device(name)
        float((torch.ones(2, device=device) + 1).sum())
    except (RuntimeError, AssertionError) as error:
        has_any = kind == "cpu" or getattr(torch, kind).is_available()
        why = str(error).splitlines()[0][:120] if has_any else f"torch finds no {kind} device here"
        raise DeviceUnavailable(
            f"The device {name} cannot be used: {why}.",
            "Use --device cpu or --device auto.",
        ) from None
    if kind == "cuda":
        # The same input must give the same bytes, and a resumed training the same weights.
        torch.backends.cudnn.deterministic = True
        title = torch.cuda.get_device_name(device)
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    elif kind == "mps":
        title, dtype = "Apple GPU", torch.float32
    else:
        threads = torch.get_num_threads()
        title = f"CPU, {threads} thread{'s' * (threads > 1)}"
        dtype = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return ComputeDevice(device, dtype, f"{title}, {str(dtype).removeprefix('torch.')}")


class TorchEngine:
    """The engine on torch: batches of one fixed size, so that results do not depend on it."""

    def __init__(
        self,
        weights: Weights,
        method: str,
        noise: Noise,
        *,
        seed: int,
        machine: ComputeDevice,
        batch: int,
    ) -> None:
        from tue_cli.core.capture import Captured
        from tue_cli.methods import load_method
        from tue_cli.nets.frozen import freeze

        self._perturb = load_method(method)
        self._noise = noise
        self._seed = seed
        self._machine = machine
        self.batch = batch
        self.run: Run = Captured(machine.device)
        self.description = f"torch, {machine.description}"
        self.kind = f"torch, {machine.device.type}, {machine.dtype}".replace("torch.", "")
        roles = tuple(role for role in METHODS[method].roles if role not in noise.idle_nets)
        self._nets = {
            role: freeze(net.to(machine.device), machine.dtype)
            for role, net in build(weights, roles).items()
        }

    def perturb(
        self,
        pixels: Floats,
        keys: NDArray[np.int64],
        seeds: list[int],
        mask: Floats | None = None,
    ) -> Floats:
        """Return delta, (N, 3, S, S), for pixels of that shape in [0, 1]."""
        import torch

        from tue_cli.core.batches import make_generator

        deltas = []
        for place in range(0, len(pixels), self.batch):
            part = slice(place, place + self.batch)
            start = draw_starts(pixels[part].shape, seeds[part], self._noise.radius)
            # The same EoT samples for every batch: a picture's noise is its own. They are drawn on
            # the CPU, whatever the device, so that every engine draws the same.
            generator = make_generator(self._seed, "perturb", 0, torch.device("cpu"))
            try:
                delta = self._perturb(
                    self._nets,
                    self._send(pixels[part]),
                    self._send(keys[part]),
                    self._noise,
                    start=self._send(start),
                    generator=generator,
                    mask=None if mask is None else self._send(mask[part]),
                    run=self.run,
                )
            except torch.OutOfMemoryError:
                raise DeviceUnavailable(
                    f"{self.description} has not enough free memory.",
                    "Free some, or use --device cpu.",
                ) from None
            deltas.append(delta[: len(pixels[part])].cpu().numpy())
        return np.concatenate(deltas)

    def _send(self, part: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(pad_batch(part, self.batch)).to(self._machine.device)

    def features(self, pixels: Floats) -> Floats:
        """Return the surrogate's features, (N, D), of pixels (N, 3, S, S) in [0, 1]."""
        from tue_cli.methods.surrogate import get_surrogate

        return self._run_surrogate(get_surrogate(self._nets).features, pixels)

    def logits(self, pixels: Floats) -> Floats:
        """Return the surrogate's logits, (N, K), of pixels (N, 3, S, S) in [0, 1]."""
        from tue_cli.methods.surrogate import get_surrogate

        return self._run_surrogate(get_surrogate(self._nets), pixels)

    def _run_surrogate(
        self, compute: Callable[[torch.Tensor], torch.Tensor], pixels: Floats
    ) -> Floats:
        import torch

        parts = []
        with torch.no_grad():
            for place in range(0, len(pixels), self.batch):
                part = pixels[place : place + self.batch]
                parts.append(compute(self._send(part))[: len(part)].cpu().numpy())
        return np.concatenate(parts)


def pad_batch(part: NDArray[Any], batch: int) -> NDArray[Any]:
    """Repeat the last row up to the fixed batch: kernels are chosen by shape, and another kernel
    rounds differently.
    """
    missing = batch - len(part)
    return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
