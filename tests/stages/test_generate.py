from megatron_rl.batch.columns import STATUS, TOKENS
from megatron_rl.drawing import requests
from megatron_rl.ports import Context
from megatron_rl.stages.generate import Generate
from tests.fakes.tabular import NumberedPrompts, TabularEngine


def test_every_request_gets_a_response_and_the_wave_is_summed_up():
    context = Context(step=0, version=0, seed=0, machines={"engine": TabularEngine(4), "prompts": NumberedPrompts(4)})
    asked = requests(context, [(0, 1), (0, 2)], samples=3, first_group=0)
    answered, _ = Generate()(asked, None, context)
    assert answered[STATUS] == ["ok"] * 6
    assert answered[TOKENS].length_B.tolist() == [1] * 6
    assert answered.metrics == {
        "rollout/length_mean": 1.0,
        "rollout/length_max": 1.0,
        "rollout/tokens": 6.0,
        "rollout/truncated_share": 0.0,
        "rollout/requested": 6.0,
        "rollout/failed": 0.0,
        "rollout/failed_share": 0.0,
    }
