from collections import defaultdict

import numpy as np

from megatron_rl.reshard.buckets import Pair, pairs_of, schedule
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.plan import plan
from tests.reshard.random_layouts import random_case


def test_buckets_hold_every_copy_once_and_never_more_than_the_most():
    for seed in range(25):
        case = random_case(seed)
        made = plan(case.source, case.target, case.placement)
        pairs = pairs_of(made, range(len(case.source.ranks)), range(len(case.target.ranks)))
        for most in (23, 300, 10**9):
            written = defaultdict(dict)
            for receiver in range(len(case.target.ranks)):
                for tensor in case.target.tensors(receiver):
                    written[receiver][tensor.key] = np.zeros(tensor.shape, np.int8)
                    for box in tensor.zeros:
                        written[receiver][tensor.key][slices(box)] += 1
            for bucket in schedule(made, pairs, most):
                assert bucket.elements == sum(copy.elements for copy in bucket.copies) <= most
                for copy in bucket.copies:
                    assert copy.elements == np.prod([stop - start for start, stop in copy.source.box])
                    written[bucket.pair.receiver][copy.target.key][slices(copy.target.box)] += 1
            assert all((times == 1).all() for own in written.values() for times in own.values())


def test_large_buckets_are_one_message_for_each_pair():
    case = random_case(4)
    made = plan(case.source, case.target, case.placement)
    pairs = pairs_of(made, range(len(case.source.ranks)), range(len(case.target.ranks)))
    assert sorted(bucket.pair for bucket in schedule(made, pairs, 10**9)) == list(pairs) != []


def test_every_rank_sees_the_buckets_of_all_in_one_order():
    case = random_case(12)
    made = plan(case.source, case.target, case.placement)
    senders, receivers = range(len(case.source.ranks)), range(len(case.target.ranks))
    everything = [(one.pair, one.number) for one in schedule(made, pairs_of(made, senders, receivers), 50)]
    for sender in senders:
        own = [(one.pair, one.number) for one in schedule(made, pairs_of(made, [sender], []), 50)]
        assert own == [turn for turn in everything if turn[0].sender == sender]
    for receiver in receivers:
        own = [(one.pair, one.number) for one in schedule(made, pairs_of(made, [], [receiver]), 50)]
        assert own == [turn for turn in everything if turn[0].receiver == receiver]


def test_a_pair_is_named_by_its_ranks():
    assert Pair(sender=2, receiver=5) == (2, 5)
