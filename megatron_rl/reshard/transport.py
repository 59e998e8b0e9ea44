"""One call per sync: the plan's buckets packed, sent, checked and unpacked, and a report of what that took.

Torch is needed here, to pack views of parameters and to reach other processes; how a bucket crosses is its `Wire`'s.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from megatron_rl.reshard.bound import missing_by_gpu
from megatron_rl.reshard.buckets import Bucket, Pair, pairs_of, schedule
from megatron_rl.reshard.digest import HEADER_BYTES, Header, Verify, check, digest, fingerprint
from megatron_rl.reshard.layout import Key, LayoutError
from megatron_rl.reshard.local import Slices, copy_slices, fill_padding, slices
from megatron_rl.reshard.plan import ReshardPlan

Parameters = Mapping[Key, Tensor]
"""The tensors of one rank, written in place."""


class Boxes(Protocol):
    """What a source is read from: a tensor, or what computes a part of one when it is asked for that part."""

    def __getitem__(self, slices: Slices, /) -> Tensor: ...


Sources = Mapping[Key, Boxes]
"""The tensors of one rank, only read."""


class Wire(Protocol):
    """Carries messages of bytes from source ranks to target ranks, in order."""

    bucket_bytes: int
    """The largest message."""

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        """Sends the `size` bytes that `fill` writes."""

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        """Hands `take` the next `size` bytes."""

    def flush(self) -> None:
        """Returns when everything sent has left."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What one sync took, for one process or, by `combined`, for all.

    SyncReport(version=3, bytes=1_073_741_824, bound=1_073_741_824, local_bytes=0, messages=17, seconds=.4)
    """

    version: int
    bytes: int
    """Bytes of weights that entered a GPU from another; each message adds a header of 64."""
    bound: int
    """The fewest that had to."""
    local_bytes: int
    """Bytes that stayed on their GPU."""
    messages: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Bytes moved over bytes that had to be; 1 is the best there is."""
        return self.bytes / self.bound if self.bound else 1.0 + self.bytes

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes of weights a second, whether moved or copied in place."""
        return (self.bytes + self.local_bytes) / 1e9 / self.seconds if self.seconds else 0.0

    @staticmethod
    def combined(reports: Iterable["SyncReport"]) -> "SyncReport":
        """The sync as a whole: sums, and the slowest process's seconds."""
        every = list(reports)
        return SyncReport(
            version=every[0].version,
            bytes=sum(one.bytes for one in every),
            bound=sum(one.bound for one in every),
            local_bytes=sum(one.local_bytes for one in every),
            messages=sum(one.messages for one in every),
            seconds=max(one.seconds for one in every),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Exchange:
    """This process's part in carrying out a plan: the source and target ranks whose tensors it has.

    Both ends make theirs from the same plan and the same settings; then `run(version)` on all of them is one sync.
    """

    plan: ReshardPlan
    wire: Wire | None = None
    """None where every rank is in this process."""
    near: Wire | None = None
    """For ranks that share a GPU, where those have a better one."""
    sources: Mapping[int, Sources] = field(default_factory=dict)
    targets: Mapping[int, Parameters] = field(default_factory=dict)
    dtype: torch.dtype
    """What travels; a tensor of another type is converted on the way out and in."""
    verify: Verify = "sample"

    @torch.no_grad()
    def run(self, version: int) -> SyncReport:
        """Writes this version into the targets. After a TransferError they hold parts of two versions: do not serve."""
        begun, messages = time.perf_counter(), 0
        for receiver, tensors in self.targets.items():
            fill_padding(self.plan.target, receiver, tensors)
        for bucket in self._buckets:
            if self._is_here(bucket.pair):
                copy_slices(bucket.copies, self.sources, self.targets)
                continue
            messages += 1
            self._carry(bucket, version)
        for end in self._ends:
            self._carry(end, version)
        for wire in self._wires:
            wire.flush()
        return SyncReport(
            version=version,
            bytes=self._received(is_local=False),
            bound=self._bound,
            local_bytes=self._received(is_local=True),
            messages=messages,
            seconds=time.perf_counter() - begun,
        )

    def _carry(self, bucket: Bucket, version: int) -> None:
        wire, size = self._wire(bucket.pair), HEADER_BYTES + self._payload_bytes(bucket)
        if bucket.pair.sender in self.sources:
            wire.send(bucket.pair, size, lambda message: self._pack(bucket, version, message))
        else:
            wire.receive(bucket.pair, size, lambda message: self._unpack(bucket, version, message))

    def _pack(self, bucket: Bucket, version: int, message: Tensor) -> None:
        payload = message[HEADER_BYTES:]
        payload[bucket.elements * self.dtype.itemsize :] = 0
        flat, at = payload[: bucket.elements * self.dtype.itemsize].view(self.dtype), 0
        for copy in bucket.copies:
            piece = self.sources[copy.sender][copy.source.key][slices(copy.source.box)]
            flat[at : at + copy.elements].view(piece.shape).copy_(piece)
            at += copy.elements
        self._header(bucket, version, payload).write(message)

    def _unpack(self, bucket: Bucket, version: int, message: Tensor) -> None:
        payload = message[HEADER_BYTES:]
        check(Header.read(message), self._header(bucket, version, payload))
        flat, at = payload[: bucket.elements * self.dtype.itemsize].view(self.dtype), 0
        for copy in bucket.copies:
            place = self.targets[copy.receiver][copy.target.key][slices(copy.target.box)]
            place.copy_(flat[at : at + copy.elements].view(place.shape))
            at += copy.elements

    def _header(self, bucket: Bucket, version: int, payload: Tensor) -> Header:
        return Header(
            plan=self._fingerprint,
            version=version,
            sender=bucket.pair.sender,
            receiver=bucket.pair.receiver,
            number=bucket.number,
            buckets=bucket.count,
            size=len(payload),
            digest=digest(payload, self.verify, version, *bucket.pair, bucket.number),
        )

    def _payload_bytes(self, bucket: Bucket) -> int:
        """Whole words, so that they can be summed."""
        return -(-bucket.elements * self.dtype.itemsize // 8) * 8

    def _wire(self, pair: Pair) -> Wire:
        placement = self.plan.placement
        shared = placement.source[pair.sender] == placement.target[pair.receiver]
        wire = self.near if shared and self.near is not None else self.wire
        if wire is None:
            raise LayoutError(
                f"the plan leads from rank {pair.sender} to rank {pair.receiver} in another process; give a wire."
            )
        return wire

    def _is_here(self, pair: Pair) -> bool:
        return pair.sender in self.sources and pair.receiver in self.targets

    def _received(self, is_local: bool) -> int:
        taken = (transfer for rank in self.targets for transfer in self.plan.incoming(rank))
        elements = sum(self.plan.elements(transfer) for transfer in taken if transfer.is_local == is_local)
        return elements * self.dtype.itemsize

    @cached_property
    def _buckets(self) -> tuple[Bucket, ...]:
        pairs = pairs_of(self.plan, self.sources, self.targets)
        return schedule(self.plan, pairs, max(1, (self._largest - HEADER_BYTES - 8) // self.dtype.itemsize))

    @cached_property
    def _ends(self) -> tuple[Bucket, ...]:
        """An empty bucket for each pair that meets over a wire: whatever else comes before it was sent twice."""
        counts = {bucket.pair: bucket.count for bucket in self._buckets if not self._is_here(bucket.pair)}
        return tuple(
            Bucket(pair=pair, number=count, count=count, copies=(), elements=0) for pair, count in counts.items()
        )

    @cached_property
    def _wires(self) -> tuple[Wire, ...]:
        return tuple(wire for wire in (self.wire, self.near) if wire is not None)

    @cached_property
    def _largest(self) -> int:
        return min((wire.bucket_bytes for wire in self._wires), default=1 << 62)

    @cached_property
    def _bound(self) -> int:
        gpus = {self.plan.placement.target[rank] for rank in self.targets}
        missing = missing_by_gpu(self.plan.source, self.plan.target, self.plan.placement, gpus)
        return sum(missing.values()) * self.dtype.itemsize

    @cached_property
    def _fingerprint(self) -> int:
        plan = self.plan
        labels = (plan.source.label, plan.target.label, plan.source.shape)
        return fingerprint(*labels, plan.placement, self.dtype, self.verify, self._largest)
