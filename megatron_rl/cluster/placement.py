"""Which process of a run stands on which machine, with which GPUs: computed and checked before anything starts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from megatron_rl.reshard.layout import LayoutError


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of the allocation: Node(name="gpu-17", gpus=8, cpus=64)."""

    name: str
    gpus: int
    cpus: int


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a run asks for: Demand(ranks=16, group=4, gpus=1, engines=4, engine_gpus=2, placement="split")."""

    ranks: int
    """Processes of the actor."""
    group: int
    """Consecutive ranks that must share a machine: one tensor-parallel group."""
    gpus: int
    """GPUs of each rank: 1, or 0 on machines without."""
    cpus: int = 0
    """Cores of each rank; 0 lets ranks share them."""
    engines: int = 1
    """Rollout groups."""
    engine_gpus: int = 0
    """GPUs of each rollout group, all on one machine."""
    placement: Literal["colocated", "split"] = "colocated"
    """Whether rollout groups share the ranks' GPUs."""
    spread: bool = False
    """Whether rollout groups without GPUs stand on the machines of the ranks in turn; they are else the driver's."""


class Seat(NamedTuple):
    """Where one process stands: Seat(node=0, gpus=(3,)) has the fourth GPU of the first machine."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Seats by rank and by rollout group. The driver stands on the first machine."""

    nodes: tuple[Node, ...]
    ranks: tuple[Seat, ...]
    engines: tuple[Seat, ...]

    @property
    def is_one_machine(self) -> bool:
        return len({seat.node for seat in (*self.ranks, *self.engines)} | {0}) == 1

    def lines(self) -> Iterator[str]:
        """One line a machine, for people: 'gpu-17: ranks 0-7 on GPUs 0-7; engines 0-3'."""
        for number, node in enumerate(self.nodes):
            ranks = [rank for rank, seat in enumerate(self.ranks) if seat.node == number]
            engines = [engine for engine, seat in enumerate(self.engines) if seat.node == number]
            if ranks or engines:
                told = [f"{what} {_listed(which)}" for what, which in (("ranks", ranks), ("engines", engines)) if which]
                yield f"{node.name}: {'; '.join(told)}"


@dataclass
class _Free:
    """What is left of one machine."""

    node: Node
    gpus: list[int] = field(default_factory=list)
    cpus: int = 0

    @classmethod
    def of(cls, node: Node) -> "_Free":
        return cls(node, list(range(node.gpus)), node.cpus)

    def has(self, gpus: int, cpus: int) -> bool:
        return len(self.gpus) >= gpus and self.cpus >= cpus

    def take(self, gpus: int, cpus: int) -> tuple[int, ...]:
        taken, self.gpus = tuple(self.gpus[:gpus]), self.gpus[gpus:]
        self.cpus -= cpus
        return taken


def place(demand: Demand, nodes: Sequence[Node]) -> Placement:
    """Ranks in order over the machines in order, then rollout groups; LayoutError says what is short, and where."""
    if not nodes:
        raise LayoutError("the allocation has no machine that is up; start Ray's nodes before the run.")
    free = [_Free.of(node) for node in nodes]
    ranks: list[Seat] = []
    for first in range(0, demand.ranks, demand.group):
        who = f"ranks {first}-{first + demand.group - 1}" if demand.group > 1 else f"rank {first}"
        at = _first_with(free, demand.group * demand.gpus, demand.group * demand.cpus, who)
        ranks += [Seat(at, free[at].take(demand.gpus, demand.cpus)) for _ in range(demand.group)]
    if not demand.engine_gpus:
        engines = _in_turn(ranks, demand)
    else:
        engines = _beside(ranks, demand, nodes) if demand.placement == "colocated" else _apart(free, demand)
    return Placement(nodes=tuple(nodes), ranks=tuple(ranks), engines=tuple(engines))


def _in_turn(ranks: Iterable[Seat], demand: Demand) -> Iterator[Seat]:
    """Rollout groups that need no GPU."""
    nodes = sorted({seat.node for seat in ranks}) if demand.spread else [0]
    yield from (Seat(nodes[engine % len(nodes)]) for engine in range(demand.engines))


def _apart(free: list[_Free], demand: Demand) -> Iterator[Seat]:
    for engine in range(demand.engines):
        at = _first_with(free, demand.engine_gpus, 0, f"engine {engine}")
        yield Seat(at, free[at].take(demand.engine_gpus, 0))


def _beside(ranks: Iterable[Seat], demand: Demand, nodes: Sequence[Node]) -> Iterator[Seat]:
    """Rollout groups on the GPUs of the ranks, machine by machine."""
    held: dict[int, list[int]] = {}
    for seat in ranks:
        held.setdefault(seat.node, []).extend(seat.gpus)
    seats = [
        Seat(node, tuple(gpus[at : at + demand.engine_gpus]))
        for node, gpus in held.items()
        for at in range(0, len(gpus) - demand.engine_gpus + 1, demand.engine_gpus)
    ]
    if len(seats) < demand.engines:
        told = ", ".join(f"'{nodes[node].name}' {len(gpus)}" for node, gpus in held.items())
        raise LayoutError(
            f"{demand.engines} engines of {demand.engine_gpus} GPUs each do not fit beside the ranks, which hold these "
            f"GPUs: {told}; an engine stands on one machine, so lower the engines' number or size, or set "
            "cluster.placement to 'split'."
        )
    yield from seats[: demand.engines]


def _first_with(free: list[_Free], gpus: int, cpus: int, who: str) -> int:
    for number, one in enumerate(free):
        if one.has(gpus, cpus):
            return number
    short = "GPUs" if all(len(one.gpus) < gpus for one in free) else "cores"
    wanted = gpus if short == "GPUs" else cpus
    largest = max(one.node.gpus if short == "GPUs" else one.node.cpus for one in free)
    left = ", ".join(
        f"'{one.node.name}' {len(one.gpus)} of {one.node.gpus}"
        if short == "GPUs"
        else f"'{one.node.name}' {one.cpus} of {one.node.cpus}"
        for one in free
    )
    change = (
        f"no machine has {wanted}, so lower actor.tp or the engine's size"
        if wanted > largest
        else "take more machines, or lower actor.dp or actor.pp"
    )
    raise LayoutError(f"{who}: {wanted} {short} on one machine are needed, but free are {left}; {change}.")


def _listed(numbers: Sequence[int]) -> str:
    """'0-3, 6': numbers in order, runs of them joined."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
