import numpy as np
import pytest

from megatron_rl.ports import Context
from tests.fakes.tabular import NumberedPrompts


def test_the_same_name_step_and_count_give_the_same_numbers():
    draws = [Context(step=3, version=0, seed=1).rng("verify", 2).random(4) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 4}, {"name": "draw"}, {"count": 3}])
def test_any_other_name_step_seed_or_count_gives_other_numbers(other):
    asked = {"seed": 1, "step": 3, "name": "verify", "count": 2}
    values = [
        Context(step=a["step"], version=0, seed=a["seed"]).rng(a["name"], a["count"]).random()
        for a in (asked, asked | other)
    ]
    assert values[0] != values[1]


def test_lasting_numbers_do_not_depend_on_the_step():
    assert (
        Context(step=1, version=0, seed=1).lasting_rng("epoch", 0).random()
        == Context(step=9, version=5, seed=1).lasting_rng("epoch", 0).random()
    )


def test_a_machine_that_is_not_there_is_named():
    with pytest.raises(LookupError, match="no engine"):
        _ = Context(step=0, version=0, seed=0).engine
    assert len(Context(step=0, version=0, seed=0, machines={"prompts": NumberedPrompts(3)}).prompts.ids) == 3
