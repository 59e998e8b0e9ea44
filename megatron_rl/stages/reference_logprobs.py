"""Log-probabilities under the frozen reference policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, REFERENCE_LOGPROBS, TOKENS
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class ReferenceLogprobs:
    """Writes `reference_logprobs`, from the second set of weights that the actor keeps for it."""

    reads = (PROMPT_TOKENS, TOKENS)
    writes = (REFERENCE_LOGPROBS,)
    uses: ClassVar[tuple[str, ...]] = ("actor",)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        return batch.with_columns(reference_logprobs=context.actor.score(batch, "reference")), memory
