"""A decoder with a key-value cache whose result for a sequence does not depend on the sequences beside it.

On a CPU a row's bits hang on the shape of the product it takes part in: one to three rows left over after threads
have shared them out go through another kernel, a batch of one does, long sums are cut where their length says, and
torch's own `silu` takes another formula for the last few numbers of a thread. So no product here has other than
multiples of `ROWS` rows, or fewer than `BATCH` matrices; sums over a cache run in blocks of `CACHE_STEP`, added in
order, to which a longer cache only adds zeros; and `_silu` is made of operations that have one formula. Nothing else
crosses rows. It holds with any number of threads; the tests look at this on the machine they run on.

S sequences, N of them at one token each, P tokens of a prefill, H hidden, K key-value heads, Q query heads a key-value
head, D numbers a head, L tokens of a cache, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # torch's own name
from torch import Tensor

from megatron_rl.rollout.blueprint import Blueprint
from megatron_rl.rollout.experts import choose, mixed
from megatron_rl.rollout.fused_weights import FusedWeights

ROWS = 8
BATCH = 2
CACHE_STEP = 64
"""Caches are read up to a multiple of this."""


@dataclass(kw_only=True)
class Cache:
    """Keys and values of S sequences: one tensor (S, K, capacity, D) a layer for each."""

    keys: list[Tensor]
    values: list[Tensor]

    def take(self, row_S: Tensor) -> Cache:
        """The cache of these sequences; a sequence may be taken more than once."""
        return Cache(
            keys=[keys.index_select(0, row_S) for keys in self.keys],
            values=[values.index_select(0, row_S) for values in self.values],
        )

    @classmethod
    def joined(cls, parts: Sequence[Cache]) -> Cache:
        return cls(
            keys=[torch.cat(layers) for layers in zip(*(part.keys for part in parts), strict=True)],
            values=[torch.cat(layers) for layers in zip(*(part.values for part in parts), strict=True)],
        )

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]


class Decoder:
    """The model's arithmetic over weights that others write into."""

    def __init__(self, blueprint: Blueprint, weights: FusedWeights) -> None:
        self.blueprint, self.storage = blueprint, weights.storage
        shape = blueprint.shape
        self.head = self.storage["model.embed_tokens.weight" if shape.tied else "lm_head.weight"]
        self.device, self.dtype = self.head.device, self.head.dtype
        angle_LR = torch.outer(torch.arange(blueprint.context, dtype=torch.float32), blueprint.inverse_R)
        self.cosine_LR = (angle_LR.cos() * blueprint.magnitude).to(self.device, self.dtype)
        self.sine_LR = (angle_LR.sin() * blueprint.magnitude).to(self.device, self.dtype)

    def empty_cache(self, sequences: int, capacity: int) -> Cache:
        shape = self.blueprint.shape
        size = (max(sequences, BATCH), shape.kv_heads, capacity, shape.head_dim)
        layers = range(shape.layers)
        return Cache(
            keys=[torch.zeros(size, dtype=self.dtype, device=self.device) for _ in layers],
            values=[torch.zeros(size, dtype=self.dtype, device=self.device) for _ in layers],
        )

    def prefill(self, token_SP: Tensor, capacity: int) -> tuple[Tensor, Cache]:
        """Hidden states (S, P, H) of padded sequences and their cache. What stands behind a padding is never read."""
        sequences, length = token_SP.shape
        token_SP = F.pad(token_SP, (0, -length % ROWS, 0, max(0, BATCH - sequences)))
        padded = token_SP.shape[1]
        reach = -(-max(capacity, padded) // CACHE_STEP) * CACHE_STEP
        cache = self.empty_cache(len(token_SP), reach)
        position_P = torch.arange(padded, device=self.device)
        hidden_SPH = self._layers(token_SP, position_P.expand(token_SP.shape), cache, reach)
        if sequences < len(token_SP):
            cache = cache.take(torch.arange(sequences, device=self.device))
        return hidden_SPH[:sequences, :length], cache

    def decode(self, token_N: Tensor, position_N: Tensor, cache: Cache) -> Tensor:
        """Logits (N, V) after one more token of each sequence, which goes into the cache at its position."""
        reach = -(-(int(position_N.max()) + 1) // CACHE_STEP) * CACHE_STEP
        hidden_N1H = self._layers(token_N[:, None], position_N[:, None], cache, min(reach, cache.capacity))
        return self.logits(hidden_N1H[:, 0])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        normed_NH = self._norm(hidden_NH, "model.norm.weight")
        return self._linear(normed_NH, self.head).float()

    def _layers(self, token_SP: Tensor, position_SP: Tensor, cache: Cache, reach: int) -> Tensor:
        shape = self.blueprint.shape
        blocked = _blocked(position_SP, reach, shape.heads // shape.kv_heads)
        hidden_SPH = F.embedding(token_SP, self.storage["model.embed_tokens.weight"])
        rotation = self.cosine_LR[position_SP][:, :, None], self.sine_LR[position_SP][:, :, None]
        for layer in range(shape.layers):
            name = f"model.layers.{layer}."
            normed_SPH = self._norm(hidden_SPH, name + "input_layernorm.weight")
            query, key, value = self._project(normed_SPH, name, rotation)
            _write(cache.keys[layer], key, position_SP)
            _write(cache.values[layer], value, position_SP)
            keys, values = cache.keys[layer][:, :, :reach], cache.values[layer][:, :, :reach]
            attended = _attend(query, keys, values, blocked)
            hidden_SPH = hidden_SPH + self._linear(attended, self.storage[name + "self_attn.o_proj.weight"])
            normed_SPH = self._norm(hidden_SPH, name + "post_attention_layernorm.weight")
            answer = self._mixture if shape.is_sparse(layer) else self._mlp
            hidden_SPH = hidden_SPH + answer(normed_SPH, name + "mlp.")
        return hidden_SPH

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        gate, up = self._linear(x, self.storage[name + "gate_up_proj.weight"]).chunk(2, -1)
        return self._linear(_silu(gate) * up, self.storage[name + "down_proj.weight"])

    def _mixture(self, x_SPH: Tensor, name: str) -> Tensor:
        """What each token's experts answer, weighed by a router in float32."""
        blueprint, x_NH = self.blueprint, x_SPH.flatten(0, 1)
        logits_NE = self._linear(x_NH.float(), self.storage[name + "gate.weight"].float())
        choice = choose(logits_NE, blueprint.experts_per_token, blueprint.experts_normalised)
        answers = mixed(x_NH, choice, blueprint.shape.experts, lambda e, x: self._mlp(x, f"{name}experts.{e}."))
        return answers.view(x_SPH.shape)

    def _project(self, hidden_SPH: Tensor, name: str, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (S, P, heads, D), keys and values (S, P, K, D), rotated."""
        shape = self.blueprint.shape
        bias = self.storage[name + "self_attn.qkv_proj.bias"] if self.blueprint.qkv_bias else None
        fused = self._linear(hidden_SPH, self.storage[name + "self_attn.qkv_proj.weight"], bias)
        heads = fused.view(*fused.shape[:2], shape.heads + 2 * shape.kv_heads, shape.head_dim)
        query, key, value = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 2)
        if self.blueprint.qk_norm:
            query = self._norm(query, name + "self_attn.q_norm.weight")
            key = self._norm(key, name + "self_attn.k_norm.weight")
        return _rotate(query, *rotation), _rotate(key, *rotation), value

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.storage[name]
        return F.rms_norm(x, weight.shape, weight, self.blueprint.norm_eps)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        padded = F.pad(flat, (0, 0, 0, -len(flat) % ROWS)) if len(flat) % ROWS else flat
        return F.linear(padded, weight, bias)[: len(flat)].view(*x.shape[:-1], len(weight))


def _write(cache_SKLD: Tensor, new_SPKD: Tensor, position_SP: Tensor) -> None:
    index = position_SP[:, None, :, None].expand(-1, cache_SKLD.shape[1], -1, cache_SKLD.shape[3])
    cache_SKLD.scatter_(2, index, new_SPKD.transpose(1, 2))


def _rotate(x_SPHD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x_SPHD.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _silu(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide / wide.neg().exp_().add_(1)).to(x.dtype)


def _blocked(position_SP: Tensor, reach: int, group: int) -> Tensor:
    """What each query head of a key-value head may not look at: (S, 1, rows, L), rows a multiple of `ROWS`."""
    later_SPL = torch.arange(reach, device=position_SP.device) > position_SP[..., None]
    later_S1RL = later_SPL.repeat_interleave(group, 1)[:, None]
    return F.pad(later_S1RL, (0, 0, 0, -later_S1RL.shape[2] % ROWS))


def _attend(query: Tensor, keys_SKLD: Tensor, values_SKLD: Tensor, blocked_S1RL: Tensor) -> Tensor:
    """Softmax attention, block by block of the cache: (S, P, heads x D)."""
    sequences, tokens, heads, size = query.shape
    kv_heads = keys_SKLD.shape[1]
    rows, padded = tokens * heads // kv_heads, blocked_S1RL.shape[2]
    grouped = query.view(sequences, tokens, kv_heads, -1, size).permute(0, 2, 1, 3, 4).reshape(-1, rows, size)
    grouped = F.pad(grouped * size**-0.5, (0, 0, 0, padded - rows))
    scores = torch.bmm(grouped, keys_SKLD.flatten(0, 1).transpose(1, 2))
    scores.unflatten(0, (sequences, kv_heads)).masked_fill_(blocked_S1RL, -torch.inf)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    mixed = (_mix(weights, values_SKLD.flatten(0, 1)) / _total(weights)).to(query.dtype)[:, :rows]
    ordered = mixed.view(sequences, kv_heads, tokens, heads // kv_heads, size).permute(0, 2, 1, 3, 4)
    return ordered.reshape(sequences, tokens, heads * size)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """Values weighed and added up, in float32."""
    blocks = zip(weights.split(CACHE_STEP, -1), values.split(CACHE_STEP, 1), strict=True)
    return sum((torch.bmm(*block).float() for block in blocks), start=weights.new_zeros((), dtype=torch.float32))


def _total(weights: Tensor) -> Tensor:
    blocks = weights.unflatten(-1, (-1, CACHE_STEP)).sum(-1, dtype=torch.float32)
    return blocks.cumsum(-1)[..., -1:]  # one after the other, where `sum` would group them by their number
