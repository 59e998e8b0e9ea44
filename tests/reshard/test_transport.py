import numpy as np
import pytest
import torch

from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.reshard.transport import Exchange, SyncReport
from tests.reshard.exchanges import checkpoint, differing, parameters, plan_of
from tests.reshard.tape import Tape

PLAN = plan_of("split")


def sender_of(tape, version, rank, verify="full", dtype=torch.float32, plan=PLAN):
    sources = {rank: parameters(plan.source, rank, checkpoint(version))}
    return Exchange(plan=plan, wire=tape, sources=sources, dtype=dtype, verify=verify)


def receiver_of(tape, rank, verify="full", dtype=torch.float32, plan=PLAN):
    return Exchange(
        plan=plan, wire=tape, targets={rank: parameters(plan.target, rank, None)}, dtype=dtype, verify=verify
    )


def recorded(version, verify="full"):
    tape = Tape()
    for rank in range(2):
        sender_of(tape, version, rank, verify).run(version)
    return tape


@pytest.mark.parametrize("verify", ["off", "sample", "full"])
def test_a_sync_rebuilds_the_weights_and_moves_the_bound(verify):
    tape = recorded(2, verify)
    for rank in range(2):
        receiver = receiver_of(tape, rank, verify)
        report = receiver.run(2)
        assert differing(receiver.targets[rank], rank, 2) == []
        assert report.ratio == 1.0
        assert report.bytes == report.bound > 0
        assert report.local_bytes == 0
        assert report.messages > 2


def test_ranks_in_one_process_need_no_wire():
    sources = {rank: parameters(PLAN.source, rank, checkpoint(1)) for rank in range(2)}
    targets = {rank: parameters(PLAN.target, rank, None) for rank in range(2)}
    report = Exchange(plan=PLAN, sources=sources, targets=targets, dtype=torch.float32).run(1)
    assert [differing(targets[rank], rank, 1) for rank in targets] == [[], []]
    assert report.messages == 0


def test_a_rank_elsewhere_needs_a_wire():
    with pytest.raises(LayoutError, match="from rank 0 to rank 0 in another process; give a wire"):
        Exchange(plan=PLAN, sources={0: parameters(PLAN.source, 0, checkpoint(1))}, dtype=torch.float32).run(1)


def test_ranks_that_share_a_gpu_use_the_near_wire():
    plan = plan_of("colocated")
    near, far = Tape(), Tape()
    sources = {0: parameters(plan.source, 0, checkpoint(1))}
    Exchange(plan=plan, wire=far, near=near, sources=sources, dtype=torch.float32).run(1)
    shared = {
        pair for pair in near.messages if plan.placement.source[pair.sender] == plan.placement.target[pair.receiver]
    }
    assert shared == near.messages.keys()
    assert shared.isdisjoint(far.messages)
    assert far.messages


def test_weights_travel_in_the_type_the_engine_keeps():
    tape = Tape()
    for rank in range(2):
        sender_of(tape, 1, rank, dtype=torch.bfloat16).run(1)
    receiver = receiver_of(tape, 0, dtype=torch.bfloat16)
    assert receiver.run(1).bytes == 2 * PLAN.target.shards[0].elements
    for key, array in parameters(PLAN.target, 0, checkpoint(1)).items():
        torch.testing.assert_close(receiver.targets[0][key], array.to(torch.bfloat16).float(), rtol=0, atol=0)


def flipped(message, rng):
    spoilt = message.clone()
    spoilt[rng.integers(len(message))] ^= 1 << int(rng.integers(8))
    return spoilt


def spoil(fault, tape, stale, rng):
    """One fault in one message of one pair; returns the receiver that must refuse."""
    pair = list(tape.messages)[rng.integers(len(tape.messages))]
    messages = tape.messages[pair]
    at = int(rng.integers(len(messages)))
    if fault == "flipped byte":
        messages[at] = flipped(messages[at], rng)
    elif fault == "dropped":
        del messages[at]
    elif fault == "duplicated":
        at = int(rng.integers(len(messages) - 1))
        messages.insert(at, messages[at])
    else:
        messages[at] = stale.messages[pair][at]
    return pair.receiver


def test_every_wire_fault_is_refused():
    good, stale, refused = recorded(2), recorded(1), 0
    for draw in range(500):
        rng = np.random.default_rng(draw)
        tape = Tape()
        tape.messages = {pair: list(messages) for pair, messages in good.messages.items()}
        fault = ("flipped byte", "dropped", "duplicated", "stale")[draw % 4]
        receiver = receiver_of(tape, spoil(fault, tape, stale, rng))
        try:
            receiver.run(2)
        except TransferError:
            refused += 1
    assert refused == 500


def test_a_buffer_that_was_never_rewritten_is_refused_by_a_sample_too():
    good, stale = recorded(2, "sample"), recorded(1, "sample")
    for rank in range(2):
        good.messages[rank, rank][3][64:] = stale.messages[rank, rank][3][64:]
        with pytest.raises(TransferError, match=r"bucket 3 .* digest is"):
            receiver_of(good, rank, "sample").run(2)


def test_sides_that_were_set_up_differently_refuse_one_another():
    tape = recorded(1, "full")
    with pytest.raises(TransferError, match="plan is"):
        receiver_of(tape, 0, "sample").run(1)


def test_reports_combine_to_the_slowest_and_the_sum():
    one = SyncReport(version=1, bytes=4_000_000_000, bound=2_000_000_000, local_bytes=0, messages=2, seconds=2.0)
    both = SyncReport.combined([one, one])
    assert (both.bytes, both.messages, both.seconds) == (8_000_000_000, 4, 2.0)
    assert both.ratio == 2.0
    assert both.gb_per_s == 4.0
