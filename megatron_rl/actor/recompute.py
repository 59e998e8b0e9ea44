"""What is forgotten in the forward pass and computed again in the backward pass, to save memory."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Nothing by default; `selective` forgets named parts of each layer, `full` forgets whole layers."""

    granularity: Literal["none", "selective", "full"] = "none"
    """`none` keeps every activation, `selective` recomputes `modules`, `full` recomputes layers by `method`."""

    modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act"], ...] = ("core_attn",)
    """Parts that `selective` recomputes."""

    method: Literal["uniform", "block"] = "uniform"
    """`full` keeps the input of every `layers` layers (`uniform`), or recomputes only the first `layers` of a stage (`block`)."""

    layers: int = 1
    """The count that `method` speaks of."""
