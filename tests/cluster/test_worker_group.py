from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import REWARD, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Actor, NotFinite
from megatron_rl.reshard.transport import SyncReport
from tests.cluster.residents import Order


def batch(rows: int = 3, width: int = 2) -> Batch:
    tokens = torch.arange(rows * width, dtype=torch.int32)
    offsets = torch.arange(0, rows * width + 1, width)
    return Batch.of({REWARD: torch.arange(rows).float(), TOKENS: Ragged(tokens, offsets)})


def test_the_group_is_an_actor_whose_ranks_are_processes(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = start()
    assert isinstance(group, Actor)
    update = group.update(batch(), Order("nothing"))
    assert update.metrics["rank"] == 0
    assert update.offending == batch().take(torch.tensor([0]))
    scores = group.score(batch())
    torch.testing.assert_close(scores.values, -torch.arange(6.0))
    torch.testing.assert_close(group.critic.value(batch()).values, torch.arange(6.0) / 2)
    assert group.critic.update(batch()).metrics == {"rows": 3.0}
    group.save(Path("saved")).result()
    group.load(Path("saved"))
    assert sorted(path.read_text() for path in (tmp_path / "saved").iterdir()) == ["True", "True"]
    with pytest.raises(NotFinite) as given_up:
        group.update(batch(), Order("give up"))
    assert given_up.value.offending == batch().take(torch.tensor([1]))
    received: Future[SyncReport] = Future()
    assert [report.messages for report in group.publish(3, None).finish(received)] == [0, 1]
    group.close()
    assert "closed" in group.members[1].log.read_text()
    group.close()


def test_a_batch_is_read_in_place_by_every_rank(start):
    group = start()
    large = batch(rows=100_000, width=100)
    metrics = group.update(large, Order("nothing")).metrics
    assert metrics["bytes"] > 40_000_000
    assert metrics["own"] < 1_000_000
