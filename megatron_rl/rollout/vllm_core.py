"""vLLM's engine inside the process of one tensor-parallel group, spoken to in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from megatron_rl.rollout.vllm_group import CoreOrder
from megatron_rl.rollout.vllm_receiver import BACKEND, EXTENSION

INTERVAL = 16
"""Tokens of a response that leave the engine together."""

PREFILL = 8192
"""Tokens of prompts that a CPU reads at once."""

BLOCK = 32
"""Tokens of a cache block on a CPU: a verified prefix is reused in whole blocks."""


class Wrote(NamedTuple):
    """Tokens of one response from place `at` on, all by one version, and how it ended, empty while it has not."""

    id: int
    at: int
    tokens: list[int]
    logprobs: list[float]
    finish: str
    version: int


@dataclass(kw_only=True)
class Writing:
    """A response at work."""

    told: int = 0
    """Tokens that have left the engine."""
    older: list[tuple[int, int]] = field(default_factory=list)
    """Places up to which a version wrote, of those before the one that writes now, with that version."""


class Core:
    """One group: TP workers behind an engine in this process."""

    def __init__(self, order: CoreOrder) -> None:
        self.order = order
        self.engine = LLMEngine.from_engine_args(EngineArgs(**_arguments(order)))
        self.written: dict[int, Writing] = {}
        """The requests at work."""
        self.version = -1
        """The weights that are whole here; -1 while they are none."""
        self.is_greedy = False

    @property
    def is_busy(self) -> bool:
        """Whether there is something to write, and weights to write it with."""
        return bool(self.written) and self.version >= 0

    def write(
        self, law: Mapping[str, Any], end: Mapping[str, Any], requests: Sequence[Mapping[str, Any]]
    ) -> list[tuple[int, str]]:
        """Takes requests on, for `step` to write; returns those that vLLM refuses, each with the reason."""
        self.is_greedy = law["temperature"] == 0
        refused = []
        for request in requests:
            try:
                self._add(request, _params(law, end, request))
                self.written[request["id"]] = Writing()
            except (ValueError, VLLMValidationError) as error:
                refused.append((request["id"], str(error)))
        return refused

    def step(self) -> list[Wrote]:
        """One step of vLLM's scheduler; what left the engine with it."""
        return [piece for output in self.engine.step() for piece in self._wrote(output)]

    def abort(self) -> list[Wrote]:
        """Ends every request; the tokens said before are all there is of them."""
        ended = [Wrote(id, one.told, [], [], "abort", self.version) for id, one in self.written.items()]
        self.engine.abort_request([str(one.id) for one in ended])
        self.written.clear()
        return ended

    def score(self, law: Mapping[str, Any], requests: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[float]]]:
        """Log-probabilities of the tokens of each request from `start` on, in one wave without the prefix cache."""
        self.engine.collective_rpc("score_by", args=(dict(law),))
        starts = {str(request["id"]): request["start"] for request in requests}
        try:
            params = SamplingParams(
                max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False, ignore_eos=True, temperature=0.0
            )
            for request in requests:
                self._add(request, params)
            scored = []
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    # The first token has no predecessor: its entry is empty, and so entries are as many as tokens - 1.
                    logprobs = list(output.prompt_logprobs.logprobs)
                    whole = [float("nan")] * (len(output.prompt_token_ids) - len(logprobs)) + logprobs
                    scored.append((int(output.request_id), whole[starts[output.request_id] :]))
            return scored
        finally:
            # A request that was refused leaves those before it behind, which the next command would go on with.
            self.engine.abort_request(list(starts))
            self.engine.collective_rpc("score_by", args=(None,))

    def open(self, delivery: Mapping[str, Any], first: int) -> None:
        """Opens the wire of a delivery on every worker."""
        self.engine.collective_rpc(
            "init_weight_transfer_engine", kwargs={"init_info": {"delivery": dict(delivery), "first": first}}
        )

    def receive(self, version: int) -> list[dict[str, Any]]:
        """Returns when every worker has this version; nothing of an older one stays in a cache.

        Responses at work go on with it, from all that they have so far as if it had just been read. Where this fails
        they wait for a version that comes whole.
        """
        self._mark()
        self.version = -1
        self.engine.collective_rpc("start_weight_update")
        self.engine.collective_rpc("update_weights", kwargs={"update_info": {"version": version}})
        self.engine.collective_rpc("finish_weight_update")
        if not self.engine.reset_prefix_cache(reset_running_requests=bool(self.written)):
            raise RuntimeError(
                f"vLLM's prefix cache is in use, so version {version} cannot be served from an empty one"
            )
        reports: list[dict[str, Any]] = self.engine.collective_rpc("sync_report")
        self.version = version
        return reports

    def sleep(self) -> None:
        """Gives back the memory of the weights, which the next version brings anew, and of the cache."""
        self.engine.sleep(level=2)

    def wake(self, part: str) -> None:
        """Takes back the memory of `weights` or of the `kv_cache`."""
        self.engine.wake_up([part])

    def close(self) -> None:
        """Closes the wires of every worker."""
        self.engine.collective_rpc("shutdown_weight_transfer_engine")

    def _add(self, request: Mapping[str, Any], params: SamplingParams) -> None:
        self.engine.add_request(str(request["id"]), {"prompt_token_ids": request["tokens"]}, params)

    def _mark(self) -> None:
        """Remembers which tokens of the responses at work are of the present version."""
        if not self.is_busy:
            return
        # Tokens leave the engine several at a time, so some that this version wrote were not seen here yet.
        for state in self.engine.output_processor.request_states.values():
            drawn = state.detokenizer.num_output_tokens()
            self.written[int(state.external_req_id)].older.append((drawn, self.version))

    def _wrote(self, output: RequestOutput) -> Iterator[Wrote]:
        id, (completion,) = int(output.request_id), output.outputs
        tokens, writing = list(completion.token_ids), self.written[id]
        logprobs = list(completion.logprobs.logprobs)[-len(tokens) :] if tokens else []
        finish = completion.finish_reason or ""
        if not finish and not all(map(math.isfinite, logprobs)):
            # The driver fails such a request and will not know it any more, so nothing else may come of it.
            self.engine.abort_request([output.request_id])
            finish, writing.older = "abort", []
        # The law of temperature 0 has one token, of probability one; vLLM tells the model's own, or nan.
        logprobs = [each - each for each in logprobs] if self.is_greedy else logprobs
        for end, version in writing.older:
            if (count := end - writing.told) > 0:
                yield Wrote(id, writing.told, tokens[:count], logprobs[:count], "", version)
                tokens, logprobs, writing.told = tokens[count:], logprobs[count:], end
        yield Wrote(id, writing.told, tokens, logprobs, finish, self.version)
        writing.told, writing.older = writing.told + len(tokens), []
        if finish:
            del self.written[id]


def _params(law: Mapping[str, Any], end: Mapping[str, Any], request: Mapping[str, Any]) -> SamplingParams:
    return SamplingParams(
        **law,
        seed=request["seed"],
        max_tokens=request["room"],
        stop_token_ids=end["tokens"],
        ignore_eos=True,
        stop=end["texts"] or None,
        include_stop_str_in_output=True,
        detokenize=bool(end["texts"]),
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=INTERVAL,
    )


def _arguments(order: CoreOrder) -> dict[str, Any]:
    common = {
        "model": order.folder,
        "skip_tokenizer_init": not order.needs_text,
        "dtype": order.dtype,
        "load_format": "dummy",
        "generation_config": "vllm",
        "seed": 0,
        # vLLM reads no prompt without writing a token, so one that fills the context is scored with room for it.
        "max_model_len": order.context + 1,
        "max_num_seqs": order.rows,
        "tensor_parallel_size": order.tp,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        return common | {
            "enforce_eager": True,
            "kv_cache_memory_bytes": order.cache_bytes,
            "block_size": BLOCK,
            # A prompt read in parts has its seed's generator turned back, which a CPU's generator cannot do.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(PREFILL, order.context + 1),
        }
    return common | {"gpu_memory_utilization": order.memory_share, "enable_sleep_mode": order.may_sleep}
