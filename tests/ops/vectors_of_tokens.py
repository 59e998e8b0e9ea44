"""Golden operations on tokens: losses, aggregation, importance weights, advantages, speculative drafts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_rl.ops import acceptance, aggregation, importance, losses, values
from megatron_rl.ops.segments import row_ids
from tests.ops.json_inputs import Inputs, flags, flat_flags, flatten, given, like, nested, number, offsets_of, tensor

Answer = dict[str, Any]


def _mask(inputs: Inputs, key: str) -> Tensor:
    """The mask; without one every token of `key` is live."""
    return (
        flat_flags(inputs["mask"]) if inputs.get("mask") is not None else torch.ones(len(flatten(inputs[key]))).bool()
    )


def _per_token(value: Any, offsets: Tensor) -> Tensor:
    """Numbers per row are spread over the row's tokens."""
    return flatten(value) if value and isinstance(value[0], list) else tensor(value)[row_ids(offsets)]


def _weights(inputs: Inputs, key: str, mode: str) -> Tensor:
    """Aggregation weights with the counts of this one batch; the budget defaults to the longest row."""
    rows = inputs[key]
    offsets, mask_T = offsets_of(rows), _mask(inputs, key)
    budget = given(inputs, "l_max", max((len(row) for row in rows), default=1))
    scope = aggregation.Scope(aggregation.count(mask_T, offsets), budget)
    return aggregation.token_weights(mode, mask_T, offsets, scope, flatten(rows))


def ppo_loss(inputs: Inputs) -> Answer:
    rows = inputs["logp"]
    offsets, mask_T, logprob_T = offsets_of(rows), _mask(inputs, "logp"), flatten(rows).requires_grad_()
    log_ratio_T = losses.live_difference(logprob_T, flatten(inputs["old_logp"]), mask_T)
    advantage_T = _per_token(inputs["adv"], offsets)
    clip = losses.Clip(
        given(inputs, "clip_low", 0.2), given(inputs, "clip_high", 0.28), given(inputs, "dual_clip", None)
    )
    surrogate = losses.clipped_surrogate(log_ratio_T, advantage_T, clip)
    weight_T = (
        _per_token(inputs["weights"], offsets) if inputs.get("weights") is not None else torch.ones_like(logprob_T)
    )
    loss_T = torch.where(mask_T, surrogate.loss_T * weight_T, 0.0)
    loss = (loss_T * _weights(inputs, "logp", given(inputs, "agg", "token-mean"))).sum()
    (grad_T,) = torch.autograd.grad(loss, logprob_T)
    return {
        "loss": loss.item(),
        "per_token": like(loss_T, rows),
        "grad_logp": like(grad_T, rows),
        "clipfrac": int((surrogate.clipped_T & mask_T).sum()) / max(int(mask_T.sum()), 1),
    }


def aggregate(inputs: Inputs) -> Answer:
    weight_T = _weights(inputs, "mat", given(inputs, "mode", "token-mean"))
    return {"value": torch.where(_mask(inputs, "mat"), flatten(inputs["mat"]), 0.0).mul(weight_T).sum().item()}


def kl_estimators(inputs: Inputs) -> Answer:
    rows = inputs["logp"]
    log_ratio_T = flatten(rows) - flatten(inputs["ref_logp"])
    return {name: like(losses.kl(log_ratio_T, name), rows) for name in ("k1", "k2", "k3", "abs")}


def tis_weights(inputs: Inputs) -> Answer:
    rows, mask_T = inputs["logp_train"], _mask(inputs, "logp_train")
    level = given(inputs, "level", "token")
    cap = given(inputs, "cap", 5.0 if level == "icepop" else 2.0)
    reused_T = flat_flags(inputs["reused"]) if inputs.get("reused") is not None else None
    gap_T = importance.mismatch(flatten(rows), flatten(inputs["logp_rollout"]), mask_T, reused_T)
    truncation = importance.Truncation(level, cap, given(inputs, "floor", 0.5))
    return {"weights": like(importance.importance_weights(gap_T, mask_T, offsets_of(rows), truncation), rows)}


def gae(inputs: Inputs) -> Answer:
    rows, mask_T = inputs["values"], _mask(inputs, "values")
    tokens = values.Tokens(flatten(inputs["rewards"]), flatten(rows), mask_T, offsets_of(rows))
    estimate = values.gae(tokens, given(inputs, "gamma", 1.0), given(inputs, "lam", 1.0))
    return {
        "advantage_raw": like(estimate.advantage_T, rows),
        "returns": like(estimate.return_T, rows),
        "advantage_whitened": like(values.whiten(estimate.advantage_T, mask_T), rows),
    }


def value_loss(inputs: Inputs) -> Answer:
    clip = number(inputs["clip"]) if "clip" in inputs else 0.5
    loss_T = losses.value_loss(
        flatten(inputs["values"]), flatten(inputs["old_values"]), flatten(inputs["returns"]), clip
    )
    weight_T = _weights(inputs, "values", given(inputs, "agg", "token-mean"))
    return {"loss": torch.where(_mask(inputs, "values"), loss_T, 0.0).mul(weight_T).sum().item()}


def reinforce_pp(inputs: Inputs) -> Answer:
    rows = inputs["mask"]
    mask_T = flat_flags(rows)
    return_T = values.reward_to_go(tensor(inputs["rewards"]), mask_T, offsets_of(rows), given(inputs, "gamma", 1.0))
    return {"returns": like(return_T, rows), "advantage": like(values.whiten(return_T, mask_T), rows)}


def apo_loss(inputs: Inputs) -> Answer:
    rows = inputs["logp"]
    offsets, mask_T = offsets_of(rows), _mask(inputs, "logp")
    target_B = tensor(inputs["rewards"]) - tensor(inputs["v"])
    log_ratio_T = losses.live_difference(flatten(rows), flatten(inputs["ref_logp"]), mask_T).requires_grad_()
    regression = losses.value_regression(log_ratio_T, mask_T, offsets, target_B, given(inputs, "beta2", 1e-3))
    loss = regression.loss_B.sum() / max(aggregation.count(mask_T, offsets).rows, 1)
    (grad_B,) = torch.autograd.grad(loss, regression.log_ratio_B)
    return {
        "seq_log_ratio": regression.log_ratio_B.tolist(),
        "target_advantage": target_B.tolist(),
        "residual": regression.residual_B.tolist(),
        "loss": loss.item(),
        "grad_seq_logp": grad_B.tolist(),
    }


def rebel_loss(inputs: Inputs) -> Answer:
    sides = [tensor(inputs[key]) for key in ("delta_a", "delta_b", "r_a", "r_b")]
    residual_B = losses.rebel_residual(sides[0], sides[1], sides[2], sides[3], given(inputs, "eta", 1.0))
    return {"residual": residual_B.tolist(), "loss": residual_B.square().mean().item()}


def spec_verify(inputs: Inputs) -> Answer:
    rows = inputs["old_logp"]
    finished_B = flags(given(inputs, "finished", [True] * len(rows)))
    drafts = acceptance.Drafts(flatten(inputs["new_logp"]), flatten(rows), offsets_of(rows), finished_B)
    lenience = float(given(inputs, "log_lenience", 0.0))
    verdict = acceptance.verify(drafts, flatten(inputs["u"]), lenience, inputs["max_response"])
    return {
        "accept": nested(verdict.accept_T, verdict.offsets),
        "cut": verdict.cut_B.tolist(),
        "draft_len": verdict.offsets.diff().tolist(),
        "all_accepted": verdict.whole_B.tolist(),
        "needs_generation": verdict.needs_generation_B.tolist(),
        "max_new_tokens": verdict.budget_B.tolist(),
        "reused_fraction": verdict.reused_fraction,
        "full_reuse_fraction": verdict.full_reuse_fraction,
    }


def spec_output_dist(inputs: Inputs) -> Answer:
    new_V, lenience = tensor(inputs["p_new"]), given(inputs, "lenience", 1.0)
    law = acceptance.output_law(new_V, tensor(inputs["q_old"]), lenience)
    return {
        "accept_prob": law.accept_probability.item(),
        "output": law.output_V.tolist(),
        "total_variation_to_new": acceptance.total_variation(law.output_V, new_V).item(),
    }


def spec_residual_dist(inputs: Inputs) -> Answer:
    new_V, old_V = tensor(inputs["p_new"]), tensor(inputs["q_old"])
    law = acceptance.exact_output_law(new_V, old_V)
    residual_V = acceptance.residual_law(new_V, old_V)
    return {
        "accept_prob": law.accept_probability.item(),
        "residual": residual_V.tolist(),
        "output": law.output_V.tolist(),
    }


def spec_sequence_dist(inputs: Inputs) -> Answer:
    new = tensor(inputs["p_first"]), tensor(inputs["p_second"])
    old = tensor(inputs["q_first"]), tensor(inputs["q_second"])
    law = acceptance.sequence_law(new, old, given(inputs, "lenience", 1.0))
    return {
        "joint": law.joint_VV.tolist(),
        "target": law.target_VV.tolist(),
        "total_variation": acceptance.total_variation(law.joint_VV, law.target_VV).item(),
        "expected_cut": law.expected_cut.item(),
    }


def spec_expected_prefix(inputs: Inputs) -> Answer:
    prefix = acceptance.expected_prefix(tensor(inputs["accept_probs"]))
    names = ("expected_cut", "full_reuse_prob", "expected_new_fraction")
    return {name: value.item() for name, value in zip(names, prefix, strict=True)}


def spec_assemble(inputs: Inputs) -> Answer:
    prompt, draft, suffix = (
        (torch.tensor(inputs[key], dtype=torch.int64), torch.tensor([0, len(inputs[key])]))
        for key in ("prompt", "draft", "suffix")
    )
    made = acceptance.assemble(prompt, draft, torch.tensor([inputs["cut"]]), suffix, inputs["max_response"])
    return {
        "engine_context": made.context[0].tolist(),
        "response": made.response[0].tolist(),
        "loss_mask": [1] * len(made.response[0]),
        "reused_mask": made.reused_T.tolist(),
    }


OPERATIONS = (
    ppo_loss,
    aggregate,
    kl_estimators,
    tis_weights,
    gae,
    value_loss,
    reinforce_pp,
    apo_loss,
    rebel_loss,
    spec_verify,
    spec_output_dist,
    spec_residual_dist,
    spec_sequence_dist,
    spec_expected_prefix,
    spec_assemble,
)
