from types import SimpleNamespace

import pytest

from megatron_rl import actor_rank
from megatron_rl.actor_rank import ActorOrder, ActorRank
from megatron_rl.reshard.transport import SyncReport


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
