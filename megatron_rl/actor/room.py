"""Memory that is used again, since new memory costs as much as a copy into it does, and memory that is at hand."""

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
    """The same numbers in a storage of their own, in the same memory where they lie together, all of it at hand.

    Whoever saves a part of a larger storage saves all of that.
    """
    content = part.contiguous().flatten().view(torch.uint8).numpy()
    touch(content)
    return torch.from_numpy(content).view(part.dtype).view(part.shape)


def touch(content: npt.NDArray[np.uint8]) -> None:
    """Reads a byte of each page, so that what is mapped is at hand before it is written to another file.

    A kernel that meets a page which is not writes smaller and smaller pieces from there on, at twice the cost.
    """
    content[:: mmap.PAGESIZE].max(initial=0)
