"""What a batch says about itself: the names under which every run logs the same facts.

reward/…  correct/mean  length/…  verdict/…  groups/…  rollouts/failed      of the finished rollouts
parity/…      |actor - engine| log-probability over the tokens the engine wrote in this step
kl/reference  k3 estimate of KL(policy, reference) a token
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    CORRECT,
    FINISH,
    GROUP,
    LOSS_MASK,
    OLD_LOGPROBS,
    REFERENCE_LOGPROBS,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
    TOKENS,
    VERDICT,
    Column,
)
from megatron_rl.failures import lived

VERDICTS = ("right", "wrong", "unparsable", "timeout", "crashed")
PARITY = ("parity/mean", "parity/p99", "parity/max")


def batch_metrics(batch: Batch) -> dict[str, float]:
    """Every fact the batch has the columns for."""
    if not len(batch):
        return {}
    ok = batch.where(lived(batch))
    facts = {"rollouts/failed": 1.0 - len(ok) / len(batch)}
    if not len(ok):
        return facts
    return facts | _rewards(ok) | _lengths(ok) | _verdicts(ok) | _groups(ok) | _parity(ok) | _divergence(ok)


def _rewards(batch: Batch) -> dict[str, float]:
    facts: dict[str, float] = {}
    if REWARD in batch:
        reward_B = batch.numbers(REWARD)
        facts |= {"reward/mean": _mean(reward_B), "reward/std": float(reward_B.std(correction=0))}
    if CORRECT in batch:
        facts["correct/mean"] = _mean(batch.numbers(CORRECT))
    if ADVANTAGE in batch and len(batch.ragged(ADVANTAGE).values):
        facts["advantage/size"] = _mean(batch.ragged(ADVANTAGE).values.abs())
    return facts


def _lengths(batch: Batch) -> dict[str, float]:
    if TOKENS not in batch:
        return {}
    length_B = batch.ragged(TOKENS).length_B
    facts = {"length/mean": _mean(length_B), "length/max": float(length_B.max())}
    return facts | ({"length/cut": _mean(_equal(batch, FINISH, "length"))} if FINISH in batch else {})


def _verdicts(batch: Batch) -> dict[str, float]:
    if VERDICT not in batch:
        return {}
    seen = Counter(batch.strings(VERDICT))
    names = (*VERDICTS, *sorted(seen.keys() - set(VERDICTS)))
    return {f"verdict/{name}": seen[name] / len(batch) for name in names}


def _groups(batch: Batch) -> dict[str, float]:
    """Groups all of whose rollouts are right teach nothing, nor do those all wrong: the shares of both."""
    if GROUP not in batch or CORRECT not in batch:
        return {}
    group_B = batch.group_index()
    size_G = torch.bincount(group_B)
    right_G = torch.bincount(group_B, weights=batch.numbers(CORRECT).double())
    return {"groups/solved": _mean(right_G == size_G), "groups/unsolved": _mean(right_G == 0)}


def _parity(batch: Batch) -> dict[str, float]:
    if OLD_LOGPROBS not in batch or SAMPLER_LOGPROBS not in batch:
        return {}
    gap_T = (batch.ragged(OLD_LOGPROBS).values - batch.ragged(SAMPLER_LOGPROBS).values).abs()
    live_T = _live(batch) & _fresh(batch) if REUSED in batch else _live(batch)
    gap_T = gap_T if bool(live_T.all()) else gap_T[live_T]
    if not len(gap_T):
        return {}
    nearly_worst = max(1, -(-99 * len(gap_T) // 100))
    p99 = float(gap_T.kthvalue(nearly_worst).values)
    return dict(zip(PARITY, (_mean(gap_T), p99, float(gap_T.max())), strict=True))


def _fresh(batch: Batch) -> Tensor:
    """Tokens that did not come from a draft."""
    tokens = batch.ragged(SAMPLER_LOGPROBS)
    return torch.arange(len(tokens.values)) >= (tokens.offsets[:-1] + batch.numbers(REUSED))[tokens.row_T]


def _divergence(batch: Batch) -> dict[str, float]:
    own = OLD_LOGPROBS if OLD_LOGPROBS in batch else SAMPLER_LOGPROBS
    if REFERENCE_LOGPROBS not in batch or own not in batch:
        return {}
    ratio_T = (batch.ragged(REFERENCE_LOGPROBS).values - batch.ragged(own).values).double()[_live(batch)]
    return {"kl/reference": _mean(torch.expm1(ratio_T) - ratio_T)} if len(ratio_T) else {}


def _live(batch: Batch) -> Tensor:
    if LOSS_MASK in batch:
        return batch.ragged(LOSS_MASK).values.bool()
    return torch.ones(len(batch.ragged(SAMPLER_LOGPROBS).values), dtype=torch.bool)


def _equal(batch: Batch, column: Column, text: str) -> Tensor:
    """Where the column says `text`; everywhere, if the batch has no such column."""
    if column not in batch:
        return torch.ones(len(batch), dtype=torch.bool)
    return torch.tensor([value == text for value in batch.strings(column)])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
