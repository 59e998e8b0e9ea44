import pytest
from pydantic import TypeAdapter, ValidationError

from megatron_rl.schedule import Schedule


def test_a_run_saves_and_measures_nothing_unless_it_is_asked_to():
    schedule = TypeAdapter(Schedule).validate_python({"steps": 3})
    assert (schedule.save_every, schedule.save_async, schedule.evaluate_every, schedule.ahead) == (0, False, 0, 0)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"save_every": -1}, {"keep": 0}, {"max_waves": 0}, {"ahead": -1}])
def test_a_count_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TypeAdapter(Schedule).validate_python({"steps": 3} | wrong)
