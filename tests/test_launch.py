"""Whole runs from a configuration: the real actor, the embedded engine, graders in processes, checkpoints."""

import hashlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

from megatron_rl import launch
from megatron_rl.accounting import rollouts_of
from megatron_rl.assemble import assemble
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ERROR, PROMPT_ID, REWARD, SEED, STATUS
from megatron_rl.budget import Budget
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import write_tiny_model
from megatron_rl.diagnosis import first_failure
from megatron_rl.loop import Run
from megatron_rl.occupancy import alone_in
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.report import overrides
from megatron_rl.planner.run import of_run
from megatron_rl.planner.search import search
from megatron_rl.spec.load import load
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError

HOME = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiny_model(folder / "model", seed=0)
    write_prompts(folder / "train.parquet", Arithmetic(hardest=2).prompts(12, seed=0))
    write_prompts(folder / "held_out.parquet", Arithmetic(hardest=2).prompts(4, seed=1))
    return folder


def spec(data: Path, runs: Path, *overrides: str):
    written = {
        "extends": "base/toy.yaml",
        "run": {"name": "run", "folder": str(runs)},
        "model": {"folder": str(data / "model")},
        "data": {"train": [str(data / "train.parquet")], "evaluate": [str(data / "held_out.parquet")]},
        "schedule": {"steps": 4, "save_every": 2, "evaluate_every": 2},
        "sampling": {"max_tokens": 8},
        "sampler": {"uniform": {"prompts": 4, "samples": 4}},
        "reward": "tests.fakes.lucky:score",
        "judge": {"processes": 1, "deadline_s": 60.0},
    }
    path = runs / "run.yaml"
    runs.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(written))
    return load(path, overrides)


def digest(folder: Path, step: int) -> str:
    """What a checkpoint holds, but for when and by whom it was written."""
    manifest = json.loads((folder / "checkpoints" / f"step_{step:06d}" / "manifest.json").read_text())
    files = {name: entry for name, entry in manifest["files"].items() if name.endswith((".distcp", "memory.json"))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def as_of_old(folder: Path, **gone: object) -> None:
    """Leaves the run's configuration as if begun before some keys were known, and while the schedule had others."""
    path = folder / "spec.yaml"
    began = yaml.safe_load(path.read_text())
    began["schedule"] = {"steps": began["schedule"]["steps"]} | gone
    began["actor"]["optimizer"].pop("eps", None)
    began["sampler"]["uniform"].pop("shuffle", None)
    began.pop("critic", None)
    path.write_text(yaml.safe_dump(began))


def rollouts(folder: Path, step: int) -> Batch:
    return Batch.read_parquet(folder / "rollouts" / f"step_{step:06d}.parquet")


def test_a_run_stopped_and_resumed_is_the_run_that_was_never_stopped(data, tmp_path):
    launch.train(spec(data, tmp_path / "straight"))
    launch.train(spec(data, tmp_path / "broken", "schedule.steps=2"))
    as_of_old(tmp_path / "broken" / "run")
    launch.train(spec(data, tmp_path / "broken"))
    assert digest(tmp_path / "straight" / "run", 4) == digest(tmp_path / "broken" / "run", 4)
    for step in range(1, 5):
        straight, broken = (rollouts(tmp_path / name / "run", step) for name in ("straight", "broken"))
        assert straight.table.equals(broken.table)
    points = [json.loads(line) for line in (tmp_path / "broken" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points if point["kind"] == "step"] == [1, 2, 3, 4]
    made_with = json.loads((tmp_path / "broken" / "run" / "environment.json").read_text())
    assert "tests/fakes/lucky.py sha256 " in made_with["tests.fakes.lucky:score"]
    assert "4 prompts x 4 samples" in (tmp_path / "broken" / "run" / "plan.txt").read_text()


def test_values_are_the_reference_policys_and_not_those_of_the_weights_that_learn(data, tmp_path):
    write_tiny_model(tmp_path / "other", seed=1)
    named = {"plain": "model.folder", "other": "model.folder", "reference": "model.reference"}
    stored = {}
    for name, key in named.items():
        folder = data / "model" if name == "plain" else tmp_path / "other"
        launch.values(spec(data, tmp_path / name, f"{key}={folder}"), 2, tmp_path / f"{name}.parquet")
        stored[name] = pq.read_table(tmp_path / f"{name}.parquet").to_pydict()["rewards"]
    assert stored["reference"] == stored["other"] != stored["plain"]


def test_no_rollout_of_a_value_run_has_the_noise_of_one_that_is_trained_on(data, tmp_path, monkeypatch):
    seeds = []

    def asked(engine, requests, *law):
        seeds.append(set(requests.numbers(SEED).tolist()))
        return rollouts_of(engine, requests, *law)

    for module in ("megatron_rl.evaluate", "megatron_rl.stages.generate"):
        monkeypatch.setattr(f"{module}.rollouts_of", asked)
    launch.values(spec(data, tmp_path / "values"), 4, tmp_path / "values.parquet")
    launch.train(spec(data, tmp_path / "runs", "schedule.steps=1", "schedule.evaluate_every=0"))
    of_values, of_training = seeds
    assert (len(of_values), len(of_training)) == (48, 16)
    assert of_values.isdisjoint(of_training)


def test_a_rollout_that_failed_is_no_value_and_a_prompt_without_any_is_an_error(data, tmp_path, monkeypatch):
    def answers(*status):
        judged = {PROMPT_ID: ["a", "a"], STATUS: list(status), REWARD: [1.0, 0.0], ERROR: ["", "the engine died"]}
        monkeypatch.setattr(launch.HeldOut, "answer", lambda _: Batch.of(judged))
        monkeypatch.setattr(launch, "assemble", lambda *_, **__: SimpleNamespace(**fields))
        monkeypatch.setattr(launch, "close", lambda *_: None)
        launch.values(spec(data, tmp_path), 2, tmp_path / "values.parquet")

    engine = SimpleNamespace(sampling=None)
    machines = {"prompts": None, "engine": engine, "judge": None}
    fields = {"weights": SimpleNamespace(publish=lambda _: 0), "machines": machines, "seed": 0}
    answers("ok", "failed")
    assert pq.read_table(tmp_path / "values.parquet").to_pydict()["rewards"] == [[1.0]]
    with pytest.raises(RuntimeError, match="no rollout of 1 of 1 prompts came to an end, 'a' first: the engine died"):
        answers("failed", "failed")


def test_a_run_without_time_for_a_step_says_so_and_one_that_ends_says_nothing(data, tmp_path):
    assert launch.train(spec(data, tmp_path), Budget(ends_at=0.0)) == "out of time"
    assert launch.train(spec(data, tmp_path, "schedule.steps=1"), Budget(ends_at=1e12)) == ""
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().startswith("step_000001 ")


def test_a_folder_begun_with_other_settings_is_not_taken_up(data, tmp_path):
    launch.train(spec(data, tmp_path, "schedule.steps=1"))
    with pytest.raises(SpecError, match=r"sampling\.temperature"):
        launch.train(spec(data, tmp_path, "sampling.temperature=0.5"))


def test_keys_that_a_run_was_begun_without_may_have_their_defaults_and_no_other_values(data, tmp_path):
    run = SimpleNamespace(folder=tmp_path / "run")
    launch._claim(run, spec(data, tmp_path))
    as_of_old(run.folder)
    refused = r"with other settings of sampler\.uniform\.shuffle, schedule\.ahead;"
    with pytest.raises(SpecError, match=refused):
        launch._claim(run, spec(data, tmp_path, "sampler.uniform.shuffle=false", "schedule.ahead=1"))
    as_of_old(run.folder, ahead=0, tempo=9)
    with pytest.raises(SpecError, match=r"with other settings of schedule\.tempo;"):
        launch._claim(run, spec(data, tmp_path))


def test_a_run_goes_on_with_the_layout_that_a_plan_finds_for_other_machines():
    setup, _ = of_run(
        load(HOME / "configs/grpo.yaml", [f"model.folder={HOME / 'examples/models/Qwen3-8B'}"]), Cluster(nodes=4)
    )
    keys = [key.partition("=")[0] for key in overrides(replace(setup, sleeps=True), search(setup, best=1)[0])]
    assert len(keys) > 10
    assert [key for key in (*keys, "rollout.vllm.gpus") if not key.startswith(launch.MAY_CHANGE)] == []
    same = ("rollout.vllm.context", "rollout.vllm.in_flight", "judge.most_characters")
    assert not any(key.startswith(launch.MAY_CHANGE) for key in same)


def test_a_run_that_stopped_over_its_grader_goes_on_with_more_time_and_memory_for_it():
    judge = {"processes": 1, "deadline_s": 2.0, "memory_mib": 1024, "stop_share": 0.5}
    more = {"processes": 4, "deadline_s": 9.0, "memory_mib": 4096, "stop_share": 0.9}
    changed = launch.plain_difference({"judge": judge}, {"judge": more})
    assert len(changed) == 4
    assert [key for key in changed if not key.startswith(launch.MAY_CHANGE)] == []


def test_how_the_actor_is_cut_may_change_whichever_way_that_is():
    began = {"run": {}, "actor": {"tp": 1, "cp": 1, "stage_layers": []}, "schedule": {"ahead": 0, "steps": 1}}
    now = {"run": {}, "actor": {"tp": 2, "cp": 2, "stage_layers": [1, 1]}, "schedule": {"ahead": 1, "steps": 2}}
    changed = launch.plain_difference(began, now)
    assert [key for key in changed if not key.startswith(launch.MAY_CHANGE)] == ["schedule.ahead"]


def raising(error: Exception):
    def raises(*_: object) -> None:
        raise error

    return raises


def test_what_broke_a_run_is_told_until_it_is_taken_up_again(data, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(launch.loop, "train", raising(RuntimeError("the grader is on strike")))
        with pytest.raises(RuntimeError, match="strike"):
            launch.train(spec(data, tmp_path))
    assert first_failure(tmp_path / "run").startswith("driver failed first: RuntimeError: the grader is on strike (in ")
    launch.train(spec(data, tmp_path, "schedule.steps=0"))
    told = first_failure(tmp_path / "run")
    assert told.startswith(f"the run in {tmp_path / 'run'} finished after 0 steps")
    assert "attempt 1 of 2 failed before, with RuntimeError: the grader is on strike" in told


def test_a_run_whose_parts_cannot_be_made_says_so_too_and_a_wrong_request_leaves_nothing(data, tmp_path, monkeypatch):
    for error in (SpecError("no such key"), RuntimeError("no GPU is left")):
        monkeypatch.setattr(launch, "assemble", raising(error))
        with pytest.raises(type(error)):
            launch.train(spec(data, tmp_path))
        assert (tmp_path / "run").exists() == isinstance(error, RuntimeError)
    assert first_failure(tmp_path / "run").startswith("driver failed first: RuntimeError: no GPU is left (in ")


def test_a_signal_before_there_is_a_run_ends_the_command_at_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "assemble", lambda _: signal.raise_signal(signal.SIGTERM))
    assert launch.train(spec(data, tmp_path)) == "stopped by SIGTERM"


class Signals:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_while_a_run_is_made_stops_it_all_the_same(data, tmp_path, monkeypatch):
    def made(chosen: RunSpec) -> Run:
        Signals()  # what is raised as it goes is told on stderr, and nowhere else
        return assemble(chosen)

    monkeypatch.setattr(launch, "assemble", made)
    assert launch.train(spec(data, tmp_path)) == "stopped by SIGTERM"
    assert not list((tmp_path / "run").rglob("step_*"))


def test_a_folder_that_another_process_trains_in_is_refused_before_anything_is_written(data, tmp_path):
    run = tmp_path / "runs" / "run"
    with alone_in(run), pytest.raises(SpecError, match="another process trains in"):
        launch.train(spec(data, tmp_path / "runs"))
    assert not run.exists()
