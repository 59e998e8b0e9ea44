"""The weight sync of a run whose actor and engine share one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megatron_rl.reshard.transport import Exchange, SyncReport


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
