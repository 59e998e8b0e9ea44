from contextlib import contextmanager

import pyarrow as pa
import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    BASELINE,
    DRAW_ODDS,
    GROUP,
    LOSS_WEIGHT,
    OLD_LOGPROBS,
    PROMPT_ID,
    REWARD,
    STATUS,
    TOKENS,
    Column,
)
from megatron_rl.pipeline import DRAWN, chain, check_wiring
from megatron_rl.ports import Context

CONTEXT = Context(step=0, version=0, seed=0)
TALLY = Column(name="tally", type=pa.int64(), meaning="how often the stage has run")


class Tally:
    reads = (PROMPT_ID,)
    writes = (TALLY,)

    def __call__(self, batch, memory, context):
        count = (memory or 0) + 1
        return batch.with_columns({TALLY: [count] * len(batch)}), count


class SharedTally(Tally):
    slot = "tallies"


class Reads:
    def __init__(self, *columns, writes=()):
        self.reads, self.writes = columns, writes


def test_memory_goes_in_and_comes_out_by_slot():
    batch = Batch.of({PROMPT_ID: ["a"]})
    steps = chain([("first", Tally()), ("second", Tally())])
    _, memories = steps(batch, {"first": 4}, CONTEXT)
    assert memories == {"first": 5, "second": 1}


def test_what_is_kept_back_whole_leaves_the_stages_behind_it_nothing_to_do():
    class KeepsBack(Tally):
        def __call__(self, batch, memory, context):
            return batch.take(torch.arange(0)), len(batch)

    batch, memories = chain([("kept", KeepsBack()), ("tally", Tally())])(Batch.of({PROMPT_ID: ["a"]}), {}, CONTEXT)
    assert len(batch) == 0
    assert memories == {"kept": 1}


class Fails:
    """Loses the rollouts of these prompts."""

    reads, writes = (PROMPT_ID,), (STATUS,)

    def __init__(self, *prompts):
        self.prompts = prompts

    def __call__(self, batch, memory, context):
        return batch.with_columns(
            status=["failed" if name in self.prompts else "ok" for name in batch[PROMPT_ID]]
        ), memory


@pytest.mark.parametrize("lost", ["bc", "abc"])
def test_no_stage_sees_a_rollout_that_failed(lost):
    class Sees(Tally):
        def __call__(self, batch, memory, context):
            assert batch[PROMPT_ID] == ["a"]
            return super().__call__(batch, memory, context)

    asked = Batch.of({PROMPT_ID: ["a", "b", "c"], GROUP: [0, 1, 2]})
    batch, memories = chain([("write", Fails(*lost)), ("see", Sees())])(asked, {}, CONTEXT)
    assert (batch[PROMPT_ID], memories.get("see")) == ((["a"], 1) if lost == "bc" else ([], None))
    assert memories["failed"]["rows"][PROMPT_ID] == list(lost)


def test_rollouts_that_failed_and_waited_in_an_older_memory_leave_before_the_first_stage():
    waited = Batch.of({PROMPT_ID: ["a", "b"], GROUP: [0, 0], STATUS: ["ok", "failed"]})
    batch, memories = chain([("tally", Tally())])(waited, {}, CONTEXT)
    assert len(batch) == memories["failed"]["rollouts"] == 1


def test_stages_that_name_one_slot_share_it():
    batch, memories = chain([("a", SharedTally()), ("b", SharedTally())])(Batch.of({PROMPT_ID: ["a"]}), {}, CONTEXT)
    assert memories == {"tallies": 2}
    assert batch[TALLY].tolist() == [2]


def test_a_chain_leaves_other_slots_and_its_input_alone():
    before = {"other": 1}
    _, after = chain([("tally", Tally())])(Batch.of({PROMPT_ID: ["a"]}), before, CONTEXT)
    assert before == {"other": 1}
    assert after == {"other": 1, "tally": 1}


def test_every_stage_is_watched_under_its_name():
    watched = []

    @contextmanager
    def watch(name):
        yield
        watched.append(name)

    chain([("one", Tally()), ("two", Tally())])(Batch.of({REWARD: [1.0]}), {}, CONTEXT, watch)
    assert watched == ["one", "two"]


def test_right_wiring_has_no_problems():
    collect = [("generate", Reads(*DRAWN, writes=(TOKENS,))), ("judge", Reads(TOKENS, writes=(REWARD,)))]
    learn = [("baseline", Reads(REWARD, writes=(BASELINE,))), ("advantage", Reads(BASELINE, writes=(ADVANTAGE,)))]
    assert check_wiring(DRAWN, collect, learn, ("clipped", Reads(ADVANTAGE, OLD_LOGPROBS, LOSS_WEIGHT))) == []


def test_a_column_read_before_it_is_written_is_named_with_its_reader():
    learn = [("advantage", Reads(BASELINE, writes=(ADVANTAGE,))), ("late", Reads(writes=(BASELINE,)))]
    (problem,) = check_wiring(DRAWN, [], learn, ("clipped", Reads(ADVANTAGE)))
    assert "stage 'advantage' reads 'baseline'" in problem
    assert "add a stage that writes it to `learn`" in problem


def test_every_unwritten_column_is_reported_at_once():
    learn = [("a", Reads(BASELINE)), ("b", Reads(REWARD))]
    assert len(check_wiring(DRAWN, [], learn, ("clipped", Reads(ADVANTAGE)))) == 3


@pytest.mark.parametrize("reader", ["stage", "objective"])
def test_a_column_with_a_default_may_be_read_unwritten(reader):
    learn = [("x", Reads(LOSS_WEIGHT))] if reader == "stage" else []
    assert check_wiring(DRAWN, [], learn, ("clipped", Reads(LOSS_WEIGHT))) == []


def test_a_column_that_only_the_sampler_writes_counts_as_written():
    learn = [("importance_weight", Reads(DRAW_ODDS))]
    assert len(check_wiring(DRAWN, [], learn, ("clipped", Reads()))) == 1
    assert check_wiring((*DRAWN, DRAW_ODDS), [], learn, ("clipped", Reads())) == []
