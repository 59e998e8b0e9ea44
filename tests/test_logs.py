import re

from megatron_rl.logs import HEAD_BYTES, MOST_BYTES, TAIL_BYTES, with_room

LINE = b"what a process says, 48 characters, ends with it\n"


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
        assert re.fullmatch(rb"--- \d+ bytes left out: the log had grown beyond 32 MiB", others[0])
    assert [each.name for each in tmp_path.iterdir()] == ["a.log"]
