"""Buckets over torch.distributed: gloo between CPUs, NCCL between GPUs."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rl.reshard.buckets import Pair

IN_FLIGHT = 4
"""Messages that may be on their way before the oldest must have left; each holds a buffer."""


class GroupWire:
    """Point-to-point messages of a process group that both the actor's and the engine's processes joined."""

    def __init__(
        self,
        senders: Sequence[int],
        receivers: Sequence[int],
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
        bucket_bytes: int = 256 << 20,
    ) -> None:
        """`senders` and `receivers` are the process-group ranks of the plan's source and target ranks."""
        self.bucket_bytes = bucket_bytes
        self._senders, self._receivers, self._group, self._device = tuple(senders), tuple(receivers), group, device
        self._leaving: deque[tuple[dist.Work, Tensor]] = deque()

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        """Sends the `size` bytes that `fill` writes."""
        message = torch.empty(size, dtype=torch.uint8, device=self._device)
        fill(message)
        work = dist.isend(message, dst=self._receivers[pair.receiver], group=self._group)
        assert work is not None, "this process is not in the group it sends over"
        self._leaving.append((work, message))
        while len(self._leaving) > IN_FLIGHT:
            self._leaving.popleft()[0].wait()

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        """Hands `take` the next `size` bytes."""
        message = torch.empty(size, dtype=torch.uint8, device=self._device)
        dist.recv(message, src=self._senders[pair.sender], group=self._group)
        take(message)

    def flush(self) -> None:
        """Returns when everything sent has left."""
        while self._leaving:
            self._leaving.popleft()[0].wait()

    def close(self) -> None:
        """Nothing is held open between syncs; the group is its owner's to destroy."""
