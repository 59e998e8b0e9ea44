import itertools

import numpy as np

from megatron_rl.batch.columns import EPOCH, GROUP, PROMPT_ID, SEED, SLOT
from megatron_rl.drawing import epoch_order, requests, rollout_keys, rollout_seeds, stream
from megatron_rl.ports import Context
from tests.fakes.tabular import NumberedPrompts


def context(seed: int = 0, step: int = 0) -> Context:
    return Context(step=step, version=0, seed=seed, machines={"prompts": NumberedPrompts(5)})


def test_an_epoch_is_every_prompt_once():
    assert sorted(epoch_order(context(), 5, epoch=3)) == [0, 1, 2, 3, 4]


def test_order_depends_on_seed_and_epoch_and_not_on_the_step():
    orders = {(seed, epoch): tuple(epoch_order(context(seed), 50, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert tuple(epoch_order(context(0, step=7), 50, 1)) == orders[0, 1]


def test_a_stream_goes_on_where_it_was():
    whole = list(itertools.islice(stream(context(), 5, 0), 13))
    assert list(itertools.islice(stream(context(), 5, 7), 6)) == whole[7:]
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5 + [2] * 3


def test_requests_are_groups_of_one_prompt_each():
    batch = requests(context(), [(0, 3), (0, 1)], samples=3, first_group=10)
    assert batch[PROMPT_ID] == ["p3"] * 3 + ["p1"] * 3
    assert batch[GROUP].tolist() == [10] * 3 + [11] * 3
    assert batch[SLOT].tolist() == [0, 1, 2] * 2
    assert batch[EPOCH].tolist() == [0] * 6


def test_seeds_belong_to_group_and_slot_however_the_wave_is_cut():
    together = requests(context(), [(0, 3), (0, 1)], samples=3, first_group=10)
    apart = requests(context(step=4), [(0, 1)], samples=3, first_group=11)
    assert together[SEED].tolist()[3:] == apart[SEED].tolist()


def test_keys_tell_two_groups_of_one_prompt_apart():
    batch = requests(context(), [(0, 3), (0, 1), (0, 3)], samples=2, first_group=0)
    keys = rollout_keys(batch)
    assert keys == [("p3", 0, 0), ("p3", 1, 0), ("p1", 0, 0), ("p1", 1, 0), ("p3", 0, 1), ("p3", 1, 1)]


def test_seeds_do_not_collide():
    groups, slots = np.meshgrid(np.arange(2000), np.arange(32))
    seeds = rollout_seeds(context(), groups.ravel(), slots.ravel())
    assert len(np.unique(seeds)) == groups.size
    assert seeds.min() >= 0
