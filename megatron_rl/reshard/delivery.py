"""How weights go from an actor's ranks to the processes of a rollout engine: plain facts that both ends agree on.

From a `Delivery` every process makes the same plan and opens the same wire, and does its own part. It travels as JSON
to where no object of ours can, such as into the engine's own processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch

from megatron_rl.reshard.digest import Verify
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.gloo_wire import GlooWire, Place
from megatron_rl.reshard.layout import Layout, LayoutError, ModelShape
from megatron_rl.reshard.megatron import Parallelism, megatron_layout
from megatron_rl.reshard.names import Modules
from megatron_rl.reshard.placement import split
from megatron_rl.reshard.plan import ReshardPlan, plan
from megatron_rl.reshard.ring import CudaIpcWire, SharedMemoryWire, give_up, sweep
from megatron_rl.reshard.transport import Exchange, Parameters, Sources, Wire

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the sending actor is cut: Cut(tp=2, pp=2, chunks=(18, 18))."""

    tp: int
    pp: int
    chunks: tuple[int, ...]
    """Layers of each of the `pp * vpp` chunks, in model order."""
    vpp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1

    @staticmethod
    def of(parallel: Parallelism, layers: int) -> Cut:
        numbers = {name: getattr(parallel, name) for name in ("tp", "pp", "vpp", "dp", "cp", "ep")}
        return Cut(**numbers, chunks=parallel.chunk_layers(layers))

    def chunk_layers(self, layers: int) -> tuple[int, ...]:
        """As it was cut, which was for exactly so many layers."""
        if sum(self.chunks) != layers:
            raise LayoutError(f"the chunks {self.chunks} do not add up to the model's {layers} layers.")
        return self.chunks


@dataclass(frozen=True, kw_only=True)
class Source:
    """What sends: a Megatron-Core actor of this model, cut so."""

    shape: ModelShape
    cut: Cut
    modules: Modules = "local"
    vocabulary: int | None = None
    """Rows of the padded embedding; None takes Megatron's own padding."""

    @cached_property
    def layout(self) -> Layout:
        return megatron_layout(self.shape, self.cut, modules=self.modules, vocabulary=self.vocabulary)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One route of weights, valid as long as every process at its ends lives.

    Delivery(source=..., tp=2, replicas=4, key="run-1f0c-3") leads to eight vLLM workers: target rank `g * tp + r` is
    tensor-parallel rank `r` of group `g`.
    """

    source: Source
    tp: int
    replicas: int
    key: str
    """Names the wire; no other delivery has it, not even the same one after a process at its end was replaced."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What travels."""
    verify: Verify = "sample"
    wire: Literal["memory", "cuda_ipc", "network"] = "memory"
    """Host memory, memory of a GPU that both ends reach, or messages between machines."""
    meeting: tuple[str, int] | None = None
    """Host and port of a store that every process at both ends reaches; the network needs one."""
    timeout_s: float = 600.0
    """How long one end waits for the other."""

    @cached_property
    def plan(self) -> ReshardPlan:
        source = self.source.layout
        target = vllm_layout(self.source.shape, self.tp, self.replicas)
        return plan(source, target, split(source, target))

    def sending(self, parameters: Mapping[int, Sources]) -> Exchange:
        """The part of the process that holds these source ranks."""
        wire = self._open(parameters, 0)
        return Exchange(plan=self.plan, wire=wire, sources=parameters, dtype=DTYPES[self.dtype], verify=self.verify)

    def receiving(self, parameters: Mapping[int, Parameters]) -> Exchange:
        """The part of the process that holds these target ranks."""
        wire = self._open(parameters, len(self.plan.source.ranks))
        return Exchange(plan=self.plan, wire=wire, targets=parameters, dtype=DTYPES[self.dtype], verify=self.verify)

    def give_up(self) -> None:
        """Processes of this machine that wait at an end of the wire stop waiting."""
        give_up(self.key)

    def sweep(self) -> None:
        """Removes what killed receivers left of the wire in memory."""
        sweep(self.key)

    def to_plain(self) -> dict[str, object]:
        """As JSON writes it."""
        return asdict(self)

    @staticmethod
    def of_plain(plain: Mapping[str, Any]) -> Delivery:
        """What `to_plain` wrote, after JSON or not."""
        source = plain["source"]
        return Delivery(
            **_with_tuples({field.name: plain[field.name] for field in fields(Delivery) if field.name != "source"}),
            source=Source(
                shape=ModelShape(**_with_tuples(source["shape"])),
                cut=Cut(**_with_tuples(source["cut"])),
                modules=source["modules"],
                vocabulary=source["vocabulary"],
            ),
        )

    def _open(self, ranks: Collection[int], first: int) -> Wire:
        """For the process that holds these ranks, which are counted from the member `first`."""
        match self.wire:
            case "cuda_ipc":
                return CudaIpcWire(self.key, timeout_s=self.timeout_s)
            case "memory":
                return SharedMemoryWire(self.key, timeout_s=self.timeout_s)
        if self.meeting is None or len(ranks) != 1:
            raise LayoutError("weights over the network need a place to meet and a process for each rank; use memory.")
        (rank,) = ranks
        place = Place(first + rank, len(self.plan.source.ranks), self.tp * self.replicas)
        return GlooWire.meet(self.meeting, self.key, place, self.timeout_s)


def _with_tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
