import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT
from megatron_rl.ports import Context
from megatron_rl.stages.keep_mixed import KeepMixed

CONTEXT = Context(step=0, version=0, seed=0)
BATCH = Batch.of({GROUP: [0, 0, 1, 1, 2, 2, 3], CORRECT: [0, 0, 1, 0, 1, 1, 1]})


def test_groups_all_right_or_all_wrong_are_not_kept_and_a_group_of_one_is():
    kept, _ = KeepMixed()(BATCH, None, CONTEXT)
    assert kept[KEPT].tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert kept.metrics == {"keep_mixed/kept_share": 0.5}


def test_what_another_filter_dropped_stays_dropped():
    dropped = BATCH.with_columns(kept=torch.tensor([1, 1, 0, 0, 1, 1, 1]))
    assert KeepMixed()(dropped, None, CONTEXT)[0][KEPT].tolist() == [0, 0, 0, 0, 0, 0, 1]
