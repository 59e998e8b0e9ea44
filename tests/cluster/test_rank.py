import pytest

from megatron_rl.cluster.rank import Answer, _answered, interface_of
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError


def test_a_result_comes_back_as_it_is():
    assert _answered(lambda: 3) == Answer(result=3)


def test_a_failure_comes_back_with_its_traceback_and_its_time():
    def fails():
        raise ZeroDivisionError("by nothing")

    answer = _answered(fails)
    assert "in fails" in answer.failure
    assert answer.error is None
    assert answer.at > 0


def test_a_failure_that_says_all_comes_back_itself():
    def refuses():
        raise SpecError("actor.tp is 3")

    answer = _answered(refuses)
    assert isinstance(answer.error, SpecError)


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1").startswith("lo")
    with pytest.raises(LayoutError, match=r"has the address 203\.0\.113\.9"):
        interface_of("203.0.113.9")
