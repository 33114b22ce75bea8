"""The engine on ONNX Runtime: the same noise without torch, on what device the runtime has.

The runtime lists providers that it cannot use, falls back in silence, and talks to stderr; so what
is in force is asked of every session, and the runtime is told to be quiet.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tue_cli.core import sampling
from tue_cli.engine.torch import Floats, pad_batch
from tue_cli.errors import BadSetting, DeviceUnavailable, WeightsProblem
from tue_cli.mask import apply_mask, mask_gradient
from tue_cli.noise import Noise, SampledNoise, TueNoise
from tue_cli.weights import Tensors, Weights

if TYPE_CHECKING:
    import onnxruntime

CPU_BATCH = 8
"""Pictures at once on a CPU: a twentieth slower than 32, and few pictures are not padded to 32."""

SURROGATE_OUTPUTS = ("features", "logits")
"""The graph's outputs that are the surrogate's."""

GRAPH_METHODS = ("tue", "em")
"""The methods whose noise is a descent of what the graph holds."""

PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "CUDA"),
    "directml": ("DmlExecutionProvider", "DirectML"),
    "mps": ("CoreMLExecutionProvider", "CoreML"),
    "cpu": ("CPUExecutionProvider", "CPU"),
}
"""Execution providers by the device's name, in the order in which `auto` tries them."""


def refuse_method(method: str) -> None:
    """Raise BadSetting for a method that the graph does not hold."""
    if method not in GRAPH_METHODS:
        raise BadSetting(
            f"The method {method!r} is not supported by ONNX Runtime.",
            f"Use --backend torch, or one of the methods {', '.join(GRAPH_METHODS)}.",
        )


class OnnxEngine:
    """The engine on ONNX Runtime: one run of the step graph a step, batches of one fixed size."""

    def __init__(
        self,
        weights: Weights,
        graph: bytes,
        method: str,
        noise: Noise,
        *,
        seed: int,
        device: str,
        batch: int,
    ) -> None:
        """`graph` is what `weights.read_graph` returns; the weights' own tensors go into it.

        Raises:
            BadSetting: a method that the graph does not hold, or no such kind of device.
            DeviceUnavailable: a device that was asked for by name is not the one in force.
            WeightsProblem: the graph cannot be read, or lacks the score network.
        """
        refuse_method(method)
        assert isinstance(noise, SampledNoise)
        self._noise = noise
        self._seed = seed
        self._session, kind = open_session(graph, weights.tensors, device)
        self.batch = min(batch, CPU_BATCH) if kind == "cpu" else batch
        self.description = f"ONNX Runtime, {PROVIDERS[kind][1]}"
        if kind == "cpu":
            self.description += f", {count_threads()} thread{'s' * (count_threads() > 1)}"
        self.description += ", float32"
        self.kind = f"onnx, {kind}, float32, graph {hashlib.sha256(graph).hexdigest()[:12]}"
        self._steps = {"surrogate_gradient": noise.step}
        if isinstance(noise, TueNoise):
            if noise.gray_ratio:
                self._steps["gray_gradient"] = noise.gray_ratio * noise.step
            if noise.score_ratio:
                length = noise.score_ratio * noise.step
                ascends = noise.score_mode == "ascent"
                self._steps["score" if ascends else "score_gradient"] = (
                    -length if ascends else length
                )
        if "gray_step" not in {given.name for given in self._session.get_inputs()}:
            raise WeightsProblem(
                f"The graph of {weights.name} was written by an older version of tue.",
                f"Write it again with `tue export {weights.path or weights.name}`, or use "
                "--backend torch.",
            )
        if not self._steps.keys() <= {output.name for output in self._session.get_outputs()}:
            raise WeightsProblem(
                f"The weights {weights.name} were trained for {weights.card.method!r} and hold no "
                "usable score network.",
                "Choose weights for this method, or train some with `tue train --method`.",
            )

    def perturb(
        self,
        pixels: Floats,
        keys: NDArray[np.int64],
        seeds: list[int],
        mask: Floats | None = None,
    ) -> Floats:
        """Return delta, (N, 3, S, S), for pixels of that shape in [0, 1]."""
        noise = self._noise
        # The same EoT samples for every batch: a picture's noise is its own.
        seed = sampling.derive_seed(self._seed, "perturb", 0)
        moves = sampling.draw_moves(seed, noise.steps * noise.samples)
        deltas = []
        for place in range(0, len(pixels), self.batch):
            part = slice(place, place + self.batch)
            start = sampling.draw_starts(pixels[part].shape, seeds[part], noise.radius)
            delta = self._descend(
                pad_batch(pixels[part], self.batch),
                pad_batch(keys[part], self.batch),
                pad_batch(start, self.batch),
                None if mask is None else pad_batch(mask[part], self.batch),
                moves,
            )
            deltas.append(delta[: len(pixels[part])])
        return np.concatenate(deltas)

    def _descend(
        self,
        pixels: Floats,
        keys: NDArray[np.int64],
        delta: Floats,
        mask: Floats | None,
        moves: list[sampling.Move],
    ) -> Floats:
        """Return the noise after all steps, as `core.pgd.pgd` does."""
        samples, radius = self._noise.samples, np.float32(self._noise.radius)
        lower, upper = np.full_like(pixels, -radius), np.full_like(pixels, radius)
        if mask is None:
            lower, upper = np.maximum(-pixels, lower), np.minimum(1 - pixels, upper)
        delta = np.clip(delta, lower, upper)
        for step in range(self._noise.steps):
            noise = delta if mask is None else apply_mask(delta, mask)
            moved = np.clip(pixels + noise, 0, 1)
            drawn = moves[step * samples : (step + 1) * samples]
            fields = self._run(tuple(self._steps), moved, keys, drawn)
            for field, length in zip(fields, self._steps.values(), strict=True):
                pulled = field if mask is None else mask_gradient(field, mask)
                delta = delta - np.float32(length) * np.sign(pulled)
            delta = np.clip(delta, lower, upper)
        return delta

    def features(self, pixels: Floats) -> Floats:
        """Return the surrogate's features, (N, D), of pixels (N, 3, S, S) in [0, 1]."""
        return self._run_surrogate("features", pixels)

    def logits(self, pixels: Floats) -> Floats:
        """Return the surrogate's logits, (N, K), of pixels (N, 3, S, S) in [0, 1]."""
        return self._run_surrogate("logits", pixels)

    def _run_surrogate(self, output: str, pixels: Floats) -> Floats:
        parts = []
        keys = np.zeros(self.batch, np.int64)
        for place in range(0, len(pixels), self.batch):
            part = pixels[place : place + self.batch]
            batch = pad_batch(part, self.batch)
            (seen,) = self._run((output,), batch, keys, [sampling.STAY])
            parts.append(seen[: len(part)])
        return np.concatenate(parts)

    def _run(
        self,
        outputs: tuple[str, ...],
        pixels: Floats,
        keys: NDArray[np.int64],
        moves: list[sampling.Move],
    ) -> list[Floats]:
        there, back = sampling.locate_pixels(moves, *pixels.shape[-2:])
        noise = self._noise
        values: dict[str, NDArray[Any]] = {
            "pixels": pixels,
            "delta": np.zeros_like(pixels),
            "keys": keys,
            "there": there,
            "back": back,
            "step": np.array(noise.step, np.float32),
            "gray_step": np.array("gray_gradient" in outputs, np.float32),
            "score_step": np.array(0.0, np.float32),
            "radius": np.array(noise.radius, np.float32),
        }
        try:
            result: list[Floats] = self._session.run(list(outputs), values)
        except Exception as error:  # the runtime's errors have no class in common but this
            raise DeviceUnavailable(
                f"{self.description} failed: {str(error).splitlines()[0][:160]}.",
                "Use --device cpu or --backend torch.",
            ) from None
        return result


def count_threads() -> int:
    """Return how many threads a step is computed on: OMP_NUM_THREADS, or one a processor."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # where processes cannot be bound to processors
        return os.cpu_count() or 1


def import_runtime() -> Any:
    """Import ONNX Runtime, which from 1.29 on reports to its makers unless it is told not to.

    It reads the variable once, when it is loaded; `disable_telemetry_events()` comes too late. So
    nothing else in this package may import it.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def open_session(
    graph: bytes, tensors: Tensors, device: str
) -> tuple[onnxruntime.InferenceSession, str]:
    """Open a graph on a device and return the session and the kind of device in force.

    Args:
        graph: a model.
        tensors: the weights that it names and does not hold.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `directml`.

    Raises:
        BadSetting, DeviceUnavailable, WeightsProblem: as `OnnxEngine` says.
    """
    onnxruntime = import_runtime()
    onnxruntime.set_default_logger_severity(4)
    kind, _, number = device.partition(":")
    if device != "auto" and (
        kind not in PROVIDERS or (device != kind and not (kind == "cuda" and number.isdecimal()))
    ):
        raise BadSetting(
            f"--device {device!r} is unknown.",
            "Choose auto, cpu, cuda, cuda:N, mps or directml.",
        )
    there = set(onnxruntime.get_available_providers())
    for candidate in PROVIDERS if device == "auto" else (kind,):
        provider, title = PROVIDERS[candidate]
        if provider in there:
            if candidate == "cuda":
                _load_cuda()
            session = _try_session(graph, tensors, candidate, number or "0")
            if session is not None and session.get_providers()[0] == provider:
                return session, candidate
    raise DeviceUnavailable(
        f"ONNX Runtime cannot use {title} here: "
        + ("it fell back to the CPU." if provider in there else "it was built without it."),
        _REMEDIES.get(kind, "Use --device cpu or --device auto."),
    )


_REMEDIES = {
    "cuda": "It needs an NVIDIA GPU with its driver, CUDA 13 and cuDNN 9, and onnxruntime-gpu; "
    "else use --backend torch, --device cpu or --device auto.",
}


def _try_session(
    graph: bytes, tensors: Tensors, kind: str, number: str
) -> onnxruntime.InferenceSession | None:
    onnxruntime = import_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_threads()
    options.use_deterministic_compute = True
    # Threads that spin slow other work, the decoding of the next pictures for one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    names = [name for name, array in tensors.items() if array.dtype == np.float32]
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensors[name]))
        for name in names
    ]
    options.add_external_initializers(names, values)
    if kind == "directml":  # as its documentation asks
        options.enable_mem_pattern = False
    settings: dict[str, str] = {}
    if kind == "cuda":
        # The same input must give the same bytes: no algorithm chosen by the clock, no TF32.
        settings = {
            "device_id": number,
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }
    provider = (PROVIDERS[kind][0], settings)
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[provider])
    except Exception as error:  # the runtime's errors have no class in common but this
        if kind != "cpu":
            return None
        raise WeightsProblem(
            f"The weights' graph cannot be opened: {str(error).splitlines()[0][:160]}.",
            "Write it again with `tue export`, or use --backend torch.",
        ) from None


def _load_cuda() -> None:
    """Find the CUDA libraries that pip installed, if it did, without what is said about it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        import_runtime().preload_dlls()
