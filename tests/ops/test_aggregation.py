from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.aggregation import Counts, Scope, count, token_weights

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum")
OFFSETS = torch.tensor([0, 3, 5, 7])
MASK = torch.tensor([1, 0, 1, 1, 1, 0, 0], dtype=torch.uint8)
LOSS = torch.tensor([1.0, 50.0, 2.0, 3.0, 4.0, 50.0, 50.0], dtype=torch.float64)


@pytest.mark.parametrize(("mode", "expected"), list(zip(MODES, (2.5, 2.5, 5.0, 0.5, 10.0), strict=True)))
def test_each_mode_by_hand(mode, expected):
    weight_T = token_weights(mode, MASK, OFFSETS, Scope(count(MASK, OFFSETS), 10), LOSS)
    assert (LOSS * weight_T).sum().item() == pytest.approx(expected)


def test_counts_leave_out_rows_without_a_live_token():
    assert count(MASK, OFFSETS) == Counts(tokens=4, rows=2)


def in_parts(mode, rows, loss, scope):
    """Sum over parts of a batch of (lengths, losses, masks), each priced on its own with the global counts."""
    total = 0.0
    for start, stop in rows:
        part = slice(int(loss[0][start]), int(loss[0][stop]))
        offsets = loss[0][start : stop + 1] - loss[0][start]
        total += float((loss[1][part] * token_weights(mode, loss[2][part], offsets, scope, loss[1][part])).sum())
    return total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_any_split_with_global_counts_adds_up_to_the_same_loss(mode, seed):
    torch.manual_seed(seed)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, 9, (12,)).cumsum(0)])
    loss = offsets, torch.randn(int(offsets[-1]), dtype=torch.float64), torch.rand(int(offsets[-1])) < 0.6
    scope = Scope(count(loss[2], offsets), 8)
    whole = in_parts(mode, [(0, 12)], loss, scope)
    cuts = sorted({0, 12, *torch.randint(0, 13, (3,)).tolist()})
    assert in_parts(mode, list(pairwise(cuts)), loss, scope) == pytest.approx(whole)
    assert in_parts(mode, [(row, row + 1) for row in range(12)], loss, scope) == pytest.approx(whole)


def test_local_counts_would_not_add_up():
    halves = [(slice(0, 3), torch.tensor([0, 3])), (slice(3, 7), torch.tensor([0, 2, 4]))]
    scopes = [Scope(count(MASK[part], offsets)) for part, offsets in halves]
    means = [
        float((LOSS[part] * token_weights("token-mean", MASK[part], offsets, scope, LOSS[part])).sum())
        for (part, offsets), scope in zip(halves, scopes, strict=True)
    ]
    assert sum(means) != pytest.approx(2.5)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_live_costs_nothing(mode):
    weight_T = token_weights(mode, torch.zeros(7), OFFSETS, Scope(Counts(0, 0), 10), LOSS)
    assert_close(weight_T, torch.zeros_like(LOSS))


def test_the_normed_mode_asks_for_its_budget_and_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="max_response"):
        token_weights("seq-mean-token-sum-norm", MASK, OFFSETS, Scope(Counts(1, 1)), LOSS)
    with pytest.raises(ValueError, match=r"token-mean.*got 'mean'"):
        token_weights("mean", MASK, OFFSETS, Scope(Counts(1, 1)), LOSS)
