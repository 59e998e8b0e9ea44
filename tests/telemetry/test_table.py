from dataclasses import replace

import pytest

from megatron_rl.telemetry.points import Totals
from megatron_rl.telemetry.table import (
    cells,
    duration,
    first_match,
    fitting,
    heading_line,
    short,
    sober_line,
    step_line,
)
from tests.fakes.run_folder import rollout_batch, step_record

POINT = Totals().point(step_record(3), rollout_batch(3), tokens=4000)


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_heading_and_line_fit_the_terminal_and_align(width):
    columns = fitting(POINT, width, taken=4)
    lines = heading_line(columns, 4), step_line(POINT, columns, 4)
    assert len(lines[0]) == len(lines[1]) <= width


def test_a_wider_terminal_only_adds_columns():
    assert fitting(POINT, 200, 4)[: len(fitting(POINT, 60, 4))] == fitting(POINT, 60, 4)


def test_the_earliest_pattern_wins():
    assert first_match({"value/loss": 1.0, "loss": 2.0}, ("loss", "*/loss")) == "loss"
    assert first_match({"value/loss": 1.0}, ("loss", "*/loss")) == "value/loss"
    assert first_match({}, ("loss",)) is None


def test_a_step_without_a_number_shows_none():
    assert "parity" not in cells(Totals().point(step_record(1), rollout_batch(1, groups=0), tokens=1))


def test_the_speed_is_that_of_training_whatever_an_evaluation_took():
    evaluated = replace(POINT, seconds={**POINT.seconds, "evaluate": 1000.0})
    assert cells(evaluated)["tokens/s"] == cells(POINT)["tokens/s"]


def test_the_sober_line_is_one_line_and_names_its_numbers():
    line = sober_line(POINT, 60)
    assert line.startswith("step 3/60  reward ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.12345, "0.123"),
        (-1.5e-5, "-1.5e-05"),
        (123.456, "123.5"),
        (98765.0, "98.8k"),
        (3.21e6, "3.21M"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2s"), (185, "3:05"), (7385, "2:03:05"), (273600, "3d 04h")])
def test_durations_read_like_clocks(seconds, text):
    assert duration(seconds) == text
