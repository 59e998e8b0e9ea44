import numpy as np
import pyarrow as pa
import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, LOSS_WEIGHT, PROMPT_ID, REWARD, SAMPLER_LOGPROBS, TOKENS, Column
from megatron_rl.batch.ragged import Ragged


def small() -> Batch:
    return Batch.of(
        {
            PROMPT_ID: ["b", "a", "b", "a"],
            GROUP: [7, 3, 7, 3],
            TOKENS: [[1, 2], [3], [], [4, 5, 6]],
            REWARD: torch.tensor([1.0, 0.0, 0.5, 0.25]),
        }
    )


def test_a_column_reads_as_tensor_ragged_or_text():
    batch = small()
    assert batch[REWARD].tolist() == [1.0, 0.0, 0.5, 0.25]
    assert batch[TOKENS].offsets.tolist() == [0, 2, 3, 3, 6]
    assert batch[PROMPT_ID] == ["b", "a", "b", "a"]


def test_token_values_are_views_of_arrow_memory():
    batch = small()
    assert batch[TOKENS].values.data_ptr() == batch.table.column("tokens").chunk(0).values.buffers()[1].address


def test_what_is_done_to_the_source_of_a_column_is_not_done_to_the_batch():
    reward_B, array_B = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), np.arange(4)
    logprobs = Ragged(-torch.arange(6.0), torch.tensor([0, 2, 3, 3, 6]))
    batch = small().with_columns({REWARD: reward_B, SAMPLER_LOGPROBS: logprobs, GROUP: array_B})
    of = Batch.of({REWARD: reward_B[1:], GROUP: torch.from_numpy(array_B)[:-1]})
    before = [Batch(table.table.take(list(range(len(table))))) for table in (batch, of)]
    for source in (reward_B, *logprobs, torch.from_numpy(array_B)):
        source.zero_()
    assert [batch, of] == before


def test_what_is_done_to_what_was_read_of_a_row_column_is_not_done_to_the_batch():
    batch = small()
    batch[REWARD][0] = batch[GROUP][0] = batch[LOSS_WEIGHT][0] = 99
    batch[TOKENS].offsets[0] = 99
    assert batch == small()


def test_writing_a_column_leaves_the_input_untouched_and_shares_the_rest():
    before = small()
    after = before.with_columns(reward=torch.zeros(4))
    assert before[REWARD].tolist() == [1.0, 0.0, 0.5, 0.25]
    assert after[REWARD].tolist() == [0.0] * 4
    assert after[TOKENS].values.data_ptr() == before[TOKENS].values.data_ptr()


def test_columns_beside_are_written_or_replaced_in_their_own_memory():
    other = Batch.of({REWARD: [9.0] * 4, SAMPLER_LOGPROBS: [[-1.0] * 2, [-1.0], [], [-1.0] * 3]})
    both = small().beside(other)
    assert both.table.column_names == ["prompt_id", "group", "tokens", "reward", "sampler_logprobs"]
    assert both[REWARD].tolist() == [9.0] * 4
    assert both[SAMPLER_LOGPROBS].values.data_ptr() == other[SAMPLER_LOGPROBS].values.data_ptr()


def test_groups_are_found_by_id_never_by_position():
    batch = small()
    assert batch.group_index().tolist() == [0, 1, 0, 1]
    assert [rows.tolist() for rows in batch.group_rows()] == [[0, 2], [1, 3]]
    assert [group[REWARD].tolist() for group in batch.groups()] == [[1.0, 0.5], [0.0, 0.25]]


def test_where_take_and_concat_keep_rows_whole():
    batch = small()
    kept = batch.where(batch[REWARD] > 0.2)
    assert [row.tolist() for row in kept[TOKENS].rows()] == [[1, 2], [], [4, 5, 6]]
    assert Batch.concat([batch.take(torch.tensor([0, 1])), batch.take(torch.tensor([2, 3]))]) == batch


def test_rows_that_all_stay_and_parts_without_rows_cost_no_copy():
    batch = small().with_metrics({"a": 1})
    assert batch.where(torch.ones(4, dtype=torch.bool)) is batch
    joined = Batch.concat([batch.where(torch.zeros(4, dtype=torch.bool)), batch.with_metrics({"b": 2})])
    assert joined[TOKENS].values.data_ptr() == batch[TOKENS].values.data_ptr()
    assert (len(joined), joined.metrics) == (4, {"a": 1.0, "b": 2.0})


def test_rows_behind_others_come_under_their_columns_and_lack_what_nobody_wrote():
    batch = small().with_metrics({"a": 1})
    other = Batch.of({GROUP: [9], TOKENS: [[]], LOSS_WEIGHT: [2.0]}).with_metrics({"a": 3, "b": 2})
    both = batch.followed_by(other)
    assert (both.table.column_names, both.metrics) == (batch.table.column_names, batch.metrics)
    assert (both[GROUP].tolist(), both[PROMPT_ID][4], both[REWARD][4].item()) == ([7, 3, 7, 3, 9], "", 0.0)
    assert Batch.of({TOKENS: [[1]], SAMPLER_LOGPROBS: [[-1.0]]}).followed_by(other)[SAMPLER_LOGPROBS].length_B[1] == 0
    assert both.where(torch.arange(5) < 4) == batch


def test_parquet_returns_an_equal_batch(tmp_path):
    batch = small().with_metrics({"judge/right": 0.5})
    batch.write_parquet(tmp_path / "batch.parquet")
    again = Batch.read_parquet(tmp_path / "batch.parquet")
    assert again == batch
    assert again.metrics == {"judge/right": 0.5}


def test_metrics_travel_with_the_batch():
    batch = (
        small().with_metrics({"a": 1}).with_columns(baseline=torch.zeros(4)).where(torch.tensor([1, 0, 0, 1]).bool())
    )
    assert batch.metrics == {"a": 1.0}
    assert Batch.concat([batch, batch.with_metrics({"b": 2})]).metrics == {"a": 1.0, "b": 2.0}


def test_an_unwritten_column_with_a_default_reads_as_it():
    assert small()[LOSS_WEIGHT].tolist() == [1.0] * 4


def test_an_unwritten_column_without_one_is_named():
    with pytest.raises(KeyError, match="no column 'sampler_logprobs'"):
        small()[SAMPLER_LOGPROBS]


def test_a_column_of_ones_own_is_written_by_its_declaration():
    difficulty = Column(name="difficulty", type=pa.float64(), meaning="share of rollouts that failed")
    assert small().with_columns({difficulty: torch.ones(4)})[difficulty].tolist() == [1.0] * 4
    with pytest.raises(KeyError, match="data dictionary"):
        small().with_columns(difficulty=torch.ones(4))


@pytest.mark.parametrize("wrong", [torch.ones(3), [1.0, None, 1.0, 1.0]])
def test_a_column_with_too_few_or_missing_values_is_refused(wrong):
    with pytest.raises(ValueError, match="column 'reward'"):
        small().with_columns(reward=wrong)


def test_kinds_are_told_apart():
    with pytest.raises(TypeError, match="not one number per rollout"):
        small().numbers(TOKENS)
    with pytest.raises(TypeError, match="not a list per rollout"):
        small().ragged(REWARD)
    with pytest.raises(TypeError, match="not text"):
        small().strings(REWARD)


def test_batches_with_other_columns_do_not_concat():
    with pytest.raises(ValueError, match="reward"):
        Batch.concat([small(), small().without(REWARD)])


def test_batches_whose_columns_differ_in_type_do_not_concat():
    whole, half = (
        Column(name="difficulty", type=type, meaning="share that failed") for type in (pa.int64(), pa.float64())
    )
    one, other = (Batch.of({column: [1, 2]}) for column in (whole, half))
    with pytest.raises(
        ValueError, match=r"^cannot concat: column 'difficulty' is int64 in one batch, double in another$"
    ):
        Batch.concat([one, other])


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3).bool(), torch.ones(5).bool(), torch.ones(4, 1).bool(), torch.tensor([0, 2]), torch.ones(4)],
    ids=str,
)
def test_what_is_no_mask_of_the_rows_loses_none_of_them(mask):
    with pytest.raises(ValueError, match="needs a mask of 4 values, bool or uint8"):
        small().where(mask)


def test_a_missing_value_inside_a_list_is_refused():
    with pytest.raises(ValueError, match="column 'tokens' has 1 missing values"):
        small().with_columns(tokens=[[1, None], [3], [], [4]])


@pytest.mark.parametrize("offsets", [[0, 3, 2, 3, 6], [-1, 2, 3, 3, 6], [0, 2, 3, 3, 7], []])
def test_rows_that_run_backwards_or_out_of_their_values_are_refused(offsets):
    values = Ragged(torch.arange(6), torch.tensor(offsets, dtype=torch.int64))
    with pytest.raises(ValueError, match="column 'tokens': offsets must rise"):
        small().with_columns(tokens=values)


def test_a_column_of_the_tokens_has_one_value_for_each():
    with pytest.raises(ValueError, match=r"column 'sampler_logprobs' needs .* row 2 has 0 tokens, got 1 values"):
        small().with_columns(sampler_logprobs=[[-1, -1], [-1], [-1], [-1, -1]])
    with pytest.raises(ValueError, match="row 0 has 1 tokens, got 2 values"):
        Batch.of({TOKENS: [[1]], SAMPLER_LOGPROBS: [[-1, -1]]})
    small().with_columns(prefix=[[1], [], [], []], tokens=[[1], [], [2], []], sampler_logprobs=[[-1], [], [-1], []])


def test_an_empty_batch_has_no_groups():
    empty = small().where(torch.zeros(4, dtype=torch.uint8))
    assert (len(empty), empty.groups(), len(empty[TOKENS].values)) == (0, [], 0)


def test_ragged_columns_survive_a_cut_out_of_a_larger_table():
    batch = small().with_columns(tokens=Ragged.of([[9], [8], [7], [6]], dtype=torch.int32))
    sliced = Batch(batch.table.slice(2, 2))
    assert [row.tolist() for row in sliced[TOKENS].rows()] == [[7], [6]]
