"""What is forgotten in the forward pass and computed again in the backward pass, to save memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Nothing by default; `selective` forgets named parts of each layer, `full` forgets whole layers."""

    granularity: Literal["none", "selective", "full"] = "none"
    """`none` keeps every activation, `selective` recomputes `modules`, `full` recomputes layers by `method`."""

    modules: tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act"], ...] = ("core_attn",)
    """Parts that `selective` recomputes."""

    method: Literal["uniform", "block"] = "uniform"
    """`full` keeps every `layers`-th layer's input (`uniform`) or recomputes a stage's first `layers` (`block`)."""

    layers: int = 1
    """The count that `method` speaks of."""


KEEP_EVERYTHING = Recompute()


def check(recompute: Recompute, chunk_layers: Sequence[int]) -> None:
    """Refuses units that do not tile a chunk, and what only Transformer Engine can forget where that is missing."""
    if recompute.granularity == "full" and recompute.method == "uniform":
        for layers in chunk_layers:
            if layers % recompute.layers:
                raise SpecError(
                    f"recompute.layers is {recompute.layers}, which does not divide a chunk of {layers} layers."
                )
    through_engine = [module for module in recompute.modules if module in ("layernorm", "moe_act")]
    if recompute.granularity == "selective" and through_engine and find_spec("transformer_engine") is None:
        raise SpecError(
            f"recompute.modules lists {through_engine[0]!r}, which needs the package transformer_engine, not installed "
            "here; install the extra 'gpu' or leave it out."
        )
