from types import SimpleNamespace

import pytest
import torch

from megatron_rl.actor.fused import RmsNorm, in_use


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU uses")
def test_without_a_gpu_everything_is_plain_torch_on_megatron_layers():
    used = in_use()
    assert (used.norms, used.attention, used.optimizer, used.linears) == ("torch", "torch", "torch", "megatron")
    assert not used.gradient_accumulation


@pytest.mark.parametrize("splits", [True, False])
def test_a_norm_tells_megatron_whether_its_tokens_are_split(splits):
    norm = RmsNorm(SimpleNamespace(sequence_parallel=splits), 8, eps=1e-5)
    assert norm.weight.sequence_parallel is splits
    x = torch.randn(3, 8)
    torch.testing.assert_close(norm(x), x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))
