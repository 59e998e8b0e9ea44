"""Whether an architecture can be cut a given way on this machine."""

from megatron_rl.actor.architecture import Architecture
from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import LayoutError


def check(architecture: Architecture, parallel: Parallel) -> None:
    """LayoutError unless this architecture can be cut this way."""
    shape, tp = architecture.shape, parallel.tp
    heads, kv_heads = shape.heads, shape.kv_heads
    parallel.chunk_layers(shape.layers)
    for name, size in (("attention heads", heads), ("MLP columns", shape.ffn)):
        if size % tp:
            raise LayoutError(f"{size} {name} do not divide over actor.tp = {tp}.")
    if kv_heads % tp and tp % kv_heads:
        raise LayoutError(f"{kv_heads} key-value heads are neither a multiple nor a divisor of actor.tp = {tp}.")
    if (heads + 2 * kv_heads) * shape.head_dim % tp:
        raise LayoutError(
            f"The {heads + 2 * kv_heads} rows of heads of query, key and value do not divide over tp = {tp}."
        )
    if parallel.ep > 1 and not shape.experts:
        raise LayoutError(f"actor.ep is {parallel.ep}, but {shape.family} has no experts; set ep to 1.")
