import subprocess
import sys

from megatron_rl import orphans

FAMILY = """
import os, subprocess, sys, time
from megatron_rl.orphans import adopt, children, end_children, ended

BESIDE = "import subprocess as s; s.Popen(['sleep', '600'], start_new_session=True)"
adopt()
assert children() == set() and ended() == 0
spared = subprocess.Popen(["sleep", "600"])
hidden = subprocess.run([sys.executable, "-c", BESIDE]), subprocess.run(["sh", "-c", "(sleep 600 & sleep 600 &) &"])
while len(children()) < 4:
    time.sleep(0.01)
adopted = children() - {spared.pid}
assert end_children({spared.pid}) == set()
assert children() == {spared.pid}
assert not any(os.path.exists(f"/proc/{pid}") for pid in adopted)
assert end_children({spared.pid}) == set() and ended() == 0
spared.kill()
while not ended():
    time.sleep(0.01)
assert end_children(set()) == set() and children() == set()
print("alone")
"""


def test_what_hid_in_sessions_of_its_own_is_found_and_ended_and_the_spared_live_on():
    ran = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "alone\n", ran.stderr


def test_children_are_found_where_the_system_lists_none(monkeypatch, tmp_path):
    with subprocess.Popen(["sleep", "600"]) as child:
        assert child.pid in orphans.children()
        monkeypatch.setattr(orphans, "_TASKS", tmp_path / "missing")
        assert child.pid in orphans.children()
        child.kill()


def test_what_would_not_go_is_told_instead_of_waited_for(monkeypatch):
    with subprocess.Popen(["sleep", "600"]) as child:
        others = orphans.children() - {child.pid}
        monkeypatch.setattr(orphans.os, "kill", lambda *_: None)
        assert orphans.end_children(others, most_s=0.02) == {child.pid}
        monkeypatch.undo()
        child.kill()
