import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_rl import occupancy
from megatron_rl.occupancy import FILE, Attempt, Patience, alone_in
from megatron_rl.spec.schema import SpecError
from tests.lost_disks import lost_disk

HASTE = Patience(silence_s=0.1, lease_s=0.4, look_s=0.02)
HOLDS = """
import sys, time
from pathlib import Path
from megatron_rl.occupancy import Patience, alone_in
with alone_in(Path(sys.argv[1]), patience=Patience(beat_s=0.05)):
    print("held", flush=True)
    time.sleep(600)
"""


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "run"], **PIPES) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_refused_by_who_holds_the_folder(tmp_path):
    who = rf"another process trains in .*{socket.gethostname()} {os.getpid()}\)"
    with alone_in(tmp_path), pytest.raises(SpecError, match=who), alone_in(tmp_path):
        raise AssertionError("both trained")


def test_a_holder_that_was_killed_holds_no_more(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / FILE).exists()
    with alone_in(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists(), "nothing was begun there"


def test_a_holder_on_another_machine_is_waited_for_no_longer_than_its_lock_may_outlive_it(tmp_path, capsys):
    with alone_in(tmp_path):
        (tmp_path / FILE).write_text("elsewhere 17\n")
        with pytest.raises(SpecError, match="elsewhere 17"), alone_in(tmp_path, patience=HASTE):
            raise AssertionError("both trained")
    assert "is held by elsewhere 17, waiting" in capsys.readouterr().err


@contextmanager
def dead(folder: Path, words: str) -> Iterator[None]:
    """A lock that a file system keeps for a machine that died."""
    with (folder / FILE).open("w") as stream:
        stream.write(f"{words}\n")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_a_dead_machines_lock_gives_way_to_a_later_attempt_of_the_same_job_and_to_nobody_else(tmp_path, capsys):
    with dead(tmp_path, "elsewhere 17 4711 1"):
        others = (None, Attempt("4711", 0), Attempt("4711", 1), Attempt("4712", 2))
        for other in others:
            with pytest.raises(SpecError, match="elsewhere 17"), alone_in(tmp_path, other, HASTE):
                raise AssertionError("both trained")
        with alone_in(tmp_path, Attempt("4711", 2), HASTE):
            assert (tmp_path / FILE).read_text() == f"{socket.gethostname()} {os.getpid()} 4711 2\n"
    assert "elsewhere 17, an earlier attempt of this job, is silent and over" in capsys.readouterr().err


def test_an_earlier_attempt_that_shows_that_it_lives_is_refused_its_successor(tmp_path):
    with dead(tmp_path, "elsewhere 17 4711 1"):
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(0.01):
                os.utime(tmp_path / FILE)

        living = threading.Thread(target=live)
        living.start()
        try:
            with pytest.raises(SpecError, match="elsewhere 17"), alone_in(tmp_path, Attempt("4711", 2), HASTE):
                raise AssertionError("both trained")
        finally:
            ended.set()
            living.join()


def test_a_holder_touches_its_lock(tmp_path):
    with alone_in(tmp_path, patience=Patience(beat_s=0.01)):
        os.utime(tmp_path / FILE, (0, 0))
        deadline = time.monotonic() + 60
        while (tmp_path / FILE).stat().st_mtime == 0:
            assert time.monotonic() < deadline, "it never did"
            time.sleep(0.01)


def test_a_holder_whose_folder_was_given_to_another_ends(holder, tmp_path):
    (tmp_path / "run" / FILE).unlink()
    with alone_in(tmp_path / "run"):
        assert holder.wait(60) == 1
        assert b"was given to another process; this one ends" in holder.stderr.read()
        assert (tmp_path / "run" / FILE).exists()


def test_a_holder_ends_where_its_lock_is_stale_because_another_machine_removed_it(tmp_path):
    stale = HOLDS.replace("import sys, time", "import errno, os, sys, time").replace(
        "    time.sleep(600)",
        "    def fstat(_): raise OSError(errno.ESTALE, 'Stale file handle')\n    os.fstat = fstat\n    time.sleep(600)",
    )
    with subprocess.Popen([sys.executable, "-c", stale, tmp_path / "run"], **PIPES) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            assert process.wait(60) == 1
        finally:
            process.kill()
    assert (tmp_path / "run" / FILE).exists()


def test_a_holder_that_leaves_removes_no_lock_but_its_own(tmp_path):
    with alone_in(tmp_path, patience=Patience(beat_s=600)):
        (tmp_path / FILE).rename(tmp_path / "before")
        (tmp_path / FILE).write_text("elsewhere 17\n")
    assert (tmp_path / FILE).read_text() == "elsewhere 17\n"


def test_what_a_run_made_stays_and_the_folder_can_be_held_again(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path):
            (tmp_path / "spec.yaml").write_text("run: {}")
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(occupancy.fcntl, "flock", refuse)
    with alone_in(tmp_path):
        pass
    assert "nothing keeps a second process from training in it" in capsys.readouterr().err


def test_a_disk_that_went_away_is_told_with_the_lock_and_hides_nothing_else(tmp_path):
    with lost_disk(tmp_path) as disk:
        with alone_in(disk.at / "run"):
            disk.lose()
        with pytest.raises(OSError, match=r"/run/\.occupied cannot be locked for this run \(Stale file handle\)"):
            alone_in(disk.at / "run").__enter__()


def test_a_link_in_place_of_the_lock_leads_nowhere(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(Path("../precious"))
    with pytest.raises(OSError, match="symbolic links"), alone_in(tmp_path / "run"):
        raise AssertionError("the link was followed")
    assert (tmp_path / "precious").read_text() == "kept"
