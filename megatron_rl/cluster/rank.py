"""What runs inside the process of one rank: it joins the others, answers calls, and shows that it lives."""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import psutil
import ray
import torch
from numpy import ndarray
from torch._C._distributed_c10d import TCPStore

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.ragged import Ragged
from megatron_rl.beside import finished
from megatron_rl.cluster.member import STACKS
from megatron_rl.logs import heading, shorten, with_room
from megatron_rl.ports import NotFinite, Objective, Policy, Update
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.reshard.transport import Exchange, Sources, SyncReport
from megatron_rl.spec.schema import SpecError

T = TypeVar("T")
TOLD = (NotFinite, SpecError, LayoutError, TransferError)
"""Failures that say all there is to say, whichever rank raises them first; others need their traceback."""


class WeightRoute(Protocol):
    """How weights reach an engine: from equal routes, every process at its ends makes its part of one exchange."""

    @property
    def key(self) -> str:
        """Tells routes apart; an engine whose processes were replaced has another."""

    def sending(self, parameters: Mapping[int, Sources]) -> Exchange:
        """The part of a process that holds these source ranks."""


class Resident(Protocol):
    """One rank of the actor, as the process that hosts it sees it. Every rank is called alike."""

    def update(self, batch: Batch, objective: Objective) -> Update: ...

    def score(self, batch: Batch, policy: Policy) -> Ragged: ...

    def value(self, batch: Batch) -> Ragged: ...

    def update_critic(self, batch: Batch) -> Update: ...

    def save(self, folder: Path) -> Future[None]:
        """Takes this rank's part aside, and writes it beside what comes next."""

    @property
    def writing(self) -> str:
        """What this rank is writing its part of; nothing while it waits for another rank's part."""

    def load(self, folder: Path) -> None: ...

    def publish(self, version: int, route: WeightRoute) -> SyncReport:
        """Sends this rank's part of the weights."""

    def close(self) -> None: ...


class Address(NamedTuple):
    """Where the ranks of a run find one another: the machine and the port of the first rank's store."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Post:
    """The place of one rank: Post(rank=3, world=4, gpus=(3,), log=Path("runs/a/logs/rank_0003.log"))."""

    rank: int
    world: int
    gpus: tuple[int, ...]
    log: Path


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[T]):
    """What a call came to on one rank: a result, or the failure that came instead."""

    result: T | None = None
    failure: str = ""
    """The traceback."""
    error: Exception | None = None
    """The failure itself, where its own sentence says all."""
    at: float = 0.0
    """When it failed: of the ranks that fail together, the first one holds the reason."""


class Beat(NamedTuple):
    """A sign of life: the process, the call it is busy with, and what it writes its part of beside, if anything."""

    pid: int
    doing: str
    writing: str


class Scores(NamedTuple):
    """Log-probabilities or values as plain arrays, which travel without being pickled."""

    values: ndarray
    offsets: ndarray


Build = Callable[[Post, TCPStore], Resident]
"""Makes a rank from its place and the store over which the ranks meet."""


class RankHost:
    """The process of one rank. Calls run one at a time; `beat` answers beside them."""

    def __init__(self, post: Post) -> None:
        # A rank ends when its driver says so, not when Ctrl-C reaches the whole terminal.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Read by CUDA when it wakes, which no import does.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, post.gpus))
        # Megatron-Core imports it where it is there; a rank tells it nothing, and once killed leaves its folders.
        sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
        _log_to(post.log)
        self.post, self.doing = post, "nothing"
        self.resident: Resident | None = None
        self.saving = finished(None)
        """The save in hand, or the last one."""

    def open_store(self) -> Address:
        """The first rank's part in meeting: a store at a port that the system chose."""
        host = ray.util.get_node_ip_address()
        self.store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return Address(host, self.store.port)

    def join(self, build: Build, address: Address) -> Answer[None]:
        """Builds the resident, which meets the others at the address."""
        with self._doing("join"):
            return _answered(lambda: self._join(build, address))

    def update(self, batch: Batch, objective: Objective) -> Answer[Update]:
        with self._doing("update"):
            return _answered(lambda: self._first(self._here.update(batch, objective)))

    def score(self, batch: Batch, policy: Policy) -> Answer[Scores]:
        with self._doing("score"):
            return _answered(lambda: self._first(_plain(self._here.score(batch, policy))))

    def value(self, batch: Batch) -> Answer[Scores]:
        with self._doing("value"):
            return _answered(lambda: self._first(_plain(self._here.value(batch))))

    def update_critic(self, batch: Batch) -> Answer[Update]:
        with self._doing("update the critic"):
            return _answered(lambda: self._first(self._here.update_critic(batch)))

    def save(self, folder: Path) -> Answer[None]:
        """Begins a save; `saved` answers when it is written."""
        with self._doing("save"):
            return _answered(lambda: self._begin_save(folder), told=(*TOLD, OSError))

    @ray.method(concurrency_group="disk")
    def saved(self) -> Answer[None]:
        """Waits for the save in hand, beside the calls that go on."""
        return _answered(self.saving.result, told=(*TOLD, OSError))

    def load(self, folder: Path) -> Answer[None]:
        with self._doing("load"):
            return _answered(lambda: self._here.load(folder))

    def publish(self, version: int, route: WeightRoute) -> Answer[SyncReport]:
        with self._doing("publish"):
            return _answered(lambda: self._here.publish(version, route))

    def close(self) -> Answer[None]:
        with self._doing("close"):
            return _answered(lambda: self._here.close())

    @ray.method(concurrency_group="watch")
    def beat(self) -> Beat:
        """Shows that the process lives."""
        return Beat(os.getpid(), self.doing, self.resident.writing if self.resident else "")

    def _join(self, build: Build, address: Address) -> None:
        if not self.post.gpus:
            torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(ray.util.get_node_ip_address())
        self.resident = build(self.post, TCPStore(address.host, address.port, is_master=False))

    def _begin_save(self, folder: Path) -> None:
        self.saving = self._here.save(folder)

    @property
    def _here(self) -> Resident:
        assert self.resident is not None, "a rank is called before it has joined"
        return self.resident

    def _first(self, result: T) -> T | None:
        """Every rank comes to the same result; the first rank's is sent."""
        return result if self.post.rank == 0 else None

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        self.doing = what
        try:
            yield
        finally:
            shorten(self.post.log)
            self.doing = "nothing"


def interface_of(address: str) -> str:
    """The network interface that has this address: gloo would otherwise ask the resolver, which may not know."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    raise LayoutError(f"no network interface of {socket.gethostname()} has the address {address} that Ray gave it.")


def _answered(call: Callable[[], T | None], told: tuple[type[Exception], ...] = TOLD) -> Answer[T]:
    try:
        return Answer(result=call())
    except Exception as error:  # noqa: BLE001  # whatever it is, the driver is told
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        said = error if isinstance(error, told) else None
        return Answer(failure=traceback.format_exc(), error=said, at=time.time())


def _plain(scores: Ragged) -> Scores:
    return Scores(scores.values.numpy(), scores.offsets.numpy())


def _log_to(path: Path) -> None:
    """Everything this process says from here on, stacks included, stands in its own log."""
    log = with_room(path).open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.register(STACKS, file=log, all_threads=True)
    print(heading(path), flush=True)
