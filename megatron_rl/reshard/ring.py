"""Buckets between processes of one machine: a ring of slots that the sender fills while the receiver empties.

A ring is a file in memory that both processes map. Its first page says how far each side has come; only the sender
writes `written` and only the receiver writes `read`, so neither needs a lock. The slots follow in the file, or lie in
GPU memory that the receiver shares by CUDA IPC. Slots that fit a cache make the second copy nearly free.
"""

import errno
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.layout import LayoutError

PAGE = 4096
_READY, _WRITTEN, _READ, _SLOT_BYTES, _SLOTS, _NOTE_BYTES = range(6)
_NOTE = 512
"""Where the first page keeps the handle of slots that lie elsewhere."""


OVER_PAUSE_S = 1e-3
"""Waits whose pauses have grown to this look whether the sync was given up."""


def memory_folder() -> Path:
    """Where files are memory: /dev/shm on Linux, else the folder for temporary files."""
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def _hold(path: Path, size: int) -> None:
    """Makes a file of this size, all of which is there: where memory is short that is told here, and kills nobody."""
    with path.open("xb") as file:
        if sys.platform != "linux":
            file.truncate(size)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            if error.errno != errno.ENOSPC:
                raise
            there = shutil.disk_usage(path.parent)
            raise LayoutError(
                f"weights cross {path.parent}, {size / 2**20:.1f} MiB for each two processes of which one sends to the "
                f"other, but it has {there.total / 2**20:.1f} MiB, {there.free / 2**20:.1f} MiB of them free; make it "
                "larger, in a container by --shm-size=1g or --ipc=host, elsewhere by "
                f"`mount -o remount,size=1g {path.parent}`."
            ) from None


def give_up(key: str, folder: Path | None = None) -> None:
    """Whoever waits on this machine for an end of the wire of this key stops: a process at its ends was lost."""
    _over(key, folder).touch()


def sweep(key: str, folder: Path | None = None) -> None:
    """Removes what killed processes left of this wire, and that it was given up."""
    for path in (folder or memory_folder()).glob(f"{key}-*.ring"):
        path.unlink(missing_ok=True)
    _over(key, folder).unlink(missing_ok=True)


def _over(key: str, folder: Path | None) -> Path:
    return (folder or memory_folder()) / f"{key}.over"


class _Patience(NamedTuple):
    """How long one end waits for the other."""

    deadline: float
    over: Path

    def check(self, late: str) -> None:
        if self.over.exists():
            raise TransferError(f"the sync was given up, since a process at its ends was lost ({late}).")
        if time.monotonic() > self.deadline:
            raise TransferError(f"{late}; the other side died or is stuck.")


class _Ring:
    """One sender's slots for one receiver."""

    def __init__(self, path: Path, slots_in_file: int) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), PAGE + slots_in_file)
        self.path = path
        self.state = memoryview(self._map)[:_NOTE].cast("q")
        self.note = memoryview(self._map)[_NOTE:PAGE]
        self.slots: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)[PAGE:]

    def wait(self, ready: Callable[[], bool], what: str, patience: _Patience) -> None:
        pause = 0.0
        while not ready():
            if pause >= OVER_PAUSE_S:
                patience.check(f"waited too long for {what} in {self.path.name}")
            time.sleep(pause)
            pause = min(1e-3, pause + 1e-5)

    def slot(self, turn: int, size: int) -> Tensor:
        at = turn % self.state[_SLOTS] * self.state[_SLOT_BYTES]
        return self.slots[at : at + size]


class SharedMemoryWire:
    """Rings in host memory, named after a `key` that every process of the run knows and no other run uses."""

    def __init__(
        self, key: str, folder: Path | None = None, slot_bytes: int = 4 << 20, slots: int = 4, timeout_s: float = 600.0
    ) -> None:
        self.bucket_bytes = slot_bytes
        self._key, self._folder, self._slots, self._timeout_s = key, folder or memory_folder(), slots, timeout_s
        self._over = _over(key, folder)
        self._rings: dict[Pair, _Ring] = {}
        self._own: list[Path] = []

    def send(self, pair: Pair, size: int, fill: Callable[[Tensor], None]) -> None:
        """Sends the `size` bytes that `fill` writes."""
        patience = self._patience
        ring = self._rings.get(pair) or self._join(pair, patience)
        turn = ring.state[_WRITTEN]
        ring.wait(lambda: turn - ring.state[_READ] < ring.state[_SLOTS], "an empty slot", patience)
        fill(ring.slot(turn, size))
        self._settle()
        ring.state[_WRITTEN] = turn + 1

    def receive(self, pair: Pair, size: int, take: Callable[[Tensor], None]) -> None:
        """Hands `take` the next `size` bytes."""
        ring = self._rings.get(pair) or self._make(pair)
        turn = ring.state[_READ]
        ring.wait(lambda: ring.state[_WRITTEN] > turn, "a bucket", self._patience)
        take(ring.slot(turn, size))
        self._settle()
        ring.state[_READ] = turn + 1

    def flush(self) -> None:
        """Everything sent is in its ring already."""

    def close(self) -> None:
        """Removes the rings that no sender has joined; maps go with the last tensor that refers to them."""
        self._rings.clear()
        for path in self._own:
            path.unlink(missing_ok=True)
        self._own.clear()

    @property
    def _patience(self) -> _Patience:
        return _Patience(time.monotonic() + self._timeout_s, self._over)

    def _path(self, pair: Pair) -> Path:
        return self._folder / f"{self._key}-{pair.sender}-{pair.receiver}.ring"

    def _make(self, pair: Pair) -> _Ring:
        """The receiver makes the ring, so that what a dead sender left behind is its to remove."""
        path = self._path(pair)
        in_file = self._file_bytes()
        _hold(path, PAGE + in_file)
        self._own.append(path)
        ring = _Ring(path, in_file)
        ring.state[_SLOT_BYTES], ring.state[_SLOTS] = self.bucket_bytes, self._slots
        note = self._place_slots(ring)
        ring.note[: len(note)] = note
        ring.state[_NOTE_BYTES] = len(note)
        ring.state[_READY] = 1
        self._rings[pair] = ring
        return ring

    def _join(self, pair: Pair, patience: _Patience) -> _Ring:
        path, size = self._path(pair), PAGE + self._file_bytes()
        while not path.exists() or path.stat().st_size < size:
            patience.check(f"rank {pair.receiver} did not open {path.name} in {self._timeout_s} s")
            time.sleep(1e-3)
        ring = _Ring(path, self._file_bytes())
        ring.wait(lambda: ring.state[_READY] == 1, "the receiver", patience)
        if ring.state[_SLOT_BYTES] != self.bucket_bytes:
            raise LayoutError(
                f"the receiver's slots have {ring.state[_SLOT_BYTES]} bytes, the sender's {self.bucket_bytes}; "
                "give both the same slot_bytes."
            )
        self._find_slots(ring, bytes(ring.note[: ring.state[_NOTE_BYTES]]))
        # Both ends have it mapped: without its name it goes when they go, however they end.
        path.unlink(missing_ok=True)
        self._rings[pair] = ring
        return ring

    def _file_bytes(self) -> int:
        return self._slots * self.bucket_bytes

    def _place_slots(self, ring: _Ring) -> bytes:
        """Makes the slots; returns what the sender needs to find them."""
        return b""

    def _find_slots(self, ring: _Ring, note: bytes) -> None:
        """Finds the slots that the receiver made."""

    def _settle(self) -> None:
        """Returns when what was written to or read from a slot is written or read."""


class CudaIpcWire(SharedMemoryWire):
    """Rings in GPU memory, for processes that share a GPU or reach each other's: needs CUDA on both sides."""

    def __init__(
        self, key: str, folder: Path | None = None, slot_bytes: int = 64 << 20, timeout_s: float = 600.0
    ) -> None:
        if not torch.cuda.is_available():
            raise LayoutError("CUDA IPC needs a CUDA device and this machine has none; use shared memory here.")
        super().__init__(key, folder, slot_bytes, timeout_s=timeout_s)

    def _file_bytes(self) -> int:
        return 0

    def _place_slots(self, ring: _Ring) -> bytes:
        # Torch has no public name for a handle that travels other than by pickle.
        ring.slots = torch.empty(self._slots * self.bucket_bytes, dtype=torch.uint8, device="cuda")
        shared: tuple[Any, ...] = ring.slots.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
        return json.dumps([one.hex() if isinstance(one, bytes) else one for one in shared]).encode()

    def _find_slots(self, ring: _Ring, note: bytes) -> None:
        device, handle, size, offset, counter, counter_offset, event, needs_event = json.loads(note)
        opened = torch.UntypedStorage._new_shared_cuda(
            device,
            bytes.fromhex(handle),
            size,
            offset,
            bytes.fromhex(counter),
            counter_offset,
            bytes.fromhex(event),
            needs_event,
        )
        ring.slots = torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(opened)

    def _settle(self) -> None:
        torch.cuda.current_stream().synchronize()
