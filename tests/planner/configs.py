"""Published models: the sizes that the recipes are planned with, and one that has no recipe."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_rl.actor.architecture import HfConfig

MODELS = Path(__file__).parents[2] / "examples" / "models"


def published(name: str) -> HfConfig:
    """The config.json of this model."""
    read: HfConfig = json.loads((MODELS / name / "config.json").read_text(encoding="utf-8"))
    return read


QWEN3_8B = published("Qwen3-8B")
QWEN3_32B = published("Qwen3-32B")
QWEN3_30B_A3B = published("Qwen3-30B-A3B")
LLAMA_8B = published("Llama-3.1-8B-Instruct")
LLAMA_70B = published("Llama-3.1-70B-Instruct")
LLAMA_405B: HfConfig = {
    **LLAMA_70B,
    "num_hidden_layers": 126,
    "hidden_size": 16384,
    "num_attention_heads": 128,
    "intermediate_size": 53248,
}
