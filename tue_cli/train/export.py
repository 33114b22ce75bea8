"""`tue export`: a weights file's step graph, checked and held against torch before it is kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tue_cli.dataset.manifest import sha256
from tue_cli.dataset.output import explain_output_error
from tue_cli.declare import argument, setting
from tue_cli.errors import BadSetting, PackageMissing, TueError, WeightsProblem, require
from tue_cli.events import Done, Event, Job, Note, Saved
from tue_cli.storage.atomic import write_atomically
from tue_cli.text import escape
from tue_cli.train.result import ExportSummary
from tue_cli.weights import Weights, build, load, read

if TYPE_CHECKING:
    from tue_cli.engine.onnx_graph.parity import Parity


@dataclass(frozen=True)
class ExportSpec:
    """What `tue export` was asked for."""

    weights: str | None = argument("Weights, by name or file. Default: the packaged weights.", None)
    output: Path | None = setting(
        None,
        "FILE.onnx. Default: beside the weights, where `tue protect` looks for it. Elsewhere, "
        "the graph contains the weights.",
        "-o",
        "--output",
    )


def export(spec: ExportSpec) -> Job[ExportSummary]:
    """Write a weights file's step graph for ONNX Runtime, yielding what happens.

    Beside the weights and under their name, where `tue protect` looks for it, the graph reads the
    weights from their file; anywhere else it holds them itself.

    Raises:
        BadSetting: a name that does not end in .onnx, or a net that cannot be written.
        OutputProblem: it cannot be written.
        WeightsProblem: no such weights, or the graph is not near enough to torch.
    """
    weights = load(spec.weights)
    assert weights.path is not None
    own = weights.path.with_suffix(".onnx")
    output = spec.output or own
    if output.suffix != ".onnx":
        raise BadSetting(f"-o {escape(output)} does not end in .onnx.", "Write -o FILE.onnx.")
    yield from write_graph(weights, output, beside=output.absolute() == own.absolute())


def write_graph(weights: Weights, output: Path, *, beside: bool) -> Job[ExportSummary]:
    """Build, check, prove and write the graph; with `beside` it names the weights in their file."""
    require("torch", "onnx", "onnxruntime")
    import onnx

    from tue_cli.engine.onnx_graph.parity import measure_parity
    from tue_cli.engine.onnx_graph.step import build_step_graph, embed_weights, reference_weights

    _refuse_unusable(weights)
    try:
        model, whole = build_step_graph(weights), build_step_graph(weights)
        embed_weights(whole, weights)
        onnx.checker.check_model(whole, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = escape(" ".join(str(error).split())[:160])
        raise WeightsProblem(
            f"The graph of {weights.name} is not valid: {reason}.",
            "Nothing was written. Use --backend torch with these weights.",
        ) from None
    if beside:
        assert weights.path is not None
        reference_weights(model, weights.path)
    data: bytes = (model if beside else whole).SerializeToString(deterministic=True)
    found = measure_parity(make_runner(data, weights if beside else None), weights)
    if not found.within:
        raise WeightsProblem(
            f"The graph of {weights.name} does not agree with torch: the gradients are "
            f"{found.graph.apart:.1e} apart (float32 by torch: {found.torch.apart:.1e}), "
            f"{found.graph.signs:.3%} of their signs and {found.graph.steps:.3%} of the steps "
            "differ.",
            "Nothing was written. Use --backend torch with these weights.",
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(data, output)
    except OSError as error:
        raise explain_output_error(error, output.parent) from None
    yield Saved(None, output, len(data), None)
    yield Done(
        ExportSummary(
            graph=output,
            weights=weights.name,
            sha256=sha256(data),
            bytes=len(data),
            holds_weights=not beside,
            parity=found,
        ),
        tuple(_describe_graph(output, len(data), weights, found, beside=beside)),
    )


def write_own_graph(path: Path) -> Iterator[Event]:
    """Write the graph of a weights file beside it, or say why there is none."""
    graph = path.with_suffix(".onnx")
    graph.unlink(missing_ok=True)  # that of the weights that were here before
    try:
        events = list(write_graph(read(path, name=path.stem), graph, beside=True))
    except TueError as error:
        then = f" Then run `tue export {path}`." if isinstance(error, PackageMissing) else ""
        yield Note(f"No graph for ONNX Runtime was written. {error}{then}")
    else:
        yield from (event for event in events if isinstance(event, Saved))


def _refuse_unusable(weights: Weights) -> None:
    """Raise WeightsProblem for weights that the graph's nets cannot be built from."""
    score = any(name.startswith("score.") for name in weights.tensors)
    build(weights, ("surrogate", "score") if score else ("surrogate",))
    for name, array in weights.tensors.items():
        if array.dtype not in (np.float32, np.int64):
            raise WeightsProblem(
                f"The weights {weights.name} contain {escape(name[:80])} as {array.dtype}, but "
                "a graph can only have float32 and int64.",
                "Copy the file again, or train it again with `tue train`.",
            )


def make_runner(data: bytes, weights: Weights | None) -> Any:
    """Return a function that runs a graph on the CPU; the tensors of `weights` are put in."""
    from tue_cli.engine.onnx import open_session

    session, _ = open_session(data, {} if weights is None else weights.tensors, "cpu")
    names = [output.name for output in session.get_outputs()]

    def run(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, dict(values)), strict=True))

    return run


def _describe_graph(
    output: Path, size: int, weights: Weights, found: Parity, *, beside: bool
) -> Iterator[str]:
    """Yield what was written and how it compares, in sentences."""
    holds = (
        f"reads the weights from {weights.path}."
        if beside
        else "contains the weights, for other programs: `tue protect` does not look here."
    )
    yield f"{output}: {size / 1e3:.0f} kB, {holds}"
    yield (
        f"Checked against torch in float64: the gradients differ by {found.graph.apart:.0e} "
        f"(those of torch in float32: {found.torch.apart:.0e}), {found.graph.signs:.3%} of "
        f"their signs and {found.graph.steps:.3%} of the steps differ."
    )
    if beside:
        place = shlex.quote(str(weights.path))
        yield f"Next: tue protect FOLDER --backend onnx --weights {place}"
