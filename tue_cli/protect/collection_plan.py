"""The plan of a run over shards: its output, what former runs recorded there, and the codes."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tue_cli.config import METHODS
from tue_cli.dataset.manifest import are_keys, describe_differences
from tue_cli.dataset.output import PLAN, WORK
from tue_cli.dataset.remote import READ_ONLY, Place, is_url
from tue_cli.dataset.secret import (
    Secret,
    describe_problem,
    keep_codes,
    keep_secret,
    make_secret,
    mark_class,
    read_codes,
    read_secret,
)
from tue_cli.dataset.shards import FIELD
from tue_cli.errors import BadSetting, TueError, refuse_unless
from tue_cli.events import Advanced, Event, Started
from tue_cli.protect.codes import LOOKED_AT, MOST_LOOKED_AT, assign_codes, order_codes
from tue_cli.protect.context import describe_run
from tue_cli.protect.distributed import Stage
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.sharding import Listing, Recipe, Shard, inspect_classes, scan_labels
from tue_cli.storage.reading import MOST_STATE, explain_error, parse_json
from tue_cli.weights import Weights

_PLAN = f"{WORK}/{PLAN}"
"""In the output: what decides the copies' bytes, the codes, and the shards that were scanned."""
SCHEMA = 1
BEST = 8
"""Shards with the most pictures of a class, of which some are looked at."""


@dataclass
class Known:
    """What the output tells of former runs."""

    run: dict[str, Any] | None = None
    keys: dict[str, str] = field(default_factory=dict)
    scanned: set[str] = field(default_factory=set)


def to_url(text: str) -> str:
    """Return a URL as fsspec takes it, and a path as one; their characters stay as they are."""
    if is_url(text):
        protocol, middle, rest = text.partition("://")
        return f"{protocol.lower()}{middle}{rest}"
    path = Path(text).absolute().as_posix()
    return f"file://{path}" if path.startswith("/") else f"file:///{path}"


def refuse_places(sources: tuple[Place, ...], target: Place) -> None:
    """Raise BadSetting for an output that cannot be one, or lies among the originals."""
    refuse_unless(
        target.protocol not in READ_ONLY,
        f"{target.shown} can only be read.",
        "Choose another output with -o: s3://, gs://, az:// or file://.",
    )
    for source in sources:
        refuse_unless(
            not source.contains(target) and not target.contains(source),
            f"The output {target.shown} and the input {source.shown} lie within each other.",
            "Choose another output with -o.",
        )


def open_secret(*, keep: bool) -> Secret:
    """Return the user's secret, made where there is none."""
    try:
        found = read_secret()
        if found is None:
            found = keep_secret(make_secret()) if keep else make_secret()
        return found
    except OSError as error:
        raise TueError(
            describe_problem(error),
            "A data set needs a secret that lasts. Make your data folder writable, or set "
            "XDG_DATA_HOME to another folder.",
        ) from error


def read_plan(target: Place) -> Known | None:
    """Return what former runs decided; None where there was none."""
    try:
        data = target.read(_PLAN, MOST_STATE)
        if data is None:
            return None
        told = parse_json(data)
        if not isinstance(told, dict) or told.get("schema") != SCHEMA:
            raise ValueError("this version of tue did not write it")
        keys, run = told.get("keys"), told.get("run")
        if not are_keys(keys) or not isinstance(run, dict | None):
            raise ValueError("parts of it are of the wrong kind")
        return Known(run, dict(keys or {}), set(map(str, told.get("scanned", ()))))
    except ValueError as error:
        raise BadSetting(
            f"{target.shown}/{_PLAN} cannot be read: {explain_error(error)}.",
            "Choose another output with -o.",
        ) from None
    except TueError:
        raise
    except Exception as error:  # what a store raises has no class in common but this
        raise target.explain_read(error) from None


def write_plan(target: Place, known: Known) -> None:
    """Record what was decided; raise OutputProblem where the output cannot be written."""
    told = {
        "schema": SCHEMA,
        "run": known.run,
        "keys": known.keys,
        "scanned": sorted(known.scanned),
    }
    data = json.dumps(told, indent=1).encode()
    refuse_unless(
        len(data) <= MOST_STATE,
        f"The data set has {len(known.keys):,} classes, too many for one plan.",
        f"Name a column of labels with --labels {FIELD}NAME, or use --labels single.",
    )
    target.write(_PLAN, data)


def refuse_output(recipe: Recipe, known: Known | None, weights: Weights) -> None:
    """Raise BadSetting for an output that holds what is not ours, or was made otherwise."""
    spec, target = recipe.spec, recipe.target
    if spec.existing == "overwrite":
        return
    if known is None:
        refuse_unless(
            all(file.name.startswith(f"{WORK}/") for file in target.list_files(may_miss=True)),
            f"{target.shown} is not empty, and tue did not write what is there.",
            "Choose another output with -o, or use --existing overwrite.",
        )
        return
    refuse_unless(
        spec.existing != "error" or not known.run,
        f"{target.shown} already contains protected shards.",
        "Use --existing skip to keep them, or choose another output with -o.",
    )
    if known.run:
        run = describe_collection(spec, weights, recipe.secret, known.run["engine"])
        _refuse_changes(target, known.run, run)


def _refuse_changes(target: Place, former: dict[str, Any], now: dict[str, Any]) -> None:
    if former != now:
        raise BadSetting(
            f"The shards in {target.shown} were made with other settings: "
            f"{describe_differences(former, now)}.",
            "Use --existing overwrite to replace them, or choose another output with -o.",
        )


def describe_collection(
    spec: ProtectSpec, weights: Weights, secret: Secret, kind: str
) -> dict[str, Any]:
    """Return what decides the copies' bytes, as it is recorded; of the secret its fingerprint."""
    told = describe_run(spec, weights, kind)
    said = {name: value for name, value in told.items() if name not in ("tool", "algorithm")}
    said |= {"labels": spec.labels, "key": spec.key, "secret": secret.fingerprint}
    plain: dict[str, Any] = json.loads(json.dumps(said))
    return plain


def _pass_over(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"mark": Shard.read(told).mark, "whole": False, "counts": {}}


def _explain_no_codes(_: Mapping[str, Any]) -> dict[str, Any]:
    message = "Every worker that began to choose codes died, perhaps for lack of memory."
    return {"problem": [message, "Use machines with more memory, or --labels single."]}


SCAN = Stage(scan_labels, _pass_over, on_device=False)
INSPECT = Stage(inspect_classes, _explain_no_codes)


def plan_codes(
    recipe: Recipe, found: Listing, known: Known, workers: Any, weights: Weights
) -> Generator[Event, None, Recipe]:
    """Return the recipe with the codes of all classes and what decides the bytes; record both."""
    spec, target = recipe.spec, recipe.target
    is_single = spec.key is not None or spec.labels == "single"
    counts = found.count_labels(single=is_single)
    if not is_single:
        unknown = [s for s in found.shards if s.kind != "folder" and s.mark not in known.scanned]
        if unknown:
            yield Started("Reading labels", len(unknown), "shards")
        began, pictures = time.monotonic(), 0
        items = [asdict(shard) for shard in unknown]
        with closing(workers.run(SCAN, {"recipe": recipe}, items)) as told:
            for done, one in enumerate(told, 1):
                if one["whole"]:
                    known.scanned.add(one["mark"])
                counts[one["mark"]] = one["counts"]
                pictures += sum(one["counts"].values())
                spent = time.monotonic() - began
                left = (len(unknown) - done) * spent / done
                yield Advanced(done, len(unknown), pictures / spent, left)
    labels = {name for here in counts.values() for name in here}
    chosen = read_codes()
    marks = {name: mark_class(recipe.secret, weights.sha256, name) for name in labels}
    remembered = {name: chosen[mark] for name, mark in marks.items() if mark in chosen}
    new = sorted(labels - known.keys.keys() - remembered.keys())
    looks = METHODS[spec.settings.method].shows_key and len(labels | known.keys.keys()) > 1
    where = choose_looks(found, counts, new if looks else [])
    former = known.run["engine"] if known.run else None
    arguments = {"recipe": recipe, "former": former}
    (seen,) = workers.run(INSPECT, arguments, [where])
    if "problem" in seen:
        raise TueError(*seen["problem"])
    run = describe_collection(spec, weights, recipe.secret, seen["kind"])
    if known.run and spec.existing == "skip":
        _refuse_changes(target, known.run, run)
    near = {name: np.array(values, np.float32) for name, values in seen["near"].items()}
    order = partial(order_codes, recipe.secret, weights.card.classes)
    codes = assign_codes(labels, weights.card.classes, known.keys, order, remembered, near)
    if spec.key is not None:
        codes = dict.fromkeys(labels, spec.key)
    else:
        keep_codes({marks[name]: code for name, code in codes.items()})
    known.run, known.keys = run, {**known.keys, **codes}
    write_plan(target, known)
    return replace(recipe, keys=known.keys, run=run)


def choose_looks(
    found: Listing, counts: Mapping[str, Mapping[str, int]], new: list[str]
) -> dict[str, Any]:
    """Return in which shards a worker looks for a few pictures of each new class.

    They are few: for each class the shards that have the most of it, as far as those that were
    chosen for others do not have enough.
    """
    each = min(LOOKED_AT, MOST_LOOKED_AT // max(1, len(new)))
    wanted = dict.fromkeys(new, each) if each else {}
    chosen: dict[str, set[str]] = {}
    left = dict(wanted)
    # Of equal counts by the path: what stands for the content is another in another store.
    paths = {shard.mark: shard.path for shard in found.shards}
    by_label: dict[str, list[tuple[int, str, str]]] = {name: [] for name in wanted}
    for mark, here in counts.items():
        for name in here.keys() & by_label.keys():
            best = by_label[name]
            best.append((-here[name], paths.get(mark, ""), mark))
            if len(best) > 2 * BEST:
                by_label[name] = sorted(best)[:BEST]
    for name in wanted:
        for _, _, mark in sorted(by_label[name]):
            if left[name] <= 0:
                break
            if mark not in chosen:
                chosen[mark] = set(counts[mark].keys() & wanted.keys())
                for other in chosen[mark]:
                    left[other] -= counts[mark][other]
    places = [asdict(shard) for shard in found.shards if shard.mark in chosen]
    labels = {mark: sorted(here) for mark, here in chosen.items()}
    return {"shards": places, "wanted": wanted, "labels": labels}
