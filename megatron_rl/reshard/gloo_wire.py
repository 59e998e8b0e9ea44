"""Weights between machines: point-to-point messages of a gloo group of the actor's ranks and the engine's.

A process group of its own, beside those that either side computes with. Messages lie in host memory at both ends, page
locked where there is a GPU: that works between any two machines, whichever GPUs they have and however those are shared,
where NCCL would refuse two ranks on one GPU, which is what a colocated run has.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore, Work

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError

IN_FLIGHT = 4
"""Messages that may be on their way before the oldest must have left; each holds a buffer."""


class Place(NamedTuple):
    """A process in the group: the source ranks are its first members, the target ranks the others."""

    member: int
    sources: int
    targets: int


class GlooWire:
    """A `Wire`. The group is made at the first use, by all its members."""

    def __init__(self, store: Store, place: Place, address: str, timeout_s: float = 600.0) -> None:
        """`address` is this machine's own that the others reach: the resolver, which is not asked, may know none."""
        self.bucket_bytes = 32 << 20
        self._store, self._place, self._address, self._timeout_s = store, place, address, timeout_s
        self._group: Any = None  # torch tells types nothing of its messages
        self._leaving: deque[tuple[Work, Tensor, int]] = deque()

    @classmethod
    def meet(cls, meeting: tuple[str, int], key: str, place: Place, timeout_s: float) -> GlooWire:
        """The members find one another by a store at this host and port, under a key that no other wire has."""
        host, port = meeting
        try:
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise TransferError(f"the meeting point at {host}:{port} was not reached: {_line(error)}") from None
        return cls(PrefixStore(key, store), place, own_address(host, port), timeout_s)

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        """Sends the `size` bytes that `fill` writes."""
        message = _empty(size)
        fill(message)
        work = self._joined().send([message], self._place.sources + pair.receiver, 0)
        self._leaving.append((work, message, pair.receiver))
        while len(self._leaving) > IN_FLIGHT:
            self._await_oldest()

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        """Hands `take` the next `size` bytes."""
        message, group = _empty(size), self._joined()
        try:
            group.recv([message], pair.sender, 0).wait()
        except RuntimeError as error:
            raise TransferError(
                f"rank {pair.sender} sent nothing to engine rank {pair.receiver}: {_line(error)}"
            ) from None
        take(message)

    def flush(self) -> None:
        """Returns when everything sent has left; also joins the group, which waits for those that send nothing."""
        self._joined()
        while self._leaving:
            self._await_oldest()

    def close(self) -> None:
        self._leaving.clear()
        self._group = None

    def _await_oldest(self) -> None:
        work, _, receiver = self._leaving.popleft()
        try:
            work.wait()
        except RuntimeError as error:
            raise TransferError(f"engine rank {receiver} took nothing: {_line(error)}") from None

    def _joined(self) -> Any:  # noqa: ANN401
        if self._group is None:
            options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # its stub forgets them
            options._timeout = timedelta(seconds=self._timeout_s)
            options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
            _, sources, targets = self._place
            try:
                self._group = ProcessGroupGloo(self._store, self._place.member, sources + targets, options)
            except RuntimeError as error:
                raise TransferError(
                    f"{sources} ranks and {targets} of the engine's did not all meet in {self._timeout_s:g} s: "
                    f"{_line(error)}"
                ) from None
        return self._group


def own_address(host: str, port: int) -> str:
    """The address of this machine from which that host is reached; nothing is sent."""
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _empty(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
