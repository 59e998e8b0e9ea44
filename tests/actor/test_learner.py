"""What actor and critic share is tested with each of them; here, what becomes of steps that have nothing to learn."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_rl.batch.columns import LOSS_MASK
from megatron_rl.batch.ragged import Ragged
from tests import ranks
from tests.actor.training import EVERYTHING, actor_of
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder


def rest(folder: Path, **choices: Any) -> dict[str, Any]:
    """A step, one in which every token is masked, and one in which half of the groups are."""
    actor, batch = actor_of(folder, optimizer={"weight_decay": 0.1}, update={"steps": 2}, **choices), rollouts()
    actor.update(batch, EVERYTHING)
    before = actor.score(batch).values.numpy()
    mask = batch.ragged(LOSS_MASK)
    silent = batch.with_columns(loss_mask=Ragged(mask.values * 0, mask.offsets))
    resting = actor.update(silent, EVERYTHING)
    after = actor.score(batch).values.numpy()
    half = batch.with_columns(loss_mask=Ragged(mask.values * (mask.row_T < 6), mask.offsets))
    return {"before": before, "after": after, "steps": resting.steps, "half": actor.update(half, EVERYTHING).steps}


def test_a_policy_whose_tokens_are_all_masked_rests_and_neither_moments_nor_decay_move_it(tmp_path):
    (answer,) = ranks.run(rest, world=1, folder=tiny_folder(tmp_path, "qwen3"))
    assert answer["steps"] == 0
    assert np.array_equal(answer["before"], answer["after"])
    assert answer["half"] == 1
