"""The tiny model in the shapes that claims are measured with, whatever shape the quickstart has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM

from megatron_rl.data.tiny_model import tiny_config, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Heads have dimension 32: ModelShape(layers=3, heads=3, kv_heads=1, ffn=256) has 0.3 million parameters."""

    layers: int
    heads: int
    kv_heads: int
    ffn: int

    def write(self, folder: Path, seed: int = 0) -> tuple[Path, int]:
        """The Hugging Face folder with random weights, and how many parameters it holds."""
        config = tiny_config()
        config.num_hidden_layers, config.layer_types = self.layers, ["full_attention"] * self.layers
        config.num_attention_heads, config.num_key_value_heads = self.heads, self.kv_heads
        config.hidden_size, config.intermediate_size = config.head_dim * self.heads, self.ffn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(config).to(torch.float32)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder, sum(parameter.numel() for parameter in model.parameters())


TINY = ModelShape(layers=3, heads=3, kv_heads=1, ffn=256)
"""Trains in seconds; what it takes in memory is activations."""
WIDE = ModelShape(layers=8, heads=16, kv_heads=2, ffn=2048)
"""Thirty million parameters, so that weights, gradients and moments fill the memory."""
