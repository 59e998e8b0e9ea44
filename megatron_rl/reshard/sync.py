"""The weight syncs of a run whose actor is this process: to an engine within it, and to one in other processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from megatron_rl.beside import beside
from megatron_rl.reshard.delivery import Delivery
from megatron_rl.reshard.digest import ReceiverLost, TransferError
from megatron_rl.reshard.transport import Exchange, Sources, SyncReport

TIMES = 3
"""How often a version is sent, where receivers are lost in the sync, before the run ends."""


@dataclass(kw_only=True)
class InProcessSync:
    """A `WeightSync`: carries out the plan, then lets the engine serve the version."""

    exchange: Exchange
    serve: Callable[[int], None]
    """Tells the engine that its weights are now those of this version; caches of older ones end here."""
    withhold: Callable[[], None]
    """Tells it that they are no whole version, which they are not until all have arrived."""
    reports: list[SyncReport] = field(default_factory=list)

    def publish(self, version: int) -> int:
        self.withhold()
        self.reports = [self.exchange.run(version)]
        self.serve(version)
        return version

    @property
    def metrics(self) -> Mapping[str, float]:
        return {name: value for report in self.reports for name, value in report_metrics(report).items()}


class Receiving(Protocol):
    """An engine whose workers are processes of their own."""

    def begin(self, version: int) -> Delivery:
        """Every worker waits for this version, over the delivery that comes back."""

    def finish(self, version: int) -> SyncReport:
        """Returns when every worker has it; TransferError where one has not."""

    def serve(self, version: int) -> None:
        """From here on rollouts are this version's."""


@dataclass(kw_only=True, eq=False)
class DeliverySync:
    """A `WeightSync`: this process holds all source ranks and sends while the engine's workers receive."""

    engine: Receiving
    parameters: Mapping[int, Sources]
    reports: list[SyncReport] = field(default_factory=list)
    _sending: tuple[Delivery, Exchange] | None = None

    def publish(self, version: int) -> int:
        self.reports = [sent_until_received(lambda: self._publish(version))]
        self.engine.serve(version)
        return version

    def _publish(self, version: int) -> SyncReport:
        delivery = self.engine.begin(version)
        return sent_and_received(lambda: self.send(delivery, version), lambda: self.engine.finish(version))

    def send(self, delivery: Delivery, version: int) -> None:
        """Sends every rank's part; the wire stays open for the next version over the same delivery."""
        if self._sending is None or self._sending[0] != delivery:
            self._sending = (delivery, delivery.sending(self.parameters))
        self._sending[1].run(version)

    @property
    def metrics(self) -> Mapping[str, float]:
        return {name: value for report in self.reports for name, value in report_metrics(report).items()}


def sent_and_received(send: Callable[[], None], receive: Callable[[], SyncReport]) -> SyncReport:
    """What was received while it was sent. A receiver that died or refused says why, which a sender can only guess."""
    received = beside(receive, "receive")
    try:
        send()
    except TransferError:
        received.result()
        raise
    return received.result()


def sent_until_received(publish: Callable[[], SyncReport]) -> SyncReport:
    """Publishes once more where a receiver was lost: another takes its place, and nothing has been served yet."""
    for _ in range(TIMES - 1):
        try:
            return publish()
        except ReceiverLost as error:
            print(f"{error}\nIt is sent once more, to the process that takes its place.", file=sys.stderr, flush=True)
    return publish()


def report_metrics(report: SyncReport) -> dict[str, float]:
    """A sync as metrics of the step it ends."""
    return {
        "sync/bytes": float(report.bytes),
        "sync/bound_bytes": float(report.bound),
        "sync/local_bytes": float(report.local_bytes),
        "sync/ratio": report.ratio,
        "sync/gb_per_s": report.gb_per_s,
        "sync/messages": float(report.messages),
    }
