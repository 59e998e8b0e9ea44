import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl import occupancy
from megatron_rl.occupancy import FILE, alone_in
from megatron_rl.spec.schema import SpecError
from tests.lost_disks import lost_disk

HOLDS = """
import sys, time
from pathlib import Path
from megatron_rl.occupancy import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "run"], stdout=subprocess.PIPE) as process:
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
        with pytest.raises(SpecError, match="elsewhere 17"), alone_in(tmp_path, lease_s=0.05):
            raise AssertionError("both trained")
    assert "is held by elsewhere 17, waiting" in capsys.readouterr().err


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
