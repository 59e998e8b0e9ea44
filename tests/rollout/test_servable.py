import pytest

from megatron_rl.rollout.servable import COLDEST, HOTTEST, refuse_unservable, sleepless, unflyable, unservable
from megatron_rl.spec.schema import SpecError


@pytest.mark.parametrize("temperature", [0.0, COLDEST, 1.0, HOTTEST])
def test_what_vllm_draws_at_is_let_through(temperature):
    assert unservable(temperature) == ""


@pytest.mark.parametrize("temperature", [0.001, 2.1, float("inf"), float("nan")])
def test_what_vllm_would_change_or_refuse_is_refused_by_the_section_that_sets_it(temperature):
    with pytest.raises(SpecError, match=rf"^evaluation\.temperature: vLLM draws at .* not at {temperature}; choose"):
        refuse_unservable({"sampling": 1.0, "evaluation": temperature})


def test_groups_sleep_where_they_do_not_write_meanwhile_and_the_room_is_the_actor_s():
    assert sleepless(ahead=False, split=False) == []
    assert "with schedule.ahead the groups write then" in sleepless(ahead=True, split=False)[0]
    assert "cluster.placement 'split' keeps on other GPUs" in sleepless(ahead=False, split=True)[0]
    assert len(sleepless(ahead=True, split=True)) == 2


def test_weights_come_while_groups_write_where_they_write_while_the_actor_learns():
    assert unflyable(ahead=True, sleeps=False) == []
    assert "with schedule.ahead at 0 none does; set it to 1" in unflyable(ahead=False, sleeps=False)[0]
    assert "rollout.vllm.sleep they sleep then" in unflyable(ahead=True, sleeps=True)[0]
    assert len(unflyable(ahead=False, sleeps=True)) == 2
