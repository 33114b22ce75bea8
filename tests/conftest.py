"""What every test may lean on: a seed, a home of its own, and weights trained in seconds."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import nn

from tue_cli.config import METHODS, TRAINING_NOISE, AdversarySettings, TrainSettings
from tue_cli.core.batches import Images
from tue_cli.core.loop import Training
from tue_cli.methods import load_recipe
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.nets.frozen import Frozen, freeze
from tue_cli.noise import Noise, RemNoise, SampledNoise, SteppedNoise, TueNoise
from tue_cli.train.export import write_graph
from tue_cli.weights import Card, Weights, build, draw_nets, make_netless, pack, read

R = TypeVar("R")

# One thread, here and in the commands that are run: with more, sums come in another order. It is
# set here because a module's fixtures are made before `_seeded` comes to its first test: they would
# run on all threads, and what is compared with them on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Fixtures that are made before a test's own come to a home, too; its secret makes codes repeatable.
HOME = Path(tempfile.mkdtemp(prefix="tue-home-"))
SECRET = "tue-secret-1 " + "5e" * 32 + "\n"
for kind in ("DATA", "CACHE", "STATE"):
    os.environ[f"XDG_{kind}_HOME"] = str(HOME / kind)
os.environ["WIN_PD_OVERRIDE_LOCAL_APPDATA"] = str(HOME / "DATA")
os.environ.pop("TUE_WEIGHTS", None)
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

# How long an example takes says something of the machine, which may be busy, and not of tue.
settings.register_profile("tue", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tue")

TINY = TrainSettings(
    width=4,
    size=16,
    score_width=8,
    score_steps=80,
    score_rate=5e-3,
    steps=24,
    rate=0.05,
    batch=24,
    noise=TueNoise(gray_ratio=0.0, steps=2),
    adversary=AdversarySettings(steps=2),
)
"""Training settings that are over in seconds."""


def shorten(noise: Noise) -> Noise:
    """Return a method's noise in two steps, of one sample and one inner step where it has such."""
    if isinstance(noise, SteppedNoise):
        noise = replace(noise, steps=2)
    if isinstance(noise, SampledNoise):
        noise = replace(noise, samples=1)
    if isinstance(noise, RemNoise):
        noise = replace(noise, inner_steps=1)
    return noise


def tiny_for(recipe: str) -> TrainSettings:
    """Return `TINY` for another recipe, with its own noise in as few steps."""
    return replace(TINY, method=recipe, noise=shorten(TRAINING_NOISE[recipe]))


def mark_slow(values: Iterable[Any], *, but: Container[Any] = ()) -> list[Any]:
    """Return a parameter's values, all but some of them marked slow."""
    return [v if v in but else pytest.param(v, marks=pytest.mark.slow) for v in values]


def finish(steps: Generator[Any, None, R]) -> tuple[list[Any], R]:
    """Run a generator to its end; return what it yielded, and what it returned."""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_home() -> Path:
    """Return the data folder of the user who runs the test: a secret, and no codes chosen yet."""
    folder = HOME / "DATA" / "tue"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "secret").write_text(SECRET)
    return folder


@pytest.fixture(scope="session")
def needed() -> Callable[[Path], Path]:
    """Return a file that a test needs: where it is missing the test is skipped, or fails in CI."""

    def there(path: Path) -> Path:
        if not path.exists():
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{path.name} is not here")
        return path

    return there


def make_toy(*, count: int = 72, size: int = 16, seed: int = 0) -> Images:
    """Draw pictures of three classes, each a colour and a stripe under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    colours = 0.12 * torch.eye(3)[:, :, None, None]
    places = torch.arange(size)
    stripes = torch.stack([torch.sin(places / (1.0 + k)) for k in range(3)])[:, None, None, :]
    noise = 0.05 * torch.randn((count, 3, size, size), generator=generator)
    pixels = (0.45 + colours[labels] + 0.15 * stripes[labels] + noise).clamp(0, 1)
    return Images((pixels * 255).round().to(torch.uint8), labels)


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six photographs in their two class folders, small enough to be quick; to be copied."""
    assets = Path(__file__).parent.parent / "assets" / "photos"
    folder = tmp_path_factory.mktemp("small") / "photos"
    for source in sorted(assets.rglob("*.*")):
        place = folder / source.relative_to(assets)
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            image.thumbnail((120, 120))
            image.save(place, quality=90)
    return folder


@pytest.fixture(scope="session")
def toy() -> Images:
    """72 pictures of 16x16 in three classes."""
    return make_toy()


@pytest.fixture(scope="session")
def tiny_settings() -> TrainSettings:
    """Training settings that are over in seconds."""
    return TINY


@pytest.fixture(scope="session")
def tiny_settings_of() -> Callable[[str], TrainSettings]:
    """Training settings that are over in seconds, by recipe."""
    return tiny_for


@pytest.fixture(scope="session")
def tiny_training(
    toy: Images, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[float]]]:
    """Train `toy` once: a weights file of method tue and, by role, each step's loss."""
    return trained("tue", toy, tmp_path_factory.mktemp("weights") / "tiny.safetensors", TINY)


def trained(
    recipe: str, toy: Images, path: Path, settings: TrainSettings
) -> tuple[Path, dict[str, list[float]]]:
    """Train a recipe's nets on `toy`: their weights file and, by role, each step's loss."""
    about = {"steps": settings.steps}
    card = Card(recipe, "resnet18", 4, 16, ("a", "b", "c"), 8, settings.sigma, about)
    fits = load_recipe(recipe)
    nets = draw_nets(card, tuple(fits), seed=0)
    helpers: dict[str, Frozen] = {}
    losses = {}
    for role, net in nets.items():
        training = Training(net, fits[role].plan(settings, role))
        steps = fits[role].fit(training, helpers, toy, settings, torch.float32)
        losses[role] = [float(loss) for loss in steps]
        helpers[role] = freeze(net, torch.float32)
    tensors = {
        f"{r}.{k}": v.detach().numpy()
        for r, net in nets.items()
        for k, v in net.state_dict().items()
    }
    path.write_bytes(pack(card, tensors))
    return path, losses


@pytest.fixture(scope="session")
def tiny_of(
    toy: Images, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Weights]:
    """Tiny weights of every recipe, and none for the methods that need none, by method."""
    folder = tmp_path_factory.mktemp("recipes")
    found: dict[str, Weights] = {}
    for name, method in METHODS.items():
        if not method.recipes:
            found[name] = make_netless(name, ("a", "b", "c"), 16)
            continue
        path = folder / f"{method.recipes[0]}.safetensors"
        if method.recipes[0] == "tue":
            path = tiny_weights
        elif not path.exists():
            settings = tiny_for(method.recipes[0])
            if method.recipes[0] != "clean":  # its surrogate alone has to be right
                settings = replace(settings, steps=6, score_steps=40)
            trained(method.recipes[0], toy, path, settings)
        found[name] = read(path, name=path.stem)
    return found


class NetsOf(dict[str, FrozenNets]):
    """Nets by method, built when they are first asked for."""

    def __init__(self, weights: dict[str, Weights]) -> None:
        self.weights = weights

    def __missing__(self, name: str) -> FrozenNets:
        nets = build(self.weights[name], METHODS[name].roles)
        self[name] = {role: freeze(net, torch.float32) for role, net in nets.items()}
        return self[name]


@pytest.fixture
def frozen_of(tiny_of: dict[str, Weights]) -> dict[str, FrozenNets]:
    """The tiny nets of every method as it gets them, in float32, by method."""
    return NetsOf(tiny_of)


@pytest.fixture(scope="session")
def tiny_weights(tiny_training: tuple[Path, dict[str, list[float]]]) -> Path:
    """A weights file of method tue: ResNet-18 of width 4, 16x16, keys a, b, c."""
    return tiny_training[0]


@pytest.fixture(scope="session")
def twin(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights in a file of their own, with their graph beside it; to be read alone."""
    path = tmp_path_factory.mktemp("twin") / "w.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    list(write_graph(read(path, name="w"), path.with_suffix(".onnx"), beside=True))
    return path


@pytest.fixture(scope="session")
def tiny_losses(tiny_training: tuple[Path, dict[str, list[float]]]) -> dict[str, list[float]]:
    """The losses of the tiny weights' training, by role."""
    return tiny_training[1]


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> Weights:
    """The tiny weights, read."""
    return read(tiny_weights, name="tiny")


@pytest.fixture
def tiny_nets(tiny: Weights) -> dict[str, nn.Module]:
    """The tiny `score` and `surrogate`, in train mode, for one test alone."""
    return build(tiny, ("score", "surrogate"))


@pytest.fixture
def tiny_frozen(tiny_nets: dict[str, nn.Module]) -> FrozenNets:
    """The tiny nets as methods get them, in float32."""
    return {role: freeze(net, torch.float32) for role, net in tiny_nets.items()}
