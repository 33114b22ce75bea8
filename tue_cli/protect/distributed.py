"""Where workers run: processes on this machine, or tasks and actors of a Ray cluster by Ray Data.

Both call a stage with each item, and yield what it returns.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from tue_cli.dataset.remote import explain, is_running
from tue_cli.engine.select import has_gpu
from tue_cli.errors import TueError, require

Item = Mapping[str, Any]
AHEAD = 2
"""Items that are handed out for each worker."""
TRIES = 3
"""So many workers may die of an item; then it is given up."""
ANSWER_SECONDS = 10.0
"""After so long, nothing answers at an address."""
LOOPBACK = "127.0.0.1"
OBJECTS = 256 << 20
"""Bytes of Ray's store of objects on one machine; the items and outcomes are small."""


@dataclass(frozen=True)
class Stage:
    """What workers do with each item."""

    call: Callable[..., Any]
    """A function of an item and the arguments; or a class, of which each worker makes one instance
    with the arguments, and calls it with each item."""
    give_up: Callable[[Item], Item]
    """What is said of an item that no worker survived. The death of a worker of Ray concerns its
    item alone; that of one on this machine ends the run."""
    on_device: bool = True
    """Whether it computes on the device; else a processor is enough."""


class Workers:
    """Processes on this machine: one per processor that computes on one thread, or one on a GPU."""

    def __init__(self, count: int, device: str) -> None:
        kind, processors = device.partition(":")[0], os.cpu_count() or 1
        on_gpu = kind in ("cuda", "mps", "directml") or (kind == "auto" and has_gpu())
        self.count = count or (1 if on_gpu else processors)
        self._readers = count or processors
        # What decodes and encodes for a GPU.
        self.threads = max(1, processors // self.count) if on_gpu else 1

    def run(self, stage: Stage, arguments: Item, items: Sequence[Item]) -> Iterator[Item]:
        """Yield what a stage returns for each item, as it is finished.

        Raises:
            TueError: a worker died.
        """
        context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
        count = self.count if stage.on_device else self._readers
        pool = ProcessPoolExecutor(
            min(count, max(1, len(items))),
            context,
            initializer=_begin,
            initargs=(stage.call, dict(arguments)),
        )
        coming: set[Future[Item]] = set()
        left = iter(items)
        try:
            while True:
                while len(coming) < AHEAD * count and (item := next(left, None)) is not None:
                    coming.add(pool.submit(_call, item))
                if not coming:
                    break
                done, coming = wait(coming, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise TueError(
                "A worker died, perhaps because there was not enough memory.",
                "Finished shards are kept. Run the same command again, with fewer --jobs.",
            ) from None
        finally:
            if coming:  # they may be stopped anywhere: a shard appears whole or not at all
                for process in set(multiprocessing.active_children()) - set(others):
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _open_stage(call: Callable[..., Any], arguments: Item) -> Callable[[Item], Item]:
    """Return what is called with each item."""
    opened = call(**arguments) if isinstance(call, type) else partial(call, **arguments)
    return cast("Callable[[Item], Item]", opened)


_stage: Callable[[Item], Item] | None = None


def _begin(call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Make a stage in a worker's process, which Ctrl-C does not reach: its parent ends it, or
    that its parent was killed.
    """
    global _stage
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stage = _open_stage(call, arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(item: Item) -> Item:
    assert _stage is not None
    return _stage(item)


class RayWorkers:
    """Tasks and actors of a Ray cluster, one for each GPU or processor; lost ones are replaced."""

    def __init__(self, cluster: Any, count: int, device: str) -> None:
        resources = cluster.cluster_resources()
        processors, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        self._gpus = bool(gpus) and device.partition(":")[0] in ("auto", "cuda")
        self.count = count or (gpus if self._gpus else processors)
        self._readers = count or processors
        # What decodes and encodes for a GPU are its share of the processors.
        self.threads = max(1, processors // gpus) if self._gpus else 1
        lasting = cluster.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        self._attempts = lasting(_Attempts).remote()

    def run(self, stage: Stage, arguments: Item, items: Sequence[Item]) -> Iterator[Item]:
        """Yield what a stage returns for each item, as it is finished.

        Raises:
            TueError: Ray gave up.
        """
        import ray
        from ray.data import ActorPoolStrategy, TaskPoolStrategy

        if not items:
            return
        rows = [{"number": n, "item": json.dumps(item)} for n, item in enumerate(items)]
        count = min(self.count if stage.on_device else self._readers, len(rows))
        told = {"stage": stage, "arguments": dict(arguments), "attempts": self._attempts}
        told["run"] = secrets.token_hex(8)
        how: dict[str, Any]
        if isinstance(stage.call, type):
            # One at a time, so that no item waits for a busy actor while another actor is idle.
            actors = ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1)
            how = {"fn": _RayStage, "compute": actors, "fn_constructor_kwargs": told}
        else:  # tasks start sooner, but keep nothing between items
            how = {"fn": _call_once, "compute": TaskPoolStrategy(count), "fn_kwargs": told}
        try:
            # One block an item: it is what is handed out, and made again if its worker is lost.
            made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                batch_size=1,
                num_cpus=self.threads if stage.on_device else 1,
                num_gpus=1 if self._gpus and stage.on_device else None,
                **how,
            )
            for batch in made.iter_batches(batch_size=None, prefetch_batches=0):
                for text in batch["result"]:
                    yield json.loads(str(text))
        except ray.exceptions.RayError as error:
            raise TueError(
                f"Ray stopped: {explain(error)}.",
                "Finished shards are kept. Run the same command again to continue.",
            ) from None


class _Attempts:
    """Counts in an actor of its own how often each item of each run was begun."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def count(self, run: str, number: int) -> int:
        self._counts[run, number] += 1
        return self._counts[run, number]


class _RayStage:
    """A stage, as Ray Data's actors call it: with a batch of one item."""

    def __init__(self, stage: Stage, arguments: Item, attempts: Any, run: str) -> None:
        self._stage, self._arguments = stage, arguments
        self._attempts, self._run = attempts, run
        self._call: Callable[[Item], Item] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        (number,), (text,) = batch["number"], batch["item"]
        item = json.loads(str(text))
        if ray.get(self._attempts.count.remote(self._run, int(number))) > TRIES:
            return {"result": [json.dumps(self._stage.give_up(item))]}
        # Opened here, so that an item is given up, too, if the worker dies of opening the stage.
        self._call = self._call or _open_stage(self._stage.call, self._arguments)
        return {"result": [json.dumps(self._call(item))]}


def _call_once(batch: dict[str, Any], **told: Any) -> dict[str, Any]:
    """Call a function as a stage, as Ray Data's tasks do."""
    return _RayStage(**told)(batch)


@contextmanager
def open_workers(engine: str, jobs: int, address: str | None, device: str) -> Iterator[Any]:
    """Yield what runs workers: `Workers` for the engine `local`, `RayWorkers` for `ray`.

    Args:
        engine: `local` or `ray`.
        jobs: how many workers; 0 for one per processor or GPU.
        address: of a Ray cluster; None starts one on this machine, which nothing else can reach.
        device: as `--device` says.

    Raises:
        TueError: Ray is not installed, or there is no cluster.
    """
    if engine == "local":
        yield Workers(jobs, device)
        return
    require("ray")
    _refuse_silence(address)
    _prepare_environment(is_own=address is None)
    scratch = _make_scratch() if address is None else None
    import ray

    own: dict[str, Any] = {"address": address}
    if scratch is not None:
        own = {
            "address": "local",
            "num_cpus": jobs or None,
            "include_dashboard": False,
            "object_store_memory": OBJECTS,
            "_node_ip_address": LOOPBACK,
            "_temp_dir": str(scratch),
        }
    try:
        try:
            with _silence():
                ray.init(**own, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:  # Ray's errors on starting have no class in common but this
            raise TueError(
                f"Ray cannot be used: {explain(error)}.",
                "Check --address, and that the cluster has the same versions of Python and Ray.",
            ) from None
        _quiet(ray)
        yield RayWorkers(ray, jobs, device)
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _refuse_silence(address: str | None) -> None:
    """Raise TueError if nothing answers at an address with a port; Ray would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():  # such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise TueError(
            f"No Ray cluster answers at {address}: {explain(error)}.",
            "Check --address: it is that of the head node, with the port, usually 6379.",
        ) from None


def _prepare_environment(*, is_own: bool) -> None:
    """Set what Ray reads from the environment when it is imported and started.

    Its processes of this machine trust each other by a token. A cluster of our own (`is_own`) gets
    a new one, which Ray would otherwise write into the home folder; another has one already.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else a thread that still uses Ray when it has been shut down would start a cluster.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it logs goes to stderr
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if is_own:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if has_token or os.path.exists(os.path.expanduser("~/.ray/auth_token")):  # noqa: PTH110, PTH111
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _make_scratch() -> Path:
    """Return a new folder for Ray's own files; remove those of drivers that were killed.

    Its name is short: Ray makes sockets in it, whose paths may have 107 characters.
    """
    prefix = "tue-ray-"
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        number = path.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not is_running(int(number)):
            shutil.rmtree(path, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))
    # If a second Ctrl-C does not wait for Ray, Ray ends when Python does, and then this is called.
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextmanager
def _silence() -> Iterator[None]:
    """Let nothing to stderr: what Ray's libraries in C++ say there while it starts."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet(ray: Any) -> None:
    """Leave stdout and stderr to the command."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Ray prints to stdout that a worker was lost, and has no setting for it.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
