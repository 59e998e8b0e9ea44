"""The weight sync of a run whose actor's ranks are processes of their own."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from megatron_rl.beside import beside
from megatron_rl.cluster.rank import WeightRoute
from megatron_rl.cluster.worker_group import WorkerGroup
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.sync import report_metrics, sent_until_received
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
        # What arrived is all that was sent.
        self.reports = [sent_until_received(lambda: self._publish(version))]
        self.inlet.serve(version)
        return version

    def _publish(self, version: int) -> SyncReport:
        route, wait_s = self.inlet.begin(version), self.group.settings.publish_s
        received = beside(lambda: self.inlet.finish(version), "receive")
        try:
            self.group.publish(version, route).finish(received)
        except TransferError:
            # The ranks stopped sending and live; whoever was lost says why.
            received.result(wait_s)
            raise
        return received.result(wait_s)

    def send(self, route: WeightRoute, version: int) -> None:
        """Sends the weights as they are now once more, to processes that took the place of others."""
        self.group.publish(version, route).finish(Future())

    @property
    def metrics(self) -> Mapping[str, float]:
        return {name: value for report in self.reports for name, value in report_metrics(report).items()}
