"""The driver's share of a step is measured on a real run; every configuration's stages run on made-up rollouts."""

from megatron_rl.spec.load import SHIPPED
from tests.test_configs import shrunk
from tests.test_launch import data  # noqa: F401  # a fixture
from tools import bench_driver

CONFIG = SHIPPED / "quickstart.yaml"


def test_the_share_of_a_real_step_is_between_nothing_and_all(data, tmp_path, capsys):  # noqa: F811
    share = bench_driver.share_of_a_step(CONFIG, shrunk(CONFIG, data, tmp_path), steps=2)
    assert 0 < share < 1
    assert "mean of 2" in capsys.readouterr().out


def test_every_configurations_stages_are_timed(capsys):
    assert bench_driver.main(["--steps", "0", "--rows", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0] for line in lines}
    assert {config.stem for config in SHIPPED.glob("*.yaml")} <= told
    (grpo,) = [line for line in lines if line.split()[0] == "grpo"]
    assert all(name in grpo for name in ("old_logprobs", "reference_logprobs", "group_baseline", "advantage"))
    assert lines[-2].startswith("slowest learn chain")


def test_only_what_is_outside_the_machines_is_the_drivers():
    stopwatch = bench_driver.Stopwatch()
    stopwatch.marks = [(0.0, 0.0)] * bench_driver.WARM + [(10.0, 4.0), (12.0, 5.5), (16.0, 9.0)]
    assert stopwatch.steps == [(2.0, 0.5), (4.0, 0.5)]
