"""The requests being written right now, the cache they stand in, and one token for all of them at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # torch's own name

from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.decoder import BATCH, Cache, Decoder
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.rollout.writing import Request, Rows, draw

CROWDED = 0.8
"""Finished sequences leave the cache once the others are fewer than this share of its rows."""


def fits(decoder: Decoder, capacity: int, cache_gib: float) -> int:
    """Sequences of this capacity that the memory of the cache holds."""
    shape = decoder.blueprint.shape
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * decoder.dtype.itemsize
    return max(BATCH, int(cache_gib * 2**30 / max(1, capacity * token_bytes)))


@dataclass(kw_only=True)
class Shift:
    """Requests come in by `admit` and leave as soon as they have ended."""

    decoder: Decoder
    law: Sampling
    vocabulary: Vocabulary
    capacity: int
    """Tokens that each sequence has room for."""
    prefill_tokens: int
    rows: Rows | None = None
    cache: Cache | None = None

    @property
    def requests(self) -> list[Request]:
        return [request for request in self.rows.requests if not request.finish] if self.rows else []

    @property
    def is_busy(self) -> bool:
        return bool(self.requests)

    def admit(self, newcomers: Sequence[Request]) -> None:
        """Reads the newcomers' contexts, each distinct one once, and puts them behind the requests at work."""
        contexts = [tuple(request.context[:-1]) for request in newcomers]
        distinct = sorted(set(contexts), key=lambda context: (len(context), context))
        parts = [self._read(group) for group in _batches(distinct, self.prefill_tokens)]
        place = {context: number for number, context in enumerate(distinct)}
        index_N = torch.tensor([place[context] for context in contexts], device=self.decoder.device)
        fresh = Cache.joined(parts).take(index_N)
        stay_N = self._unfinished()
        stays = [self.rows.take(stay_N)] if self.rows is not None and len(stay_N) else []
        kept = [self.cache.take(stay_N)] if self.cache is not None and len(stay_N) else []
        self._seat(Rows.joined([*stays, Rows.of(newcomers, self.decoder.device)]), Cache.joined([*kept, fresh]))

    def step(self) -> None:
        """One more token for every sequence; those that end with it are marked and, by and by, leave."""
        if self.rows is None or self.cache is None:
            return
        rows = self.rows
        padding = (0, len(self.cache.keys[0]) - len(rows.requests))
        token_N, position_N = F.pad(rows.token_N, padding), F.pad(rows.position_N, padding)
        logits_NV = self.decoder.decode(token_N, position_N, self.cache)[: len(rows.requests)]
        drawn = draw(logits_NV, self.law, rows.seed_N, rows.place_N)
        for request, token, logprob in zip(
            rows.requests, drawn.token_N.tolist(), drawn.logprob_N.tolist(), strict=True
        ):
            if not request.finish:
                self._append(request, token, logprob)
        rows.token_N = drawn.token_N
        # A finished sequence goes on over its last place until it leaves; nobody reads what it writes there.
        last_N = torch.full_like(rows.position_N, self.capacity - 1)
        rows.position_N = torch.minimum(rows.position_N + 1, last_N)
        rows.place_N = rows.place_N + 1
        self._clear()

    def dismiss(self) -> None:
        """Everybody leaves."""
        self.rows = self.cache = None

    def _append(self, request: Request, token: int, logprob: float) -> None:
        if not math.isfinite(logprob):
            request.finish = "abort"
            request.error = f"the log-probability of response token {len(request.tokens)} is {logprob}"
            return
        request.tokens.append(token)
        request.logprobs.append(logprob)
        if self.vocabulary.is_stopped(request.tokens):
            request.finish = "stop"
        elif len(request.tokens) >= request.budget:
            request.finish = "length"

    def _clear(self) -> None:
        assert self.rows is not None, "a step was taken"
        assert self.cache is not None, "a step was taken"
        stay_N = self._unfinished()
        if not len(stay_N):
            self.dismiss()
        elif len(stay_N) < CROWDED * len(self.rows.requests):
            self._seat(self.rows.take(stay_N), self.cache.take(stay_N))

    def _seat(self, rows: Rows, cache: Cache) -> None:
        count = len(rows.requests)
        if count < BATCH:
            cache = cache.take(torch.zeros(BATCH, dtype=torch.int64, device=self.decoder.device))
        self.rows, self.cache = rows, cache

    def _unfinished(self) -> torch.Tensor:
        requests = self.rows.requests if self.rows is not None else []
        staying = [row for row, request in enumerate(requests) if not request.finish]
        return torch.tensor(staying, dtype=torch.int64, device=self.decoder.device)

    def _read(self, contexts: Sequence[tuple[int, ...]]) -> Cache:
        longest = max(1, max(map(len, contexts)))
        token_SP = torch.zeros(len(contexts), longest, dtype=torch.int64)
        for row, context in enumerate(contexts):
            token_SP[row, : len(context)] = torch.tensor(context, dtype=torch.int64)
        return self.decoder.prefill(token_SP.to(self.decoder.device), self.capacity)[1]


def _batches(contexts: Sequence[tuple[int, ...]], tokens: int) -> list[list[tuple[int, ...]]]:
    """Runs of contexts, sorted by length, that make at most so many tokens once padded."""
    batches: list[list[tuple[int, ...]]] = []
    for context in contexts:
        if batches and (len(batches[-1]) + 1) * max(1, len(context)) <= tokens:
            batches[-1].append(context)
        else:
            batches.append([context])
    return batches
