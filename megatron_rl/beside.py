"""Work that goes on beside whoever asked for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def beside(work: Callable[[], Result], name: str) -> Future[Result]:
    """What the work comes to, or fails with. Its thread is a daemon: work that hangs keeps no process from ending."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # given to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def all_beside(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """What the work comes to for each item, in their order; the first error is raised when all have had their turn.

    An executor would do, but that Python waits for its threads where a process ends.
    """
    futures: list[Future[Result]] = [Future() for _ in items]
    left, taking = iter(zip(items, futures, strict=True)), threading.Lock()

    def take_turns() -> None:
        while True:
            with taking:
                turn = next(left, None)
            if turn is None:
                return
            item, future = turn
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001  # raised below
                future.set_exception(error)

    for worker in [beside(take_turns, "turns") for _ in range(min(threads, len(items)))]:
        worker.result()
    return [future.result() for future in futures]


def finished(result: Result) -> Future[Result]:
    """A result that is there already, where one is expected later."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future
