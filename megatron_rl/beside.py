"""Work that goes on beside whoever asked for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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


def finished(result: Result) -> Future[Result]:
    """A result that is there already, where one is expected later."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future
