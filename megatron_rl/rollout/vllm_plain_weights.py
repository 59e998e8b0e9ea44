"""vLLM on a CPU repacks weights into forms that nobody can write to; here it computes with them as they stand.

A GPU needs none of it. vLLM has no setting for it, so two of its functions are replaced, in the worker's process alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import linear, silu
from vllm.model_executor.layers import utils as linear_layers
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts


def keep_plain_weights() -> None:
    """Linear layers and mixtures of experts multiply by the weights that a sync has written."""
    linear_layers.dispatch_cpu_unquantized_gemm = _plain_linear
    experts: Any = CPUUnquantizedExperts
    experts.process_weights_after_loading = _as_loaded
    experts.apply = _plain_experts


def _plain_linear(layer: Any, remove_weight: bool) -> None:  # noqa: ANN401, ARG001  # vLLM's signature
    layer.cpu_linear = linear


def _as_loaded(experts: Any, layer: Any) -> None:  # noqa: ANN401  # vLLM's signature
    """No padding and no packing."""


def _plain_experts(
    _: Any,  # noqa: ANN401  # vLLM's signature
    *,
    output: Tensor,
    activation: MoEActivation,
    **given: Any,  # noqa: ANN401
) -> None:
    """The weighted sum of what each token's experts make of it; one product an expert."""
    if activation != MoEActivation.SILU or given["expert_map"] is not None or given["apply_router_weight_on_input"]:
        raise ValueError(
            f"experts on a CPU are computed with silu, all on every rank, weighted at the end; got {activation.value}."
        )
    hidden_NH, chosen_NK, weight_NK = given["hidden_states"], given["topk_ids"], given["topk_weights"]
    output.zero_()
    for expert in chosen_NK.unique().tolist():
        row_M, place_M = (chosen_NK == expert).nonzero(as_tuple=True)
        gate_MF, up_MF = linear(hidden_NH[row_M], given["w1"][expert]).chunk(2, dim=-1)
        made_MH = linear(silu(gate_MF) * up_MF, given["w2"][expert])
        output.index_add_(0, row_M, made_MH * weight_NK[row_M, place_M, None].to(made_MH.dtype))
