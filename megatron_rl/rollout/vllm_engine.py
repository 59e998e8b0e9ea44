"""vLLM as a `RolloutEngine`: groups of workers in processes of their own, fed over the reshard plan.

A rollout's noise depends on its seed and its prefix alone. Its numbers may differ in the last bits with what stands
beside it in a batch, as vLLM's kernels do; bit-for-bit repetition is the embedded engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PREFIX, PREFIX_LOGPROBS, PROMPT_TOKENS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.reshard.delivery import Delivery, Source
from megatron_rl.reshard.transport import SyncReport
from megatron_rl.rollout.servable import unservable
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm_fleet import Fleet, Send
from megatron_rl.rollout.vllm_host import Seat
from megatron_rl.rollout.vllm_ledger import Ledger
from megatron_rl.rollout.vllm_wave import Patience, Wave
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.rollout.writing import end_stopped, read_requests, refuse_unknown, refuse_unscorable, returned


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much an engine takes on at once, and how long it waits."""

    context: int
    """Most tokens of a prompt with its response."""
    vocabulary: int
    """Tokens that the model has."""
    rows: int
    """Most requests that a group holds at once."""
    retries: int
    """How many groups a request may lose."""
    patience: Patience
    in_flight: bool = False
    """Whether weights may come while rollouts are written."""


class VllmEngine:
    """Whoever trains says once, by `expect`, what sends; then `begin`, the sending, `finish` and `serve` are a sync.

    engine.start()                                 # every group, without waiting
    engine.expect(source, send)                    # `send(delivery, version)` for groups that were replaced
    delivery = engine.begin(version)               # every group waits
    delivery.sending({rank: parameters}).run(version)      # on every rank of the actor, wherever it is
    report = engine.finish(version)                # every group has it, digests equal
    engine.serve(version)
    """

    def __init__(self, fleet: Fleet, scale: Scale, vocabulary: Vocabulary, sampling: SamplingSettings) -> None:
        self.fleet, self.scale, self.vocabulary = fleet, scale, vocabulary
        self.sampling, self.max_tokens = sampling.law, sampling.max_tokens
        self.progress: Callable[[int, int, int], None] | None = None

    @property
    def version(self) -> int:
        return self.fleet.version

    @property
    def groups(self) -> int:
        return len(self.fleet.posts)

    @property
    def workers(self) -> int:
        """Workers of each group."""
        return self.fleet.terms.tp

    def start(self, seats: Sequence[Seat] = ()) -> None:
        """Starts the groups at their seats, or on this machine; only their first weights are waited for."""
        self.fleet.start(seats)

    def expect(self, source: Source, send: Send | None = None, meeting: tuple[str, int] | None = None) -> None:
        """Says what sends the weights; `send` sends those of the version being served once more, where that can be.

        `meeting` is the host and port of a store that all reach, for weights that go over the network.
        """
        self.fleet.expect(source, send, meeting)

    def leave_behind(self, is_left_behind: bool = True) -> None:
        """Nothing is sent once more: the actor learns while the groups write, so its weights are another version's.

        A group that was lost then waits for the next version, and its requests go to the others; where none is left
        they wait too, and `awaits_weights` says so.
        """
        self.fleet.is_left_behind = is_left_behind

    @property
    def awaits_weights(self) -> bool:
        """Whether what is being written goes on only when somebody publishes, by another version if need be."""
        return self.fleet.floor.is_awaited

    def begin(self, version: int) -> Delivery:
        """Every group waits for this version. Nothing is served until `serve`.

        A wave that waits for weights, or in flight any wave, goes on with the new version from where it is.
        """
        self.fleet.floor.claim(2 * self.scale.patience.silence_s)
        if not self.scale.in_flight:
            self.fleet.version = -1
        return self.fleet.begin(version)

    def finish(self, version: int) -> SyncReport:
        """Returns when every group has the version whole; TransferError where one has not."""
        return self.fleet.finish(version)

    def serve(self, version: int) -> None:
        """From here on rollouts are this version's. The groups emptied their prefix caches when it arrived."""
        held = [berth.version for berth in self.fleet.berths]
        if held != [version] * len(held):
            raise RuntimeError(f"version {version} cannot be served: the groups hold {held}; publish it first.")
        self.fleet.version = version
        self.fleet.floor.release()

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        """A response for every row."""
        law = self._checked(sampling or self.sampling)
        requests = read_requests(batch, self.max_tokens, self.scale.context)
        refuse_unknown(requests, self.scale.vocabulary)
        end_stopped(requests, self.vocabulary)
        end = {"tokens": list(self.vocabulary.end), "texts": list(self.vocabulary.stop)}
        with self.fleet.floor.held(self._waiting):
            first = self.version
            ledger = Ledger(requests=requests, retries=self.scale.retries, versions=range(first, first + 1))
            self._run(ledger, {"do": "write", "law": asdict(law), "end": end})
            rollouts = returned(batch, requests, first, self.vocabulary)
            if PREFIX in batch and PREFIX_LOGPROBS not in batch and len(batch):
                return rollouts.with_columns(sampler_logprobs=self._score(rollouts, law))
        return rollouts

    def score(self, batch: Batch) -> Ragged:
        """Log-probability of each response token, under the law tokens are drawn from."""
        law = self._checked(self.sampling)
        with self.fleet.floor.held(self._waiting):
            return self._score(batch, law)

    @property
    def may_sleep(self) -> bool:
        return self.fleet.order.may_sleep

    def sleep(self) -> None:
        """Groups give their GPU memory back, and nothing is served, until the next version has arrived.

        Memory for the weights is taken again where its sync begins, memory for the cache where it ends.
        """
        self.fleet.version = -1
        self.fleet.sleep()

    def close(self) -> None:
        self.progress = None
        self.fleet.close()

    def _checked(self, law: Sampling) -> Sampling:
        if self.version < 0:
            raise RuntimeError(
                "the engine has no whole version of the weights; publish one before asking for rollouts."
            )
        if why := unservable(law.temperature):
            raise ValueError(f"{why}.")
        return law

    def _run(self, ledger: Ledger, command: dict[str, Any]) -> None:
        Wave(
            fleet=self.fleet,
            ledger=ledger,
            patience=self.scale.patience,
            rows=self.scale.rows,
            command=command,
            tell=self._tell,
        ).run()

    def _waiting(self) -> None:
        """Shows that it is waited, for whoever would rather end."""
        if self.progress is not None:
            self.progress(0, 0, 0)

    def _tell(self, ledger: Ledger) -> None:
        if self.progress is not None:
            self.progress(ledger.done, len(ledger.requests), ledger.tokens)

    def _score(self, batch: Batch, law: Sampling) -> Ragged:
        refuse_unscorable(batch, self.scale.context, self.scale.vocabulary)
        prompts, responses = batch.ragged(PROMPT_TOKENS), batch.ragged(TOKENS)
        length_B = responses.length_B.tolist()
        rows = [row for row, length in enumerate(length_B) if length]
        groups = [berth.group for berth in self.fleet.berths if berth.version == self.version]
        shares = [rows[number :: len(groups)] for number in range(len(groups))]
        for group, share in zip(groups, shares, strict=True):
            asked = [
                {"id": row, "tokens": torch.cat([prompts.row(row), responses.row(row)]).tolist(), "start": start}
                for row, start in ((row, len(prompts.row(row))) for row in share)
            ]
            group.say({"do": "score", "law": asdict(law), "requests": asked})
        scores: list[Tensor] = [torch.zeros(0)] * len(batch)
        for group in groups:
            for row, logprobs in group.wait("scored", self.scale.patience.silence_s)["rows"]:
                if len(logprobs) != length_B[row]:
                    raise RuntimeError(
                        f"row {row} has {length_B[row]} tokens, but vLLM scored {len(logprobs)} of them."
                    )
                scores[row] = torch.tensor(logprobs, dtype=torch.float32)
        return Ragged(torch.cat(scores) if scores else torch.zeros(0), responses.offsets)
