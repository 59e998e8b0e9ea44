"""An algorithm of a user's own, found by import path, is built, wired, trained and resumed like any that ships."""

from pathlib import Path

import pytest

from megatron_rl import launch
from megatron_rl.spec.load import load
from tests.test_configs import small
from tests.test_launch import data, digest  # noqa: F401  # data is a fixture

EXAMPLE = Path(__file__).parent.parent / "examples" / "median_of_means"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)


def test_the_example_is_one_stage_one_test_and_one_short_configuration():
    files = sorted(path.name for path in EXAMPLE.iterdir() if path.suffix in (".py", ".yaml"))
    stage = "median_of_means_baseline.py"
    assert files == ["median_of_means.yaml", stage, f"test_{stage}"]
    assert len((EXAMPLE / "median_of_means.yaml").read_text().splitlines()) <= 25
    (step,) = [part for part in load(EXAMPLE / "median_of_means.yaml", ()).chains["learn"] if ":" in part.name]
    assert step.values == {"parts": 3}


def test_it_trains_and_a_stop_changes_nothing(data, tmp_path):  # noqa: F811
    config = EXAMPLE / "median_of_means.yaml"
    launch.train(small(config, data, tmp_path / "straight"))
    launch.train(small(config, data, tmp_path / "broken", "schedule.steps=2"))
    launch.train(small(config, data, tmp_path / "broken"))
    straight, broken = (tmp_path / name / "median_of_means" for name in ("straight", "broken"))
    assert digest(straight, 4) == digest(broken, 4)
