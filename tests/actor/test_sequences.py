import torch

from megatron_rl.actor.context import Context
from megatron_rl.actor.sequences import Sequences
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    GROUP,
    LOSS_MASK,
    LOSS_WEIGHT,
    PROMPT_TOKENS,
    REUSED,
    REWARD,
    TOKENS,
)
from megatron_rl.ports import Counts
from tests.fakes.rollouts import rollouts

CPU = torch.device("cpu")
EXAMPLE = Batch.of(
    {
        GROUP: [4, 4, 9],
        PROMPT_TOKENS: [[5, 9], [5], [3]],
        TOKENS: [[2, 7], [1], []],
        LOSS_MASK: [[1, 0], [1], []],
        ADVANTAGE: [[0.5, 0.5], [-1.0], []],
        REWARD: [1.0, 0.0, 0.0],
    }
)


def test_the_example_of_the_docstring():
    packed = Sequences(EXAMPLE, [ADVANTAGE, REWARD, LOSS_WEIGHT, REUSED]).pack([0, 1], 0, CPU)
    assert packed.tokens_1T.tolist() == [[5, 9, 2, 5]]
    assert packed.sequences.lengths == (3, 1)
    assert packed.predictor_S.tolist() == [1, 2, 3]
    assert packed.target_S.tolist() == [2, 7, 1]
    assert packed.mask_R.tolist() == [1, 0, 1]
    assert packed.row_R.tolist() == [0, 0, 1]
    assert packed.offsets.tolist() == [0, 2, 3]
    assert packed.columns["advantage"].tolist() == [0.5, 0.5, -1.0]
    assert packed.columns["reward"].dtype == torch.float32
    assert packed.columns["loss_weight"].tolist() == [1.0, 1.0]
    assert packed.columns["reused"].dtype == torch.int64


def test_padding_is_a_sequence_that_nothing_is_asked_of():
    packed = Sequences(EXAMPLE).pack([1], 3, CPU)
    assert packed.sequences.lengths == (1, 3)
    assert packed.tokens_1T.tolist() == [[5, 0, 0, 0]]
    assert packed.predictor_S.tolist() == [0]
    nothing = Sequences(EXAMPLE).pack([], 2, CPU)
    assert nothing.sequences.lengths == (2,)
    assert nothing.target_S.numel() == 0


def test_context_ranks_hold_tokens_with_the_targets_that_followed_them_before_the_cut():
    first, second = (Sequences(EXAMPLE, [ADVANTAGE], Context(2, rank)).pack([0, 1], 0, CPU) for rank in range(2))
    assert first.tokens_1T.tolist() == [[5, 0, 5, 0]]
    assert second.tokens_1T.tolist() == [[9, 2, 0, 0]]
    assert first.sequences.lengths == second.sequences.lengths == (4, 4)
    assert [packed.predictor_S.tolist() for packed in (first, second)] == [[2], [0, 1]]
    assert [packed.target_S.tolist() for packed in (first, second)] == [[1], [2, 7]]
    assert [packed.here_S.tolist() for packed in (first, second)] == [[2], [0, 1]]
    assert first.columns["advantage"].tolist() == second.columns["advantage"].tolist() == [0.5, 0.5, -1.0]


def test_denominators_count_live_tokens_and_what_has_any():
    sequences = Sequences(EXAMPLE)
    assert sequences.counts(torch.tensor([0, 1, 2])) == Counts(tokens=2, rows=2, groups=1)
    assert sequences.counts(torch.tensor([2])) == Counts(tokens=0, rows=0, groups=0)


def test_a_batch_that_says_nothing_of_masks_and_groups_takes_part_whole():
    sequences = Sequences(EXAMPLE.without(LOSS_MASK, GROUP))
    assert sequences.counts(torch.tensor([0, 1])) == Counts(tokens=3, rows=2, groups=2)


def test_each_response_token_is_predicted_from_the_token_before_it():
    batch = rollouts(seed=1)
    sequences = Sequences(batch)
    packed = sequences.pack([7, 2, 11], 0, CPU)
    whole = [
        batch.ragged(PROMPT_TOKENS).row(row).tolist() + batch.ragged(TOKENS).row(row).tolist() for row in (7, 2, 11)
    ]
    before = [token for row, tokens in zip((7, 2, 11), whole, strict=True) for token in _before(batch, row, tokens)]
    assert packed.tokens_1T[0, packed.predictor_S].tolist() == before


def _before(batch, row, tokens):
    prompt = len(batch.ragged(PROMPT_TOKENS).row(row))
    return tokens[prompt - 1 : -1]


def test_rows_whose_loss_compares_the_rollouts_of_a_group_stay_together():
    batch = rollouts(groups=2, samples=2).take(torch.tensor([0, 2, 1, 3]))
    assert Sequences(batch, [REWARD]).units([0, 1, 2, 3]) == [[0], [1], [2], [3]]
    assert Sequences(batch, [GROUP]).units([0, 1, 2, 3]) == [[0, 2], [1, 3]]
