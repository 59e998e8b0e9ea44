from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.settings import SamplingSettings


def test_settings_name_the_law():
    settings = SamplingSettings(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
    assert settings.law == Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
    assert SamplingSettings().law.is_whole
