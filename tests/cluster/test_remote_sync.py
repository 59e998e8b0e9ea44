import pytest

from megatron_rl.cluster.remote_sync import RemoteSync
from megatron_rl.cluster.watch import RankFailure
from megatron_rl.reshard.digest import ReceiverLost
from megatron_rl.reshard.transport import SyncReport


class Inlet:
    def __init__(self, fails: bool) -> None:
        self.fails, self.served = fails, []

    def begin(self, version: int) -> None:
        return None

    def finish(self, version: int) -> SyncReport:
        if self.fails:
            raise ConnectionError("the wire is cut")
        return SyncReport(version=version, bytes=8, bound=8, local_bytes=0, messages=2, seconds=0.1)

    def serve(self, version: int) -> None:
        self.served.append(version)


def test_a_version_is_served_once_every_rank_has_sent_and_the_engine_has_it(start):
    inlet = Inlet(fails=False)
    sync = RemoteSync(group=start(), inlet=inlet)
    assert sync.publish(7) == 7
    assert inlet.served == [7]
    assert sync.metrics["sync/bytes"] == 8.0
    sync.send(None, 7)
    assert inlet.served == [7]


def test_a_version_that_did_not_arrive_is_not_served(start):
    inlet = Inlet(fails=True)
    with pytest.raises((RankFailure, ConnectionError), match="the wire is cut"):
        RemoteSync(group=start(), inlet=inlet).publish(7)
    assert inlet.served == []


class Broken(Inlet):
    """Loses whoever receives in the first sync, over a route that the ranks give up as well."""

    routes = ("broken", "whole")

    def begin(self, version: int) -> str:
        self.route, *self.routes = self.routes
        return self.route

    def finish(self, version: int) -> SyncReport:
        if self.route == "broken":
            raise ReceiverLost("group 0 died")
        return super().finish(version)


def test_ranks_outlive_a_sync_whose_receiver_died_and_send_once_more(start):
    inlet = Broken(fails=False)
    sync = RemoteSync(group=start(), inlet=inlet)
    assert sync.publish(7) == 7
    assert inlet.served == [7]
