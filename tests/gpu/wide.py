"""A model wide enough for FP8, and what `transformers` says of it in float32.

Its weights are numbers that BF16 holds exactly, so whatever differs is computation and not storage.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_rl.actor import schedule
from megatron_rl.actor.cpu import device
from megatron_rl.actor.learning import Step, share
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.sequences import Sequences
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.actor.weights import layout
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import LOSS_MASK, PROMPT_TOKENS, TOKENS
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.local import execute_local
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder

VOCABULARY = 1000
MODEL_LAW = Sampling()
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
}
"""Every matrix a multiple of 128 both ways, which scales of blocks need."""
LENGTHS = (3, 180, 7, 1, 64, 65, 9, 30, 2, 128, 90, 17)
"""Responses, long-tailed."""


class Subject(NamedTuple):
    """Folder(model), rollouts(12), log-probabilities of their response tokens and the gradient of `Likelihood`."""

    folder: Path
    batch: Batch
    logprob_R: Tensor
    gradients: dict[str, Tensor]


def subject(folder: Path, family: str) -> Subject:
    tiny_folder(folder, family, dtype=torch.bfloat16, **WIDE)
    batch = rollouts(groups=4, samples=3, vocabulary=VOCABULARY, lengths=LENGTHS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device())
    prompts, responses = (batch.ragged(column) for column in (PROMPT_TOKENS, TOKENS))
    rows = zip(*(ragged.values.split(ragged.length_B.tolist()) for ragged in (prompts, responses)), strict=True)
    logprobs = [_logprobs(model, prompt, response) for prompt, response in rows]
    logprob_R, mask_R = torch.cat(logprobs), batch.ragged(LOSS_MASK).values.to(device())
    (-(logprob_R * mask_R).sum() / mask_R.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return Subject(folder, batch, logprob_R.detach(), gradients)


def _logprobs(model: torch.nn.Module, prompt: Tensor, response: Tensor) -> Tensor:
    """One row by itself, unpadded and unpacked."""
    tokens_T = torch.cat([prompt, response]).long().to(device())
    law_TV = model(tokens_T[None]).logits[0].log_softmax(-1)
    return law_TV[len(prompt) - 1 : -1].gather(1, tokens_T[len(prompt) :, None]).squeeze(1)


def actor_of(
    folder: Path,
    precision: Precision,
    *,
    rate: float = 1e-5,
    tokens: int = 512,
    packed: bool = True,
    sampling: Sampling = MODEL_LAW,
) -> MegatronActor:
    """The only rank of an actor."""
    optimizer = OptimizerSettings(learning_rate=LearningRate(peak=rate), weight_decay=0.0, clip=0.0)
    actor = MegatronActor(
        ActorSettings(precision=precision, optimizer=optimizer, update=UpdateSettings(microbatch_tokens=tokens)),
        Origin(folder=folder, sampling=sampling),
    )
    actor.limits = replace(actor.limits, packed=packed)
    return actor


def gradients_of(actor: MegatronActor, batch: Batch) -> dict[str, Tensor]:
    """The gradient of `Likelihood` over the batch, in FP32 and under the names of `transformers`."""
    objective, sequences, rows = Likelihood(), Sequences(batch, Likelihood().reads), torch.arange(len(batch))
    step = Step(
        sequences=sequences,
        rows=rows,
        objective=objective,
        counts=sequences.counts(rows),
        limits=actor.limits,
        read=actor.read,
    )
    schedule.forward_backward(actor.chunks, share(sequences, rows, actor.limits)[1], step.finish)
    local = {Key(0, name): parameter.main_grad for name, parameter in actor.model.chunks[0].named_parameters()}
    source, target = layout(actor.model), huggingface_layout(actor.model.architecture.shape)
    whole = {tensor.key: torch.zeros(tensor.shape, device=device()) for tensor in target.tensors(0)}
    execute_local(plan(source, target, together(source, target)), {0: local}, {0: whole})
    return {key.name: gradient for key, gradient in whole.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """The length of the difference over the length of what was expected."""
    found, expected = found.to(expected.device, torch.float64), expected.double()
    return float((found - expected).norm() / expected.norm())


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])
