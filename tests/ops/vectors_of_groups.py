"""Golden operations on rewards of groups: baselines, smoothing, priorities, values, filters, text rewards."""

from __future__ import annotations

from typing import Any

import torch

from megatron_rl.ops import baselines, filters, priorities, smoothing, text, values
from tests.ops.json_inputs import Inputs, flatten, given, group_ids, like, number, tensor

Answer = dict[str, Any]


def js_baseline(inputs: Inputs) -> Answer:
    groups = inputs["groups"]
    reward_B, group_B = flatten(groups), group_ids(groups)
    match given(inputs, "variant", "paper"):
        case "paper":
            shrunk = baselines.shrinkage(reward_B, group_B)
        case "official_code":
            shrunk = baselines.shrinkage_as_released(reward_B, group_B, given(inputs, "eps", 1e-6))
        case other:
            raise ValueError(f"js_baseline has the variants 'paper' and 'official_code', got {other!r}")
    return {
        "baseline": like(shrunk.baseline_B, groups),
        "advantage": like(reward_B - shrunk.baseline_B, groups),
        "lambda": shrunk.weight_G.tolist(),
        "v": shrunk.noise_G.tolist(),
        "s": shrunk.spread_G.tolist(),
        "others_mean": shrunk.others_mean_G.tolist(),
    }


def js_optimal_lambda(inputs: Inputs) -> Answer:
    risk = baselines.shrinkage_risk(tensor(inputs["mean_sigma2"]), tensor(inputs["s2"]), inputs["n"], inputs["m"])
    names = ("v2", "lambda_paper", "lambda_exact", "mse_rloo", "mse_bloo", "mse_at_lambda_paper", "mse_at_lambda_exact")
    return {name: value.item() for name, value in zip(names, risk, strict=True)}


def rloo(inputs: Inputs) -> Answer:
    reward_B, group_B = flatten(inputs["groups"]), group_ids(inputs["groups"])
    return {"advantage": like(reward_B - baselines.rloo(reward_B, group_B), inputs["groups"])}


def bloo(inputs: Inputs) -> Answer:
    reward_B, group_B = flatten(inputs["groups"]), group_ids(inputs["groups"])
    return {"advantage": like(reward_B - baselines.bloo(reward_B, group_B), inputs["groups"])}


def grpo(inputs: Inputs) -> Answer:
    reward_B, group_B = flatten(inputs["groups"]), group_ids(inputs["groups"])
    if given(inputs, "scale", True):
        advantage_B = baselines.grpo(reward_B, group_B, given(inputs, "ddof", 1), given(inputs, "eps", 1e-6))
    else:
        advantage_B = baselines.centred(reward_B, group_B)
    return {"advantage": like(advantage_B, inputs["groups"])}


def remax(inputs: Inputs) -> Answer:
    return {"advantage": baselines.remax(tensor(inputs["rewards"]), tensor(inputs["greedy"])).tolist()}


def ers(inputs: Inputs) -> Answer:
    eps, scaled = given(inputs, "eps", 1e-4), given(inputs, "scale", True)
    answer: Answer = {name: [] for name in ("mean", "var", "std", "advantage", "advantage_prev_std")}
    state = smoothing.never_visited(1)
    for visit in inputs["visits"]:
        reward_B, group_B = tensor(visit), torch.zeros(len(visit), dtype=torch.int64)
        before = state
        state = smoothing.smooth(before, reward_B, group_B, number(inputs["alpha"]), given(inputs, "ddof", 1))
        advantage_B = smoothing.smoothed_advantage(reward_B, group_B, state)
        updated_B = smoothing.scale(advantage_B, group_B, state.variance_G, eps) if scaled else advantage_B
        previous_G = smoothing.previous_variance(before, state)
        previous_B = smoothing.scale(advantage_B, group_B, previous_G, eps) if scaled else advantage_B
        answer["mean"].append(state.mean_G.item())
        answer["var"].append(state.variance_G.item())
        answer["std"].append(state.variance_G.sqrt().item())
        answer["advantage"].append(updated_B.tolist())
        answer["advantage_prev_std"].append(previous_B.tolist())
    return answer


def pps_priorities(inputs: Inputs) -> Answer:
    groups = inputs["groups_adv"]
    scheme, eps = given(inputs, "scheme", "average"), given(inputs, "eps", 1e-6)
    return {"priority": priorities.priorities(flatten(groups), group_ids(groups), scheme, eps).tolist()}


def pps_weights(inputs: Inputs) -> Answer:
    probability_D = priorities.probabilities(tensor(inputs["priorities"]), given(inputs, "exponent", 0.6))
    drawn_N = torch.tensor(inputs["batch"], dtype=torch.int64)
    weights = priorities.draw_weights(probability_D, drawn_N, given(inputs, "beta", 0.4))
    return {
        "prob": probability_D.tolist(),
        "weight_raw": weights.raw_N.tolist(),
        "weight_norm_batch": weights.over_batch_N.tolist(),
        "weight_norm_global": weights.over_all_N.tolist(),
    }


def pps_pick(inputs: Inputs) -> Answer:
    probability_D = priorities.probabilities(tensor(inputs["priorities"]), given(inputs, "exponent", 0.6))
    return {"index": priorities.pick(probability_D, tensor(inputs["points"])).tolist()}


def vstar(inputs: Inputs) -> Answer:
    group_B = torch.zeros(len(inputs["rewards"]), dtype=torch.int64)
    return {"vstar": values.optimal_value(tensor(inputs["rewards"]), group_B, number(inputs["beta1"])).item()}


def vstar_binary(inputs: Inputs) -> Answer:
    return {"vstar": values.optimal_value_of_rate(tensor(inputs["p"]), number(inputs["beta1"])).tolist()}


def apo_filter(inputs: Inputs) -> Answer:
    kept_G = filters.ever_solved(flatten(inputs["evals"]), group_ids(inputs["evals"]))
    return {"keep": kept_G.nonzero().flatten().tolist()}


def apo_optimal_policy(inputs: Inputs) -> Answer:
    best = values.optimal_policy(tensor(inputs["ref"]), tensor(inputs["rewards"]), number(inputs["beta"]))
    names = ("policy", "vstar", "advantage", "value_of_policy")
    return {name: value.tolist() for name, value in zip(names, best, strict=True)}


def dapo_filter(inputs: Inputs) -> Answer:
    kept_G = filters.varied(flatten(inputs["groups"]), group_ids(inputs["groups"]))
    return {"keep": kept_G.nonzero().flatten().tolist()}


def dapo_overlong(inputs: Inputs) -> Answer:
    length, factor = tensor(inputs["length"]), given(inputs, "factor", 1.0)
    return {"penalty": filters.overlong_penalty(length, inputs["max_len"], inputs["buffer_len"], factor).tolist()}


def knk_reward(inputs: Inputs) -> Answer:
    return {"reward": [float(text.knights_right(case["text"], case["truth"])) for case in inputs["cases"]]}


def gsm8k_reward(inputs: Inputs) -> Answer:
    mode = given(inputs, "mode", "strict")
    return {"reward": [float(text.gsm8k_right(case["text"], case["truth"], mode)) for case in inputs["cases"]]}


def last_boxed(inputs: Inputs) -> Answer:
    return {"content": [text.last_boxed(item) for item in inputs["texts"]]}


OPERATIONS = (
    js_baseline,
    js_optimal_lambda,
    rloo,
    bloo,
    grpo,
    remax,
    ers,
    pps_priorities,
    pps_weights,
    pps_pick,
    vstar,
    vstar_binary,
    apo_filter,
    apo_optimal_policy,
    dapo_filter,
    dapo_overlong,
    knk_reward,
    gsm8k_reward,
    last_boxed,
)
