"""A small Qwen3 in plain PyTorch on padded batches: what the actor's speed and losses are held against.

B rows, S padded tokens, H heads, D numbers per head, V vocabulary. Projections that share an input are fused, since at
this size the number of operators is what costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear, rms_norm, scaled_dot_product_attention, silu


class Sizes(NamedTuple):
    """Qwen3-shaped, 0.3 million parameters by default."""

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 32
    ffn: int = 256
    vocabulary: int = 64
    theta: float = 10000.0
    eps: float = 1e-6

    @property
    def config(self) -> dict[str, object]:
        """As config.json says it."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }

    def random_weights(self, seed: int = 0) -> dict[str, Tensor]:
        """Under Hugging Face's names, small and normal, norms at one."""
        draw = torch.Generator().manual_seed(seed)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        named = {f"model.layers.{n}.{name}": shape for n in range(self.layers) for name, shape in shapes.items()}
        named |= {"model.embed_tokens": (self.vocabulary, self.hidden), "model.norm": (self.hidden,)}
        return {
            f"{name}.weight": torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * 0.05
            for name, shape in named.items()
        }


class PlainDecoder(nn.Module):
    def __init__(self, sizes: Sizes, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Parameter(weights["model.embed_tokens.weight"].clone())
        self.norm = nn.Parameter(weights["model.norm.weight"].clone())
        self.layers = nn.ModuleList(_Layer(sizes, weights, f"model.layers.{n}") for n in range(sizes.layers))
        rate_R = 1.0 / sizes.theta ** (torch.arange(0, sizes.head_dim, 2) / sizes.head_dim)
        angle_SR = torch.outer(torch.arange(4096).float(), rate_R)
        self.register_buffer("cosine_SD", torch.cat([angle_SR.cos()] * 2, -1))
        self.register_buffer("sine_SD", torch.cat([-angle_SR.sin(), angle_SR.sin()], -1))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        length = tokens_BS.shape[1]
        turn = (self.cosine_SD[:length], self.sine_SD[:length])
        x_BSE = embedding(tokens_BS, self.embedding)
        for layer in self.layers:
            x_BSE = layer(x_BSE, turn)
        return linear(rms_norm(x_BSE, self.norm.shape, self.norm, self.sizes.eps), self.embedding)

    def loss(self, tokens_BS: Tensor, live_BS: Tensor) -> Tensor:
        """Mean negative log-probability of the live tokens, each predicted from the tokens before it."""
        logits_BSV = self(tokens_BS[:, :-1])
        losses = cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten(), reduction="none")
        live = live_BS[:, 1:].flatten()
        return (losses * live).sum() / live.sum()


class _Layer(nn.Module):
    def __init__(self, sizes: Sizes, weights: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.sizes = sizes

        def take(*names: str) -> nn.Parameter:
            return nn.Parameter(torch.cat([weights[f"{prefix}.{name}.weight"] for name in names]))

        self.qkv = take("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = take("self_attn.o_proj")
        self.gate_up = take("mlp.gate_proj", "mlp.up_proj")
        self.down = take("mlp.down_proj")
        self.q_norm, self.k_norm = take("self_attn.q_norm"), take("self_attn.k_norm")
        self.before, self.between = take("input_layernorm"), take("post_attention_layernorm")

    def forward(self, x_BSE: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        heads, kv_heads, width, eps = self.sizes.heads, self.sizes.kv_heads, self.sizes.head_dim, self.sizes.eps
        qkv_BSHD = linear(rms_norm(x_BSE, self.before.shape, self.before, eps), self.qkv).unflatten(-1, (-1, width))
        q_BSHD, k_BSHD, v_BSHD = qkv_BSHD.split([heads, kv_heads, kv_heads], 2)
        q_BHSD = _turned(rms_norm(q_BSHD, (width,), self.q_norm, eps).transpose(1, 2), turn)
        k_BHSD = _turned(rms_norm(k_BSHD, (width,), self.k_norm, eps).transpose(1, 2), turn)
        mixed_BHSD = scaled_dot_product_attention(
            q_BHSD, k_BHSD, v_BSHD.transpose(1, 2), is_causal=True, enable_gqa=heads != kv_heads
        )
        x_BSE = x_BSE + linear(mixed_BHSD.transpose(1, 2).flatten(2), self.out)
        gate, up = linear(rms_norm(x_BSE, self.between.shape, self.between, eps), self.gate_up).chunk(2, -1)
        return x_BSE + linear(silu(gate) * up, self.down)


def _turned(heads_BHSD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cosine_SD, sine_SD = turn
    return heads_BHSD * cosine_SD + heads_BHSD.roll(heads_BHSD.shape[-1] // 2, -1) * sine_SD
