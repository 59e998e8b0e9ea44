import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_rl.cluster.warden import LONGEST, Warden, end, users

USER = "import sys, time; kept = open(sys.stdin.readline().strip(), 'w'); print('open', flush=True); time.sleep(600)"
DRIVER = """
import sys
from pathlib import Path
from megatron_rl.cluster.warden import Warden

warden = Warden()
warden.remove_also(Path(sys.argv[1]))
print(warden.folder, flush=True)
sys.stdin.read()
"""


def user_of(folder: Path) -> subprocess.Popen:
    """A process that nothing but an open file of the folder tells."""
    process = subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(f"{folder / 'log'}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "open\n"
    return process


@pytest.fixture
def bystander(tmp_path):
    process = user_of(tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_a_folder_for_ray_is_short_enough_for_its_sockets_and_gone_when_the_warden_is_closed():
    warden = Warden()
    assert len(str(warden.folder.parent)) <= LONGEST
    (warden.folder / "logs").mkdir()
    warden.close()
    assert not warden.folder.exists()


def test_logs_that_are_wanted_stay():
    warden = Warden()
    warden.keep_folder()
    warden.close()
    assert warden.folder.is_dir()
    warden.folder.rmdir()


def test_who_uses_a_folder_is_ended_and_nobody_else(tmp_path, bystander):
    theirs = tmp_path / "ray"
    theirs.mkdir()
    process = user_of(theirs)
    assert [one.pid for one in users(theirs, spared=os.getpid())] == [process.pid]
    assert users(theirs, spared=process.pid) == []
    end(theirs, spared=os.getpid(), grace_s=0.0)
    assert not psutil.pid_exists(process.pid)
    process.communicate()
    assert bystander.poll() is None


def test_a_driver_that_is_killed_leaves_neither_processes_nor_files(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run-1")]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(driver.stdout.readline().strip())
    orphan = user_of(folder)
    for name in ("run-1-0.ring", "run-2-0.ring"):
        (tmp_path / name).touch()
    driver.kill()
    driver.communicate()
    assert orphan.wait(60) == -signal.SIGKILL
    orphan.communicate()
    deadline = time.monotonic() + 60
    while (folder.exists() or (tmp_path / "run-1-0.ring").exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run-2-0.ring"]
