import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from megatron_rl import actor_rank
from megatron_rl.actor import saving
from megatron_rl.actor.megatron_actor import Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.actor_rank import ActorOrder, ActorRank
from megatron_rl.checkpoint import begin
from megatron_rl.cluster.launcher import start_ranks
from megatron_rl.cluster.machines import open_machines
from megatron_rl.cluster.placement import Demand, place
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure
from megatron_rl.reshard.transport import SyncReport
from tests.fakes.tiny_models import tiny_folder


class Notes:
    """Plays a route, its exchange and its wire: it notes what is asked of it."""

    def __init__(self, key: str, said: list[str]) -> None:
        self.key, self.said, self.wire = key, said, self

    def sending(self, parameters):
        self.said.append(f"{self.key} opened for {parameters}")
        return self

    def run(self, version: int) -> SyncReport:
        self.said.append(f"{self.key} sent {version}")
        return SyncReport(version=version, bytes=0, bound=0, local_bytes=0, messages=0, seconds=0.0)

    def close(self) -> None:
        self.said.append(f"{self.key} closed")


@pytest.fixture
def said():
    return []


@pytest.fixture
def resident(monkeypatch, said):
    monkeypatch.setattr(actor_rank.weights, "published", lambda model: f"weights of {model}")
    return ActorRank(3, SimpleNamespace(model="a", close=lambda: said.append("actor closed")))


def test_a_rank_opens_a_route_once_and_closes_it_for_the_next(resident, said):
    for version, key in enumerate(("first", "first", "second")):
        assert resident.publish(version, Notes(key, said)).version == version
    resident.close()
    assert said == [
        "first opened for {3: 'weights of a'}",
        "first sent 0",
        "first sent 1",
        "first closed",
        "second opened for {3: 'weights of a'}",
        "second sent 2",
        "second closed",
        "actor closed",
    ]


def test_a_rank_meets_the_others_before_it_reads_weights(monkeypatch, said):
    for name in ("join", "cut"):
        monkeypatch.setattr(actor_rank.groups, name, lambda *_, name=name: said.append(name))
    monkeypatch.setattr(actor_rank, "MegatronActor", lambda *_: said.append("actor"))
    order = ActorOrder(settings=None, origin=None, seed=0, timeout_s=1.0)
    assert order.build(SimpleNamespace(rank=2, world=4), None).rank == 2
    assert said == ["join", "cut", "actor"]


@dataclass(frozen=True)
class Stuck:
    """Builds ranks of which one finds a pipe in place of its file: opening it to write waits until another reads."""

    order: ActorOrder
    rank: int

    def build(self, post, store):
        resident = self.order.build(post, store)
        if post.rank == self.rank:
            written = saving._written

            def into_a_pipe(plan, files):
                for path, *_ in files:
                    os.mkfifo(path)
                return written(plan, files)

            saving._written = into_a_pipe
        return resident


@pytest.mark.slow
def test_a_rank_whose_disk_takes_nothing_is_named_and_where_it_stands_is_in_its_log(tmp_path):
    from tests.cluster.two_nodes import address

    settings = ActorSettings(tp=2, pp=2, precision=Precision(compute="fp32"))
    origin = Origin(folder=tiny_folder(tmp_path / "model", "llama", num_hidden_layers=2))
    order = Stuck(ActorOrder(settings=settings, origin=origin, seed=0, timeout_s=600.0), rank=3)
    machines = open_machines(address())
    placement = place(Demand(ranks=4, group=2, gpus=0, cpus=1), machines.nodes)
    group = start_ranks(
        machines, placement, order.build, ClusterSettings(start_s=300.0, step_s=20.0), tmp_path / "logs"
    )
    said = (
        rf"^rank 3 of 4 \(process \d+ on \S+\) has not written its part of {tmp_path}/checkpoints/\S*step_000010/actor "
        rf"within 20 s; ranks 0, 1, 2 wait for it; all stacks were saved in {tmp_path}/logs$"
    )
    try:
        begun = begin(tmp_path / "checkpoints", 10, group, {}, {})
        with pytest.raises(RankFailure, match=said):
            begun.result(120)
    finally:
        group.close()
        machines.close()
    assert "in write_preloaded_data" in (tmp_path / "logs" / "rank_0003.log").read_text()
    assert "in gather_object" in (tmp_path / "logs" / "rank_0000.log").read_text()
