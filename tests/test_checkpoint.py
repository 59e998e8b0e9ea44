import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.checkpoint import CheckpointError, latest, load, prune, save, verify

MEMORY = {"sampler": {"drawn": 7}, "buffer": None}


class FileActor:
    """Saves a few files of random bytes; remembers whether it was asked to load."""

    def __init__(self, files: int = 3, size: int = 1000) -> None:
        self.files, self.size, self.loaded = files, size, False

    def save(self, folder: Path) -> None:
        (folder / "deep").mkdir(parents=True)
        for number in range(self.files):
            (folder / "deep" / f"part_{number}.bin").write_bytes(os.urandom(self.size))

    def load(self, folder: Path) -> None:
        self.loaded = True


def saved(root: Path, step: int = 1) -> Path:
    return save(root, step, FileActor(), MEMORY, {"layout": "tp2"}).folder


def test_what_was_saved_comes_back(tmp_path):
    saved(tmp_path, 10)
    actor = FileActor()
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


@pytest.mark.parametrize(("how", "times"), [("flip", 40), ("truncate", 20), ("delete", 20)])
def test_damage_is_named_before_any_weight_is_touched(tmp_path, how, times):
    for number in range(times):
        folder = saved(tmp_path / str(number))
        victim = damage(folder, how, random.Random(number))
        actor = FileActor()
        with pytest.raises(CheckpointError, match=victim.name):
            load(folder, actor)
        assert not actor.loaded


def test_a_file_that_was_slipped_in_is_refused(tmp_path):
    folder = saved(tmp_path)
    (folder / "actor" / "extra.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"extra\.bin"):
        verify(folder)


def test_a_manifest_edited_by_hand_is_refused(tmp_path):
    folder = saved(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 99}))
    with pytest.raises(CheckpointError, match="seal"):
        verify(folder)


def test_pruning_keeps_the_newest_and_the_one_latest_names(tmp_path):
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    (tmp_path / "latest").write_text("step_000001")
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_000001", "step_000003", "step_000004"]


def test_a_save_that_fails_leaves_the_previous_one_and_no_half(tmp_path):
    class DiskFull(FileActor):
        def save(self, folder: Path) -> None:
            super().save(folder)
            raise OSError(28, "No space left on device")

    saved(tmp_path, 1)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, DiskFull(), MEMORY, {})
    verify(latest(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000001"]


def test_a_pointer_to_nothing_is_refused(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "latest").write_text("step_000007")
    with pytest.raises(CheckpointError, match="step_000007"):
        latest(tmp_path)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from megatron_rl.checkpoint import latest, save, verify
from tests.test_checkpoint import MEMORY, FileActor

root, draw, saves = Path(sys.argv[1]), random.Random(0), []
started = time.perf_counter()
save(root, 0, FileActor(files=4, size=1 << 16), MEMORY, {})
one_save_s = time.perf_counter() - started
for kill in range(50):
    child = os.fork()
    if child == 0:
        for step in range(1 + kill * 10**4, 10**6):
            save(root, step, FileActor(files=4, size=1 << 16), MEMORY, {})
    time.sleep(draw.uniform(0.0, 4 * one_save_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    folder = latest(root)
    saves.append(-1 if folder is None else verify(folder).step)
print(*saves)
"""


def test_fifty_kills_at_random_points_of_a_save_leave_a_loadable_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, check=True)
    steps = [int(step) for step in done.stdout.split()]
    assert len(steps) == 50
    assert steps == sorted(steps), "a kill must never take back what an earlier process had saved"
    assert len(set(steps)) > 5, "most kills should have come after at least one save"
