"""A wider and deeper tiny model with random weights: large enough that weights, not activations, fill the memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM

from megatron_rl.data.tiny_model import tiny_config, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class Width:
    """Sizes in units of the tiny model's: Width(heads=16, layers=8) has 27 million parameters."""

    heads: int
    layers: int

    def write(self, folder: Path) -> tuple[Path, int]:
        """The Hugging Face folder, and how many parameters it holds."""
        config = tiny_config()
        config.num_attention_heads, config.num_hidden_layers = self.heads, self.layers
        config.layer_types = ["full_attention"] * self.layers
        config.hidden_size = config.head_dim * self.heads
        config.intermediate_size = 4 * config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Qwen3ForCausalLM(config).to(torch.float32)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder, sum(parameter.numel() for parameter in model.parameters())
