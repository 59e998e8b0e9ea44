"""What the forward pass keeps for the backward pass on one rank, from the sizes and the cut.

Counted are the tensors that autograd saves. What a layer keeps of a token: of the residual stream, cut over tensor
ranks by sequence parallelism; of attention and the MLP, cut by heads and columns; and a few float32 statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from megatron_rl.actor.architecture import Architecture
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.reshard.megatron import megatron_vocabulary

Kernels = Literal["transformer_engine", "torch", "reference"]
"""What runs the layers: Transformer Engine, torch's kernels on a GPU, or torch's on a CPU, which keep the most."""

CHUNK_NUMBERS: Final = 2**25
"""Numbers of a float32 chunk of logits; scoring works on one at a time."""
CHUNK_COPIES: Final = 3


class Keeps(NamedTuple):
    """Copies that kernels keep."""

    norm: int
    """Of the residual stream by a norm: its input, what it normalised, its output."""
    head_norm: tuple[int, int]
    """Of queries and of keys by their norms."""
    mixed: int
    """Of attention's output."""
    mlp: int
    """Of one MLP width: gate and up, and what becomes of them on the way to the second matrix."""
    expert: int


KEEPS: Final[dict[str, Keeps]] = {
    "transformer_engine": Keeps(norm=2, head_norm=(1, 0), mixed=1, mlp=3, expert=3),
    "torch": Keeps(norm=2, head_norm=(1, 0), mixed=1, mlp=3, expert=4),
    "reference": Keeps(norm=3, head_norm=(2, 1), mixed=2, mlp=5, expert=6),
}
"""`reference` was counted on a CPU, tensor by tensor; the others are reasoned from what kernels save by design."""


class Layer(NamedTuple):
    """Bytes that one layer keeps, by what a choice of recomputation can forget."""

    stream: int
    attention: int
    core: int
    """Of attention, what recomputing the core forgets."""
    mlp: int
    norm_output: int
    core_inputs: int
    """What recomputing the core must keep besides: queries and keys that are no views of what left the matrix."""

    @property
    def total(self) -> int:
        return self.stream + self.attention + self.core + self.mlp


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes on one rank at the fullest moment: Activations(layers=..., logits=..., working=...)."""

    layers: int
    logits: int
    """Logits of the micro-batch in hand, and the last norm."""
    working: int
    """What is neither kept nor saved: gradients under way and a float32 chunk of logits."""

    @property
    def total(self) -> int:
        return self.layers + self.logits + self.working


def activations(
    architecture: Architecture, actor: ActorSettings, stage: int, microbatches: int, kernels: Kernels
) -> Activations:
    """Of a pipeline stage that goes through so many micro-batches of the full token budget."""
    tokens = _tokens(actor)
    chunks = actor.chunk_layers(architecture.shape.layers)
    own = chunks[stage :: actor.pp]
    first = [sum(chunks[: chunk * actor.pp + stage]) for chunk in range(actor.vpp)]
    units = [
        _units(architecture, actor, range(start, start + count), kernels)
        for start, count in zip(first, own, strict=True)
    ]
    kept = sum(unit.kept for chunk in units for unit in chunk) // actor.vpp
    in_flight = _in_flight(actor, stage, microbatches)
    is_last = stage == actor.pp - 1
    logits = _head(architecture, actor, tokens, kernels) if is_last else 0
    # The logits of a micro-batch are gone when its last layer is computed again.
    again = max(0, max(_peak(chunk) for chunk in units) - kept - logits)
    return Activations(
        layers=kept * in_flight + again + _angles(architecture, tokens, in_flight, _item(actor)),
        logits=logits,
        working=_working(architecture, actor, tokens, is_last),
    )


def layer_of(architecture: Architecture, actor: ActorSettings, is_sparse: bool, kernels: Kernels) -> Layer:
    """What a layer keeps of one micro-batch when it forgets nothing."""
    shape, keeps, item, tokens = architecture.shape, KEEPS[kernels], _item(actor), _tokens(actor)
    streamed = tokens // (actor.tp if actor.splits_sequence else 1)
    queries, keys = (
        shape.heads * shape.head_dim // actor.tp,
        max(shape.kv_heads * shape.head_dim // actor.tp, shape.head_dim),
    )
    heads = shape.heads // actor.tp
    norm_output = streamed * shape.hidden * item
    # The queries of several groups lie apart in what the matrix gives, so they are copied together.
    is_copied = shape.kv_heads > actor.tp
    head_norm = (keeps.head_norm[0] - (not is_copied)) * queries + keeps.head_norm[1] * keys
    statistics = 4 * (heads + max(shape.kv_heads // actor.tp, 1)) if architecture.qk_norm else 0
    return Layer(
        stream=2 * streamed * (keeps.norm * shape.hidden * item + 4),
        # Query, key and value as they left their matrix, what the head norms keep, and the last matrix's input.
        attention=tokens * ((2 * queries + 2 * keys + head_norm * architecture.qk_norm) * item + statistics),
        # Turned queries and keys, attention's output where it is not the last matrix's input, a normaliser per head.
        core=tokens * ((queries + keys + (keeps.mixed - 1) * queries) * item + 4 * heads)
        + _gathered(actor, keys, kernels),
        mlp=_experts(architecture, actor, kernels)
        if is_sparse
        else tokens * keeps.mlp * (shape.ffn // actor.tp) * item,
        norm_output=norm_output,
        core_inputs=tokens * item * ((queries + keys) if architecture.qk_norm else queries * is_copied),
    )


def _gathered(actor: ActorSettings, keys: int, kernels: Kernels) -> int:
    """Keys and values of all context ranks, beyond this rank's own; Transformer Engine passes them round instead."""
    if actor.cp == 1 or kernels == "transformer_engine":
        return 0
    # Of the two chunks of a sequence, one meets its first part and the other the rest and that part again.
    met = (2 * actor.cp + 1) * _tokens(actor) // 2
    return (2 * met - _tokens(actor)) * keys * _item(actor)


def _experts(architecture: Architecture, actor: ActorSettings, kernels: Kernels) -> int:
    """Of a layer with experts: what is sent to them and computed there, if every expert is chosen equally often."""
    shape, routing, item = architecture.shape, architecture.routing, _item(actor)
    assert routing is not None, "a layer has experts only where tokens are routed"
    tokens = _tokens(actor)
    split = actor.tp if actor.splits_sequence else 1
    # Dealt experts get the tokens of a rank's part of the sequence; experts that are cut get those of all tensor ranks.
    arriving, width = (tokens // split, shape.expert_ffn) if actor.ep > 1 else (tokens, shape.expert_ffn // actor.tp)
    computed = arriving * routing.chosen * ((shape.hidden + KEEPS[kernels].expert * width) * item + 4 + 8)
    routed = tokens // split * (shape.experts * 5 + routing.chosen * 12)
    return computed + routed


class _Unit(NamedTuple):
    """Layers that are forgotten together, or one that is not."""

    kept: int
    """Of one micro-batch between its two passes."""
    again: int = 0
    """More of it, while it is computed again."""


def _units(architecture: Architecture, actor: ActorSettings, layers: range, kernels: Kernels) -> list[_Unit]:
    recompute = actor.recompute
    sparse = [architecture.shape.is_sparse(layer) for layer in layers]
    kinds = {is_sparse: layer_of(architecture, actor, is_sparse, kernels) for is_sparse in set(sparse)}
    each = [kinds[is_sparse] for is_sparse in sparse]
    if recompute.granularity == "selective":
        forgotten = [_forgotten(layer, recompute.modules) for layer in each]
        return [_Unit(layer.total - less, less) for layer, less in zip(each, forgotten, strict=True)]
    if recompute.granularity == "none":
        return [_Unit(layer.total) for layer in each]
    entering = each[0].norm_output
    if recompute.method == "block":
        forgets, keeps = each[: recompute.layers], each[recompute.layers :]
        return [*(_Unit(entering, layer.total) for layer in forgets), *(_Unit(layer.total) for layer in keeps)]
    grouped = [each[at : at + recompute.layers] for at in range(0, len(each), recompute.layers)]
    return [_Unit(entering, sum(layer.total for layer in unit)) for unit in grouped]


def _peak(units: list[_Unit]) -> int:
    """Of one micro-batch: later layers are gone by the time that an earlier one is computed again."""
    kept = accumulate(unit.kept for unit in units)
    return max(below + unit.again for below, unit in zip(kept, units, strict=True))


def _forgotten(layer: Layer, modules: tuple[str, ...]) -> int:
    """What selective recomputation saves of a layer; a forgotten part keeps what goes into it."""
    forgotten = 0
    if "core_attn" in modules:
        forgotten += layer.core - layer.core_inputs
    if "mlp" in modules or "moe" in modules:
        forgotten += layer.mlp
    if "layernorm" in modules:
        forgotten += 2 * layer.norm_output
    if "moe_act" in modules:
        forgotten += layer.mlp // 4
    return forgotten


def _in_flight(actor: ActorSettings, stage: int, microbatches: int) -> int:
    """Forward passes of chunks whose backward pass has not come, at most, in units of one chunk."""
    if actor.pp == 1:
        return actor.vpp
    if actor.vpp == 1:
        return min(actor.pp - stage, microbatches)
    ahead = 2 * (actor.pp - stage - 1) + (actor.vpp - 1) * actor.pp + 1
    return min(ahead, microbatches * actor.vpp)


def _head(architecture: Architecture, actor: ActorSettings, tokens: int, kernels: Kernels) -> int:
    shape, item = architecture.shape, _item(actor)
    streamed = tokens // (actor.tp if actor.splits_sequence else 1)
    norm = streamed * (KEEPS[kernels].norm * shape.hidden * item + 4)
    return norm + tokens * (megatron_vocabulary(shape.vocabulary, actor.tp) // actor.tp) * item


def _angles(architecture: Architecture, tokens: int, in_flight: int, item: int) -> int:
    return 2 * tokens * architecture.shape.head_dim * item * in_flight


def _working(architecture: Architecture, actor: ActorSettings, tokens: int, is_last: bool) -> int:
    shape, item = architecture.shape, _item(actor)
    routing = architecture.routing
    width = shape.expert_ffn * routing.chosen if routing else shape.ffn // actor.tp
    under_way = tokens * (3 * width + 4 * shape.hidden) * item
    rows = megatron_vocabulary(shape.vocabulary, actor.tp) // actor.tp
    return under_way + (CHUNK_COPIES * 4 * min(CHUNK_NUMBERS, tokens * rows) if is_last else 0)


def _tokens(actor: ActorSettings) -> int:
    return -(-actor.update.microbatch_tokens // actor.cp)


def _item(actor: ActorSettings) -> int:
    return 4 if actor.precision.compute == "fp32" else 2
