"""Weights files: safetensors that carry their own card, found by name or by path, checked by hash.

Packaged weights are pinned by `index.json`; every file is sealed by a digest of its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from tue_cli.config import NETS, KernelSettings
from tue_cli.errors import WeightsProblem
from tue_cli.storage import reading
from tue_cli.storage.reading import explain_error, is_name, parse_json

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, NDArray[Any]]

MOST_BYTES = 1 << 32
"""Of a weights file."""
MOST_CLASSES, WIDEST, LARGEST = 10_000, 1024, 1024
"""Keys, channels of a first stage, pixels a side: sixteen times what is published, and less."""

_HERE = Path(__file__).parent
SHIPPED = next((p for p in (_HERE / "_weights", _HERE.parent / "weights") if p.is_dir()), _HERE)
"""Where the packaged weights lie: inside the wheel, or at the top of a checkout."""


class MisfitField(ValueError):
    """A field of a card says what no weights can be."""

    def __init__(self, name: str) -> None:
        super().__init__(f"its card has an invalid {name}")
        self.name = name


@dataclass(frozen=True)
class Card:
    """What a weights file is, stored inside it."""

    method: str
    net: str
    width: int
    size: int
    """Working size: noise is made at size x size pixels."""
    classes: tuple[str, ...]
    """The keys, in the order of the surrogate's logits."""
    score_width: int
    sigma: float
    training: dict[str, Any]
    """Settings, data, losses, time, hardware and command; for people and for `--resume`."""

    def to_json(self) -> str:
        """Return the card as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Card:
        """Read a card; ValueError where it is none, or says what no weights can be."""
        fields = parse_json(text)
        if not isinstance(fields, dict) or fields.keys() != _FITS.keys():
            raise ValueError("its card has missing or unknown fields")
        for name, fits in _FITS.items():
            if not fits(fields[name]):
                raise MisfitField(name)
        return Card(**{**fields, "classes": tuple(fields["classes"])})


def _is_whole(value: Any, least: int, most: int) -> bool:
    # Not isinstance: true is a whole number to Python.
    return type(value) is int and least <= value <= most


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(is_name(name) for name in value)
        and len(set(value)) == len(value)
    )


_FITS: dict[str, Callable[[Any], bool]] = {
    "method": lambda value: isinstance(value, str),
    "net": lambda value: value in NETS,
    "width": lambda value: _is_whole(value, 4, WIDEST),
    "size": lambda value: _is_whole(value, 16, LARGEST) and value % 4 == 0,
    "classes": _are_classes,
    "score_width": lambda value: _is_whole(value, 1, WIDEST),
    "sigma": lambda value: type(value) in (int, float) and 0 <= value <= 10,
    "training": lambda value: isinstance(value, dict),
}
"""Fields of a card, and what each may be."""


@dataclass(frozen=True)
class Weights:
    """A weights file in memory."""

    name: str
    card: Card
    tensors: Tensors
    sha256: str
    """Of the whole file."""
    path: Path | None = None
    """Where it was read from."""


def digest(tensors: Tensors) -> str:
    """Return the sha256 of names, shapes and bytes in the order of the names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        state.update(f"{name}:{array.dtype}:{array.shape}:".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def pack(card: Card, tensors: Tensors) -> bytes:
    """Return the bytes of a weights file."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    seal = hashlib.sha256((digest(arrays) + card.to_json()).encode()).hexdigest()
    data = save(arrays, metadata={"card": card.to_json(), "seal": seal})
    # safetensors writes its metadata in any order; sorted, the same weights are the same bytes.
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def index() -> dict[str, Any]:
    """Return the packaged weights' index: `default` and, by name, file, sha256 and figures."""
    path = SHIPPED / "index.json"
    try:
        listed: dict[str, Any] = parse_json(reading.read_file(path, reading.MOST_HEADER))
        listed["weights"][listed["default"]]["file"]
        return listed
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsProblem(
            f"The index of the packaged weights, {path}, cannot be read: {error}.",
            "Install tue again.",
        ) from None


def list_folders() -> list[Path]:
    """Return where a name is looked for, besides the packaged weights."""
    folders = [Path(extra)] if (extra := os.environ.get("TUE_WEIGHTS")) else []
    with suppress(RuntimeError):  # no home
        folders.append(Path(platformdirs.user_data_dir("tue")) / "weights")
    return folders


def load(name: str | None = None) -> Weights:
    """Read weights by name or path and check them.

    Args:
        name: a packaged name, the stem of a file in `$TUE_WEIGHTS` or the user's data folder, or
            a path; None for the packaged default.

    Raises:
        WeightsProblem: missing, truncated, no weights of tue's, or not as they were written.
    """
    shipped = index() if name is None or not os.path.isfile(name) else {"weights": {}}  # noqa: PTH113
    name = name or str(shipped["default"])
    if name in shipped["weights"]:
        entry = shipped["weights"][name]
        return read(SHIPPED / entry["file"], name=name, sha256=entry["sha256"])
    places = [Path(name), *(folder / f"{name}.safetensors" for folder in list_folders())]
    for path in places:
        if os.path.isfile(path):  # noqa: PTH113 - never raises
            return read(path, name=path.stem)
    raise WeightsProblem(
        f"There are no weights {name!r}.",
        f"Name a file, or one of these weights: {', '.join(shipped['weights'])}. tue also looks in "
        f"{', '.join(map(str, list_folders())) or '$TUE_WEIGHTS'}.",
    )


def read(path: Path, *, name: str, sha256: str | None = None) -> Weights:
    """Read one file; `sha256` is what the whole file must hash to, where that is known."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    def explain_damage(reason: str) -> WeightsProblem:
        return WeightsProblem(
            f"{path} cannot be used as weights: {reason}.",
            "Name a file that `tue train` wrote. If this is one, it is damaged: copy or train it "
            "again.",
        )

    try:
        with reading.open_regular(path, MOST_BYTES) as file:
            # What a file says of itself is looked at before it is read.
            header, metadata = reading.read_safetensors_header(file)
            if "card" not in metadata:
                raise WeightsProblem(
                    f"{path} is a safetensors file, but tue did not write it.",
                    "Name a file that `tue train` wrote.",
                )
            card = Card.from_json(metadata["card"])
            whole = file.tell() + reading.count_tensor_bytes(header, MOST_BYTES)
            if (size := os.fstat(file.fileno()).st_size) != whole:
                raise explain_damage(f"it has {size:,} bytes, but its header says {whole:,}")
            file.seek(0)
            data = file.read(whole)
        tensors = parse(data)
    except OSError as error:
        raise WeightsProblem(
            f"The weights {path} cannot be read: {explain_error(error)}.", "Check the path."
        ) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise explain_damage(str(error)) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise WeightsProblem(
            f"The weights {path} are not those shipped with tue: sha256 {found}, not {sha256}.",
            "Install tue again.",
        )
    seal = hashlib.sha256((digest(tensors) + metadata["card"]).encode()).hexdigest()
    if seal != metadata.get("seal"):
        raise explain_damage("its checksum does not match")
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise explain_damage("it contains numbers that are not finite")
    return Weights(name, card, tensors, found, path)


NETLESS = "none"
"""The name of weights that hold no net."""


def make_netless(method: str, classes: tuple[str, ...], size: int) -> Weights:
    """Return stand-in weights for a method without nets: keys and a size."""
    card = Card(method, "", 0, size, classes, 0, 0.0, {})
    return Weights(NETLESS, card, {}, digest({}))


def read_graph(weights: Weights) -> bytes:
    """Return the step graph that lies beside a weights file: FILE.onnx beside FILE.safetensors.

    Raises:
        WeightsProblem: there is none, or one of other weights, or not the one that was shipped.
    """
    place = weights.path and weights.path.with_suffix(".onnx")
    remedy = f"Write it with `tue export {weights.path}`, or use --backend torch."
    if place is None or not os.path.isfile(place):  # noqa: PTH113 - never raises
        raise WeightsProblem(f"The weights {weights.name} have no graph for ONNX Runtime.", remedy)
    try:
        data = reading.read_file(place, MOST_BYTES)
    except OSError as error:
        raise WeightsProblem(
            f"The graph {place} cannot be read: {explain_error(error)}.", remedy
        ) from None
    if weights.sha256.encode() not in data:
        raise WeightsProblem(f"The graph {place} does not belong to the weights beside it.", remedy)
    if place.parent == SHIPPED:
        shipped = index()["weights"].get(weights.name, {}).get("graph", {}).get("sha256")
        if shipped != hashlib.sha256(data).hexdigest():
            raise WeightsProblem(
                f"The graph {place} is not what was shipped.", "Install tue again."
            )
    return data


def draw_nets(card: Card, roles: tuple[str, ...], seed: int) -> dict[str, nn.Module]:
    """Build the card's nets with fresh weights drawn from a seed, by role."""
    import torch

    from tue_cli.nets.block import NtgaBlock
    from tue_cli.nets.classifiers import build_classifier
    from tue_cli.nets.patterns import Patterns
    from tue_cli.nets.score import ScoreNet

    count = len(card.classes)

    def build_net(role: str) -> nn.Module:
        if role == "score":
            return ScoreNet(classes=count, width=card.score_width, sigma=card.sigma)
        if role == "block":
            sizes = KernelSettings()
            return NtgaBlock(
                classes=count, size=card.size, count=sizes.block, held_out=sizes.held_out
            )
        if role == "patterns":
            return Patterns(count=count, size=card.size)
        return build_classifier(card.net, classes=count, width=card.width, size=card.size)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {role: build_net(role) for role in roles}


def build(weights: Weights, roles: tuple[str, ...]) -> dict[str, nn.Module]:
    """Build the nets of `roles` and fill them from the file.

    Raises:
        WeightsProblem: the file lacks a net that is asked for.
    """
    import torch

    states = {
        role: {
            key.removeprefix(f"{role}."): torch.from_numpy(array.copy())
            for key, array in weights.tensors.items()
            if key.startswith(f"{role}.")
        }
        for role in roles
    }
    for role, state in states.items():
        if sum(tensor.numel() for tensor in state.values()) < _count_least(weights.card, role):
            raise _explain_unusable(weights, role)
    nets = draw_nets(weights.card, roles, seed=0)
    for role, net in nets.items():
        try:
            net.load_state_dict(states[role])
        except RuntimeError:
            raise _explain_unusable(weights, role) from None
    return nets


def _explain_unusable(weights: Weights, role: str) -> WeightsProblem:
    return WeightsProblem(
        f"The weights {weights.name} have the recipe {weights.card.method} and hold no usable "
        f"{role} network.",
        "Choose weights for this method, or train some with `tue train --method`.",
    )


def _count_least(card: Card, role: str) -> int:
    """Return a lower bound of a net's parameters: a card may describe one that no memory holds.

    Of classifiers the narrowest has 1509 times the square of its width, of score networks 272.
    """
    if role in ("block", "patterns"):
        count = KernelSettings().block if role == "block" else len(card.classes)
        return 3 * count * card.size**2
    return 200 * card.score_width**2 if role == "score" else 1000 * card.width**2
