import pytest
from pydantic import TypeAdapter

from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.settings import SamplingSettings


def test_settings_name_the_law():
    settings = SamplingSettings(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
    assert settings.law == Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
    assert SamplingSettings().law.is_whole


def test_an_empty_stop_text_is_refused_at_load():
    with pytest.raises(ValueError, match="a stop text is empty, which would end every response at once"):
        TypeAdapter(SamplingSettings).validate_json('{"stop": ["</answer>", ""]}')


@pytest.mark.parametrize("temperature", ["Infinity", "NaN", "-1"])
def test_a_temperature_that_divides_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        TypeAdapter(SamplingSettings).validate_json(f'{{"temperature": {temperature}}}')
