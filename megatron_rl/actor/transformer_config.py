"""Architecture, cut, precision and recomputation, said in Megatron-Core's words."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rl.actor.architecture import Architecture
from megatron_rl.actor.fused import has_transformer_engine, in_use
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.rope import frequencies


def transformer_config(
    architecture: Architecture, parallel: Parallel, precision: Precision, recompute: Recompute
) -> TransformerConfig:
    """Megatron's configuration of the model; everything it is silent on keeps Megatron's default."""
    return TransformerConfig(
        **_shape(architecture),
        **_cut(architecture, parallel, precision),
        **_precision(precision),
        **_recompute(recompute),
        **_fusions(),
    )


def compute_dtype(precision: Precision) -> torch.dtype:
    """The type of weights and activations."""
    return torch.float32 if precision.compute == "fp32" else torch.bfloat16


def _shape(architecture: Architecture) -> dict[str, Any]:
    shape, magnitude = architecture.shape, frequencies(architecture).magnitude
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "ffn_hidden_size": shape.ffn,
        "normalization": "RMSNorm",
        "layernorm_epsilon": architecture.norm_eps,
        "qk_layernorm": architecture.qk_norm,
        "add_qkv_bias": architecture.qkv_bias,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Queries and keys that are each rotated `magnitude` times larger give scores that are its square larger.
        "softmax_scale": None if magnitude == 1.0 else magnitude**2 * shape.head_dim**-0.5,
        **_experts(architecture),
    }


def _experts(architecture: Architecture) -> dict[str, Any]:
    shape, routing = architecture.shape, architecture.routing
    if routing is None:
        return {}
    return {
        "num_moe_experts": shape.experts,
        "moe_ffn_hidden_size": shape.expert_ffn,
        "moe_layer_freq": [int(shape.is_sparse(layer)) for layer in range(shape.layers)],
        "moe_router_topk": routing.chosen,
        "moe_router_pre_softmax": not routing.normalise,
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
        "moe_grouped_gemm": has_transformer_engine(),
    }


def _cut(architecture: Architecture, parallel: Parallel, precision: Precision) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vpp if parallel.vpp > 1 else None,
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": parallel.ep,
        "sequence_parallel": parallel.splits_sequence,
        "pipeline_model_parallel_layout": _stages(architecture, parallel),
        "pipeline_dtype": compute_dtype(precision),
        # Micro-batches are packed to a token budget, so each has its own length.
        "variable_seq_lengths": parallel.pp > 1,
        # Megatron checks this against the line above even where there are no experts.
        "moe_token_dispatcher_type": "alltoall",
        "deallocate_pipeline_outputs": True,
        # Interleaved stages send both ways at once. In a batch of two such sends to one peer, which is what two stages
        # are to each other, a gradient could be taken for an activation; one by one each way has its own order.
        "overlap_p2p_comm": parallel.vpp > 1,
        "batch_p2p_comm": parallel.vpp == 1,
    }


def _stages(architecture: Architecture, parallel: Parallel) -> list[list[str]] | None:
    """Megatron's list of what each chunk holds, for cuts that are not even."""
    if not parallel.stage_layers:
        return None
    chunks = [["decoder"] * layers for layers in parallel.chunk_layers(architecture.shape.layers)]
    chunks[0].insert(0, "embedding")
    chunks[-1].append("loss")
    return chunks


def _precision(precision: Precision) -> dict[str, Any]:
    base = {"params_dtype": compute_dtype(precision), "bf16": precision.compute != "fp32"}
    if precision.compute != "fp8":
        return base
    edge = precision.edge_layers_bf16
    return base | {
        # Gradients need range where the scale is one per tensor; finer scales let them keep the precise format.
        "fp8": "hybrid" if precision.recipe in ("tensorwise", "delayed") else "e4m3",
        "fp8_recipe": precision.recipe,
        "fp8_amax_history_len": 1024 if precision.recipe == "delayed" else 1,
        "fp8_amax_compute_algo": "max" if precision.recipe == "delayed" else "most_recent",
        "first_last_layers_bf16": edge > 0,
        "num_layers_at_start_in_bf16": edge,
        "num_layers_at_end_in_bf16": edge,
    }


def _recompute(recompute: Recompute) -> dict[str, Any]:
    if recompute.granularity == "none":
        return {}
    if recompute.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": recompute.method,
        "recompute_num_layers": recompute.layers,
    }


def _fusions() -> dict[str, Any]:
    """Kernels that exist for GPUs only: on a CPU each would be compiled or refused."""
    gpu = torch.cuda.is_available()
    return {
        "use_cpu_initialization": not gpu,
        "bias_activation_fusion": gpu,
        "bias_dropout_fusion": gpu,
        "apply_rope_fusion": has_transformer_engine(),
        "gradient_accumulation_fusion": in_use().gradient_accumulation,
    }
