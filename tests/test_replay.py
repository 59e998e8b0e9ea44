from dataclasses import dataclass

import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, BASELINE, GROUP, LOSS_MASK, REWARD, STATUS, TOKENS
from megatron_rl.pipeline import chain
from megatron_rl.ports import Context
from megatron_rl.replay import ReplayError, replay
from megatron_rl.stages.advantage import Advantage
from megatron_rl.stages.leave_one_out_baseline import LeaveOneOutBaseline

CHAIN = chain([("leave_one_out_baseline", LeaveOneOutBaseline()), ("advantage", Advantage())])
CONTEXT = Context(step=4, version=4, seed=0)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Remembers how often it ran, and subtracts that."""

    reads = (REWARD,)
    writes = (BASELINE,)

    def __call__(self, batch, memory, context):
        count = (memory or 0) + 1
        return batch.with_columns({BASELINE: torch.full((len(batch),), float(count))}), count


@dataclass(frozen=True, kw_only=True)
class Asks:
    """Needs the engine."""

    reads = (REWARD,)
    writes = (BASELINE,)
    uses = ("engine",)

    def __call__(self, batch, memory, context):
        raise AssertionError("it was run")


def recorded() -> Batch:
    batch = Batch.of(
        {
            GROUP: torch.tensor([0, 0, 1, 1]),
            REWARD: torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64),
            TOKENS: [[5, 9, 2], [5, 2], [7, 2], [2]],
            LOSS_MASK: [[1, 1, 1], [1, 1], [1, 1], [1]],
        }
    )
    return CHAIN(batch, {}, CONTEXT)[0]


def test_the_same_stages_change_nothing():
    found = replay(CHAIN, recorded(), {}, CONTEXT)
    assert [change.rows for change in found.changes] == [0, 0]
    assert str(found.changes[0]) == "baseline: as recorded, to the bit"


def test_changes_are_counted_in_rollouts():
    batch = recorded()
    moved = batch.with_columns({ADVANTAGE: [[1.0, 1.0, 1.5], [-1.0, -1.0], [0.0, 0.0], [0.0]]})
    found = replay(CHAIN, moved, {}, CONTEXT)
    change = {change.column: change for change in found.changes}["advantage"]
    assert (change.rows, change.of, change.largest) == (1, 4, 0.5)


def test_rollouts_that_failed_are_in_the_record_and_in_no_stage():
    failed = Batch.of({GROUP: [0, 2], REWARD: [0.0, 0.0], STATUS: ["failed"] * 2})
    shown = recorded().with_columns(status=["ok"] * 4).followed_by(failed)
    found = replay(CHAIN, shown, {}, CONTEXT)
    assert [change.rows for change in found.changes] == [0, 0]
    assert len(found.batch) == 4


def test_a_memory_comes_from_the_step_before_or_the_replay_is_refused():
    counts = chain([("counts", Counts())])
    found = replay(counts, recorded(), {"counts": 4}, CONTEXT)
    assert found.batch.numbers(BASELINE).tolist() == [5.0] * 4
    with pytest.raises(ReplayError, match=r"stage 'counts' remembers .* no checkpoint of step 4"):
        replay(counts, recorded(), {}, CONTEXT)
    with pytest.raises(ReplayError, match="no checkpoint of step 3"):  # rollouts written a step ahead
        replay(counts, recorded(), {}, Context(step=4, version=3, seed=0))
    assert replay(counts, recorded(), {}, Context(step=0, version=0, seed=0)).batch.numbers(BASELINE)[0] == 1.0


def test_a_stage_that_needs_the_engine_is_named_and_not_run():
    found = replay(chain([("asks", Asks())]), recorded(), {}, CONTEXT)
    assert found.skipped == ("asks",)
    assert found.changes == ()
