"""A wire that is a list of messages: what a sender wrote can be looked at, and spoilt, before it is received."""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError


class Tape:
    def __init__(self, bucket_bytes: int = 512) -> None:
        self.bucket_bytes = bucket_bytes
        self.messages: dict[Pair, list[Tensor]] = {}

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        message = torch.zeros(size, dtype=torch.uint8)
        fill(message)
        self.messages.setdefault(pair, []).append(message)

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        if not self.messages.get(pair):
            raise TransferError(f"waited too long for a bucket of {pair}")
        message, buffer = self.messages[pair].pop(0)[:size], torch.zeros(size, dtype=torch.uint8)
        buffer[: len(message)] = message
        take(buffer)

    def flush(self) -> None: ...

    def close(self) -> None: ...
