"""A program for `tests.ranks`: the parameters that Megatron-Core really makes, by chunk and name."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rl.actor import groups
from megatron_rl.actor.build import build
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision


def parameter_shapes(config: dict[str, Any], parallel: Parallel) -> dict[tuple[int, str], tuple[int, ...]]:
    """Shapes of this rank's parameters."""
    groups.cut(parallel)
    model = build(config, parallel, Precision(compute="fp32"))
    return {
        (chunk, name): tuple(parameter.shape)
        for chunk, module in enumerate(model.chunks)
        for name, parameter in module.named_parameters()
    }


def expert_shapes(parallel: Parallel) -> tuple[int, dict[tuple[int, str], tuple[int, ...]]]:
    """This rank's place among the expert-parallel ranks, and its shapes in a mixture of experts."""
    groups.cut(parallel)
    config = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=16,
        ffn_hidden_size=96,
        num_moe_experts=4,
        moe_ffn_hidden_size=32,
        moe_layer_freq=[0, 1],
        moe_token_dispatcher_type="alltoall",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        qk_layernorm=True,
        use_cpu_initialization=True,
        tensor_model_parallel_size=parallel.tp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=1 if parallel.ep > 1 else None,
    )
    model = GPTModel(
        config,
        get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm"),
        vocab_size=112,
        max_sequence_length=64,
        position_embedding_type="rope",
    )
    shapes = {(0, name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return parallel_state.get_expert_model_parallel_rank(), shapes
