import numpy as np
import torch
from scipy import stats

from megatron_rl.ops.noise import fold, uniforms


def splitmix64(state: int) -> int:
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_bits_are_those_of_whole_number_arithmetic():
    keys, positions = torch.tensor([0, 1, -5, 2**62]), torch.tensor([0, 7, 3, 100])
    mask = (1 << 64) - 1
    expected = [
        (splitmix64((splitmix64(key & mask) + (position + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) * 2.0**-53
        for key, position in zip(keys.tolist(), positions.tolist(), strict=True)
    ]
    assert uniforms(keys, positions).tolist() == expected


def test_a_number_does_not_depend_on_its_neighbours():
    key_N = torch.arange(10).repeat_interleave(20)
    position_N = torch.arange(20).repeat(10)
    order = torch.randperm(200)
    assert torch.equal(uniforms(key_N, position_N)[order], uniforms(key_N[order], position_N[order]))


def test_numbers_are_uniform_along_positions_and_along_keys():
    along = torch.arange(200_000)
    for key_N, position_N in ((torch.full_like(along, 3), along), (along, torch.zeros_like(along))):
        counts = np.histogram(uniforms(key_N, position_N).numpy(), bins=256, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbouring_positions_and_keys_are_uncorrelated():
    grid = uniforms(torch.arange(300).repeat_interleave(300), torch.arange(300).repeat(300)).view(300, 300).numpy()
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02


def test_keys_of_names_differ_by_name_and_by_key():
    both = torch.cat([fold(1, [("p", 0), ("p", 1)]), fold(2, [("p", 0), ("p", 1)])])
    assert len(set(both.tolist())) == 4
