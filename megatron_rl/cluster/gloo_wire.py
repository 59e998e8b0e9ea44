"""Weights between machines: point-to-point messages of a gloo group of the actor's ranks and the engine's.

A process group of its own, beside the one the actor computes with: the engine's processes are in no other.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo, Store, Work

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError

IN_FLIGHT = 4
"""Messages that may be on their way before the oldest must have left; each holds a buffer."""


class GlooWire:
    """A `Wire`; members are the source ranks, then the target ranks. The group is made at the first use, by all."""

    def __init__(self, store: Store, member: int, sources: int, targets: int, timeout_s: float = 600.0) -> None:
        self.bucket_bytes = 32 << 20
        self._store, self._member, self._sources = store, member, sources
        self._members, self._timeout_s = sources + targets, timeout_s
        self._group: Any = None  # torch tells types nothing of its messages
        self._leaving: deque[tuple[Work, Tensor]] = deque()

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        """Sends the `size` bytes that `fill` writes."""
        message = torch.empty(size, dtype=torch.uint8)
        fill(message)
        self._leaving.append((self._joined().send([message], self._sources + pair.receiver, 0), message))
        while len(self._leaving) > IN_FLIGHT:
            self._leaving.popleft()[0].wait()

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        """Hands `take` the next `size` bytes."""
        message = torch.empty(size, dtype=torch.uint8)
        try:
            self._joined().recv([message], pair.sender, 0).wait()
        except RuntimeError as error:
            raise TransferError(f"rank {pair.sender} sent nothing to engine rank {pair.receiver}: {error}") from None
        take(message)

    def flush(self) -> None:
        """Returns when everything sent has left; also joins the group, which waits for those that send nothing."""
        self._joined()
        while self._leaving:
            self._leaving.popleft()[0].wait()

    def close(self) -> None:
        self._group = None

    def _joined(self) -> Any:  # noqa: ANN401
        if self._group is None:
            timeout = timedelta(seconds=self._timeout_s)
            self._group = ProcessGroupGloo(self._store, self._member, self._members, timeout)
        return self._group
