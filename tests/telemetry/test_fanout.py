import pytest

from megatron_rl.loop import train
from megatron_rl.ports import Telemetry
from megatron_rl.schedule import Schedule
from megatron_rl.telemetry.fanout import Fanout
from megatron_rl.telemetry.jsonl import JsonlFile, read_history
from tests.fakes.run_folder import evaluation, rollout_batch, step_record, write_run
from tests.test_loop import make_run


class Remembers:
    """A sink that keeps what it was told."""

    def __init__(self):
        self.told = []

    def start(self, run):
        self.told.append(("start", run.name, run.step, run.steps))

    def wave(self, done, total, tokens):
        self.told.append(("wave", done, total, tokens))

    def step(self, point, batch):
        self.told.append(("step", point.step, point.tokens, point.total_tokens))

    def evaluation(self, evaluation):
        self.told.append(("evaluation", evaluation.step))

    def close(self, reason):
        self.told.append(("close", reason))


class Offline(Remembers):
    """A sink whose service cannot be reached."""

    def step(self, point, batch):
        super().step(point, batch)
        raise ConnectionError("no route to host\nand a long trace")


def drive(run: Telemetry, steps=(1, 2)):
    run.start(0, 2)
    for step in steps:
        run.wave(1, 2, 40)
        run.wave(2, 2, 70)
        run.measuring()
        run.wave(2, 2, 9999)
        run.step(step_record(step), rollout_batch(step, groups=1))
        run.evaluation(evaluation(step))
    run.close("finished")


def test_every_sink_is_told_everything_in_order(tmp_path):
    sinks = [Remembers(), Remembers()]
    drive(Fanout(folder=tmp_path / "run", required=sinks[:1], optional=sinks[1:]), steps=[1])
    assert sinks[0].told == sinks[1].told
    assert [what[0] for what in sinks[0].told] == ["start", "wave", "wave", "wave", "step", "evaluation", "close"]


def test_tokens_are_what_the_waves_of_the_step_reported_without_evaluations(tmp_path):
    sink = Remembers()
    drive(Fanout(folder=tmp_path, required=[sink]))
    assert [what for what in sink.told if what[0] == "step"] == [("step", 1, 70, 70), ("step", 2, 70, 140)]


def test_a_run_that_evaluates_counts_the_tokens_of_one_that_does_not(tmp_path):
    class Measures:
        def evaluate(self, step):
            telemetry.wave(1, 4, 5000)
            telemetry.wave(4, 4, 9999)
            return evaluation(step)

    told = {}
    for every in (0, 1):
        sink = Remembers()
        telemetry = Fanout(folder=tmp_path / str(every), required=[sink])
        schedule = Schedule(steps=3, evaluate_every=every)
        run = make_run(tmp_path / str(every), 3, schedule=schedule, telemetry=telemetry, evaluator=Measures())
        telemetry.start(0, 3)
        train(run)
        told[every] = [what for what in sink.told if what[0] == "step"]
    assert [what[0] for what in sink.told].count("evaluation") == 4
    assert told[0] == told[1]


def test_a_wave_that_is_under_way_when_a_step_is_told_is_counted_to_both(tmp_path):
    sink = Remembers()
    fanout = Fanout(folder=tmp_path, required=[sink])
    fanout.start(0, 2)
    fanout.wave(1, 8, 30)
    fanout.step(step_record(1), rollout_batch(1, groups=1))
    fanout.wave(8, 8, 70)
    fanout.step(step_record(2), rollout_batch(2, groups=1))
    assert [what for what in sink.told if what[0] == "step"] == [("step", 1, 30, 30), ("step", 2, 40, 70)]


def test_a_failing_optional_sink_is_reported_once_and_the_run_goes_on(tmp_path):
    kept, broken, warnings = Remembers(), Offline(), []
    drive(Fanout(folder=tmp_path, required=[kept], optional=[broken], warn=warnings.append))
    assert len([what for what in kept.told if what[0] == "step"]) == 2
    assert len([what for what in broken.told if what[0] == "step"]) == 1
    assert warnings == [
        "telemetry: Offline failed and is left out from here on (ConnectionError: no route to host); the run goes on"
    ]


def test_a_failing_required_sink_fails_the_run(tmp_path):
    with pytest.raises(ConnectionError):
        drive(Fanout(folder=tmp_path, required=[Offline()]))


def test_a_resumed_run_counts_on_from_the_step_it_resumed(tmp_path):
    write_run(tmp_path, steps=4)
    before = read_history(tmp_path).points
    run = Fanout(folder=tmp_path, required=[JsonlFile()])
    run.start(2, 4)
    for step in (3, 4):
        run.step(step_record(step), rollout_batch(step))
    assert read_history(tmp_path).points == before
