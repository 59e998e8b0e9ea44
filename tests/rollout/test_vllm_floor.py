import threading

import pytest

from megatron_rl.beside import beside
from megatron_rl.rollout.vllm_floor import Floor


def nothing():
    """Waits on."""


def test_a_claim_waits_until_a_wave_gives_way_and_the_wave_until_it_is_released():
    floor, said, spoke = Floor(), [], threading.Event()

    def wave():
        with floor.held(nothing):
            spoke.set()
            while not floor.give_way(nothing):
                said.append("wave")
            said.append("wave again")

    done = beside(wave, "wave")
    assert spoke.wait(10)
    floor.claim(10)
    said.append("weights")
    floor.claim(10)
    assert not done.done()
    floor.release()
    done.result(10)
    assert said[-2:] == ["weights", "wave again"]


def test_nobody_takes_a_floor_that_is_claimed_and_the_wait_ends_by_what_is_raised_in_it():
    floor = Floor()
    floor.claim(1)

    def unwanted():
        raise InterruptedError("nobody wants it")

    with pytest.raises(InterruptedError), floor.held(unwanted):
        pass
    floor.release()
    with floor.held(unwanted):
        assert not floor.give_way(unwanted)


def test_a_claim_that_nobody_makes_way_for_says_so_and_is_given_up():
    floor = Floor()
    with floor.held(nothing):
        with pytest.raises(TimeoutError, match=r"did not make way for weights in 0\.01 s"):
            floor.claim(0.01)
        assert not floor.give_way(nothing)
