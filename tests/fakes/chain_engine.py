"""An engine whose policy is a Markov chain over four tokens: long responses, exact laws, no neural network.

Token 0 ends a response. Noise is keyed by seed and position, so a rollout does not depend on its neighbours.
"""

from __future__ import annotations

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PREFIX, PREFIX_LOGPROBS, PROMPT_TOKENS, SEED, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.laws import Laws
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ops.noise import uniforms

STOP = 0


class MarkovEngine:
    """Draws each token from the row of `law_VV` that the token before it names; a response starts from the last row."""

    sampling = Sampling()

    def __init__(self, law_VV: torch.Tensor, max_tokens: int = 12) -> None:
        self.law_VV, self.max_tokens, self.version = law_VV, max_tokens, 0
        self.asked: list[int] = []
        self.decoded = 0

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        self.asked.append(len(batch))
        count = len(batch)
        prefixes = batch.ragged(PREFIX).rows() if PREFIX in batch else [torch.zeros(0)] * count
        budgets = batch.numbers(BUDGET).tolist() if BUDGET in batch else [self.max_tokens] * count
        written = [
            self._write(seed, prefix.long().tolist(), budget)
            for seed, prefix, budget in zip(batch.numbers(SEED).tolist(), prefixes, budgets, strict=True)
        ]
        tokens = Ragged.of(written, dtype=torch.int32)
        one_T = torch.ones_like(tokens.values)
        rollouts = batch.with_columns(
            tokens=tokens,
            loss_mask=Ragged(one_T, tokens.offsets),
            token_versions=Ragged(one_T * self.version, tokens.offsets),
            finish=["stop" if row and row[-1] == STOP else "length" for row in written],
            status=["ok"] * count,
            error=[""] * count,
            version=[self.version] * count,
            response_text=[" ".join(map(str, row)) for row in written],
        )
        fresh = self.score(rollouts)
        if PREFIX_LOGPROBS not in batch:
            return rollouts.with_columns(sampler_logprobs=fresh)
        given = batch.ragged(PREFIX_LOGPROBS)
        rows = [torch.cat([old, new[len(old) :]]) for old, new in zip(given.rows(), fresh.rows(), strict=True)]
        return rollouts.with_columns(sampler_logprobs=Ragged(torch.cat(rows), fresh.offsets))

    def score(self, batch: Batch) -> Ragged:
        tokens = batch.ragged(TOKENS)
        before_T = torch.cat([torch.tensor([-1]), tokens.values.long()[:-1]])
        starts = tokens.offsets[:-1][tokens.length_B > 0]
        before_T = before_T[: len(tokens.values)].index_fill(0, starts, -1) if len(tokens.values) else before_T[:0]
        return Ragged(self.law_VV[before_T, tokens.values.long()].log().float(), tokens.offsets)

    def laws(self, batch: Batch, top: int) -> Laws:
        """Of a prompt with more than one token the last belongs to the response."""
        prompts = [row.tolist() for row in batch.ragged(PROMPT_TOKENS).rows()]
        starts = [prompt[-1] if len(prompt) > 1 else -1 for prompt in prompts]
        said = [row.tolist() for row in batch.ragged(TOKENS).rows()]
        before = [[start, *row[:-1]] if row else [] for start, row in zip(starts, said, strict=True)]
        count = min(top or self.law_VV.shape[1], self.law_VV.shape[1])
        likeliest = [self.law_VV[row].log().topk(count) for row in before]
        return Laws(
            Ragged.of([each.indices.flatten().tolist() for each in likeliest], dtype=torch.int32),
            Ragged.of([each.values.flatten().tolist() for each in likeliest], dtype=torch.float32),
            Ragged(
                torch.cat([self.law_VV[row, tokens].log().float() for row, tokens in zip(before, said, strict=True)]),
                batch.ragged(TOKENS).offsets,
            ),
        )

    def close(self) -> None:
        self.asked = []

    def _write(self, seed: int, tokens: list[int], budget: int) -> list[int]:
        while len(tokens) < budget and (not tokens or tokens[-1] != STOP):
            law_V = self.law_VV[tokens[-1] if tokens else -1]
            uniform = float(uniforms(torch.tensor([seed]), torch.tensor([len(tokens)])))
            tokens = [*tokens, int((law_V.cumsum(0) <= uniform).sum().clamp(max=len(law_V) - 1))]
            self.decoded += 1
        return tokens


def random_law(seed: int, tokens: int = 4, stop_share: float = 0.1) -> torch.Tensor:
    """Rows of next-token laws, the last for the start of a response."""
    rows = torch.softmax(torch.randn(tokens + 1, tokens, generator=torch.Generator().manual_seed(seed)), -1).double()
    rows[:, STOP] = stop_share
    rows[:, 1:] *= (1 - stop_share) / rows[:, 1:].sum(-1, keepdim=True)
    return rows
