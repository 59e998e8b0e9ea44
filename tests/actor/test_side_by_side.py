import threading

import pytest

from megatron_rl.actor.side_by_side import THREADS, shares, side_by_side


def test_shares_are_neighbours_of_about_equal_size():
    assert shares([1, 1, 2, 3, 1], int) == [[1, 1, 2], [3, 1]]
    assert shares([9], int) == [[9]]
    assert shares([], int) == []


def test_parts_run_at_once_and_answer_in_their_order():
    both = threading.Barrier(THREADS, timeout=10)

    def work(part):
        both.wait()
        return part * 10

    assert side_by_side(work, [1, 2]) == [10, 20]


def test_an_error_in_any_part_is_raised():
    def work(part):
        if part == 2:
            raise OSError("the disk is full")
        return part

    with pytest.raises(OSError, match="the disk is full"):
        side_by_side(work, [1, 2])
