"""How `tue verify` trains its victims: how long that will take, and each of them in its turn."""

from __future__ import annotations

import math
import os
import statistics
import time
from bisect import bisect_left
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from tue_cli.attacks.registry import WAYS
from tue_cli.config import SPLIT_FROM, AdversarySettings, VerifySettings, VictimSettings
from tue_cli.core.batches import Images
from tue_cli.engine.torch import ComputeDevice
from tue_cli.errors import BadSetting, refuse_unless
from tue_cli.events import Event, Metric
from tue_cli.nets.classifiers import NETS, build_classifier
from tue_cli.verify.dataset import VictimDataset, choose_kept_size, make_form
from tue_cli.verify.pairs import Pair
from tue_cli.verify.probe import Probe
from tue_cli.verify.trials import (
    FEWEST_EPOCHS,
    Trial,
    TrialCache,
    TrialProgress,
    build_groups,
    list_unique_trials,
)
from tue_cli.verify.victim import Victim

PROBED = 4
"""Updates that tell how long one takes; the first is not counted."""
EMBEDDED = 600
"""Training pictures in the report's t-SNE, each clean and protected."""


TRIED, TIMED = 10, 2
"""Pictures that are tried to see how long a filter takes, and that are timed, at most."""


Costs = Mapping[tuple[VictimSettings, bool, str], float]
"""Seconds that an update takes, by `Trial.kind`."""


def refuse_victims(settings: VerifySettings) -> None:
    """Raise BadSetting for a victim that cannot be built; nothing is computed."""
    with torch.device("meta"):
        for victim in settings.victims:
            if not victim.start:
                refuse_unless(
                    victim.net in NETS,
                    f"There is no net {victim.net!r}.",
                    f"Choose one of: {', '.join(NETS)}, pretrained, probe, or FILE.safetensors.",
                )
                size = settings.size or 32
                build_classifier(victim.net, classes=2, width=victim.width, size=size)


def measure_costs(
    settings: VerifySettings, classes: int, size: int, computer: ComputeDevice
) -> Costs:
    """Measure how long updates take here, by a few on pictures of noise.

    `size` is the width and height of the victims' input.
    """
    kept = choose_kept_size(size)
    kinds = {trial.kind: trial for trial in list_unique_trials(build_groups(settings, 1))}
    costs = {}
    for kind, trial in kinds.items():
        batch = trial.victim.batch
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (batch, 3, kept, kept), generator=generator)
        pictures = Images(pixels.to(torch.uint8), torch.arange(batch) % classes)
        probe = _make_victim(replace(trial, steps=PROBED), classes, size, computer)
        times = []
        for _ in probe.run_updates(pictures.to(computer.device)):
            times.append(time.monotonic())
        costs[kind] = (times[-1] - times[0]) / (PROBED - 1)
    return costs


@dataclass(frozen=True)
class Filtering:
    """How long pictures take to be filtered at their own size."""

    seconds: Mapping[str, float]
    """Filter -> seconds for a picture, with its decoding."""
    most_kept: int
    """Filtered pictures that are kept for other seeds and folds."""

    def estimate(self, trials: Sequence[Trial], pictures: int) -> dict[Trial, float]:
        """Return the seconds that each of some trials takes to filter so many pictures.

        The first trial of an arm filters all, later ones those that were not kept.
        """
        arms = {(trial.arm, trial.degrade) for trial in trials if trial.own_size}
        again = max(0.0, 1 - self.most_kept / max(1, len(arms) * pictures))
        found = {}
        for trial in trials:
            if trial.own_size:
                arm = trial.arm, trial.degrade
                found[trial] = pictures * self.seconds[trial.degrade] * (arm in arms or again)
                arms.discard(arm)
        return found


def measure_filters(
    settings: VerifySettings, pairs: Sequence[Pair], size: int, radius: float
) -> Filtering:
    """Measure how long filters at own size take here, by two of the pictures.

    `size` is the width and height of the victims' input, `radius` that of the random noise.
    """
    form = make_form(size, radius, settings.seed)
    trials = list_unique_trials(build_groups(settings, 1))
    seconds = {}
    for name in dict.fromkeys(trial.degrade for trial in trials if trial.own_size):
        times: list[float] = []
        for pair in pairs[:: max(1, len(pairs) // TRIED)]:
            began = time.monotonic()
            with suppress(BadSetting):  # what cannot be read is told when it is loaded
                replace(form, pairs=(pair,), kept={}).filter_arm("protected", name)
                times.append(time.monotonic() - began)
            if len(times) == TIMED:
                break
        # All processors share the work.
        seconds[name] = statistics.fmean(times or [0.0]) / (os.cpu_count() or 1)
    return Filtering(seconds, form.most_kept)


def count_used(seen: int) -> int:
    """Return how many training pictures are used at most where a victim is shown so many."""
    return max(SPLIT_FROM, seen // FEWEST_EPOCHS)


def fit_time_budget(
    seconds: float, settings: VerifySettings, costs: Costs, filtering: Filtering, there: int
) -> int:
    """Return how many pictures victims can be shown so that all of them take so long.

    `there` are the training pictures that there are.
    """
    pictures = 1_000_000
    # As many pictures as are used at most; of fewer, pretrained victims take less time.
    seen = FEWEST_EPOCHS * pictures
    trials = list_unique_trials(build_groups(replace(settings, seen=seen), pictures))
    rate = sum(costs[trial.kind] * trial.steps for trial in trials) / seen

    def fits(seen: int) -> bool:
        filtered = filtering.estimate(trials, min(there, count_used(seen)))
        return seen * rate + sum(filtered.values()) <= seconds

    return max(
        1, bisect_left(range(math.floor(seconds / rate)), True, key=lambda n: not fits(n + 1))
    )


def fit_settings(
    settings: VerifySettings,
    task: str,
    seconds: float,
    costs: Costs,
    filtering: Filtering,
    there: int,
    cache: TrialCache,
) -> VerifySettings:
    """Return the settings with which victims take about so long.

    What was fitted once is taken again for the same task, so that --resume finds its victims.
    """
    fitted = cache.get(task) or fit_time_budget(seconds, settings, costs, filtering, there)
    cache.put(task, fitted)
    return replace(settings, seen=fitted)


def train_victim(
    trial: Trial, arms: VictimDataset, computer: ComputeDevice, folds: int = 1
) -> Generator[Event, None, tuple[dict[str, Any], Victim | Probe]]:
    """Train one victim and return what became of it, as plain data, and itself.

    `arms` are those of its fold, of so many `folds`.
    """
    if trial.other_labels:
        arms = arms.relabel(trial.seed)
    pixels, labels = arms.select_training(
        trial.arm,
        part=trial.part,
        alone=trial.alone,
        degrade=trial.degrade,
        own_size=trial.own_size,
    )
    pictures = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    test = Images(torch.from_numpy(arms.test), torch.from_numpy(arms.test_labels))
    victim = _make_victim(trial, len(arms.classes), arms.get_input_size(), computer)
    training = victim.train(pictures, test, points=trial.points)
    fold = trial.fold + 1 if folds > 1 else None
    progress, point = TrialProgress(trial.arm, _describe_recipe(trial), trial.seed, fold), 0
    phase = f"{progress.arm}, {progress.attack}, seed {progress.seed}"
    phase += f", fold {fold}" if fold else ""
    while True:
        try:
            accuracy = next(training)
        except StopIteration as stop:
            trained = stop.value
            break
        point += 1
        yield Metric(phase, point, trial.points, {"accuracy": accuracy}, progress)
    rate = trial.steps * trial.victim.batch / max(trained.seconds, 1e-9)
    others = None
    if arms.others is not None:
        levels, classes = (torch.from_numpy(part) for part in arms.others)
        others = victim.measure_accuracy(Images(levels, classes))
    return {**asdict(trained), "rate": round(rate, 1), "others": others}, victim


def _make_victim(trial: Trial, classes: int, size: int, computer: ComputeDevice) -> Victim | Probe:
    if trial.victim.start == "probe":
        return Probe(trial.victim, classes=classes, size=size, steps=trial.steps, computer=computer)
    adversary = AdversarySettings(radius=trial.radius, steps=trial.adversary_steps)
    return Victim(
        trial.victim,
        classes=classes,
        size=size,
        steps=trial.steps,
        seed=trial.seed,
        computer=computer,
        adversary=adversary if trial.radius else None,
        mixing=trial.mixing,
    )


def compute_embedding(
    victim: Victim | Probe, arms: VictimDataset, computer: ComputeDevice
) -> dict[str, Any]:
    """Return the report's t-SNE: a clean net's features of pictures, clean and protected."""
    from sklearn.manifold import TSNE

    net = victim.freeze_net()
    each = max(1, EMBEDDED // len(arms.classes))
    places = np.concatenate(
        [np.flatnonzero(arms.labels == number)[:each] for number in range(len(arms.classes))]
    )[:EMBEDDED]
    features = []
    for levels in (arms.clean[places], arms.protected[places]):
        pictures = Images(torch.from_numpy(levels), torch.from_numpy(arms.labels[places]))
        pictures = victim.crop_middle(pictures.to(computer.device))
        for few in torch.split(torch.arange(len(places)), 100):
            with torch.no_grad():
                features.append(net.features(pictures.take_batch(few)[0]).cpu().numpy())
    every = np.concatenate(features)
    points = TSNE(
        perplexity=min(30.0, (len(every) - 1) / 3), init="pca", random_state=0
    ).fit_transform(every)
    rows = [
        [round(float(x), 2), round(float(y), 2), int(label)]
        for (x, y), label in zip(points, np.tile(arms.labels[places], 2), strict=True)
    ]
    return {
        "classes": list(arms.classes),
        "clean": rows[: len(places)],
        "protected": rows[len(places) :],
        "title": "t-SNE of the features of a victim trained on the originals; "
        f"{len(places)} pictures",
    }


def _describe_recipe(trial: Trial) -> str:
    """Return what is special about a trial, in a few words."""
    recipe = _describe_attack(trial)
    way = WAYS.get(trial.victim.start)
    if way is None or recipe == "std":
        return way or recipe
    return f"{way}, {recipe}"


def _describe_attack(trial: Trial) -> str:
    if trial.radius:
        return f"at {trial.radius * 255:g}/255"
    if trial.alone:
        return f"{1 - trial.part:.0%} clean alone"
    if trial.part < 1:
        return f"{trial.part:.0%} of it"
    if trial.own_size:
        return f"{trial.degrade} at own size"
    return trial.degrade or trial.mixing or ("other labels" if trial.other_labels else "std")
