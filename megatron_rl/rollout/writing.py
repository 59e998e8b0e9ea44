"""One trip of requests through the decoder: which are being written, and what they have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PREFIX, PREFIX_LOGPROBS, PROMPT_TOKENS, SEED, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.ops.noise import uniforms
from megatron_rl.rollout.vocabulary import Vocabulary


@dataclass(kw_only=True)
class Request:
    """A row on its way: what it starts from, what has been written so far, and how it ended."""

    prompt: Tensor
    seed: int
    budget: int
    tokens: list[int]
    logprobs: list[float]
    versions: list[int] = field(default_factory=list)
    """Of the tokens at its end, where an engine says which version wrote each."""
    finish: str = ""
    """Empty while it is being written."""
    error: str = ""
    given: int = 0
    """Tokens that it came with."""

    @property
    def written(self) -> int:
        """Tokens that an engine has added."""
        return len(self.tokens) - self.given

    @property
    def context(self) -> list[int]:
        return [*self.prompt.tolist(), *self.tokens]


def read_requests(batch: Batch, max_tokens: int, context: int) -> list[Request]:
    """The batch's rows; those that cannot be written have already ended."""
    count = len(batch)
    prompts = batch.ragged(PROMPT_TOKENS).rows()
    prefixes = batch.ragged(PREFIX).rows() if PREFIX in batch else [torch.zeros(0, dtype=torch.int32)] * count
    given = batch.ragged(PREFIX_LOGPROBS).rows() if PREFIX_LOGPROBS in batch else [None] * count
    budgets = batch.numbers(BUDGET).tolist() if BUDGET in batch else [max_tokens] * count
    requests = []
    for row, seed in enumerate(batch.numbers(SEED).tolist()):
        room = context - len(prompts[row])
        request = Request(
            prompt=prompts[row],
            seed=seed,
            budget=min(budgets[row], room),
            tokens=prefixes[row].tolist(),
            logprobs=_known(given[row], len(prefixes[row])),
            given=len(prefixes[row]),
        )
        if not len(prompts[row]):
            request.finish, request.error = "abort", "the prompt is empty"
        elif room < 1:
            request.finish = "abort"
            request.error = f"the prompt has {len(prompts[row])} tokens, and the model's context is {context}"
        elif len(request.tokens) > room:
            request.finish = "abort"
            request.error = (
                f"prompt and prefix have {len(request.context)} tokens, and the model's context is {context}"
            )
        elif len(request.tokens) >= request.budget:
            request.finish = "length"
        requests.append(request)
    return requests


def _known(logprobs: Tensor | None, length: int) -> list[float]:
    """Log-probabilities of the prefix; a prefix that came without any has none to tell."""
    return [float("nan")] * length if logprobs is None else logprobs.tolist()


def refuse_unknown(requests: Sequence[Request], vocabulary: int) -> None:
    """Ends the requests that hold a token which the model has not."""
    for request in requests:
        why = _unknown(torch.tensor(request.context), vocabulary)
        if why and not request.error:
            request.finish, request.error = "abort", why


def _unknown(tokens: Tensor, vocabulary: int) -> str:
    """Says the first token that the model has not, nothing where it has all."""
    unknown = tokens[(tokens < 0) | (tokens >= vocabulary)].tolist()
    return f"token {unknown[0]} is none of the model's {vocabulary}" if unknown else ""


def end_stopped(requests: Sequence[Request], vocabulary: Vocabulary) -> None:
    """Ends the requests whose prefix ends the response already, be it with the last token of their budget."""
    for request in requests:
        if request.finish in ("", "length") and vocabulary.is_stopped(request.tokens):
            request.finish = "stop"


def refuse_unscorable(batch: Batch, context: int, vocabulary: int) -> None:
    """ValueError where a row has a response that the model cannot read, naming the row. No response, no question."""
    prompts, responses = batch.ragged(PROMPT_TOKENS), batch.ragged(TOKENS)
    for row in range(len(batch)):
        prompt, response = prompts.row(row), responses.row(row)
        if not len(response):
            continue
        both = torch.cat([prompt, response])
        if not len(prompt):
            why = "the prompt is empty"
        elif len(both) > context:
            why = f"prompt and response have {len(both)} tokens, and the model's context is {context}"
        else:
            why = _unknown(both, vocabulary)
        if why:
            raise ValueError(f"row {row} cannot be scored: {why}.")


def returned(batch: Batch, requests: Sequence[Request], version: int, vocabulary: Vocabulary) -> Batch:
    """The batch with what became of each row, written by this version of the policy but for what says otherwise."""
    for request in requests:
        if request.error:
            request.tokens, request.logprobs, request.versions = [], [], []
    tokens = Ragged.of([request.tokens for request in requests], dtype=torch.int32)
    versions = [[version] * (len(each.tokens) - len(each.versions)) + each.versions for each in requests]
    return batch.with_columns(
        tokens=tokens,
        sampler_logprobs=Ragged.of([request.logprobs for request in requests], dtype=torch.float32),
        loss_mask=Ragged(torch.ones_like(tokens.values), tokens.offsets),
        token_versions=Ragged.of(versions, dtype=torch.int32),
        finish=[request.finish for request in requests],
        status=["failed" if request.error else "ok" for request in requests],
        error=[request.error for request in requests],
        version=[each.versions[-1] if each.versions else version for each in requests],
        response_text=[vocabulary.decode(request.tokens) for request in requests],
    )


@dataclass(kw_only=True)
class Drawn:
    """One token for each sequence, and its log-probability."""

    token_N: Tensor
    logprob_N: Tensor


def draw(logits_NV: Tensor, sampling: Sampling, seed_N: Tensor, place_N: Tensor) -> Drawn:
    """Tokens by inversion: a token's noise depends on its request's seed and on its place in the response alone."""
    logprob_NV = sampling_logprobs(logits_NV, sampling)
    mass_NV = logprob_NV.double().exp().cumsum(-1)
    point_N1 = (uniforms(seed_N, place_N) * mass_NV[:, -1])[:, None]
    token_N = torch.searchsorted(mass_NV, point_N1, right=True).squeeze(1).clamp_max(mass_NV.shape[1] - 1)
    return Drawn(token_N=token_N, logprob_N=logprob_NV.gather(1, token_N[:, None]).squeeze(1))


@dataclass(kw_only=True)
class Rows:
    """The requests that the decoder is at, one row of its tensors each; rows beyond them are idle."""

    requests: list[Request] = field(default_factory=list)
    token_N: Tensor
    position_N: Tensor
    seed_N: Tensor
    place_N: Tensor

    @classmethod
    def of(cls, requests: Sequence[Request], device: torch.device) -> Rows:
        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return cls(
            requests=list(requests),
            token_N=column([request.context[-1] for request in requests]),
            position_N=column([len(request.context) - 1 for request in requests]),
            seed_N=column([request.seed for request in requests]),
            place_N=column([len(request.tokens) for request in requests]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        return cls(
            requests=[request for part in parts for request in part.requests],
            token_N=torch.cat([part.token_N for part in parts]),
            position_N=torch.cat([part.position_N for part in parts]),
            seed_N=torch.cat([part.seed_N for part in parts]),
            place_N=torch.cat([part.place_N for part in parts]),
        )

    def take(self, row_N: Tensor) -> Rows:
        return Rows(
            requests=[self.requests[row] for row in row_N.tolist()],
            token_N=self.token_N[row_N],
            position_N=self.position_N[row_N],
            seed_N=self.seed_N[row_N],
            place_N=self.place_N[row_N],
        )
