"""Memory that is used again: new memory costs as much as a copy into it does."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Room:
    """Gives tensors that share one piece of memory, as large as the largest of them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8).numpy()

    def __call__(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that holds anything, until the next one is asked for; its storage is of its own size."""
        length = torch.Size(size).numel() * dtype.itemsize
        if len(self._memory) < length:
            self._memory = torch.empty(length, dtype=torch.uint8).numpy()
        return torch.frombuffer(self._memory[:length], dtype=dtype).view(torch.Size(size))


def alone(part: Tensor) -> Tensor:
    """The same numbers in a storage of their own, in the same memory where they lie together.

    Whoever saves a part of a larger storage saves all of that.
    """
    return torch.from_numpy(part.contiguous().flatten().view(torch.uint8).numpy()).view(part.dtype).view(part.shape)
