import math

import pytest
import torch

from megatron_rl.rollout.vllm_ledger import Ledger
from megatron_rl.rollout.writing import Request


def ledger(count: int = 3, retries: int = 1) -> Ledger:
    prompt = torch.tensor([5, 6])
    requests = [Request(prompt=prompt, seed=40 + row, budget=4, tokens=[], logprobs=[]) for row in range(count)]
    return Ledger(requests=requests, retries=retries, versions=range(3, 5))


def test_a_request_is_written_piece_by_piece_until_it_ends():
    book = ledger()
    assert book.take(group=0, most=2) == [0, 1]
    assert book.note(0, (0, 0, [7, 8], [-0.1, -0.2], "", 3))
    assert book.note(0, (0, 2, [9], [-0.3], "stop", 3))
    assert (book.requests[0].tokens, book.requests[0].finish) == ([7, 8, 9], "stop")
    assert (book.done, book.tokens, book.is_open, list(book.waiting)) == (1, 3, True, [2])


@pytest.mark.parametrize(
    ("piece", "named"),
    [
        ((0, 0, [7], [], "", 3), "told 1 tokens with 0 log-probabilities"),
        ((0, 1, [7], [-0.1], "", 3), "told the tokens from place 1 where 0 was next"),
        ((0, 0, [7] * 5, [-0.1] * 5, "", 3), "wrote 5 tokens of at most 4"),
        ((0, 0, [7, 8], [-0.1, math.nan], "", 3), "gave response token 1 the log-probability nan"),
        ((0, 0, [7], [-math.inf], "", 3), "gave response token 0 the log-probability -inf"),
        ((0, 0, [7], [0.5], "", 3), "gave response token 0 the log-probability 0.5"),
        ((0, 0, [7], [-0.1], "", 5), "told tokens of version 5, and writes with 3 or 4"),
        ((0, 0, [7], [-0.1], "tired", 3), "ended with 'tired', not one of stop, length, abort"),
    ],
)
def test_a_piece_that_cannot_be_fails_its_request_by_name(piece, named):
    book = ledger()
    book.take(0, 3)
    book.note(0, piece)
    assert book.requests[0].error == f"request 0 (seed 40): the engine {named}"
    assert [request.finish for request in book.requests] == ["abort", "", ""]


def test_every_token_is_written_down_with_its_version():
    book = ledger()
    book.take(0, 1)
    book.note(0, (0, 0, [7, 8], [-0.1, -0.2], "", 3))
    book.note(0, (0, 2, [9], [-0.3], "stop", 4))
    assert book.requests[0].versions == [3, 3, 4]


def test_a_piece_of_a_request_that_a_group_does_not_have_changes_nothing():
    book = ledger()
    book.take(0, 1)
    assert not book.note(1, (0, 0, [7], [-0.1], "stop", 3))
    assert not book.note(0, (2, 0, [7], [-0.1], "stop", 3))
    assert not book.note(0, (9, 0, [7], [-0.1], "stop", 3))
    assert book.done == 0


def test_what_a_lost_group_wrote_goes_on_with_another():
    book = ledger()
    book.take(0, 2)
    book.note(0, (0, 0, [7, 8], [-0.1, -0.2], "", 3))
    book.lose(0, "it died")
    assert list(book.waiting) == [0, 1, 2]
    assert book.take(1, 1) == [0]
    book.note(1, (0, 0, [9], [-0.3], "stop", 3))
    assert book.requests[0].tokens == [7, 8, 9]


def test_a_request_that_loses_too_many_groups_fails_by_name():
    book = ledger(count=1)
    for group in (0, 1):
        book.take(group, 1)
        book.lose(group, "vLLM group 0 died")
    assert book.requests[0].error == "request 0 (seed 40) was lost with 2 groups: vLLM group 0 died"
    assert not book.is_open


def test_every_request_is_over_after_a_wave_is_cut_short_given_up_or_refused():
    cut, given_up, refused = ledger(), ledger(), ledger()
    cut.take(0, 1)
    cut.note(0, (0, 0, [7], [-0.1], "", 3))
    cut.cut_short()
    assert [(one.finish, one.error, one.tokens) for one in cut.requests] == [("abort", "", [7])] + [
        ("abort", "", [])
    ] * 2
    given_up.take(0, 1)
    given_up.fail("nobody is left")
    assert all("was not written: nobody is left" in one.error for one in given_up.requests)
    refused.take(0, 3)
    refused.refuse(0, 1, "too long")
    assert refused.requests[1].error == "request 1 (seed 41) was refused: too long"
    assert not cut.is_open
    assert not given_up.is_open
    assert refused.held(0) == [0, 2]
