import subprocess
import sys
import threading

import pytest

from megatron_rl.beside import beside


def test_the_caller_goes_on_and_asks_for_the_result_later():
    may_end = threading.Event()
    future = beside(lambda: may_end.wait(10) and threading.current_thread().name, "waits")
    assert not future.done()
    may_end.set()
    assert future.result(10) == "waits"


@pytest.mark.parametrize("error", [OSError("no room"), SystemExit(3)])
def test_what_went_wrong_is_raised_where_the_result_is_asked_for(error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        beside(fail, "fails").result(10)
    assert caught.value is error


def test_work_that_hangs_keeps_no_process_from_ending():
    program = (
        "import time; from megatron_rl.beside import beside; beside(lambda: time.sleep(600), 'hangs'); print('on')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "on\n"
