import pyarrow as pa

from megatron_rl.batch.columns import DICTIONARY, LOSS_WEIGHT, REWARD, TOKENS, Column


def test_the_dictionary_is_keyed_by_each_columns_own_name():
    assert all(name == column.name for name, column in DICTIONARY.items())


def test_every_column_says_what_it_means():
    assert all(len(column.meaning) > 10 for column in DICTIONARY.values())


def test_token_columns_are_the_ragged_ones():
    assert TOKENS.is_ragged
    assert not REWARD.is_ragged


def test_defaults_belong_to_row_columns():
    assert LOSS_WEIGHT.default == 1.0
    assert not any(column.is_ragged for column in DICTIONARY.values() if column.default is not None)


def test_a_stage_may_declare_a_column_of_its_own():
    own = Column(name="difficulty", type=pa.float64(), meaning="share of rollouts that failed")
    assert own.name not in DICTIONARY
