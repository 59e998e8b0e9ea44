"""Machines as the planner sees them: what their makers state, and the share of it that a run is expected to reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from megatron_rl.spec.schema import SpecError, nearest

GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Gpu(name="h100", memory_gib=79.6, bf16=989e12, fp8=1979e12, memory_bandwidth=3.35e12, link=450e9)."""

    name: str
    memory_gib: float
    """What the driver reports."""
    bf16: float
    """Operations a second, dense."""
    fp8: float
    memory_bandwidth: float
    """Bytes a second."""
    link: float
    """Bytes a second each way to the other GPUs of the machine."""


GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="a100", memory_gib=79.3, bf16=312e12, fp8=312e12, memory_bandwidth=2.04e12, link=300e9),
        Gpu(name="h100", memory_gib=79.6, bf16=989e12, fp8=1979e12, memory_bandwidth=3.35e12, link=450e9),
        Gpu(name="h800", memory_gib=79.6, bf16=989e12, fp8=1979e12, memory_bandwidth=3.35e12, link=200e9),
        Gpu(name="h200", memory_gib=139.8, bf16=989e12, fp8=1979e12, memory_bandwidth=4.8e12, link=450e9),
        Gpu(name="b200", memory_gib=179.0, bf16=2250e12, fp8=4500e12, memory_bandwidth=8e12, link=900e9),
    )
}
"""SXM versions, by the names of `--gpu`; A100 has no FP8 units."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The share of what hardware states that programs reach, and what each step of theirs costs besides."""

    matrices: float = 0.45
    """Of the stated operations, by training and scoring, all that is not communication included."""
    mixture: float = 0.13
    """The same where tokens go to many small experts: published for Qwen3-30B-A3B and GPT-OSS on H100."""
    prefill: float = 0.5
    """Of the stated operations, by an engine that reads prompts."""
    reading: float = 0.7
    """Of the memory's bandwidth, by an engine that writes."""
    wires: float = 0.7
    """Of the bandwidth between GPUs."""
    step_s: float = 1.5e-3
    """Of an engine for each token it writes in every row, whatever the model."""
    row_s: float = 20e-6
    """Of an engine for each row of such a step."""
    reduction_s: float = 12e-6
    """Of one small sum over the ranks of an engine."""
    layer_s: float = 0.2e-3
    """To launch the kernels of a layer's forward pass: the least that it takes."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cluster(nodes=4, gpus_per_node=8, gpu=GPUS["h100"])."""

    nodes: int
    gpus_per_node: int = 8
    gpu: Gpu = GPUS["h100"]
    network: float = 50e9
    """Bytes a second each way between machines, for each GPU."""
    spare_gib: float = 6.0
    """Memory of each GPU for what nobody plans: contexts, communication buffers, fragments."""
    reached: Reached = field(default_factory=Reached)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> int:
        """Bytes of a GPU that a plan may fill."""
        return int((self.gpu.memory_gib - self.spare_gib) * GIB)

    def wire(self, ranks: int) -> float:
        """Bytes a second between so many neighbouring ranks."""
        return (self.gpu.link if ranks <= self.gpus_per_node else self.network) * self.reached.wires


def gpu_named(name: str) -> Gpu:
    """The GPU of this name; SpecError lists the known ones."""
    if name not in GPUS:
        raise SpecError(f"there is no GPU '{name}' in the planner's table{nearest(name, GPUS)}.")
    return GPUS[name]
