"""A job in a thread: its events become messages; it can be held, and stopped between two events."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import closing

from textual.message import Message
from textual.widget import Widget

from tue_cli.errors import TueError
from tue_cli.events import AnyEvent, Job, Record
from tue_cli.tui.terminal import prepare_log


class JobEvent(Message):
    """A job has said something."""

    def __init__(self, runner: Runner, event: AnyEvent) -> None:
        super().__init__()
        self.runner = runner
        self.event = event


class JobEnded(Message):
    """A job is over: done, stopped, or ended by an error."""

    def __init__(self, runner: Runner, error: TueError | None) -> None:
        super().__init__()
        self.runner = runner
        self.error = error


class Runner:
    """Runs one job in a thread of `owner` and posts to it what happens.

    A job that is stopped is closed between two events, in its own thread, so that it can bring its
    journal or checkpoint into order.
    """

    def __init__(self, owner: Widget, job: Callable[[], Job[Record]]) -> None:
        self._owner = owner
        self._job = job
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._stop = threading.Event()
        self._over = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._owner.run_worker(self._drive, thread=True, exit_on_error=False, group="job")

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and its generator is closed."""
        return self._over.is_set()

    @property
    def is_held(self) -> bool:
        """Whether no event is asked for at the moment."""
        return not self._goes_on.is_set()

    @property
    def is_stopping(self) -> bool:
        """Whether the job was asked to stop."""
        return self._stop.is_set()

    def hold(self) -> None:
        """Ask for no further event until `go_on`; what is under way is finished."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Ask for events again."""
        self._goes_on.set()

    def stop(self) -> None:
        """Close the job after the event that is under way."""
        self._stop.set()
        self._goes_on.set()

    def _drive(self) -> None:
        error: TueError | None = None
        try:
            with closing(self._job()) as events:
                for event in events:
                    self._owner.post_message(JobEvent(self, event))
                    self._goes_on.wait()
                    if self._stop.is_set():
                        break
        except TueError as problem:
            error = problem
        except Exception as problem:
            error = explain_unexpected(problem)
        finally:
            self._over.set()
            self._owner.post_message(JobEnded(self, error))


def explain_unexpected(problem: BaseException) -> TueError:
    """Return an error for what no one foresaw; how it came about goes to the log."""
    with prepare_log().open("a", encoding="utf-8") as log:
        traceback.print_exception(problem, file=log)
    first = next(iter(str(problem).splitlines()), "")
    return TueError(
        f"Unexpected error: {type(problem).__name__}: {first[:200]}",
        f"Finished work is kept. Try again. If it happens again, report it with {prepare_log()}.",
    )
