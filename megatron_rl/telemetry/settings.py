"""What a user may choose about telemetry, and the telemetry that follows from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_rl.telemetry.console import ConsoleView
from megatron_rl.telemetry.fanout import Fanout
from megatron_rl.telemetry.jsonl import JsonlFile
from megatron_rl.telemetry.rollouts import RolloutFiles
from megatron_rl.telemetry.sink import Sink
from megatron_rl.telemetry.wandb import WandbRun


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Metrics and rollouts are always kept; the rest is taste."""

    rollouts_every: int = 1
    """Rollouts are written to Parquet at each n-th step."""
    rollouts_keep: int = 0
    """Parquet files kept, the newest ones; 0 keeps all."""
    sample_every: int = 10
    """The console shows a rollout at each n-th step; 0 never."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Whether the run is also logged to wandb."""
    wandb_project: str = "megatron_rl"
    """The wandb project it belongs to."""


def open_telemetry(
    settings: TelemetrySettings, folder: Path, spec: Mapping[str, object], piece: Callable[[int], str]
) -> Fanout:
    """The run's telemetry. `piece` gives the text of one token, `spec` the resolved configuration as plain values."""
    console = ConsoleView(sample_every=settings.sample_every)
    optional: list[Sink] = [console]
    if settings.wandb != "off":
        optional.append(WandbRun(project=settings.wandb_project, mode=settings.wandb))
    required: list[Sink] = [JsonlFile(), RolloutFiles(every=settings.rollouts_every, keep=settings.rollouts_keep)]
    return Fanout(folder=folder, required=required, optional=optional, warn=_told, spec=spec, piece=piece)


def _told(line: str) -> None:
    """The console is one of those that may fail; where nothing can be said any more, the run still is not the worse."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
