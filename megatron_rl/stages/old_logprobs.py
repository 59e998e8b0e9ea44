"""The actor's own log-probabilities of the rollouts, and how far the engine's are from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    LOSS_MASK,
    OLD_LOGPROBS,
    PROMPT_ID,
    PROMPT_TOKENS,
    SAMPLER_LOGPROBS,
    TOKEN_VERSIONS,
    TOKENS,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.segments import kept
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class OldLogprobs:
    """Writes `old_logprobs`, and stops a run whose engine and actor disagree on its first batch.

    Tokens of the weights that the actor has now should have the actor's log-probabilities; a gap means wrong weights
    in the engine, another law, or another reading of the prompt. Memory: whether the gate has been passed.
    """

    reads = (PROMPT_ID, PROMPT_TOKENS, TOKENS, LOSS_MASK, SAMPLER_LOGPROBS, TOKEN_VERSIONS)
    writes = (OLD_LOGPROBS,)
    uses: ClassVar[tuple[str, ...]] = ("actor",)

    band: float = 0.05
    """Mean absolute difference, in nats a token, above which the first batch stops the run."""

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        old = context.actor.score(batch)
        # A token of an older policy is expected to differ, and says nothing about the engine.
        fresh_T = batch.ragged(LOSS_MASK).values.bool() & (batch.ragged(TOKEN_VERSIONS).values == context.version)
        gap_T = (old.values - batch.ragged(SAMPLER_LOGPROBS).values).abs()
        columns = batch.with_columns(old_logprobs=old)
        if not bool(fresh_T.any()):
            return columns, memory
        found_T = kept(gap_T, fresh_T)
        metrics = {
            "parity/mean": float(found_T.mean(dtype=torch.float64)),
            "parity/p99": float(found_T.kthvalue(max(1, round(0.99 * len(found_T)))).values),
            "parity/max": float(found_T.max()),
        }
        if memory is None and not metrics["parity/mean"] <= self.band:
            raise RuntimeError(self._refusal(batch, Ragged(gap_T * fresh_T, old.offsets), metrics))
        return columns.with_metrics(metrics), True

    def _refusal(self, batch: Batch, gap: Ragged, metrics: dict[str, float]) -> str:
        worst = int(gap.row_T[gap.values.nan_to_num(nan=float("inf")).argmax()])
        return (
            f"engine and actor disagree on the first batch: {metrics['parity/mean']:.3g} nats a token on average, "
            f"{metrics['parity/max']:.3g} at most, where {self.band:g} on average is the limit; the worst prompt "
            f"is '{batch.strings(PROMPT_ID)[worst]}': compare model, sampling law and precision of both sides"
        )
