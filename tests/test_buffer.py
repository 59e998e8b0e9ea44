import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, REWARD, VERSION
from megatron_rl.buffer import GroupBuffer, waiting_rollouts


def wave(*groups: int, version: int = 0) -> Batch:
    return Batch.of(
        {
            GROUP: [g for g in groups for _ in range(2)],
            REWARD: [1.0, 0.0] * len(groups),
            VERSION: [version] * 2 * len(groups),
        }
    )


def taken_groups(batch: Batch | None) -> list[int] | None:
    return None if batch is None else list(dict.fromkeys(batch[GROUP].tolist()))


def test_batches_are_whole_groups_first_in_first_out():
    buffer = GroupBuffer(prompts=2)
    memory = buffer.push(buffer.push(None, wave(5, 1, 9)), wave(2))
    first, memory = buffer.take(memory, version=0)
    second, memory = buffer.take(memory, version=0)
    third, memory = buffer.take(memory, version=0)
    assert [taken_groups(batch) for batch in (first, second, third)] == [[5, 1], [9, 2], None]


def test_totals_since_the_run_began_add_up_however_many_waves_a_step_took():
    buffer, memory, told = GroupBuffer(prompts=2), None, []
    for number in range(4):
        kept = torch.tensor([1, 1, 0, 0, 0, 0])
        memory = buffer.push(memory, wave(3 * number, 3 * number + 1, 3 * number + 2).with_columns(kept=kept))
        batch, memory = buffer.take(memory, version=0)
        told += [batch.metrics] if batch is not None else []
    assert [(each["buffer/pushed"], each["buffer/filtered"]) for each in told] == [(12.0, 8.0), (24.0, 16.0)]
    for step, each in enumerate(told, start=1):
        accounted = 4.0 * step + each["buffer/waiting"] + each["buffer/filtered"] + each["buffer/stale"]
        assert each["buffer/pushed"] == accounted


def test_too_few_groups_wait():
    buffer = GroupBuffer(prompts=3)
    batch, memory = buffer.take(buffer.push(None, wave(1, 2)), version=0)
    assert batch is None
    assert waiting_rollouts(memory) == 4


def test_filtered_rollouts_never_come_out_and_are_counted():
    buffer = GroupBuffer(prompts=1)
    memory = buffer.push(None, wave(1, 2).with_columns(kept=torch.tensor([0, 0, 1, 1])))
    batch, memory = buffer.take(memory, version=0)
    assert taken_groups(batch) == [2]
    assert memory == {"waiting": None, "pushed": 4, "yielded": 2, "filtered": 2, "stale": 0}


def test_groups_older_than_the_limit_are_dropped_and_counted():
    buffer = GroupBuffer(prompts=1, max_age=2)
    memory = buffer.push(buffer.push(None, wave(1, version=0)), wave(2, version=3))
    batch, memory = buffer.take(memory, version=3)
    assert taken_groups(batch) == [2]
    assert memory["stale"] == batch.metrics["buffer/stale"] == 2


def test_what_a_wave_brought_too_much_is_not_kept_for_a_step_of_other_weights():
    buffer = GroupBuffer(prompts=1, max_age=0)
    _, memory = buffer.take(buffer.push(None, wave(1, 2, version=0)), version=0)
    assert buffer.take(memory, version=1)[0] is None
    # Written ahead, what is left over is no older than what would be written in its place.
    assert taken_groups(buffer.take(memory, version=1, writing=0)[0]) == [2]


def test_an_empty_wave_changes_nothing_but_the_counts():
    buffer = GroupBuffer(prompts=1)
    assert buffer.push(None, wave(1).where(torch.zeros(2, dtype=torch.bool)))["waiting"] is None


def test_rows_of_a_group_may_be_apart():
    shuffled = wave(1, 2).take(torch.tensor([0, 2, 1, 3]))
    batch, _ = GroupBuffer(prompts=1).take(GroupBuffer(prompts=1).push(None, shuffled), version=0)
    assert batch[GROUP].tolist() == [1, 1]
