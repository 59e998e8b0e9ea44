"""Engines over tiny Hugging Face folders, as the run puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_rl.actor import weights
from megatron_rl.actor.architecture import describe
from megatron_rl.actor.rope import frequencies
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PREFIX, PROMPT_TOKENS, SEED
from megatron_rl.rollout.blueprint import Blueprint
from megatron_rl.rollout.embedded import Embedded, EmbeddedEngine
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vocabulary import Vocabulary


def words(tokens: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def blueprint_of(folder: Path) -> Blueprint:
    architecture = describe(weights.read_config(folder))
    turned, routing = frequencies(architecture), architecture.routing
    return Blueprint(
        shape=architecture.shape,
        context=architecture.context,
        norm_eps=architecture.norm_eps,
        inverse_R=turned.inverse_R,
        magnitude=turned.magnitude,
        qkv_bias=architecture.qkv_bias,
        qk_norm=architecture.qk_norm,
        experts_per_token=routing.chosen if routing else 0,
        experts_normalised=routing is not None and routing.normalise,
    )


def open_embedded(folder: Path, end: tuple[int, ...] = (1,), stop: tuple[str, ...] = (), **choices) -> EmbeddedEngine:
    names = {"temperature", "top_p", "top_k", "min_p", "max_tokens"}
    sampling = SamplingSettings(**{"max_tokens": 24} | {name: choices.pop(name) for name in names & choices.keys()})
    vocabulary = Vocabulary(decode=words, end=end, stop=stop)
    engine = Embedded(**choices).open(blueprint_of(folder), vocabulary, sampling, torch.float32)
    engine.load(folder)
    engine.serve(0)
    return engine


def asked(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
    budgets: Sequence[int] | None = None,
) -> Batch:
    batch = Batch.of({PROMPT_TOKENS: [list(prompt) for prompt in prompts], SEED: seeds or list(range(len(prompts)))})
    if prefixes is not None:
        batch = batch.with_columns({PREFIX: [list(prefix) for prefix in prefixes]})
    return batch if budgets is None else batch.with_columns({BUDGET: list(budgets)})


def random_prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(2, 100, (length,), generator=generator).tolist() for length in lengths]
