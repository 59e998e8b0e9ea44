"""The weight sync of a run whose actor's ranks are processes of their own."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from megatron_rl.cluster.rank import WeightRoute
from megatron_rl.cluster.worker_group import WorkerGroup
from megatron_rl.reshard.sync import report_metrics
from megatron_rl.reshard.transport import SyncReport


class Inlet(Protocol):
    """The engine's side of a weight sync."""

    def begin(self, version: int) -> WeightRoute:
        """The engine waits for this version, by the route that comes back."""

    def finish(self, version: int) -> SyncReport:
        """Returns when the engine has it whole."""

    def serve(self, version: int) -> None:
        """The weights are now those of this version; caches of older ones end here."""


@dataclass(kw_only=True)
class RemoteSync:
    """A `WeightSync`: every rank sends its part while the engine receives; nothing is gathered anywhere."""

    group: WorkerGroup
    inlet: Inlet
    reports: list[SyncReport] = field(default_factory=list)

    def publish(self, version: int) -> int:
        route = self.inlet.begin(version)
        received = _beside(lambda: self.inlet.finish(version))
        self.group.publish(version, route).finish(received)
        # What arrived is all that was sent.
        self.reports = [received.result(self.group.settings.publish_s)]
        self.inlet.serve(version)
        return version

    def send(self, route: WeightRoute, version: int) -> None:
        """Sends the weights as they are now once more, to processes that took the place of others."""
        self.group.publish(version, route).finish(Future())

    @property
    def metrics(self) -> Mapping[str, float]:
        return {name: value for report in self.reports for name, value in report_metrics(report).items()}


def _beside(call: Callable[[], SyncReport]) -> Future[SyncReport]:
    """Runs beside the caller. A daemon, so that a wait for ranks that are gone keeps no process from ending."""
    future: Future[SyncReport] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # given to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="receive", daemon=True).start()
    return future
