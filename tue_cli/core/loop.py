"""The one training loop: surrogates, score networks and victims differ in `loss` and `prepare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tue_cli.core.batches import Images, draw_batch, make_generator
from tue_cli.core.capture import Captured, Tensors

Prepare = Callable[[Tensor, Tensor, torch.Generator], Tensors]
"""Pixels (N, 3, H, W), labels (N,) and a generator to what the loss takes; draws all it needs."""

Loss = Callable[..., Tensor]
"""What `Prepare` gives to the mean loss, with its graph; it draws nothing but dropout."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast and in which order a net is trained."""

    steps: int
    batch: int
    rate: float
    """Peak learning rate; it warms up over a tenth of the steps and falls to 0 by a cosine."""
    optimizer: str
    """`sgd`: momentum 0.9, weight decay 5e-4 (REM); `adam`: no decay, gradient norm cut at 1."""
    seed: int
    stream: str
    """Name of this training's random streams."""

    def compute_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


class Training:
    """A net in training: its optimiser and how many steps it has taken."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        self.net = net
        self.plan = plan
        self.step = 0
        parameters = [p for p in net.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, lr=plan.rate, momentum=0.9, weight_decay=5e-4)
            if plan.optimizer == "sgd"
            else torch.optim.Adam(parameters, lr=plan.rate)
        )

    def get_state(self) -> dict[str, Any]:
        """Return all that `load` needs to continue from exactly here."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


class Curve:
    """The losses of a training, read from the device only when asked for."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = list(values)
        self._unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take the next step's loss, without waiting for it."""
        self._unread.append(loss)

    def read_losses(self) -> list[float]:
        """Return every step's loss so far, to five places."""
        if self._unread:
            self._values += [round(value, 5) for value in torch.stack(self._unread).tolist()]
            self._unread.clear()
        return self._values


def fit(training: Training, pictures: Images, *, loss: Loss, prepare: Prepare) -> Iterator[Tensor]:
    """Train to the end of the plan, yielding each step's loss; stopping the iterator stops it.

    The net is in train mode whenever its own update is computed; `prepare` may lend it out. No step
    waits for the device: whoever reads a loss does.
    """
    net, plan = training.net, training.plan
    device = pictures.pixels.device
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    run = Captured(device, keeps=tuple(net.buffers()))

    def gradients(*inputs: Tensor) -> Tensors:
        value = loss(*inputs)
        return value.detach(), *torch.autograd.grad(value, parameters)

    while training.step < plan.steps:
        step = training.step
        indices = draw_batch(len(pictures), plan.batch, seed=plan.seed, step=step, device=device)
        generator = make_generator(plan.seed, plan.stream, step, device)
        inputs = prepare(*pictures.take_batch(indices), generator)
        net.train()
        # Dropout draws from torch's own generator: it too must be a function of seed and step.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())
            value, *found = run(gradients, *inputs)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        if plan.optimizer == "adam":
            nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in training.optimizer.param_groups:
            group["lr"] = plan.compute_rate(step)
        training.optimizer.step()
        training.step += 1
        yield value


@torch.no_grad()
def accuracy(logits: Callable[[Tensor], Tensor], pictures: Images, *, batch: int = 500) -> float:
    """Return the share of pictures, 0 to 1, whose largest logit is their label's."""
    right = 0
    for place in range(0, len(pictures), batch):
        pixels, labels = pictures.take_batch(torch.arange(place, min(place + batch, len(pictures))))
        right += int((logits(pixels).argmax(1) == labels).sum())
    return right / len(pictures)
