from megatron_rl.batch.columns import LOSS_MASK
from tests import ranks
from tools.bench_packing import balance, packed_and_padded, speeds


def test_every_number_of_data_ranks_is_balanced_without_padding():
    heading, *lines = balance(512)
    assert heading.startswith("512 sequences")
    for line in lines:
        assert float(line.split("processed/real ")[1].split(",")[0]) <= 1.02
        assert float(line.split("imbalance ")[1].rstrip("%")) <= 2.0


def test_packed_and_padded_stand_side_by_side():
    ((heading, packed, padded, verdict),) = ranks.run(speeds, world=1, rows=6, typical=16)
    assert heading.startswith("6 rollouts")
    assert packed.endswith("1.00 computed per real token")
    assert float(padded.split("tokens/s")[1].split()[0]) > 1.2
    assert verdict.startswith("packed is")


def test_padding_is_masked_so_that_both_learn_from_the_same_tokens():
    packed, padded = packed_and_padded([3, 1])
    assert packed.ragged(LOSS_MASK).values.tolist() == [1, 1, 1, 1]
    assert [row.tolist() for row in padded.ragged(LOSS_MASK).rows()] == [[1, 1, 1], [1, 0, 0]]
