import subprocess
import sys
import threading
import time

import pytest

from megatron_rl.beside import all_beside, beside


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


@pytest.mark.parametrize("work", ["time.sleep(600)", "all_beside(time.sleep, [600, 600], 2)"])
def test_work_that_hangs_keeps_no_process_from_ending(work):
    program = f"import time; from megatron_rl.beside import *; beside(lambda: {work}, 'hangs'); print('on')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "on\n"


def test_many_items_are_worked_on_by_a_few_and_come_back_in_their_order():
    at_once, most, counting = [], [], threading.Lock()

    def work(item: int) -> int:
        with counting:
            at_once.append(item)
            most.append(len(at_once))
        time.sleep(0.01)
        at_once.remove(item)
        return item * item

    assert all_beside(work, range(20), 3) == [item * item for item in range(20)]
    assert max(most) == 3
    assert all_beside(work, [], 3) == []


def test_an_error_of_one_item_is_raised_once_all_have_had_their_turn():
    done = []

    def work(item: int) -> None:
        if item == 1:
            raise OSError(f"item {item}")
        done.append(item)

    with pytest.raises(OSError, match="item 1"):
        all_beside(work, range(5), 2)
    assert sorted(done) == [0, 2, 3, 4]
