import pytest
import torch

from megatron_rl.rollout.decoder import Cache
from tests.fakes.tiny_models import tiny_folder
from tests.rollout.opening import open_embedded

HEADS = [("qwen3", 4, 2), ("qwen3", 3, 1), ("qwen3", 6, 2), ("qwen3", 4, 4), ("qwen3", 8, 1), ("qwen3_moe", 4, 2)]


@pytest.fixture(params=HEADS, ids=str)
def decoder(request, tmp_path):
    family, heads, kv_heads = request.param
    changes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 512}
    return open_embedded(tiny_folder(tmp_path, family, **changes)).decoder


def test_reading_and_writing_give_a_token_the_same_bits(decoder):
    token_SP = torch.randint(2, 100, (5, 40), generator=torch.Generator().manual_seed(0))
    hidden_SPH, _ = decoder.prefill(token_SP, 40)
    _, cache = decoder.prefill(token_SP[:, :7], 64)
    for place in range(7, 40):
        logits_NV = decoder.decode(token_SP[:, place], torch.full((5,), place), cache)
        assert torch.equal(logits_NV, decoder.logits(hidden_SPH[:, place])), place


@pytest.mark.parametrize("beside", [1, 2, 3, 9, 64, 200])
def test_neighbours_and_the_length_of_the_cache_change_no_bit(decoder, beside):
    generator = torch.Generator().manual_seed(beside)
    mine = torch.randint(2, 100, (1, 20), generator=generator)
    others = torch.randint(2, 100, (beside, 90), generator=generator)
    alone, _ = decoder.prefill(mine, 32)
    crowd_SP = torch.cat([others, torch.nn.functional.pad(mine, (0, 70))])
    together, _ = decoder.prefill(crowd_SP, 480)
    assert torch.equal(alone[0], together[-1, :20])


@pytest.mark.parametrize("mine", [63, 65, 130, 165, 212])
def test_the_length_of_the_cache_changes_no_bit_of_a_long_sequence(decoder, mine):
    token_SP = torch.randint(2, 100, (2, mine + 1), generator=torch.Generator().manual_seed(mine))
    written = []
    for capacity in (mine + 1, 300, 512):
        hidden_SPH, cache = decoder.prefill(token_SP[:, :mine], capacity)
        cache = Cache.joined([cache, decoder.prefill(torch.zeros(1, 1, dtype=torch.int64), capacity)[1]])
        next_N = torch.cat([token_SP[:, mine], torch.tensor([5])])
        far = torch.tensor([mine, mine, cache.capacity - 1])
        written.append(torch.cat([hidden_SPH.flatten(), decoder.decode(next_N, far, cache)[:2].flatten()]))
    assert all(torch.equal(each, written[0]) for each in written)


def test_a_taken_cache_goes_on_as_the_original(decoder):
    token_SP = torch.randint(2, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    _, cache = decoder.prefill(token_SP, 32)
    row_S = torch.tensor([2, 0, 2])
    both = Cache.joined([cache.take(row_S), cache])
    next_N, position_N = torch.tensor([7, 8, 9, 8, 7, 7, 7]), torch.full((7,), 12)
    logits_NV = decoder.decode(next_N, position_N, both)
    assert torch.equal(logits_NV[1], logits_NV[3])
    assert torch.equal(logits_NV[0], logits_NV[5])
    assert not torch.equal(logits_NV[0], logits_NV[2])
