import errno
import os
import re
import socket
import subprocess
import sys

import pytest

from megatron_rl import logs
from megatron_rl.logs import (
    HEAD_BYTES,
    MOST_BYTES,
    TAIL_BYTES,
    begun,
    heading,
    moment,
    newest,
    now,
    shorten,
    with_room,
)

LINE = b"what a process says, 48 characters, ends with it\n"
LEFT_OUT = rb"--- left out here on [-\d]{10} at [:\d]{8}: the log had grown too long"
WRITER = """
import itertools, os, select
for number in itertools.count():
    os.write(1, b"%08d is what a process says\\n" % number)
    if number % 1000 == 0 and select.select([0], [], [], 0)[0]:
        break
"""


@pytest.fixture
def small(monkeypatch):
    """Bounds a thousand times narrower, so that little needs to be written."""
    for name in ("MOST_BYTES", "HEAD_BYTES", "TAIL_BYTES"):
        monkeypatch.setattr(logs, name, getattr(logs, name) >> 10)


def test_a_log_that_is_not_too_long_is_left_as_it_is_and_one_that_is_not_there_too(tmp_path):
    assert with_room(tmp_path / "logs" / "rank_0000.log") == tmp_path / "logs" / "rank_0000.log"
    assert list(tmp_path.rglob("*")) == [tmp_path / "logs"]
    path = tmp_path / "a.log"
    path.write_bytes(bytes(MOST_BYTES))
    assert with_room(path).stat().st_size == MOST_BYTES


def test_of_a_long_log_the_beginning_and_the_newest_part_stay_in_whole_lines_however_often_it_grows(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"the first line\n")
    for attempt in range(3):
        with path.open("ab") as stream:
            stream.write(LINE * (MOST_BYTES // len(LINE)))
            stream.write(b"RuntimeError: attempt %d\n" % attempt)
        lines = with_room(path).read_bytes().splitlines()
        assert path.stat().st_size <= HEAD_BYTES + TAIL_BYTES + 200
        assert (lines[0], lines[-1]) == (b"the first line", b"RuntimeError: attempt %d" % attempt)
        others = [line for line in lines[1:-1] if line + b"\n" != LINE]
        assert len(others) == 1
        assert re.fullmatch(LEFT_OUT, others[0])
    assert [each.name for each in tmp_path.iterdir()] == ["a.log"]


def test_a_log_without_lines_keeps_both_ends_too(small, tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"begun" + b"\r#" * logs.MOST_BYTES + b"\rdone")
    shorten(path)
    kept = path.read_bytes()
    assert kept[:5] + kept[-5:] == b"begun\rdone"
    assert logs.TAIL_BYTES < len(kept) < logs.MOST_BYTES


def test_a_process_that_goes_on_writing_loses_no_more_than_the_instant_of_each_cut(small, tmp_path):
    path, cuts = tmp_path / "a.log", 0
    with path.open("ab") as log:
        writer = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=log)
    while cuts < 20:
        cuts += path.stat().st_size > logs.MOST_BYTES
        shorten(path)
    writer.communicate()
    with path.open("ab") as log:  # an attempt later
        subprocess.run([sys.executable, "-c", WRITER], stdin=subprocess.DEVNULL, stdout=log, check=True)
    kept = path.read_bytes()
    lines = kept.splitlines()
    gap = next(place for place, line in enumerate(lines) if re.fullmatch(LEFT_OUT, line))
    assert all(re.fullmatch(rb"\d{8} is what a process says", line) for line in lines[:gap] + lines[gap + 1 :])
    numbers = [int(line[:8]) for line in lines[:gap] + lines[gap + 1 :]]
    assert numbers[:gap] == list(range(gap))
    assert (numbers[-2] % 1000, numbers[-1]) == (0, 0)
    written = len(lines[0] + b"\n") * (numbers[-2] + 2)
    assert written - len(kept) > (cuts - 1) * (logs.MOST_BYTES - logs.HEAD_BYTES - logs.TAIL_BYTES)
    jumps = [after - before for before, after in zip(numbers[gap:-2], numbers[gap + 1 : -1], strict=True)]
    assert sum(jump != 1 for jump in jumps) <= cuts
    assert min(jumps) > 0


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_a_disk_that_takes_no_cut_ends_nothing_and_leaves_beginning_and_end(small, tmp_path, monkeypatch, call):
    path, done = tmp_path / "a.log", []

    def fails(*arguments):
        done.append(arguments)
        if call == "ftruncate" or len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(os.open(os.devnull, os.O_WRONLY), arguments[1])

    path.write_bytes(b"the first line\n" + LINE * 1000 + b"the last line\n")
    whole = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(os, call, fails)
        shorten(path)
    kept = path.read_bytes()
    assert done
    assert len(kept) == len(whole)
    assert kept[: logs.HEAD_BYTES // 2] == whole[: logs.HEAD_BYTES // 2]
    assert kept[-logs.TAIL_BYTES :] == whole[-logs.TAIL_BYTES :]
    shorten(path)
    assert len(path.read_bytes()) < logs.MOST_BYTES
    assert path.read_bytes().endswith(LINE + b"the last line\n")


def test_what_the_newest_process_said_stands_behind_its_heading(tmp_path):
    path = tmp_path / "rank_0000.log"
    its = begun(heading(path), path)
    assert its is not None
    assert its[1:] == ("rank_0000", os.getpid(), socket.gethostname())
    assert 0 <= moment(now()) - its.when < 60
    assert begun(heading(tmp_path / "other.log"), path) is None
    path.write_text(f"before\n{heading(path)}\nearlier\n{heading(path)}\nlater\n{heading(tmp_path / 'other.log')}\n")
    assert newest(path) == ["later", heading(tmp_path / "other.log")]
    path.write_text("without\n")
    assert newest(path) == ["without"]
    assert moment("2026-13-41 99:00:00") == 0
