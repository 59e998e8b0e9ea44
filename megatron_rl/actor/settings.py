"""What a user may choose about the actor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_rl.actor.lora import LoraSettings
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import OptimizerSettings, UpdateSettings
from megatron_rl.actor.recompute import Recompute


@dataclass(frozen=True, kw_only=True)
class ActorSettings(Parallel):
    """How Megatron-Core trains: the cut over ranks at the top (`actor.tp=2`), the rest in sections."""

    precision: Precision = Precision()
    """What it computes in."""

    recompute: Recompute = Recompute()
    """What it forgets to save memory."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """How weights follow gradients."""

    update: UpdateSettings = UpdateSettings()
    """How a batch becomes optimizer steps."""

    reference: Literal["none", "device", "host"] = "none"
    """Where the frozen reference policy's weights wait between scores; `none` keeps no such policy."""

    lora: LoraSettings | None = None
    """Learn low-rank changes instead of the weights; null learns the weights."""


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """How PPO's critic learns; it is cut and computed as the actor is. Used where a stage asks for a critic."""

    folder: Path | None = None
    """Hugging Face folder of the weights it starts from; null takes the actor's."""

    clip: float | None = 0.5
    """How far a value may move in one update before its error stops counting for less; null leaves it free."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """How its weights follow gradients."""

    update: UpdateSettings = UpdateSettings()
    """How a batch becomes its optimizer steps."""
