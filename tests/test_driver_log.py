import re

import pytest

from megatron_rl.driver_log import FAILED, FILE, FINISHED, REFUSED, DriverLog, attempts


def test_attempts_are_read_as_they_were_written(tmp_path):
    for trace, how in (
        ("Traceback\nOSError: gone", FAILED),
        ("", REFUSED),
        ("", "stopped,\nout of time"),
        ("", FINISHED),
    ):
        log = DriverLog(tmp_path)
        log.begin()
        if trace:
            log.keep(trace)
        log.end(how)
    read = attempts(tmp_path)
    assert [attempt.how for attempt in read] == [FAILED, "stopped, out of time", FINISHED]
    assert read[0].said == ["Traceback", "OSError: gone"]
    assert [attempt.has_failed for attempt in read] == [True, False, False]
    assert [attempt.has_ended_well for attempt in read] == [False, True, True]
    assert all(attempt.ended >= attempt.begun.when > 0 for attempt in read)


def test_an_attempt_that_never_began_leaves_nothing(tmp_path):
    DriverLog(tmp_path).end(REFUSED)
    assert attempts(tmp_path) == list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("said", "has_failed"), [("", False), ("Traceback (most recent call last):\nOSErr", True)])
def test_an_attempt_without_an_end_has_failed_where_it_says_so(tmp_path, said, has_failed):
    log = DriverLog(tmp_path)
    log.begin()
    if said:
        log.keep(said)
    (attempt,) = attempts(tmp_path)
    assert (attempt.has_failed, attempt.has_ended_well) == (has_failed, False)


def test_a_disk_that_takes_no_log_hides_no_failure(tmp_path):
    (tmp_path / "logs").touch()
    log = DriverLog(tmp_path)
    log.keep("Traceback")
    log.end(FAILED)
    with pytest.raises(OSError, match=r"driver\.log could not be written \(File exists\)"):
        log.begin()


def test_what_an_earlier_version_wrote_belongs_to_no_attempt(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / FILE).write_text("Traceback (most recent call last):\nOSError: old\n")
    assert attempts(tmp_path) == []
    DriverLog(tmp_path).begin()
    assert len(attempts(tmp_path)) == 1
    assert re.search(r"(?m)^--- [-\d]{10} [:\d]{8} driver: process \d+ on ", (tmp_path / FILE).read_text())
