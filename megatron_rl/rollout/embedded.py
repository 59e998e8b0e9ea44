"""The engine in the driver's own process: continuous batching over a key-value cache, no server, nothing to install.

A rollout depends on its seed, its prompt and the weights, never on the requests beside it: permuted, split, grown or
resumed from a prefix, a request gets the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PREFIX, PREFIX_LOGPROBS, PROMPT_TOKENS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.laws import Laws
from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.reshard.layout import Key
from megatron_rl.rollout.blueprint import Blueprint
from megatron_rl.rollout.decoder import Decoder
from megatron_rl.rollout.fused_weights import FusedWeights
from megatron_rl.rollout.hf_folder import read_weights
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.shift import Shift, fits
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.rollout.writing import (
    Request,
    end_stopped,
    read_requests,
    refuse_unknown,
    refuse_unscorable,
    returned,
)

Progress = Callable[[int, int, int], None]
"""Told requests done, requests asked for, tokens written."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Torch in the driver's process, deterministic per request; for small models and for laptops."""

    rows: Annotated[int, Ge(2)] = 256
    """Most sequences written at once."""

    cache_gib: Annotated[float, Gt(0)] = 4.0
    """Most memory of the key-value cache; fewer sequences are written at once where it is short."""

    prefill_tokens: Annotated[int, Ge(64)] = 8192
    """Tokens of prompts read, or of responses scored, at once."""

    deadline_s: Annotated[float, Gt(0)] | None = None
    """After this long a wave is cut short: what is written so far comes back with finish 'abort'. Null never."""

    def open(
        self, blueprint: Blueprint, vocabulary: Vocabulary, sampling: SamplingSettings, dtype: torch.dtype
    ) -> EmbeddedEngine:
        return EmbeddedEngine(self, blueprint, vocabulary, sampling, dtype)


class EmbeddedEngine:
    """A `RolloutEngine`. Whoever trains writes weights into `parameters()`, then `serve` names their version."""

    def __init__(
        self,
        settings: Embedded,
        blueprint: Blueprint,
        vocabulary: Vocabulary,
        sampling: SamplingSettings,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings, self.blueprint, self.vocabulary = settings, blueprint, vocabulary
        self.sampling, self.max_tokens = sampling.law, sampling.max_tokens
        self.weights = FusedWeights.empty(blueprint.shape, dtype, device)
        self.decoder = Decoder(blueprint, self.weights)
        self.version = -1
        self.progress: Progress | None = None

    def parameters(self) -> dict[Key, Tensor]:
        """Writable views under the names of `huggingface_layout`."""
        return dict(self.weights.parameters)

    def serve(self, version: int) -> None:
        """The weights now are this version. No cache outlives a call, so nothing stale can be served."""
        self.version = version

    def withhold(self) -> None:
        """The weights are about to change, and until `serve` they are no version."""
        self.version = -1

    def load(self, folder: Path) -> None:
        """Fills the weights from a Hugging Face folder."""
        self.withhold()
        read_weights(folder, self.blueprint.shape, self.parameters())

    @torch.no_grad()
    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        """A response for every row."""
        self._check_weights()
        law = sampling or self.sampling
        requests = read_requests(batch, self.max_tokens, self.blueprint.context)
        refuse_unknown(requests, self.blueprint.shape.vocabulary)
        end_stopped(requests, self.vocabulary)
        self._write(requests, law)
        rollouts = returned(batch, requests, self.version, self.vocabulary)
        if PREFIX in batch and PREFIX_LOGPROBS not in batch and len(batch):
            return rollouts.with_columns(sampler_logprobs=self._score(rollouts, law))
        return rollouts

    def score(self, batch: Batch) -> Ragged:
        """Log-probability of each response token, under the law tokens are drawn from."""
        self._check_weights()
        return self._score(batch, self.sampling)

    @torch.no_grad()
    def laws(self, batch: Batch, top: int) -> Laws:
        """The law that each response token stood in: its likeliest tokens, or all at 0."""
        self._check_weights()
        responses, vocabulary = batch.ragged(TOKENS), self.blueprint.shape.vocabulary
        count = min(top or vocabulary, vocabulary)
        tokens = [torch.zeros(0, dtype=torch.int32)] * len(batch)
        logprobs, scores = [torch.zeros(0)] * len(batch), [torch.zeros(0)] * len(batch)
        for row, logprob_NV in self._laws(batch, self.sampling):
            likeliest = logprob_NV.topk(count)
            tokens[row], logprobs[row] = likeliest.indices.int().flatten().cpu(), likeliest.values.flatten().cpu()
            scores[row] = _score_of(responses.row(row), logprob_NV)
        length_B = responses.length_B * count
        return Laws(
            Ragged.from_lengths(_joined(tokens, torch.int32), length_B),
            Ragged.from_lengths(_joined(logprobs, torch.float32), length_B),
            Ragged(_joined(scores, torch.float32), responses.offsets),
        )

    def close(self) -> None:
        self.progress = None

    def _check_weights(self) -> None:
        if self.version < 0:
            raise RuntimeError(
                "the engine has no whole version of the weights; publish one before asking for rollouts."
            )

    def _write(self, requests: list[Request], law: Sampling) -> None:
        waiting = [request for request in requests if not request.finish]
        shift = Shift(
            decoder=self.decoder,
            law=law,
            vocabulary=self.vocabulary,
            capacity=max((len(request.prompt) + request.budget for request in waiting), default=0),
            prefill_tokens=self.settings.prefill_tokens,
        )
        most = min(self.settings.rows, fits(self.decoder, shift.capacity, self.settings.cache_gib))
        ends = time.monotonic() + (self.settings.deadline_s or float("inf"))
        while waiting or shift.is_busy:
            if waiting and len(shift.requests) <= most // 2:
                free = most - len(shift.requests)
                shift.admit(waiting[:free])
                waiting = waiting[free:]
            shift.step()
            if time.monotonic() > ends:
                for request in (*waiting, *shift.requests):
                    request.finish = request.finish or "abort"
                waiting = []
                shift.dismiss()
            self._tell(requests)

    def _tell(self, requests: list[Request]) -> None:
        if self.progress is not None:
            done = sum(1 for request in requests if request.finish)
            self.progress(done, len(requests), sum(request.written for request in requests))

    @torch.no_grad()
    def _score(self, batch: Batch, law: Sampling) -> Ragged:
        responses = batch.ragged(TOKENS)
        scores: list[Tensor] = [torch.zeros(0)] * len(batch)
        for row, logprob_NV in self._laws(batch, law):
            scores[row] = _score_of(responses.row(row), logprob_NV)
        return Ragged(_joined(scores, torch.float32), responses.offsets)

    def _laws(self, batch: Batch, law: Sampling) -> Iterator[tuple[int, Tensor]]:
        """The rows that have a response, each with the laws (N, V) of its tokens."""
        refuse_unscorable(batch, self.blueprint.context, self.blueprint.shape.vocabulary)
        prompts, responses = batch.ragged(PROMPT_TOKENS), batch.ragged(TOKENS)
        length_B = prompts.length_B + responses.length_B
        order = [row for row in torch.argsort(length_B).tolist() if int(responses.length_B[row])]
        while order:
            longest = int(length_B[order[-1]])
            rows, order = _tail(order, max(1, self.settings.prefill_tokens // longest))
            token_SP = torch.zeros(len(rows), longest, dtype=torch.int64)
            for place, row in enumerate(rows):
                both = torch.cat([prompts.row(row), responses.row(row)])
                token_SP[place, : len(both)] = both
            hidden_SPH, _ = self.decoder.prefill(token_SP.to(self.decoder.device), longest)
            for place, row in enumerate(rows):
                start, stop = int(prompts.length_B[row]) - 1, int(length_B[row]) - 1
                yield row, sampling_logprobs(self.decoder.logits(hidden_SPH[place, start:stop]), law)


def _score_of(token_N: Tensor, logprob_NV: Tensor) -> Tensor:
    return logprob_NV.gather(1, token_N.long().to(logprob_NV.device)[:, None]).squeeze(1).float().cpu()


def _joined(rows: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(rows) if rows else torch.zeros(0, dtype=dtype)


def _tail(rows: list[int], count: int) -> tuple[list[int], list[int]]:
    return rows[-count:], rows[:-count]
