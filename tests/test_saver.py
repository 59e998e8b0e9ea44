import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from megatron_rl import checkpoint, saver
from megatron_rl.beside import beside
from megatron_rl.checkpoint import CheckpointError
from megatron_rl.saver import LANDED, Saver


class WritesLater:
    """An actor whose disk takes a save when it is let: every `Event` of `disk` is one save, in their order."""

    def __init__(self) -> None:
        self.weight, self.asked, self.disk = 0, 0, [threading.Event() for _ in range(3)]

    def save(self, folder: Path) -> Future[None]:
        folder.mkdir()
        held, may_write = self.weight, self.disk[self.asked]
        self.asked += 1

        def write() -> None:
            assert may_write.wait(60)
            (folder / "weight").write_text(str(held))

        return beside(write, "save")

    def load(self, folder: Path) -> None:
        self.weight = int((folder / "weight").read_text())


class DiskFull(WritesLater):
    def save(self, folder: Path) -> Future[None]:
        super().save(folder)
        future: Future[None] = Future()
        future.set_exception(OSError(28, "No space left on device"))
        return future


@pytest.fixture
def made(tmp_path) -> Saver:
    return Saver(root=tmp_path / "checkpoints", keep=2)


def landed(made: Saver) -> None:
    while not made.look():
        threading.Event().wait(0.01)


def test_the_run_goes_on_while_its_checkpoint_is_written_and_what_it_does_then_is_not_in_it(made):
    actor, memory = WritesLater(), {"sampler": {"drawn": [7]}}
    actor.weight = 1
    made.begin(1, actor, memory, {})
    assert made.is_busy
    assert not made.look()
    assert checkpoint.latest(made.root) is None
    actor.weight = 2
    memory["sampler"]["drawn"].append(8)
    actor.disk[0].set()
    landed(made)
    assert checkpoint.load(checkpoint.latest(made.root), actor)[1] == {"sampler": {"drawn": [7]}}
    assert actor.weight == 1
    assert not made.is_busy


def test_a_save_begins_when_the_one_before_is_on_disk(made):
    actor = WritesLater()
    made.begin(1, actor, None, {})
    threading.Timer(0.2, actor.disk[0].set).start()
    made.begin(2, actor, None, {})
    assert checkpoint.latest(made.root).name == "step_000001"
    actor.disk[1].set()
    made.finish()
    assert checkpoint.latest(made.root).name == "step_000002"


def test_the_oldest_go_when_a_new_one_is_there(made):
    actor = WritesLater()
    for step, may_write in enumerate(actor.disk):
        may_write.set()
        made.begin(step, actor, None, {})
    made.finish()
    assert [folder.name for folder in checkpoint.folders(made.root)] == ["step_000001", "step_000002"]


def test_what_goes_wrong_beside_is_raised_where_the_run_looks_next(made):
    whole = WritesLater()
    whole.disk[0].set()
    made.begin(1, whole, None, {})
    made.begin(2, DiskFull(), None, {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be written to .* \(No space left on device\)"):
        landed(made)
    made.finish()
    assert checkpoint.verify(checkpoint.latest(made.root)).step == 1
    assert sorted(path.name for path in made.root.iterdir()) == ["latest", "step_000001"]


def test_how_long_a_save_took_is_told_once(made):
    actor = WritesLater()
    actor.disk[0].set()
    made.begin(1, actor, None, {})
    assert made.take_news() == {}
    made.finish()
    assert made.take_news() == {LANDED: made.landed_s}
    assert made.take_news() == {}


def test_a_run_that_ends_early_waits_for_what_can_still_be_had(made, capsys):
    actor = WritesLater()
    made.begin(1, actor, None, {})
    threading.Timer(0.2, actor.disk[0].set).start()
    made.leave()
    assert checkpoint.latest(made.root).name == "step_000001"
    assert capsys.readouterr().err == f"a checkpoint is on its way to {made.root}; Ctrl-C gives it up.\n"


def test_ctrl_c_while_a_save_is_waited_for_ends_the_wait_and_not_the_save(made):
    actor = WritesLater()
    made.begin(1, actor, None, {})
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        made.finish()
    actor.disk[0].set()
    made.leave()
    assert checkpoint.latest(made.root).name == "step_000001"


def test_a_run_that_ends_early_says_which_checkpoint_it_lost_and_ends(made, capsys, monkeypatch):
    made.begin(1, DiskFull(), None, {})
    made.leave()
    assert "a checkpoint did not get to disk: the checkpoint of step 1 could not be written" in capsys.readouterr().err
    monkeypatch.setattr(saver, "LEAVE_S", 0.1)
    made.begin(2, WritesLater(), None, {})
    made.leave()
    assert "it was given up: it is not there after 0.1 s" in capsys.readouterr().err
