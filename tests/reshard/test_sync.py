from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from megatron_rl.reshard.delivery import Cut, Source
from megatron_rl.reshard.digest import ReceiverLost, TransferError
from megatron_rl.reshard.sync import TIMES, DeliverySync, InProcessSync, report_metrics
from megatron_rl.reshard.transport import Exchange, SyncReport
from tests.reshard import by_hand
from tests.reshard.exchanges import SHAPE, checkpoint, differing, parameters, plan_of
from tests.reshard.test_delivery import delivery, tensors


def test_the_engine_serves_a_version_after_its_weights_are_there():
    plan, served = plan_of("split"), []
    sources = {rank: parameters(plan.source, rank, checkpoint(1)) for rank in range(2)}
    targets = {rank: parameters(plan.target, rank, None) for rank in range(2)}

    def serve(version: int) -> None:
        assert served == ["withheld"]
        assert [differing(targets[rank], rank, 1) for rank in targets] == [[], []]
        served.append(version)

    exchange = Exchange(plan=plan, sources=sources, targets=targets, dtype=torch.float32)
    sync = InProcessSync(exchange=exchange, serve=serve, withhold=lambda: served.append("withheld"))
    assert sync.metrics == {}
    assert sync.publish(7) == 7
    assert served == ["withheld", 7]
    assert sync.metrics["sync/ratio"] == 1.0


def test_a_report_becomes_metrics():
    report = SyncReport(version=1, bytes=200, bound=100, local_bytes=50, messages=3, seconds=0.5)
    assert report_metrics(report)["sync/ratio"] == 2.0
    assert report_metrics(report)["sync/messages"] == 3.0


class Elsewhere:
    """An engine whose worker receives when it is asked to finish; `breaks` makes it refuse, `losses` die so often."""

    def __init__(self, breaks=False, losses=0):
        route = delivery(tp=2, replicas=1, timeout_s=60.0)
        self.delivery, self.breaks, self.losses, self.served = route, breaks, losses, []
        self.tensors = {rank: tensors(route.plan.target, rank) for rank in range(2)}

    def begin(self, version):
        self.delivery.sweep()
        if self.losses:
            return self.delivery
        self.pool = ThreadPoolExecutor(2)
        ends = [self.delivery.receiving({rank: self.tensors[rank]}) for rank in range(2)]
        self.running = [self.pool.submit(end.run, version) for end in ends]
        return self.delivery

    def finish(self, version):
        if self.losses:
            self.losses -= 1
            self.delivery.give_up()
            raise ReceiverLost("group 0 died")
        if self.breaks:
            self.delivery.give_up()
            raise TransferError("group 0 died")
        return SyncReport.combined(one.result() for one in self.running)

    def serve(self, version):
        self.served.append(version)


def one_rank(engine):
    """The delivery's sources on a single rank."""
    source = Source(shape=SHAPE, cut=Cut(tp=1, pp=1, chunks=(SHAPE.layers,)))
    engine.delivery = replace(engine.delivery, source=source)
    read = {name: torch.tensor(array).float() for name, array in by_hand.checkpoint(SHAPE).items()}.__getitem__
    return {0: tensors(source.layout, 0, read)}, read


def test_weights_cross_to_an_engine_elsewhere_and_are_served_after_that():
    engine = Elsewhere()
    parameters, read = one_rank(engine)
    sync = DeliverySync(engine=engine, parameters=parameters)
    assert sync.publish(3) == 3
    assert engine.served == [3]
    assert sync.metrics["sync/ratio"] == 1.0
    for rank in range(2):
        expected = tensors(engine.delivery.plan.target, rank, read)
        assert all(torch.equal(engine.tensors[rank][key], expected[key]) for key in expected)
    engine.delivery.sweep()


def test_a_version_that_an_engine_elsewhere_did_not_get_is_not_served():
    engine = Elsewhere(breaks=True)
    sync = DeliverySync(engine=engine, parameters=one_rank(engine)[0])
    with pytest.raises(TransferError, match="group 0 died"):
        sync.publish(1)
    assert engine.served == []
    engine.delivery.sweep()


@pytest.mark.parametrize("losses", [1, TIMES])
def test_a_version_is_sent_again_where_a_receiver_was_lost_but_not_for_ever(losses, capsys):
    engine = Elsewhere(losses=losses)
    sync = DeliverySync(engine=engine, parameters=one_rank(engine)[0])
    if losses < TIMES:
        assert sync.publish(1) == 1
        assert engine.served == [1]
    else:
        with pytest.raises(ReceiverLost, match="group 0 died"):
            sync.publish(1)
        assert engine.served == []
    assert "group 0 died\nIt is sent once more" in capsys.readouterr().err
    engine.delivery.sweep()
