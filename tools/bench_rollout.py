"""Prints tokens a second of the embedded engine beside `transformers` generate: same model, same long-tailed lengths.

    python tools/bench_rollout.py [--requests 256] [--longest 256] [--hidden 96] [--layers 3]

A response's length is its budget; `generate` decodes a batch until its longest response is done.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_rl.actor import weights
from megatron_rl.actor.architecture import describe
from megatron_rl.actor.rope import frequencies
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PROMPT_TOKENS, SEED
from megatron_rl.rollout.blueprint import Blueprint
from megatron_rl.rollout.embedded import Embedded, EmbeddedEngine
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vocabulary import Vocabulary

PROMPT = 26


def tiny_folder(folder: Path, hidden: int, layers: int) -> Path:
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


def open_engine(folder: Path, longest: int) -> EmbeddedEngine:
    architecture = describe(weights.read_config(folder))
    blueprint = Blueprint(
        shape=architecture.shape,
        context=PROMPT + longest,
        norm_eps=architecture.norm_eps,
        inverse_R=frequencies(architecture).inverse_R,
        qk_norm=architecture.qk_norm,
    )
    vocabulary = Vocabulary(decode=lambda tokens: "", end=())  # noqa: ARG005  # nothing is read here
    engine = Embedded().open(blueprint, vocabulary, SamplingSettings(max_tokens=longest), torch.float32)
    engine.load(folder)
    engine.serve(0)
    return engine


def seconds(action: Callable[[], object], repeats: int = 2) -> float:
    def once() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    lengths = torch.distributions.LogNormal(3.4, 0.8).sample((options.requests,)).clamp(4, options.longest).long()
    prompts = torch.randint(0, 64, (options.requests, PROMPT))
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_folder(Path(name), options.hidden, options.layers)
        engine, model = open_engine(folder, options.longest), AutoModelForCausalLM.from_pretrained(folder)
    asked = Batch.of({PROMPT_TOKENS: prompts.tolist(), SEED: list(range(options.requests)), BUDGET: lengths.tolist()})
    choices = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
    longest = int(lengths.max())
    theirs = seconds(lambda: model.generate(prompts, max_new_tokens=longest, min_new_tokens=longest, **choices))
    ours = seconds(lambda: engine.generate(asked))
    tokens = int(lengths.sum())
    print(f"{options.requests} responses, mean {tokens / options.requests:.0f} tokens, longest {longest}")
    print(f"embedded   {tokens / ours:10,.0f} tokens/s")
    print(f"generate   {tokens / theirs:10,.0f} tokens/s of those asked for")
    print(f"ratio      {theirs / ours:10.2f}")


if __name__ == "__main__":
    main()
