"""What a user may choose about LoRA (Hu et al. 2021): which matrices get a low-rank change, and how large it may be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from megatron_rl.actor.architecture import Architecture
from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
OF_MLP = frozenset(("gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Every weight of the model stays as it is; beside each target W stands a change alpha / rank * B A that learns."""

    rank: int = 32
    """Rows of A and columns of B."""

    alpha: float = 64.0
    """The change is weighed by alpha / rank."""

    targets: tuple[Projection, ...] = PROJECTIONS
    """The matrices of each layer that get a change, by their Hugging Face names."""

    start: Path | None = None
    """PEFT adapter to start from, of this rank, alpha and these targets; null starts with no change."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise SpecError(f"actor.lora needs rank and alpha above 0, got {self.rank!r} and {self.alpha!r}.")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise SpecError(f"actor.lora.targets should name projections, each once, got {list(self.targets)!r}.")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def check(lora: LoraSettings | None, architecture: Architecture, parallel: Parallel) -> None:
    """Refuses what LoRA cannot change, and cuts that leave a rank nothing to learn."""
    if lora is None:
        return
    asked = [name for name in lora.targets if name in OF_MLP]
    if architecture.shape.experts and asked:
        attention = ", ".join(name for name in PROJECTIONS if name not in OF_MLP)
        raise SpecError(
            f"actor.lora.targets names {asked[0]!r}, but {architecture.shape.family} has experts there, which each "
            f"see their own tokens and get no change; set targets to [{attention}] or fewer."
        )
    if 0 in parallel.chunk_layers(architecture.shape.layers):
        raise LayoutError("actor.stage_layers leaves a stage without layers, where LoRA has nothing to learn.")
