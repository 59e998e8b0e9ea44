import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from megatron_rl import checkpoint
from megatron_rl.actor.parallel import Parallel
from tests import ranks
from tests.actor.saving_programs import (
    collects_garbage_while_it_writes,
    compare,
    hang_in_the_second_rank,
    left_running,
    pass_on,
    save_checkpoint,
    save_fresh,
    save_on_a_full_disk,
    save_while_learning,
    strangers,
)
from tests.fakes.tiny_models import tiny_folder
from tests.small_disks import small_disk
from tests.test_checkpoint import damage

HOME = {"tp": 2, "pp": 2}


def run(program, parallel, **arguments):
    return ranks.run(program, world=Parallel(**parallel).world, parallel=parallel, **arguments)


def assert_same(one: Path, other: Path) -> None:
    ((names, differing),) = ranks.run(compare, world=1, one=one, other=other)
    assert any("exp_avg_sq" in name for name in names)
    assert differing == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saving")
    folder = tiny_folder(root / "model", "qwen3", tie_word_embeddings=True)
    run(save_fresh, HOME, folder=folder, to=root / "home")
    return root, folder


@pytest.mark.parametrize(
    "away",
    [{"dp": 2}, {"tp": 2}, {"pp": 2}, {"tp": 1}, {"tp": 2, "dp": 2}, {"pp": 2, "dp": 2}, {"cp": 2}, {"cp": 2, "dp": 2}],
    ids=str,
)
def test_parameters_and_moments_are_the_same_bits_at_another_cut_and_back(saved, away, tmp_path):
    root, folder = saved
    progress, *_ = run(pass_on, away, folder=folder, at=root / "home", to=tmp_path / "away")
    run(pass_on, HOME, folder=folder, at=tmp_path / "away", to=tmp_path / "back")
    assert progress == {"steps": 3}
    assert_same(root / "home", tmp_path / "away")
    assert_same(root / "home", tmp_path / "back")


@pytest.mark.parametrize("parallel", [{"tp": 2, "pp": 2}, {"dp": 2}], ids=str)
def test_what_is_learnt_while_a_save_is_written_is_not_in_it(saved, parallel, tmp_path):
    _, folder = saved
    run(save_fresh, parallel, folder=folder, to=tmp_path / "straight")
    assert all(run(save_while_learning, parallel, folder=folder, to=tmp_path / "aside"))
    assert_same(tmp_path / "straight", tmp_path / "aside")


def test_untied_interleaved_models_travel_too(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen2", num_hidden_layers=4)
    run(save_fresh, {"pp": 2, "vpp": 2}, folder=folder, to=tmp_path / "home")
    run(pass_on, {"tp": 2}, folder=folder, at=tmp_path / "home", to=tmp_path / "away")
    assert_same(tmp_path / "home", tmp_path / "away")


def test_experts_travel_too_where_they_are_dealt_before_and_after(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen3_moe")
    run(save_fresh, {"dp": 2, "ep": 2}, folder=folder, to=tmp_path / "home")
    for away in ({"tp": 2, "ep": 2}, {"pp": 2, "dp": 2, "ep": 2}, {"dp": 4, "ep": 4}):
        to = tmp_path / str(away)
        run(pass_on, away, folder=folder, at=tmp_path / "home", to=to)
        assert_same(tmp_path / "home", to)
    with pytest.raises(
        ranks.RankFailure, match=r"saved with experts dealt over ranks.*choose actor\.ep above 1 in both"
    ):
        run(pass_on, {"tp": 2}, folder=folder, at=tmp_path / "home", to=tmp_path / "refused")


def test_steps_after_a_load_are_those_that_would_have_come(saved, tmp_path):
    root, folder = saved
    run(save_fresh, HOME, folder=folder, to=tmp_path / "straight", steps=8)
    run(pass_on, HOME, folder=folder, at=root / "home", to=tmp_path / "resumed", steps=5)
    assert_same(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("distributed", [True, False])
def test_an_actor_that_took_no_step_is_saved_and_goes_on_as_if_it_had_not_been(tmp_path, distributed):
    folder = tiny_folder(tmp_path / "model", "qwen2", num_hidden_layers=2)
    chosen = {"folder": folder, "distributed": distributed}
    run(save_fresh, {"dp": 2}, to=tmp_path / "straight", steps=2, **chosen)
    run(save_fresh, {"dp": 2}, to=tmp_path / "begun", steps=0, **chosen)
    run(pass_on, {"dp": 2}, at=tmp_path / "begun", to=tmp_path / "resumed", steps=2, **chosen)
    assert_same(tmp_path / "straight", tmp_path / "resumed")


def test_every_parameter_finds_its_own_moments(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen2", num_hidden_layers=4)
    for mistaken in run(strangers, {"pp": 2, "vpp": 2}, folder=folder):
        assert mistaken == []


def test_a_save_leaves_no_process_behind(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1)
    assert run(left_running, {}, folder=folder, to=tmp_path / "saved") == [[]]


def test_a_save_leaves_the_garbage_collector_of_the_process_alone(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1)
    (seen,) = run(collects_garbage_while_it_writes, {}, folder=folder, to=tmp_path / "saved")
    assert seen
    assert all(seen)


def test_a_rank_whose_disk_takes_nothing_tells_that_it_writes_and_the_others_that_they_do_not(tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1)
    told = run(hang_in_the_second_rank, {"tp": 2}, folder=folder, to=tmp_path / "saved")
    assert [at for at, *_ in told] == ["", str(tmp_path / "saved")]
    assert not any(is_done for _, is_done, _ in told)
    assert all(end.startswith("rank 1 could not write its part: ") for *_, end in told)


class Untouchable:
    """An actor that must not be asked to load."""

    def load(self, folder: Path) -> NoReturn:
        raise AssertionError(f"{folder} was about to be loaded")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    run(save_checkpoint, {"tp": 2}, folder=tiny_folder(root / "model", "llama"), to=root / "checkpoints")
    return checkpoint.latest(root / "checkpoints")


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_any_file_of_a_checkpoint_that_is_harmed_is_named_before_a_weight_is_touched(whole, tmp_path, harm):
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert {path.name for path in files} >= {".metadata", "common.pt", "__0_0.distcp", "__1_0.distcp", "manifest.json"}
    for name in files:
        folder = Path(shutil.copytree(whole, tmp_path / "copy"))
        harm(folder / name)
        with pytest.raises(checkpoint.CheckpointError, match=f"'{name}'"):
            checkpoint.load(folder, Untouchable())
        shutil.rmtree(folder)


def harmed(whole: Path, scratch: Path, how: str, times: int) -> int:
    """How many of so many harms at random places were named before a weight was touched."""
    named = 0
    for number in range(times):
        folder = Path(shutil.copytree(whole, scratch / f"{how}_{number}"))
        victim = damage(folder, how, random.Random(f"{how} {number}"))
        with pytest.raises(checkpoint.CheckpointError, match=re.escape(str(victim.relative_to(folder)))):
            checkpoint.load(folder, Untouchable())
        named += 1
        shutil.rmtree(folder)
    return named


@pytest.mark.slow
def test_a_hundred_flips_twenty_cuts_and_twenty_losses_are_named_before_a_weight_is_touched(whole, tmp_path):
    counts = {"flip": 100, "truncate": 20, "delete": 20}
    assert sum(harmed(whole, tmp_path, how, times) for how, times in counts.items()) == 140


def full_disk(folder: Path, scratch: Path, leaves: list[float]) -> None:
    with small_disk(scratch, mebibytes=16) as disk:
        ((*full, locked),) = ranks.run(save_on_a_full_disk, world=1, folder=folder, disk=disk, leaves=leaves)
    for said, step in (*full, locked):
        assert said.startswith("the checkpoint of step 2 could not be written to ")
        assert "\n" not in said
        assert step == 1
    assert all("No space left on device" in said or "as over a full disk" in said for said, _ in full), full
    assert "Read-only file system" in locked[0]


def test_a_disk_that_is_full_or_read_only_leaves_the_checkpoint_before_it_and_is_told(tmp_path):
    full_disk(tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1), tmp_path, [0.0, 0.004, 0.5])


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_place_of_a_save_leaves_the_checkpoint_before_it(tmp_path):
    leaves = [part / 40 for part in range(40)]
    full_disk(tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1), tmp_path, leaves)


@pytest.mark.parametrize("harm", [flip, truncate])
def test_a_harmed_latest_is_named_and_a_lost_one_loses_nothing(whole, tmp_path, harm):
    root = Path(shutil.copytree(whole.parent, tmp_path / "checkpoints"))
    harm(root / "latest")
    with pytest.raises(checkpoint.CheckpointError, match="latest"):
        checkpoint.latest(root)
    (root / "latest").unlink()
    assert checkpoint.latest(root) == root / whole.name


def kill(tmp_path: Path, times: int) -> None:
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=1)
    program = Path(__file__).with_name("saving_kills.py")
    command = [sys.executable, str(program), str(folder), str(tmp_path / "checkpoints"), str(times)]
    root = program.parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    steps = [int(step) for step in done.stdout.split()]
    assert len(steps) == times + 2
    assert steps == sorted(steps), "a kill must never take back what an earlier life had saved"
    assert steps[0] < 0 <= steps[1], "the first life begins with nothing, and is killed after a save"


def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_that_loads(tmp_path):
    kill(tmp_path, 2)


@pytest.mark.slow
def test_two_hundred_kills_at_random_moments_of_a_save_leave_a_checkpoint_that_loads(tmp_path):
    kill(tmp_path, 200)
