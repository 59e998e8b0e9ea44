import pickle
import pickletools
from collections import OrderedDict

import pytest
import torch

from megatron_rl.actor.unfolding import ALWAYS, DEPTH, TIMES, Unfolding

LAUGHS = 40
"""Doubled so often, a value would take a day to be hashed or printed."""


def unfold(content: bytes) -> None:
    unfolding = Unfolding()
    for opcode, argument, _ in pickletools.genops(content):
        unfolding.take(opcode.name, argument)
    unfolding.end()


def tuples(times: int) -> object:
    value: object = ("ha", "ha")
    for _ in range(times):
        value = (value, value)
    return value


def lists_filled_after_they_were_shared(times: int) -> object:
    outer: list[object] = []
    empty = outer
    for _ in range(times):
        inner: list[object] = []
        empty += [inner, inner]
        empty = inner
    return outer


def dicts(times: int) -> object:
    value: object = {}
    for _ in range(times):
        value = {0: value, 1: value}
    return value


def calls(times: int) -> object:
    value: object = torch.Size((1,))
    for _ in range(times):
        value = OrderedDict(a=value, b=value)
    return value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [tuples, lists_filled_after_they_were_shared, dicts, calls])
def test_what_doubles_again_and_again_is_refused_however_it_is_shared(shape, protocol):
    unfold(pickle.dumps(shape(4), protocol))
    with pytest.raises(ValueError, match="what it shares unfolds to more than"):
        unfold(pickle.dumps(shape(LAUGHS), protocol))


def test_a_doubling_that_is_thrown_away_counts_as_well():
    doubled = b"\x8c\x02ha\x85q\x00" + b"".join(b"h%c0h%ch%c\x86q%c" % (n, n, n, n + 1) for n in range(LAUGHS))
    for thrown in (b"0N.", b"(\x8c\x01x10N.", b"}h\x28Ns0N."):
        with pytest.raises(ValueError, match="unfolds"):
            unfold(b"\x80\x04" + doubled + thrown)


def test_what_is_written_out_may_have_any_size():
    unfold(pickle.dumps([("name", number, b"x" * 10_000, {"a": [1.0]}) for number in range(TIMES + ALWAYS)]))
    long = "x" * 100_000
    unfold(pickle.dumps([long] * TIMES))
    with pytest.raises(ValueError, match="unfolds"):
        unfold(pickle.dumps([long] * (TIMES + ALWAYS)))


def test_values_are_nested_no_deeper_than_can_be_hashed():
    for deep, is_refused in ((DEPTH - 2, False), (DEPTH + 1, True), (200_000, True)):
        content = b"\x80\x04N" + b"\x85" * deep + b"."
        if is_refused:
            with pytest.raises(ValueError, match="nests values more than 100 deep"):
                unfold(content)
        else:
            unfold(content)


def test_a_value_that_holds_itself_is_refused():
    own: list[object] = []
    own.append([own])
    with pytest.raises(ValueError, match="holds itself"):
        unfold(pickle.dumps(own))


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "numbers a value 2147483647"),
        (b"\x80\x02Np-1\n.", "numbers a value -1"),
        (b"\x80\x02h\x05.", "no value 5"),
        (b"\x80\x02(\x85.", "takes a value where there is none"),
        (b"\x80\x02N\x86.", "takes a value where there is none"),
        (b"\x80\x02(q\x00.", "uses a value where there is none"),
        (b"\x80\x02ctorch\nSize\n}b.", "fills what cannot be filled"),
        (b"\x80\x02K\x01K\x02a.", "fills what cannot be filled"),
    ],
)
def test_what_no_pickler_writes_is_refused(opcodes, reason):
    with pytest.raises(ValueError, match=reason):
        unfold(opcodes)
