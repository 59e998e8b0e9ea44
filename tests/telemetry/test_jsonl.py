import json
import math

import pytest

from megatron_rl.telemetry.jsonl import FILE, JsonlFile, read_history
from megatron_rl.telemetry.points import Totals
from megatron_rl.telemetry.sink import RunFacts
from tests.fakes.run_folder import evaluation, rollout_batch, step_record


def point(step, **metrics):
    made = Totals().point(step_record(step), rollout_batch(step, groups=1), tokens=1)
    return made if not metrics else type(made)(**{**vars(made), "metrics": metrics})


def write(folder, steps, after=0):
    sink = JsonlFile()
    sink.start(RunFacts(folder=folder, step=after, steps=9))
    for step in steps:
        sink.step(point(step), rollout_batch(step, groups=1))
    return sink


def kept_steps(folder):
    return [
        line["step"] for line in map(json.loads, (folder / FILE).read_text().splitlines()) if line["kind"] == "step"
    ]


def test_every_step_is_on_disk_as_soon_as_it_is_told(tmp_path):
    write(tmp_path, [1, 2])
    assert read_history(tmp_path).points == [point(1), point(2)]


def test_a_resumed_curve_has_no_step_twice(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], after=2)
    assert kept_steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_line_a_crash_left_unfinished_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / FILE
    path.write_text(path.read_text()[:-40])
    assert [p.step for p in read_history(tmp_path).points] == [1]
    write(tmp_path, [2], after=1)
    assert kept_steps(tmp_path) == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    write(tmp_path, [1])
    path = tmp_path / FILE
    path.write_text('{"kind": "st\n' + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not JSON"):
        read_history(tmp_path)


def test_numbers_that_are_not_finite_survive_as_valid_json(tmp_path):
    sink = write(tmp_path, [])
    sink.step(point(1, loss=math.nan, up=math.inf, down=-math.inf), rollout_batch(1, groups=1))
    assert "Infinity" in (tmp_path / FILE).read_text()
    json.loads((tmp_path / FILE).read_text(), parse_constant=lambda word: pytest.fail(f"bare {word} is not JSON"))
    metrics = read_history(tmp_path).points[0].metrics
    assert math.isnan(metrics["loss"])
    assert (metrics["up"], metrics["down"]) == (math.inf, -math.inf)


def test_an_evaluation_repeated_by_a_resume_is_kept_once(tmp_path):
    write(tmp_path, [1]).evaluation(evaluation(1))
    again = write(tmp_path, [], after=1)
    again.evaluation(evaluation(1))
    again.evaluation(evaluation(2))
    assert read_history(tmp_path).evaluations == [evaluation(1), evaluation(2)]


def test_writing_before_the_start_is_refused():
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        JsonlFile().evaluation(evaluation(1))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "whose 'kind' should be one of step, evaluation"),
        ('{"kind": "weights"}', "whose 'kind' should be one of step, evaluation"),
        ('{"kind": "evaluation", "step": [1]}', "whose 'step' is no number"),
        ('{"kind": "evaluation", "step": "x"}', "could not convert"),
        ('{"kind": "evaluation", "step": 1e999}', "whose 'step' is missing or not finite"),
        ('{"kind": "step", "step": 1}', "whose 'epoch' is missing or not finite"),
        ('{"kind": "evaluation", "step": ' + "9" * 5000 + "}", "no line of metrics"),
        ("[" * 100_000, "no line of metrics"),
    ],
)
def test_a_line_that_no_run_wrote_is_named(tmp_path, line, said):
    (tmp_path / FILE).write_text(f"{line}\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 1: .*{said}.*remove that line to go on"):
        read_history(tmp_path)
