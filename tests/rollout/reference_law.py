"""What transformers says of rollouts: its model, and its own reading of temperature, min-p, top-k and top-p."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, TOKENS
from megatron_rl.ops.logprobs import Sampling


def warped(logits_NV: Tensor, law: Sampling) -> Tensor:
    """Log-probabilities under the law, put together from the warpers of `generate`."""
    if law.temperature == 0:
        return torch.log(torch.nn.functional.one_hot(logits_NV.argmax(-1), logits_NV.shape[-1]).float())
    warpers = [TemperatureLogitsWarper(law.temperature)] if law.temperature != 1 else []
    warpers += [MinPLogitsWarper(law.min_p)] if law.min_p else []
    warpers += [TopKLogitsWarper(law.top_k)] if law.top_k else []
    warpers += [TopPLogitsWarper(law.top_p)] if law.top_p < 1 else []
    no_context = torch.zeros(len(logits_NV), 0, dtype=torch.int64)
    for warper in warpers:
        logits_NV = warper(no_context, logits_NV)
    return torch.log_softmax(logits_NV, -1)


@torch.no_grad()
def laws_of(folder: Path, contexts: list[list[int]], law: Sampling) -> Tensor:
    """The law of the token after each context; contexts of one length."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return warped(model(torch.tensor(contexts)).logits[:, -1].float(), law)


@torch.no_grad()
def expected_logprobs(folder: Path, rollouts: Batch, law: Sampling) -> list[Tensor]:
    """The log-probability of each response token under the law."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    prompts, responses = rollouts.ragged(PROMPT_TOKENS).rows(), rollouts.ragged(TOKENS).rows()
    for prompt, response in zip(prompts, responses, strict=True):
        logits_NV = model(torch.cat([prompt, response]).long()[None]).logits[0, len(prompt) - 1 : -1].float()
        found.append(warped(logits_NV, law).gather(1, response.long()[:, None]).squeeze(1))
    return found
