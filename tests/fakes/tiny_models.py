"""Tiny Hugging Face folders of every family, with random weights, for tests that need a real checkpoint."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

transformers.utils.logging.disable_progress_bar()

FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
MIXTURES = {"qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM)}
"""Families with experts."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
"""A vocabulary that no padding divides, heads that are grouped, layers for two pipeline stages."""

EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "num_hidden_layers": 4,
}
"""Experts in all layers but one, in either half of a pipeline."""


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model whose every parameter, biases and norms too, is random, so that none is forgotten unseen."""
    config_class, model_class = (FAMILIES | MIXTURES)[family]
    extra = {**({"head_dim": 32} if family.startswith("qwen3") else {}), **(EXPERTS if family in MIXTURES else {})}
    config = config_class(**{**TINY, **extra, **changes})
    torch.manual_seed(seed)
    model = model_class(config).to(torch.float32).eval()
    for name, parameter in model.named_parameters():
        spread, centre = (0.2, 1.0) if "norm" in name else (0.08, 0.0)
        torch.nn.init.normal_(parameter, centre, spread)
    return model


def tiny_folder(folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """The folder, now holding config.json and safetensors of a tiny model."""
    tiny_model(family, seed, **changes).to(dtype).save_pretrained(folder)
    return folder
