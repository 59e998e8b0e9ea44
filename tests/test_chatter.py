import os
import re
import select

from megatron_rl.chatter import Chatter


def said_by(work, chatter):
    """Forks, lets the child print by the function, and passes on until it has ended and all is passed on."""
    pid = os.fork()
    if not pid:
        chatter.speak()
        work()
        os._exit(0)
    ended = 0
    while not ended:
        select.select([chatter], [], [], 0.01)
        chatter.pass_on()
        ended, _ = os.waitpid(pid, os.WNOHANG)
    for _ in range(2):
        chatter.pass_on()


def test_short_prints_of_both_kinds_arrive_as_they_are(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        said_by(lambda: (os.write(1, b"one\n"), os.write(2, b"two\n")), Chatter(out.fileno()))
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"


def test_what_is_printed_without_measure_is_cut_told_once_and_passed_on_again_later(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        chatter = Chatter(out.fileno(), most_bytes=5 << 10, window_s=3600.0)
        said_by(lambda: [os.write(1, b"x" * 65536) for _ in range(100)], chatter)
        chatter._since -= 3600.0
        said_by(lambda: os.write(1, b"hello\n"), chatter)
    told = rb"x{5120}\n--- left out what graders print beyond 5 KiB in 3600 s, or faster than it is read\nhello\n"
    assert re.fullmatch(told, (tmp_path / "out").read_bytes())


def test_nobody_waits_for_a_reader_that_does_not_read():
    theirs, ours = os.pipe()
    chatter = Chatter(ours, most_bytes=1 << 20)
    said_by(lambda: [os.write(1, b"x" * 65536) for _ in range(10)], chatter)
    read = os.read(theirs, 1 << 20)
    chatter.pass_on()  # there is room now to say that not all was said
    assert re.fullmatch(rb"x+\n--- left out what graders print .*\n", read + os.read(theirs, 1 << 20))
    os.close(theirs)
    said_by(lambda: os.write(1, b"nobody hears this"), chatter)
    os.close(ours)
