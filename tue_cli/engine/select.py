"""Which engine makes the noise: torch or ONNX Runtime, by a rule that needs neither loaded.

The rule looks at what does not change from one run to the next, never at a clock: two equal
commands on one machine take the same engine, or their copies would differ.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from tue_cli.engine.onnx import GRAPH_METHODS, OnnxEngine, refuse_method
from tue_cli.engine.torch import Engine, TorchEngine, choose_device
from tue_cli.errors import BadSetting, WeightsProblem, is_installed, require
from tue_cli.noise import Noise
from tue_cli.weights import Weights, read_graph

BACKENDS = ("auto", "torch", "onnx")

MANY = 200
"""From so many pictures on, for a surrogate of width 16, torch in bfloat16 makes up for the second
and a half that it takes to load; wider ones cost more a picture, as the square of the width, and it
does so sooner: from 50 at width 32, 12 at 64 (benchmarks/results/runtimes.jsonl)."""


def choose_engine(
    weights: Weights,
    method: str,
    noise: Noise,
    *,
    seed: int,
    backend: str,
    device: str,
    batch: int,
    pictures: int,
    former: str | None = None,
) -> Engine:
    """Return the engine of a run.

    Args:
        weights: whose nets make the noise.
        method: of `config.METHODS`.
        noise: what noise.
        seed: the run's.
        backend: `torch`, `onnx`, or `auto` for what `choose_backend` says.
        device: as `--device` says; it is used or refused, never replaced.
        batch: pictures the engine takes at once.
        pictures: how many there are.
        former: the kind of engine that made the copies that are there already.

    Raises:
        TueError: no such backend, or one that cannot work here.
    """
    refuse_unknown(backend)
    if backend == "auto":
        backend = choose_backend(weights, method, device, pictures=pictures, former=former)
    if backend == "onnx":
        require("onnxruntime")
        refuse_method(method)
        graph = read_graph(weights)
        return OnnxEngine(weights, graph, method, noise, seed=seed, device=device, batch=batch)
    require("torch")
    return TorchEngine(
        weights, method, noise, seed=seed, machine=choose_device(device), batch=batch
    )


def refuse_unknown(backend: str) -> None:
    """Raise BadSetting where there is no such backend."""
    if backend not in BACKENDS:
        raise BadSetting(
            f"--backend {backend!r} is unknown.", f"Choose one of: {', '.join(BACKENDS)}."
        )


def choose_backend(
    weights: Weights, method: str, device: str, *, pictures: int, former: str | None = None
) -> str:
    """Return `torch` or `onnx`: what is there, else what began the folder, else what is faster.

    torch is, where there is a GPU, and on a processor with bfloat16 arithmetic where there is much
    to do (`MANY`). Otherwise ONNX Runtime is: it starts at once, and its float32 is no slower.
    """
    if not is_installed("torch"):
        return "onnx" if method in GRAPH_METHODS else "torch"
    if method not in GRAPH_METHODS or not is_installed("onnxruntime") or not _has_graph(weights):
        return "torch"
    if former is not None and former.partition(",")[0] in BACKENDS:
        return former.partition(",")[0]
    kind = device.partition(":")[0]
    if kind == "directml":
        return "onnx"
    if kind in ("cuda", "mps") or (kind == "auto" and has_gpu()):
        return "torch"
    many = pictures * weights.card.width**2 >= MANY * 16**2
    return "torch" if many and _has_bfloat16() else "onnx"


def _has_graph(weights: Weights) -> bool:
    try:
        read_graph(weights)
    except WeightsProblem:
        return False
    return True


def has_gpu() -> bool:
    """Say whether there is a GPU that torch may know how to use."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    marks = (Path("/proc/driver/nvidia"), Path("/dev/kfd"))  # NVIDIA's, AMD's
    return any(mark.exists() for mark in marks) or shutil.which("nvidia-smi") is not None


def _has_bfloat16() -> bool:
    """Say whether the processor multiplies bfloat16 (AVX-512), as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return re.search(r"^flags.*\bavx512_bf16\b", text, re.M) is not None
