"""A finished run of three steps, which several commands look at."""

from pathlib import Path

import pytest

from megatron_rl import launch
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:  # noqa: F811
    runs = tmp_path_factory.mktemp("trained")
    launch.train(
        spec(
            data,
            runs,
            "schedule.steps=3",
            "schedule.save_every=2",
            "learn=[smoothed_stats, advantage]",
            "sampler.uniform.prompts=8",
        )
    )
    return runs / "run"
