"""The group operations once more, slowly: plain Python, one rollout at a time, as the definitions read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

Groups = Sequence[Sequence[float]]


def mean(xs: Sequence[float]) -> float:
    return math.fsum(xs) / len(xs)


def variance(xs: Sequence[float], ddof: int = 1) -> float:
    return math.fsum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - ddof) if len(set(xs)) > 1 else 0.0


def without(xs: Sequence[Any], index: int) -> list[Any]:
    return [x for at, x in enumerate(xs) if at != index]


def js_baseline(groups: Groups, variant: str, eps: float) -> dict[str, Any]:
    answer: dict[str, Any] = {key: [] for key in ("baseline", "advantage", "lambda", "v", "s", "others_mean")}
    n = len(groups)
    for i, group in enumerate(groups):
        others = without(groups, i)
        target = mean([mean(g) for g in others]) if others else 0.0
        s = mean([(mean(g) - target) ** 2 for g in others]) if others else 0.0
        spreads = [variance(g) for g in others if len(g) >= 2]
        v = mean(spreads) / len(group) if spreads else 0.0
        scale, guard = ((n - 1) / n, 0.0) if variant == "paper" else (1.0, eps)
        weight = scale * v / (v + s + guard) if v else 0.0
        if len(group) == 1:
            weight = 1.0 if n >= 2 else 0.0
        own = [mean(without(group, j)) if len(group) > 1 else 0.0 for j in range(len(group))]
        baseline = [(1 - weight) * o + weight * target for o in own]
        answer["baseline"].append(baseline)
        answer["advantage"].append([r - b for r, b in zip(group, baseline, strict=True)])
        for key, value in (("lambda", weight), ("v", v), ("s", s), ("others_mean", target)):
            answer[key].append(value)
    return answer


def rloo(groups: Groups) -> list[list[float]]:
    return [[r - (mean(without(g, j)) if len(g) > 1 else 0.0) for j, r in enumerate(g)] for g in groups]


def bloo(groups: Groups) -> list[list[float]]:
    means = [mean(g) for g in groups]
    return [[r - (mean(without(means, i)) if len(groups) > 1 else 0.0) for r in g] for i, g in enumerate(groups)]


def grpo(groups: Groups, ddof: int, eps: float, scale: bool) -> list[list[float]]:
    answer = []
    for group in groups:
        centre, deviation = (mean(group), math.sqrt(variance(group, ddof))) if len(group) > 1 else (0.0, 1.0)
        answer.append([(r - centre) / (deviation + eps if scale else 1.0) for r in group])
    return answer


def optimal_lambda(sigma2: float, s2: float, n: int, m: int) -> dict[str, float]:
    v2, target = sigma2 / (m - 1), n / (n - 1) * s2 + sigma2 / (m * (n - 1))
    paper, exact = (n - 1) / n * v2 / (v2 + s2), v2 / (v2 + target)
    errors = [(1 - w) ** 2 * v2 + w**2 * target for w in (0.0, 1.0, paper, exact)]
    names = ("mse_rloo", "mse_bloo", "mse_at_lambda_paper", "mse_at_lambda_exact")
    return {"v2": v2, "lambda_paper": paper, "lambda_exact": exact, **dict(zip(names, errors, strict=True))}


def ers(visits: Groups, alpha: float | str, eps: float, ddof: int, scale: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {key: [] for key in ("mean", "var", "std", "advantage", "advantage_prev_std")}
    m = s = 0.0
    for t, group in enumerate(visits):
        mu, sigma2 = mean(group), variance(group, ddof) if len(group) > 1 else 0.0
        before = s
        if t == 0:
            m, s = mu, sigma2
            before = s
        else:
            a = 1 / (t + 1) if alpha == "1/n" else float(alpha)
            s = (1 - a) * s + a * sigma2 + a * (1 - a) * (mu - m) ** 2
            m = m + a * (mu - m)
        for key, value in (("mean", m), ("var", s), ("std", math.sqrt(s))):
            answer[key].append(value)
        for key, denominator in (("advantage", s), ("advantage_prev_std", before)):
            answer[key].append([(r - m) / (math.sqrt(denominator) + eps if scale else 1.0) for r in group])
    return answer


def pps_weights(priorities: Sequence[float], exponent: float, beta: float, batch: Sequence[int]) -> dict[str, Any]:
    powers = [p**exponent for p in priorities]
    prob = [p / sum(powers) for p in powers]
    raw = [(1 / (len(prob) * p)) ** beta for p in prob]
    chosen = [raw[i] for i in batch]
    return {
        "prob": prob,
        "weight_raw": chosen,
        "weight_norm_batch": [w / max(chosen) for w in chosen],
        "weight_norm_global": [w / max(raw) for w in chosen],
    }


def vstar(rewards: Sequence[float], beta: float) -> float:
    if beta == 0:
        return max(rewards)
    if math.isinf(beta):
        return mean(rewards)
    return max(rewards) + beta * math.log(mean([math.exp((r - max(rewards)) / beta) for r in rewards]))


def accept_probability(p: float, n: int, low: float, high: float) -> float:
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if low < k / n < high)


def selection(p: float, n_init: int, n_cont: int) -> dict[str, float]:
    """By enumeration of every outcome of the whole group."""
    total = n_init + n_cont
    accept = screen = train = spread = 0.0
    for outcome in product((0, 1), repeat=total):
        chance = math.prod(p if r else 1 - p for r in outcome)
        if 0 < sum(outcome[:n_init]) < n_init:
            accept += chance
            screen += chance * mean(outcome[:n_init])
            train += chance * mean(outcome)
            spread += chance * variance(outcome)
    scale = spread / accept / (p * (1 - p))
    return {
        "accept_prob": accept,
        "screen_mean": screen / accept,
        "train_mean": train / accept,
        "grad_scale_all": scale,
    }


def speed_trace(task: dict[str, Any]) -> dict[str, Any]:
    stream, pending, ready, store = list(task["prompts"]), [], [], {}
    events, rejected, rollouts, trained = [], [], 0, 0
    while trained < task["steps"]:
        if len(ready) >= task["train_batch"]:
            batch, ready = ready[: task["train_batch"]], ready[task["train_batch"] :]
            events.append({"kind": "train", "prompts": batch, "groups": [store[key] for key in batch]})
            trained += 1
            continue
        screen, stream = stream[: task["gen_batch"]], stream[task["gen_batch"] :]
        resumed, pending = pending, []
        if not screen and not resumed:
            break
        spent = task["n_init"] * len(screen) + task["n_cont"] * len(resumed)
        names = [prompt["id"] for prompt in screen]
        events.append({"kind": "generate", "screen": names, "continue": [key for key, _ in resumed], "rollouts": spent})
        rollouts += spent
        for key, more in resumed:
            store[key] = store[key] + more
            ready.append(key)
        for prompt in screen:
            if 0 < mean(prompt["screen"]) < 1:
                store[prompt["id"]] = list(prompt["screen"])
                pending.append((prompt["id"], list(prompt["cont"])))
            else:
                rejected.append(prompt["id"])
    return {
        "events": events,
        "rejected": rejected,
        "pending_at_end": [key for key, _ in pending],
        "ready_at_end": ready,
        "total_rollouts": rollouts,
        "prompts_consumed": len(task["prompts"]) - len(stream),
    }
