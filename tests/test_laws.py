import pytest
import torch

from megatron_rl.laws import ShowsLaws, shown, spread_out
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.fakes.tabular import TabularEngine


def test_a_law_of_a_few_tokens_is_zero_elsewhere():
    law_NV = spread_out(torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.25]]).log(), 5)
    torch.testing.assert_close(law_NV, torch.tensor([[0.25, 0.0, 0.0, 0.5, 0.0]], dtype=torch.float64))


def test_an_engine_that_shows_no_laws_is_refused_with_the_way_out():
    engine = MarkovEngine(random_law(0))
    assert isinstance(engine, ShowsLaws)
    assert shown(engine) is engine
    with pytest.raises(TypeError, match="TabularEngine does not show; set rollout to embedded"):
        shown(TabularEngine(3))
