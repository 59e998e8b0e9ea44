"""Packed attention on the GPU: against the CPU, against float32, and against Transformer Engine's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.attention import PackedAttention, packing
from megatron_rl.actor.context import Context
from megatron_rl.actor.cpu import device
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import KEEP_EVERYTHING
from megatron_rl.actor.transformer_config import transformer_config
from megatron_rl.actor.weights import read_config
from tests.gpu.wide import relative

pytestmark = pytest.mark.gpu

LENGTHS = (5, 130, 130, 1, 64, 300, 17, 17, 17, 128)
EVEN = tuple(length + -length % 4 for length in LENGTHS)
"""As two context ranks would fill them up."""
HEADS, KV_HEADS, SIZE = 4, 2, 64
STILL_R = torch.zeros(SIZE // 2)
"""Frequencies that turn nothing: Transformer Engine's attention is given what is turned already."""
TURNING_R = 1e4 ** -(torch.arange(0, SIZE, 2) / SIZE)
BF16_BAND = 0.01
"""Relative; half a unit in BF16's last place is 0.002, and attention averages over rounded values."""


class Mixed(NamedTuple):
    """What attention gives, and its gradients in query, key and value."""

    mixed: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def heads(dtype: torch.dtype, where: torch.device, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    shapes = [(sum(lengths), count, SIZE) for count in (HEADS, KV_HEADS, KV_HEADS)]
    # Rounded to BF16 first, so that every precision starts from the same numbers.
    drawn = [torch.randn(shape, generator=draw).bfloat16() for shape in shapes]
    return [tensor.to(where, dtype).requires_grad_() for tensor in drawn]


def ours(dtype: torch.dtype, where: torch.device, inverse_R: Tensor = STILL_R) -> Mixed:
    attention = PackedAttention(SimpleNamespace(kv_channels=SIZE), inverse_R=inverse_R.to(where))
    tensors = heads(dtype, where)
    mixed = attention(*tensors, packed_seq_params=packing(LENGTHS, where))
    return with_gradients(mixed, tensors)


def with_gradients(mixed: Tensor, tensors: list[Tensor]) -> Mixed:
    slope = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(6)).bfloat16().to(mixed)
    return Mixed(mixed.detach(), *torch.autograd.grad(mixed, tensors, slope))


def errors(found: Mixed, expected: Mixed) -> dict[str, float]:
    return {name: relative(getattr(found, name), getattr(expected, name)) for name in Mixed._fields}


def test_float32_on_the_gpu_is_float32_on_the_cpu(measured):
    found = errors(ours(torch.float32, device(), TURNING_R), ours(torch.float32, torch.device("cpu"), TURNING_R))
    measured(**found)
    assert max(found.values()) <= 1e-5


def test_one_kernel_in_bf16_stays_in_its_band(measured):
    found = errors(ours(torch.bfloat16, device()), ours(torch.float32, torch.device("cpu")))
    measured(**found, band=BF16_BAND)
    assert max(found.values()) <= BF16_BAND


@pytest.mark.parametrize("rank", [0, 1])
def test_one_kernel_attends_from_the_pieces_of_a_context_rank(rank, measured):
    """The other rank's keys are put beside its own here, as gathering them would."""
    context, where = Context(2, rank), device()
    packed = packing(EVEN, where, context)
    query, key, value = heads(torch.bfloat16, where, EVEN)
    token_T = context.tokens(EVEN).to(where)
    met_K = torch.cat([Context(2, each).tokens(EVEN) for each in range(2)]).to(where)[packed.key_K]
    attention = PackedAttention(SimpleNamespace(kv_channels=SIZE), inverse_R=STILL_R.to(where))
    mixed = attention._mixed(query[token_T], key[met_K], value[met_K], packed).flatten(1)
    exact = heads(torch.float32, torch.device("cpu"), EVEN)
    expected = attention._mixed(*exact, packing(EVEN, torch.device("cpu"))).flatten(1)[token_T.cpu()]
    slope = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(6)).bfloat16()
    pairs = zip(
        (mixed, *torch.autograd.grad(mixed, (query, key, value), slope.to(where))),
        (expected, *torch.autograd.grad(expected, exact, slope.float())),
        strict=True,
    )
    found = {
        name: relative(one.detach(), other.detach()) for name, (one, other) in zip(Mixed._fields, pairs, strict=True)
    }
    measured(**found, band=BF16_BAND)
    assert max(found.values()) <= BF16_BAND


def test_no_gradient_crosses_from_one_sequence_to_another():
    attention = PackedAttention(SimpleNamespace(kv_channels=SIZE), inverse_R=STILL_R.to(device()))
    tensors = heads(torch.bfloat16, device())
    mixed = attention(*tensors, packed_seq_params=packing(LENGTHS, device()))
    start, stop = sum(LENGTHS[:5]), sum(LENGTHS[:6])
    for gradient in torch.autograd.grad(mixed[start:stop].sum(), tensors):
        assert gradient[start:stop].abs().sum() > 0
        assert gradient[:start].abs().sum() == 0
        assert gradient[stop:].abs().sum() == 0


def engine(folder) -> Mixed:
    """Transformer Engine's attention over the same packing."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    architecture = describe(read_config(folder))
    config = transformer_config(architecture, Parallel(), Precision(compute="bf16"), KEEP_EVERYTHING)
    attention = TEDotProductAttention(
        config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self"
    )
    tensors = heads(torch.bfloat16, device())
    mixed = attention(*tensors, None, AttnMaskType.causal, packed_seq_params=packing(LENGTHS, device()))
    return with_gradients(mixed.flatten(1), tensors)


@pytest.mark.skipif(not has_transformer_engine(), reason="needs Transformer Engine")
def test_transformer_engine_and_our_attention_agree(alone, qwen3, measured):
    exact = ours(torch.float32, torch.device("cpu"))
    theirs, mine = engine(qwen3.folder), ours(torch.bfloat16, device())
    measured(**{f"engine_{name}": value for name, value in errors(theirs, exact).items()})
    measured(**{f"ours_{name}": value for name, value in errors(mine, exact).items()})
    assert max(errors(theirs, exact).values()) <= BF16_BAND
    assert max(errors(mine, theirs).values()) <= 2 * BF16_BAND
