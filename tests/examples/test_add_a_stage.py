"""The smallest example: a stage by import path is wired, trained, remembered over a stop, and short."""

import json
import shlex

import pytest

from megatron_rl import launch
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, REWARD
from megatron_rl.ideas import read_ideas
from megatron_rl.ports import Context
from megatron_rl.spec.load import SHIPPED, load
from megatron_rl.spec.schema import SpecError
from tests.test_configs import small
from tests.test_launch import data, digest  # noqa: F401  # data is a fixture
from tests.test_own_algorithm import EXAMPLE

CONFIG = SHIPPED / "quickstart.yaml"
FILE = EXAMPLE.parent / "add_a_stage.py"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)


def overrides() -> list[str]:
    """Those of the command that the file itself shows."""
    command = FILE.read_text().split('"""')[1].split("\n\n", 1)[1].replace("\\\\\n", " ")
    words = shlex.split(command)
    assert words[1:4] == ["megatron-rl", "train", "configs/quickstart.yaml"]
    return words[4:]


def test_it_is_under_forty_lines():
    assert len(FILE.read_text().splitlines()) < 40


def test_the_command_it_shows_trains_and_a_stop_changes_nothing(data, tmp_path):  # noqa: F811
    launch.train(small(CONFIG, data, tmp_path / "straight", *overrides()))
    launch.train(small(CONFIG, data, tmp_path / "broken", *overrides(), "schedule.steps=2"))
    launch.train(small(CONFIG, data, tmp_path / "broken", *overrides()))
    straight, broken = (tmp_path / name / "moving" for name in ("straight", "broken"))
    assert digest(straight, 4) == digest(broken, 4)
    points = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    steps = [point for point in points if point["kind"] == "step"]
    average = steps[0]["moving_baseline"]
    for step in steps:
        assert step["moving_baseline"] == pytest.approx(average)
        average = 0.95 * average + 0.05 * step["reward/mean"]


def test_its_columns_are_checked_like_those_of_any_stage():
    read_ideas(load(CONFIG, tuple(overrides())))
    with pytest.raises(SpecError, match="stage 'advantage' reads 'baseline'"):
        read_ideas(load(CONFIG, ("learn=[old_logprobs, advantage, add_a_stage:MovingBaseline]",)))


def test_the_average_moves_by_what_is_not_kept():
    from add_a_stage import MovingBaseline

    stage, context = MovingBaseline(decay=0.75), Context(step=0, version=0, seed=0)
    first, memory = stage(Batch.of({REWARD: [1.0, 0.0]}), None, context)
    second, memory = stage(Batch.of({REWARD: [1.0, 1.0]}), memory, context)
    assert first.numbers(BASELINE).tolist() == [0.5, 0.5]
    assert second.numbers(BASELINE).tolist() == [0.5, 0.5]
    assert memory == 0.625
