"""How one copy of the model, and its replicas, are cut over ranks."""

from dataclasses import dataclass
from typing import NamedTuple

from megatron_rl.reshard.layout import LayoutError


class Coordinates(NamedTuple):
    """Where a rank stands: its index along each way the work is cut."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """The cut of the actor over `tp * cp * dp * pp` ranks.

    Parallel(tp=2, pp=2, dp=2) needs 8 ranks; rank 5 holds `Coordinates(tp=1, cp=0, dp=0, pp=1)`.
    """

    tp: int = 1
    """Tensor parallel: ranks that share every matrix of a layer."""

    pp: int = 1
    """Pipeline parallel: consecutive stages of layers."""

    vpp: int = 1
    """Interleaving: chunks of layers that each pipeline stage holds; above 1 the pipeline idles less and sends more."""

    dp: int = 1
    """Data parallel: replicas that each learn from a part of the batch."""

    cp: int = 1
    """Context parallel: ranks that share the tokens of every sequence, which lets longer ones fit; each sequence is
    padded to a multiple of `2 * cp` tokens, and `update.microbatch_tokens` counts the tokens of all of these ranks."""

    ep: int = 1
    """Expert parallel: ranks among which the experts of a mixture are dealt; divides `dp * cp * tp`."""

    sequence_parallel: bool = True
    """Also cut the activations between the matrices over the `tp` ranks; without effect at `tp: 1`."""

    stage_layers: tuple[int, ...] = ()
    """Layers of each of the `pp * vpp` chunks in model order; empty cuts them evenly."""

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "vpp", "dp", "cp", "ep"):
            if getattr(self, name) < 1:
                raise LayoutError(f"actor.{name} is {getattr(self, name)!r}, but must be at least 1.")
        if any(layers < 0 for layers in self.stage_layers):
            raise LayoutError(f"actor.stage_layers is {list(self.stage_layers)}, but no chunk has fewer than 0 layers.")
        if self.vpp > 1 and self.pp == 1:
            raise LayoutError(f"actor.vpp is {self.vpp}, but interleaving needs pp above 1; set vpp to 1 or raise pp.")
        if (self.tp * self.cp * self.dp) % self.ep:
            raise LayoutError(f"actor.ep is {self.ep}, which does not divide tp*cp*dp = {self.tp * self.cp * self.dp}.")
        if self.stage_layers and len(self.stage_layers) != self.pp * self.vpp:
            raise LayoutError(
                f"actor.stage_layers lists {len(self.stage_layers)} chunks, but pp*vpp = {self.pp * self.vpp}."
            )

    @property
    def world(self) -> int:
        """Ranks that the actor takes."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def splits_sequence(self) -> bool:
        """Whether sequence parallelism is in force."""
        return self.sequence_parallel and self.tp > 1

    @property
    def token_multiple(self) -> int:
        """Every micro-batch's token count must be a multiple of this for the cut over ranks to be even."""
        return self.cp * (self.tp if self.splits_sequence else 1)

    def coordinates(self, rank: int) -> Coordinates:
        """Megatron's rank order: tp fastest, then cp, dp, pp."""
        return Coordinates(
            tp=rank % self.tp,
            cp=rank // self.tp % self.cp,
            dp=rank // (self.tp * self.cp) % self.dp,
            pp=rank // (self.tp * self.cp * self.dp),
        )

    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """Layers of each of the `pp * vpp` chunks, in model order."""
        chunks = self.pp * self.vpp
        if not self.stage_layers and layers % chunks:
            raise LayoutError(
                f"{layers} layers do not divide over pp*vpp = {chunks} chunks; list them in actor.stage_layers."
            )
        if self.stage_layers and sum(self.stage_layers) != layers:
            raise LayoutError(f"actor.stage_layers add up to {sum(self.stage_layers)}, but the model has {layers}.")
        return self.stage_layers or (layers // chunks,) * chunks
