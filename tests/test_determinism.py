"""The same seed gives the same steps, whatever hashes, counts of processes and orders of arrival are that day."""

import os
import subprocess
import sys
from pathlib import Path

from megatron_rl import launch
from megatron_rl.differences import between_checkpoints, between_rollouts
from tests.test_launch import data, rollouts, spec  # noqa: F401  # data is a fixture

LEARN = "learn=[old_logprobs, smoothed_stats, advantage]"
STEPS = ("schedule.steps=3", "schedule.save_every=3", "schedule.evaluate_every=0", LEARN)


def test_one_seed_gives_one_run_with_other_hashes_other_graders_and_verdicts_in_another_order(data, tmp_path):  # noqa: F811
    launch.train(spec(data, tmp_path / "one", *STEPS))
    spec(data, tmp_path / "other")
    other = ("judge.processes=4", "reward=tests.fakes.unhurried:score", *STEPS)
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(tmp_path / "other/run.yaml"), *other]
    home = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONHASHSEED": "271828", "PYTHONPATH": home}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    one, two = tmp_path / "one/run", tmp_path / "other/run"
    for step in range(1, 4):
        assert between_rollouts(rollouts(one, step), rollouts(two, step), {}) is None
    assert between_checkpoints(*(run / "checkpoints/step_000003" for run in (one, two))) is None
