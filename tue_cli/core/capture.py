"""Running the same function of tensors again and again: on CUDA as one captured graph, whose
hundreds of kernels start with one call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]
"""Tensors to tensors. All that changes between two calls is an argument; it draws nothing but
dropout, and reads no value back to the host."""

Replay = Callable[[], Tensors]
"""Runs a recorded function on what its inputs hold now."""

WARM_UP = 3
"""Runs before a capture, in which libraries choose kernels and allocate."""


class Run(Protocol):
    """A way of running a function of tensors."""

    def __call__(self, function: Function, *inputs: Tensor) -> Tensors:
        """Return the function's results for these inputs."""


def run_eagerly(function: Function, *inputs: Tensor) -> Tensors:
    """Call the function."""
    return function(*inputs)


def record_graph(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """Capture a function's kernels on CUDA; RuntimeError where that cannot be done."""
    if not inputs[0].is_cuda:
        raise RuntimeError(f"{inputs[0].device.type} has no CUDA graphs")
    former = torch.cuda.current_stream(inputs[0].device)
    try:
        return _capture(function, inputs)
    except BaseException:
        # A capture that broke off leaves its own stream the current one.
        torch.cuda.set_stream(former)
        torch.cuda.synchronize(inputs[0].device)
        raise


def _capture(function: Function, inputs: Sequence[Tensor]) -> Replay:
    with torch.cuda.device(inputs[0].device):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function(*inputs)

    def replay() -> Tensors:
        graph.replay()
        return results

    return replay


def record_call(function: Function, inputs: Sequence[Tensor]) -> Replay:
    """Record nothing, and call the function anew: what a graph does, where there is no CUDA.

    Like a graph, it keeps the first call's function and inputs, and takes only the values of later
    inputs.
    """
    return lambda: function(*inputs)


Record = Callable[[Function, Sequence[Tensor]], Replay]
"""Records a function on inputs whose memory the replay reads; RuntimeError where it cannot."""

_record: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def use_recorder(record: Record) -> Iterator[None]:
    """Make each `Captured` of this context use `record`, on any device: for tests and timings."""
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)


class Captured:
    """Runs one function: the first call records it, later calls with inputs of the same shapes
    replay it.

    Every call must pass the same function. Without CUDA (but for `use_recorder`), for other shapes,
    or after recording has failed (with one warning), the function is called directly.
    """

    def __init__(self, device: torch.device, *, keeps: Sequence[Tensor] = ()) -> None:
        """`keeps` are tensors that the function changes and that recording must not."""
        self._device = device
        self._keeps = keeps
        self._record = _record.get() or (record_graph if device.type == "cuda" else None)
        self._inputs: Tensors = ()
        self._replay: Replay | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls are replayed."""
        return self._replay is not None

    def __call__(self, function: Function, *inputs: Tensor) -> Tensors:
        """Return the function's results for these inputs, in tensors of their own."""
        if self._record is not None and self._replay is None:
            self._start(self._record, function, inputs)
        if self._replay is None or _list_shapes(inputs) != _list_shapes(self._inputs):
            return function(*inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        return tuple(result.clone() for result in self._replay())

    def _start(self, record: Record, function: Function, inputs: Tensors) -> None:
        self._inputs = tuple(given.clone() for given in inputs)
        former = [kept.clone() for kept in self._keeps]
        try:
            # Dropout draws in the warm-up too.
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                self._replay = record(function, self._inputs)
        except (RuntimeError, AssertionError) as error:
            self._record = None
            warnings.warn(
                "CUDA graph capture failed, so the steps run one by one, more slowly: "
                f"{str(error)[:200]}",
                RuntimeWarning,
                stacklevel=3,
            )
        for kept, value in zip(self._keeps, former, strict=True):
            kept.data.copy_(value)


def _list_shapes(tensors: Tensors) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]
