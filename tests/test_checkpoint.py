import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import Mock

import pytest

from megatron_rl import checkpoint
from megatron_rl.beside import finished
from megatron_rl.checkpoint import CheckpointError, latest, load, prune, save, verify

MEMORY = {"sampler": {"drawn": 7}, "buffer": None}


class FileActor:
    """Saves a few files of random bytes; remembers whether it was asked to load."""

    def __init__(self, files: int = 3, size: int = 1000) -> None:
        self.files, self.size, self.loaded = files, size, False

    def save(self, folder: Path) -> Future[None]:
        (folder / "deep").mkdir(parents=True)
        for number in range(self.files):
            (folder / "deep" / f"part_{number}.bin").write_bytes(os.urandom(self.size))
        return finished(None)

    def load(self, folder: Path) -> None:
        self.loaded = True


def saved(root: Path, step: int = 1) -> Path:
    return save(root, step, FileActor(), MEMORY, {"layout": "tp2"}).folder


def point_at(root: Path, name: str) -> None:
    """Makes `latest` name this one, as its save did."""
    seal = json.loads((root / name / "manifest.json").read_text())["seal"]
    (root / "latest").write_text(f"{name} {seal}\n")


def test_what_was_saved_comes_back(tmp_path):
    actor, _ = FileActor(), saved(tmp_path, 10)
    found, memory = load(latest(tmp_path), actor)
    assert (found.step, found.facts, memory, actor.loaded) == (10, {"layout": "tp2"}, MEMORY, True)


def test_latest_names_the_last_one_saved(tmp_path):
    assert latest(tmp_path) is None
    saved(tmp_path, 1), saved(tmp_path, 2)
    assert latest(tmp_path).name == "step_000002"


def test_a_step_saved_again_replaces_the_first(tmp_path):
    saved(tmp_path, 1), saved(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("step_*")] == [latest(tmp_path).name]
    verify(latest(tmp_path))


def damage(folder: Path, how: str, draw: random.Random) -> Path:
    victim = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(victim.read_bytes())
    if how == "delete":
        victim.unlink()
    elif how == "truncate":
        victim.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
    return victim


@pytest.mark.parametrize(("how", "times"), [("flip", 100), ("truncate", 20), ("delete", 20)])
def test_damage_is_named_before_any_weight_is_touched(tmp_path, how, times):
    whole = saved(tmp_path)
    for number in range(times):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        victim = damage(folder, how, random.Random(number))
        actor = FileActor()
        with pytest.raises(CheckpointError, match=victim.name):
            load(folder, actor)
        assert not actor.loaded


def test_pruning_keeps_the_newest_and_the_one_latest_names_and_tries_again_what_a_disk_holds(tmp_path, monkeypatch):
    made = [saved(tmp_path, step) for step in (1, 2, 3, 4)]
    point_at(tmp_path, "step_000001")
    with monkeypatch.context() as disk:
        disk.setattr("shutil.rmtree", Mock(side_effect=OSError("Directory not empty")))
        assert prune(tmp_path, keep=2) == []
    assert prune(tmp_path, keep=2) == made[1:2]


def test_a_save_that_fails_leaves_the_previous_one_and_no_half(tmp_path):
    class DiskFull(FileActor):
        def save(self, folder: Path) -> Future[None]:
            super().save(folder)
            raise OSError(28, "No space left on device")

    saved(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written to .* \(No space left on device\), and the"
    ):
        save(tmp_path, 2, DiskFull(), MEMORY, {})
    verify(latest(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000001"]


def test_a_save_that_another_part_of_it_hangs_in_is_told_without_asking_that_disk_for_more(tmp_path):
    class Hangs(FileActor):
        def save(self, folder: Path) -> Future[None]:
            super().save(folder)
            late: Future[None] = Future()
            late.set_exception(RuntimeError("rank 1 of 2 has not written its part"))
            return late

    with pytest.raises(RuntimeError, match="rank 1 of 2 has not written"):
        save(tmp_path, 2, Hangs(), MEMORY, {})
    assert [path.name for path in tmp_path.iterdir()] == [".partial_step_000002"]
    assert latest(tmp_path) is None
    assert [path.name for path in saved(tmp_path, 3).parent.iterdir() if path.is_dir()] == ["step_000003"]


def test_a_pointer_to_nothing_is_refused(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "latest").write_text("step_000007")
    with pytest.raises(CheckpointError, match="step_000007"):
        latest(tmp_path)


def test_every_flip_of_a_bit_of_latest_is_refused_by_its_name(tmp_path):
    for step in range(1, 10):
        saved(tmp_path, step)
    pointer = tmp_path / "latest"
    content = pointer.read_bytes()
    for bit in range(8 * len(content)):
        pointer.write_bytes((int.from_bytes(content, "little") ^ 1 << bit).to_bytes(len(content), "little"))
        with pytest.raises(CheckpointError, match=str(pointer)):
            latest(tmp_path)
    for length in range(len(content)):
        pointer.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=str(pointer)):
            latest(tmp_path)


@pytest.mark.parametrize("lose", [Path.unlink, lambda pointer: (pointer.unlink(), pointer.symlink_to("gone"))])
def test_without_latest_the_newest_is_meant_and_no_run_begins_again(tmp_path, lose):
    saved(tmp_path, 999_999), saved(tmp_path, 1_000_000)
    lose(tmp_path / "latest")
    (tmp_path / "step_1000001").mkdir()
    assert latest(tmp_path).name == "step_1000000"
    assert [path.name for path in prune(tmp_path, keep=2)] == ["step_999999"]


def test_a_first_save_killed_before_latest_is_written_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_switch", lambda *_: sys.exit())
    with pytest.raises(SystemExit):
        saved(tmp_path, 3)
    assert load(latest(tmp_path), FileActor())[0].step == 3


def test_folders_without_a_whole_one_are_no_fresh_start(tmp_path):
    (tmp_path / "step_000004").mkdir()
    with pytest.raises(CheckpointError, match=r"latest is missing, and none of \['step_000004'\]"):
        latest(tmp_path)


def test_saving_a_step_removes_no_other_whose_name_begins_alike(tmp_path):
    saved(tmp_path, 1_000_000), saved(tmp_path, 100_000)
    assert len(list(tmp_path.glob("step_*"))) == 2


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def as_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent.parent / f"moved_{path.name}"))


def as_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def as_nest(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("harm", [as_folder, as_loop, as_link, as_broken_link, as_pipe, as_binary, as_nest])
@pytest.mark.parametrize("name", ["manifest.json", "actor/deep/part_1.bin", "memory/memory.json"])
def test_what_is_no_plain_file_of_ours_is_refused_by_name(tmp_path, name, harm):
    folder = saved(tmp_path / "checkpoints")
    harm(folder / name)
    with pytest.raises(CheckpointError, match=Path(name).name) as refusal:
        verify(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("harm", [as_folder, as_link, as_pipe, as_binary, as_nest])
def test_a_pointer_that_is_no_plain_file_of_ours_is_refused_by_name(tmp_path, harm):
    saved(tmp_path / "deep" / "checkpoints")
    harm(tmp_path / "deep" / "checkpoints" / "latest")
    with pytest.raises(CheckpointError, match="latest"):
        latest(tmp_path / "deep" / "checkpoints")


def test_a_linked_folder_is_refused_by_name(tmp_path):
    folder = saved(tmp_path / "checkpoints")
    (folder / "aside").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="'aside'"):
        verify(folder)


KILLS = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from megatron_rl.checkpoint import latest, save, verify
from tests.test_checkpoint import MEMORY, FileActor

root, draw, saves = Path(sys.argv[1]), random.Random(0), []
started = time.perf_counter()
save(root, 0, FileActor(files=4, size=1 << 16), MEMORY, {})
one_save_s = time.perf_counter() - started
for kill in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for step in itertools.count(1 + kill * 10**4):
            save(root, step, FileActor(files=4, size=1 << 16), MEMORY, {})
    time.sleep(draw.uniform(0.0, 4 * one_save_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    folder = latest(root)
    saves.append(-1 if folder is None else verify(folder).step)
print(*saves)
"""


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_points_of_a_save_leave_a_loadable_checkpoint(tmp_path, kills):
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [int(step) for step in done.stdout.split()]
    assert len(steps) == kills
    assert steps == sorted(steps), "a kill must never take back what an earlier process had saved"
    assert len(set(steps)) > kills // 10, "most kills should have come after at least one save"


def test_a_damaged_checkpoint_says_how_to_go_on_from_the_one_before(tmp_path):
    second = [saved(tmp_path, step) for step in (1, 2)][-1]
    (second / "actor/deep/part_0.bin").unlink()
    with pytest.raises(CheckpointError, match="lacks the file") as refused:
        load(latest(tmp_path), FileActor())
    assert refused.value.__notes__ == [f"To go on from step_000001, remove {second} and the file 'latest' beside it."]


def test_a_checkpoint_moved_to_another_disk_and_linked_is_left_to_whoever_did_that(tmp_path):
    folder = saved(tmp_path, 1)
    folder.symlink_to(folder.rename(tmp_path / "elsewhere"))
    assert [saved(tmp_path, 2), saved(tmp_path, 3)][:1] == prune(tmp_path, keep=1)
    verify(folder)
