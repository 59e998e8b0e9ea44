"""How weights go from the ranks of an actor to an engine in the driver: plain facts that both ends agree on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from megatron_rl.cluster.rank import Address
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.gloo_wire import GlooWire, Place
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.megatron import Parallelism, megatron_layout
from megatron_rl.reshard.names import Modules
from megatron_rl.reshard.placement import split
from megatron_rl.reshard.plan import ReshardPlan, plan
from megatron_rl.reshard.ring import SharedMemoryWire
from megatron_rl.reshard.transport import Exchange, Parameters, Sources, Wire


@dataclass(frozen=True, kw_only=True)
class Route:
    """A `WeightRoute` to one engine of whole tensors: Route(shape=..., parallel=Parallel(tp=2), key="run-1f", ...)."""

    shape: ModelShape
    parallel: Parallelism
    """The cut of the ranks."""
    modules: Modules
    key: str
    """Names the run's shared memory; no other run has it."""
    dtype: torch.dtype
    """What travels."""
    meeting: Address | None = None
    """A store that all reach, where they do not all stand on one machine; weights then go by gloo."""
    timeout_s: float = 600.0

    @cached_property
    def plan(self) -> ReshardPlan:
        source, target = (
            megatron_layout(self.shape, self.parallel, modules=self.modules),
            huggingface_layout(self.shape),
        )
        return plan(source, target, split(source, target))

    def sending(self, parameters: Mapping[int, Sources]) -> Exchange:
        """The part of the process that holds this source rank."""
        (member,) = parameters
        return Exchange(plan=self.plan, wire=self._wire(member), sources=parameters, dtype=self.dtype)

    def receiving(self, parameters: Parameters) -> Exchange:
        """The engine's part."""
        member = len(self.plan.source.ranks)
        return Exchange(plan=self.plan, wire=self._wire(member), targets={0: parameters}, dtype=self.dtype)

    def _wire(self, member: int) -> Wire:
        """The source ranks are the first members, the engine is the last."""
        if self.meeting is None:
            return SharedMemoryWire(self.key, timeout_s=self.timeout_s)
        return GlooWire.meet(self.meeting, self.key, Place(member, len(self.plan.source.ranks), 1), self.timeout_s)
