"""A real vLLM engine over tiny models, and what transformers says of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_rl.actor import weights
from megatron_rl.actor.architecture import describe
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, TOKENS
from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.reshard.delivery import Cut, Delivery, Source
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.local import load_rank
from megatron_rl.reshard.transport import Exchange
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm import ServedModel, Vllm
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.rollout.vocabulary import Vocabulary
from tests.rollout.opening import words

CONTEXT = 128


class Serving:
    """An engine and the folder whose weights it serves; `publish` sends another folder's through a one-rank actor."""

    def __init__(
        self, folder: Path, logs: Path, end: tuple[int, ...] = (1,), max_tokens: int = 24, stop=(), **choices
    ) -> None:
        self.shape = describe(weights.read_config(folder)).shape
        self.folder, self.version = folder, -1
        self.sender: tuple[Delivery, dict[Key, Tensor], Exchange] | None = None
        model = ServedModel(folder=folder, shape=self.shape, context=CONTEXT, dtype=torch.float32)
        settings = Vllm(**{"cache_gib": 0.0625, "verify": "full", **choices})
        sampling = SamplingSettings(max_tokens=max_tokens)
        self.engine: VllmEngine = settings.open(model, Vocabulary(decode=words, end=end, stop=stop), sampling, logs)
        self.alone = Source(shape=self.shape, cut=Cut(tp=1, pp=1, chunks=(self.shape.layers,)))

    def publish(self, folder: Path) -> None:
        """Serves the weights of this folder as the next version."""
        self.folder, self.version = folder, self.version + 1
        self.engine.expect(self.alone, self.send)
        self.send(self.engine.begin(self.version), self.version)
        self.engine.finish(self.version)
        self.engine.serve(self.version)

    def send(self, delivery: Delivery, version: int) -> None:
        if self.sender is None or self.sender[0] != delivery:
            tensors = {tensor.key: torch.zeros(tensor.shape) for tensor in delivery.plan.source.tensors(0)}
            self.sender = delivery, tensors, delivery.sending({0: tensors})
        _, tensors, exchange = self.sender
        load_rank(delivery.plan.source, 0, load_file(self.folder / "model.safetensors").__getitem__, tensors)
        exchange.run(version)


def expected_logprobs(folder: Path, rollouts: Batch, law: Sampling | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """What transformers gives each response token under the law, and its likeliest token at each place."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    logprobs, likeliest = [], []
    prompts, responses = rollouts.ragged(PROMPT_TOKENS).rows(), rollouts.ragged(TOKENS).rows()
    for prompt, response in zip(prompts, responses, strict=True):
        whole = torch.cat([prompt, response]).long()[None]
        with torch.no_grad():
            logits_NV = model(whole).logits[0, len(prompt) - 1 : -1].float()
        law_NV = sampling_logprobs(logits_NV, law or Sampling())
        logprobs.append(law_NV.gather(1, response.long()[:, None]).squeeze(1))
        likeliest.append(logits_NV.argmax(-1))
    return logprobs, likeliest


def differences(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    return (torch.cat(list(ours)) - torch.cat(list(theirs))).abs()
