"""Whole runs whose actor's ranks are processes under Ray, beside the same run in one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml

from megatron_rl import launch
from megatron_rl.actor.megatron_actor import Origin
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, TOKENS
from megatron_rl.cluster.placement import Node, Seat
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure
from megatron_rl.commands.exits import INTERRUPTED, STOPPED
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import tiny_config, tiny_tokenizer
from megatron_rl.processes import Apart
from megatron_rl.rollout.vllm_engine import VllmEngine
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError
from tests.cluster.two_nodes import address
from tests.test_launch import digest

TP2, PP2 = "actor.tp=2", "actor.pp=2"
APART = "cluster.cpus_per_rank=2"
"""Each of the two nodes has two cores, so every rank gets a machine of its own."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("data"))


def small_run(folder: Path) -> Path:
    """The configuration of a run that two tensor-parallel and two pipeline ranks can share."""
    import transformers

    torch.manual_seed(0)
    shape = tiny_config().to_dict() | {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "layer_types": None,
    }
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape)).to(torch.float32)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_prompts(folder / "train.parquet", Arithmetic(hardest=2).prompts(12, seed=0))
    written = {
        "extends": "base/toy.yaml",
        "model": {"folder": str(folder / "model")},
        "data": {"train": [str(folder / "train.parquet")], "evaluate": []},
        "schedule": {"steps": 2, "save_every": 0, "evaluate_every": 0},
        "sampling": {"max_tokens": 8},
        "sampler": {"uniform": {"prompts": 4, "samples": 4}},
        "reward": "tests.fakes.lucky:score",
        "judge": {"processes": 1, "deadline_s": 60.0},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The run in one process."""
    return run(config, tmp_path_factory.mktemp("alone"), "schedule.steps=2")


def run(config: Path, runs: Path, *settings: str) -> Path:
    launch.train(load(config, [f"run.folder={runs}", "run.name=run", *settings]))
    return runs / "run"


def under_ray(*settings: str) -> list[str]:
    return [f"cluster.address={address()}", *settings]


def rollouts(folder: Path, step: int) -> Batch:
    return Batch.read_parquet(folder / "rollouts" / f"step_{step:06d}.parquet")


def curves(folder: Path, *names: str) -> list[list[float]]:
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[point[name] for name in names] for point in points if point["kind"] == "step"]


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param([TP2], id="tp2 on one machine"),
        pytest.param([PP2, APART], id="pp2 on two machines"),
        pytest.param(["actor.cp=2"], id="cp2 on one machine", marks=pytest.mark.slow),
    ],
)
def test_the_first_step_s_advantages_are_those_of_one_process_and_the_curves_follow(alone, config, tmp_path, cut):
    cut_run = run(config, tmp_path, *under_ray(*cut))
    first, ours = rollouts(alone, 1), rollouts(cut_run, 1)
    assert torch.equal(ours.ragged(TOKENS).values, first.ragged(TOKENS).values)
    assert torch.equal(ours[ADVANTAGE].values, first[ADVANTAGE].values)
    names = ("loss", "entropy", "grad_norm")
    torch.testing.assert_close(
        torch.tensor(curves(cut_run, *names)), torch.tensor(curves(alone, *names)), rtol=1e-4, atol=1e-6
    )
    assert (cut_run / "logs" / "rank_0001.log").is_file()


def test_more_ranks_than_the_machines_hold_are_refused_before_any_starts(config, tmp_path):
    with pytest.raises(SpecError, match="rank 2: 2 cores on one machine are needed"):
        run(config, tmp_path, *under_ray("actor.dp=3", "sampler.prompts=6", APART))
    assert not (tmp_path / "run" / "logs").exists()


def test_a_rank_that_is_killed_ends_the_run_by_name(config, tmp_path):
    import threading

    def kill_when_it_learns() -> None:
        log = tmp_path / "run" / "logs" / "rank_0001.log"
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "rollouts").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(int(log.read_text().split("process ")[1].split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_learns)
    killer.start()
    with pytest.raises(RankFailure, match=r"rank 1 \(process .* died"):
        run(config, tmp_path, *under_ray(TP2, "schedule.steps=100000"))
    killer.join()


@pytest.mark.slow
def test_a_cut_run_stopped_and_resumed_is_the_run_that_was_never_stopped(config, tmp_path):
    cut = under_ray(TP2, PP2, "schedule.save_every=2")
    straight = run(config, tmp_path / "straight", *cut, "schedule.steps=4")
    run(config, tmp_path / "broken", *cut, "schedule.steps=2")
    broken = run(config, tmp_path / "broken", *cut, "schedule.steps=4")
    assert digest(straight, 4) == digest(broken, 4)
    for step in range(1, 5):
        assert rollouts(straight, step).table.equals(rollouts(broken, step).table)


@pytest.mark.slow
def test_a_run_goes_on_at_another_cut(config, tmp_path):
    saved = "schedule.save_every=2"
    straight = run(config, tmp_path / "straight", saved, "schedule.steps=4")
    run(config, tmp_path / "moved", *under_ray(TP2, PP2, saved), "schedule.steps=2")
    moved = run(config, tmp_path / "moved", saved, "schedule.steps=4")
    names = ("loss", "entropy", "grad_norm")
    torch.testing.assert_close(
        torch.tensor(curves(moved, *names)), torch.tensor(curves(straight, *names)), rtol=1e-3, atol=1e-5
    )


def started(config: Path, runs: Path, *settings: str) -> subprocess.Popen:
    """The command with a Ray of its own, once it has learnt a step."""
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(config), f"run.folder={runs}", "run.name=run"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *settings], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while not (runs / "run" / "rollouts" / "step_000001.parquet").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.1)
    return process


def ended(process: subprocess.Popen, family: list[psutil.Process]) -> list[psutil.Process]:
    process.communicate(timeout=120)
    return psutil.wait_procs(family, timeout=90)[1]


def test_a_run_told_to_stop_saves_and_leaves_no_process_behind(config, tmp_path):
    process = started(config, tmp_path, TP2, "schedule.steps=100000", "schedule.save_every=50000")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len([one for one in family if "RankHost" in one.name() or "ray::" in " ".join(one.cmdline())]) >= 2
    process.terminate()
    assert ended(process, family) == []
    assert process.returncode == STOPPED
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()


@pytest.mark.slow
def test_a_terminal_s_ctrl_c_ends_the_run_in_order_and_leaves_no_process_behind(config, tmp_path):
    process = started(config, tmp_path, TP2, "schedule.steps=100000")
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert psutil.wait_procs(family, timeout=90)[1] == []
    assert process.returncode == INTERRUPTED, said
    assert "goes on from its last checkpoint" in said


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_process_behind(config, tmp_path):
    process = started(config, tmp_path, TP2, "schedule.steps=100000")
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert ended(process, family) == []


def test_vllm_groups_stand_where_the_ranks_leave_room(tmp_path):
    cluster = ClusterSettings(placement="split")
    apart = Apart(settings=ActorSettings(tp=2), origin=Origin(folder=tmp_path), seed=0, cluster=cluster, logs=tmp_path)
    nodes = (Node(name="a", gpus=4, cpus=64),)
    assert apart.place(nodes, vllm_on((2, 3))).engines == (Seat(0, (2, 3)),)
    assert apart.place(nodes, vllm_on((0, 1), is_seated=False)).engines == (Seat(0, (2, 3)),)
    with pytest.raises(SpecError, match=r"set rollout\.vllm\.gpus=\[2, 3\], or leave it out"):
        apart.place(nodes, vllm_on((0, 1)))
    with pytest.raises(SpecError, match="engine 0: 2 GPUs on one machine are needed, but free are 'a' 1 of 3"):
        apart.place((Node(name="a", gpus=3, cpus=64),), vllm_on((2, 3)))


def test_vllm_groups_stand_on_other_machines_unless_their_wire_ends_at_one(tmp_path):
    cluster = ClusterSettings(placement="split")
    apart = Apart(settings=ActorSettings(tp=2), origin=Origin(folder=tmp_path), seed=0, cluster=cluster, logs=tmp_path)
    nodes = tuple(Node(name=name, gpus=2, cpus=64) for name in ("a", "b"))
    assert apart.place(nodes, vllm_on((0, 1))).engines == (Seat(1, (0, 1)),)
    with pytest.raises(SpecError, match=r"rollout\.vllm\.wire is 'cuda_ipc', which ends at one machine"):
        apart.place(nodes, vllm_on((0, 1), wire="cuda_ipc"))


def vllm_on(gpus: tuple[int, ...], *, is_seated: bool = True, wire: str = "auto") -> VllmEngine:
    """One group on these GPUs, as far as a placement looks at it."""
    engine = object.__new__(VllmEngine)
    terms = SimpleNamespace(tp=len(gpus), wire=wire)
    engine.fleet = SimpleNamespace(posts=[SimpleNamespace(gpus=gpus)], terms=terms, is_seated=is_seated)
    return engine


def test_a_split_placement_of_the_engine_in_the_driver_is_refused_where_there_are_gpus(tmp_path):
    settings = ActorSettings(tp=2)
    cluster = ClusterSettings(placement="split")
    apart = Apart(settings=settings, origin=Origin(folder=tmp_path), seed=0, cluster=cluster, logs=tmp_path)
    with pytest.raises(SpecError, match="embedded engine lives in the driver"):
        apart.place((Node(name="a", gpus=8, cpus=64),))
    assert apart.place((Node(name="a", gpus=0, cpus=4),)).is_one_machine


@pytest.mark.vllm
@pytest.mark.slow
def test_ranks_that_are_processes_send_to_vllm(config, tmp_path):
    finished = run(config, tmp_path, TP2, "rollout={vllm: {cache_gib: 0.0625, context: 128}}")
    ((ratio, parity), *_) = curves(finished, "sync/ratio", "parity/max")
    assert ratio == 1.0
    assert parity < 1e-4


@pytest.mark.vllm
@pytest.mark.slow
def test_ranks_and_vllm_groups_on_two_machines_agree_also_once_every_group_was_replaced(config, tmp_path, monkeypatch):
    fleets, generate = [], VllmEngine.generate

    def generate_after_all_died(engine, *arguments):
        fleets.append(engine.fleet)
        if len(fleets) == 2:
            for berth in engine.fleet.berths:
                os.killpg(berth.group.pid, signal.SIGKILL)
        return generate(engine, *arguments)

    monkeypatch.setattr(VllmEngine, "generate", generate_after_all_died)
    groups = "rollout={vllm: {cache_gib: 0.0625, context: 128, replicas: 2}}"
    finished = run(config, tmp_path, *under_ray("actor.dp=2", APART, groups))
    points = curves(finished, "sync/ratio", "parity/max", "sync/bytes")
    assert len(points) == 2
    assert all(ratio == 1.0 and parity < 1e-4 and moved > 0 for ratio, parity, moved in points)
    assert fleets[0].restarts == 2
    assert all((finished / "logs" / f"vllm_{group}.log").stat().st_size for group in range(2))
