import torch

from megatron_rl.reshard.sync import InProcessSync, report_metrics
from megatron_rl.reshard.transport import Exchange, SyncReport
from tests.reshard.exchanges import checkpoint, differing, parameters, plan_of


def test_the_engine_serves_a_version_after_its_weights_are_there():
    plan, served = plan_of("split"), []
    sources = {rank: parameters(plan.source, rank, checkpoint(1)) for rank in range(2)}
    targets = {rank: parameters(plan.target, rank, None) for rank in range(2)}

    def serve(version: int) -> None:
        assert [differing(targets[rank], rank, 1) for rank in targets] == [[], []]
        served.append(version)

    sync = InProcessSync(
        exchange=Exchange(plan=plan, sources=sources, targets=targets, dtype=torch.float32), serve=serve
    )
    assert sync.metrics == {}
    assert sync.publish(7) == 7
    assert served == [7]
    assert sync.metrics["sync/ratio"] == 1.0


def test_a_report_becomes_metrics():
    report = SyncReport(version=1, bytes=200, bound=100, local_bytes=50, messages=3, seconds=0.5)
    assert report_metrics(report)["sync/ratio"] == 2.0
    assert report_metrics(report)["sync/messages"] == 3.0
