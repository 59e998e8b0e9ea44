"""PPO: what the critic expects of every token's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, TOKENS, VALUES
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Value:
    """Writes `values`, from the critic as it is before this step's update."""

    reads = (PROMPT_TOKENS, TOKENS)
    writes = (VALUES,)
    uses: ClassVar[tuple[str, ...]] = ("critic",)
    requires: ClassVar = {"critic.update": "a critic that never learns expects nothing"}

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        return batch.with_columns(values=context.critic.value(batch)), memory
