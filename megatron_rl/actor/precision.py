"""Which numbers the actor computes in, and what each choice asks of the machine."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from megatron_rl.spec.schema import SpecError

Recipe = Literal["tensorwise", "delayed", "blockwise", "mxfp8"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Weights and activations in `compute`; master weights, gradients and moments are FP32 whatever is chosen."""

    compute: Literal["fp32", "bf16", "fp8"] = "bf16"
    """`fp8` multiplies matrices in FP8 through Transformer Engine and keeps everything else in BF16."""

    recipe: Recipe = "blockwise"
    """What shares a scale: a tensor (`tensorwise`, or `delayed` from past maxima), 128 numbers (`blockwise`, on Hopper)
    or 32 (`mxfp8`, on Blackwell)."""

    edge_layers_bf16: int = 0
    """Layers at each end of the model that stay in BF16 under `fp8`; not with the recipe `delayed`."""

    def __post_init__(self) -> None:
        if self.edge_layers_bf16 and self.recipe == "delayed":
            raise SpecError(
                "actor.precision.edge_layers_bf16 cannot be combined with the recipe 'delayed'; use another recipe."
            )

    @property
    def token_multiple(self) -> int:
        """FP8 matrix products need token counts divisible by this."""
        if self.compute != "fp8":
            return 1
        return {"tensorwise": 16, "delayed": 16, "blockwise": 128, "mxfp8": 32}[self.recipe]


def check(precision: Precision) -> None:
    """Refuses, without importing anything heavy, a precision whose package is missing."""
    if precision.compute == "fp8" and find_spec("transformer_engine") is None:
        raise SpecError(
            "actor.precision.compute is 'fp8', which needs the package transformer_engine, not installed here; "
            "install the extra 'gpu' or choose 'bf16'."
        )


def check_hardware(precision: Precision) -> None:
    """Refuses a precision that the package is there for but this GPU, or this build of the package, cannot do."""
    check(precision)
    if precision.compute != "fp8":
        return
    # Only here, behind the package check: a Transformer Engine import takes seconds and wants CUDA libraries.
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager as state

    probe = {
        "tensorwise": "is_fp8_available",
        "delayed": "is_fp8_available",
        "blockwise": "is_fp8_block_scaling_available",
        "mxfp8": "is_mxfp8_available",
    }[precision.recipe]
    available = vars(state).get(probe)
    if available is None:
        raise SpecError(
            f"actor.precision.recipe {precision.recipe!r} is not known to the installed transformer_engine; update it."
        )
    possible, reason = getattr(state, probe)()
    if not possible:
        raise SpecError(f"actor.precision.recipe {precision.recipe!r} cannot run here: {reason}")
