import importlib.util
import sys
import time
from types import SimpleNamespace

import pytest

from megatron_rl.spec.schema import SpecError
from megatron_rl.telemetry.points import Totals, flat
from megatron_rl.telemetry.sink import RunFacts
from megatron_rl.telemetry.wandb import WandbRun, read_joined
from tests.fakes.run_folder import evaluation, rollout_batch, step_record


class Recorder:
    """Plays the wandb package: keeps what it was given, by run id."""

    def __init__(self):
        self.calls, self.rows, self.codes = [], [], []

    def init(self, **arguments):
        self.calls.append(arguments)
        return SimpleNamespace(define_metric=lambda *_, **__: None, log=self.rows.append, finish=self.codes.append)


@pytest.fixture
def recorder(monkeypatch):
    played = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", played)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return played


def point(step):
    return Totals().point(step_record(step), rollout_batch(step, groups=1), tokens=1)


def drive(folder, steps, after=0, reason="finished"):
    sink = WandbRun(mode="offline", project="tests")
    sink.start(RunFacts(folder=folder, step=after, steps=9, spec={"seed": 7}))
    for step in steps:
        sink.step(point(step), rollout_batch(step, groups=1))
        sink.evaluation(evaluation(step))
    sink.close(reason)


def test_names_are_those_of_metrics_jsonl(recorder, tmp_path):
    drive(tmp_path, [1])
    assert recorder.rows == [flat(point(1)), flat(evaluation(1))]
    assert recorder.calls[0]["config"] == {"seed": 7}


def test_a_resumed_run_rejoins_its_curve_and_repeats_no_step(recorder, tmp_path):
    drive(tmp_path, [1, 2, 3], reason="interrupted")
    drive(tmp_path, [2, 3, 4], after=1)
    assert recorder.calls[0]["id"] == recorder.calls[1]["id"] == read_joined(tmp_path).id
    assert recorder.calls[1]["resume"] == "allow"
    assert [row["step"] for row in recorder.rows if "tokens" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in recorder.rows if "tokens" not in row] == [1, 2, 3, 4]
    assert recorder.codes == [1, 0]


def test_two_folders_are_two_runs(tmp_path):
    assert read_joined(tmp_path / "a").id != read_joined(tmp_path / "b").id


def test_asking_for_an_absent_wandb_is_an_error_of_the_spec(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", {"wandb": None}.get)
    with pytest.raises(SpecError, match=r"wandb, which is missing: pip install 'megatron-rl\[wandb\]'"):
        WandbRun()


def test_the_real_package_works_offline_and_after_a_resume(tmp_path):
    pytest.importorskip("wandb")
    drive(tmp_path, [1, 2], reason="interrupted")
    time.sleep(1)  # wandb names its journals by the second
    drive(tmp_path, [2, 3], after=1)
    journals = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    # Its service may still be writing when the run has finished.
    for _ in range(100):
        if all(b"evaluation/arithmetic/pass@1" in journal.read_bytes() for journal in journals):
            break
        time.sleep(0.1)
    assert len(journals) == 2
    assert all(read_joined(tmp_path).id in journal.name for journal in journals)
    assert all(b"evaluation/arithmetic/pass@1" in journal.read_bytes() for journal in journals)
