import pytest

from megatron_rl.ops.logprobs import Sampling
from megatron_rl.rollout.shift import Shift, fits
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.rollout.writing import read_requests
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import asked, open_embedded, words


@pytest.fixture
def decoder(tmp_path):
    return open_embedded(tiny_folder(tmp_path, "qwen3")).decoder


def open_shift(decoder):
    vocabulary = Vocabulary(decode=words, end=())
    return Shift(decoder=decoder, law=Sampling(), vocabulary=vocabulary, capacity=40, prefill_tokens=64)


def test_finished_sequences_leave_the_cache(decoder):
    shift = open_shift(decoder)
    requests = read_requests(asked([[5, 6, 7]] * 10, budgets=[2] * 6 + [8] * 4), max_tokens=8, context=128)
    shift.admit(requests)
    sizes = []
    while shift.is_busy:
        sizes.append(len(shift.cache.keys[0]))
        shift.step()
    assert sizes == [10, 10, 4, 4, 4, 4, 4, 4]
    assert shift.cache is None
    assert [len(request.tokens) for request in requests] == [2] * 6 + [8] * 4


def test_newcomers_join_those_at_work(decoder):
    shift = open_shift(decoder)
    first, second = (read_requests(asked([[5, 6, 7]], seeds=[seed]), max_tokens=6, context=128) for seed in (1, 2))
    shift.admit(first)
    shift.step()
    shift.admit(second)
    while shift.is_busy:
        shift.step()
    assert [len(request.tokens) for request in (*first, *second)] == [6, 6]


def test_the_cache_holds_as_many_sequences_as_its_memory_allows(decoder):
    token_bytes = 2 * 2 * 2 * 32 * 4
    assert fits(decoder, 100, cache_gib=100 * token_bytes * 7 / 2**30) == 7
    assert fits(decoder, 100, cache_gib=1e-9) == 2
