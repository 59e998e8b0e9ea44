import pytest

from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.spec.schema import SpecError


def test_warm_up_reaches_the_peak_with_its_last_step():
    rate = LearningRate(peak=4.0, warmup=4)
    assert [rate.at(done) for done in range(6)] == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_linear_and_cosine_go_from_the_peak_to_the_floor_and_stay_there():
    linear = LearningRate(peak=1.0, schedule="linear", warmup=2, steps=12, floor=0.1)
    cosine = LearningRate(peak=1.0, schedule="cosine", warmup=2, steps=12, floor=0.1)
    assert linear.at(2) == cosine.at(2) == 1.0
    assert linear.at(7) == pytest.approx(0.55) == pytest.approx(cosine.at(7))
    assert cosine.at(4) > linear.at(4)
    assert linear.at(12) == linear.at(99) == pytest.approx(0.1) == pytest.approx(cosine.at(99))


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: LearningRate(peak=0.0), "peak"),
        (lambda: LearningRate(schedule="cosine"), "steps"),
        (lambda: LearningRate(floor=2.0), "floor"),
        (lambda: OptimizerSettings(betas=(0.9, 1.0)), "betas"),
        (lambda: OptimizerSettings(clip=-1.0), "clip"),
        (lambda: UpdateSettings(steps=0), "actor.update.steps"),
        (lambda: UpdateSettings(max_skipped=0), "max_skipped"),
    ],
)
def test_what_cannot_be_is_refused_by_name(build, word):
    with pytest.raises(SpecError, match=word):
        build()
