"""The token operations once more, slowly: plain Python, one token at a time, as the definitions read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tests.ops.reference_groups import mean, variance

Matrix = Sequence[Sequence[float]]


def clamp(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def token_weight(mode: str, mask: Matrix, row: int, l_max: float | None) -> float:
    """The factor in front of a live token's loss."""
    live = sum(sum(r) for r in mask)
    rows = sum(any(r) for r in mask)
    if mode == "token-sum":
        return 1.0
    if mode == "token-mean":
        return 1 / live
    if mode == "seq-mean-token-mean":
        return 1 / (rows * sum(mask[row]))
    if mode == "seq-mean-token-sum":
        return 1 / rows
    return 1 / (rows * l_max)


def ppo_loss(task: dict[str, Any]) -> dict[str, Any]:
    mask, c = task["mask"], task["dual_clip"]
    loss, clipped, live = 0.0, 0, 0
    per_token: list[list[float]] = []
    grads: list[list[float]] = []
    for b, row in enumerate(task["logp"]):
        per_token.append([])
        grads.append([])
        adv = task["adv"][b]
        for t, logp in enumerate(row):
            if not mask[b][t]:
                per_token[b].append(0.0)
                grads[b].append(0.0)
                continue
            rho = math.exp(clamp(logp - task["old_logp"][b][t], -20, 20))
            plain, bounded = -adv * rho, -adv * clamp(rho, 1 - task["clip_low"], 1 + task["clip_high"])
            value, slope = max(plain, bounded), -adv * rho if plain >= bounded else 0.0
            if c is not None and adv < 0 and value > -adv * c:
                value, slope = -adv * c, 0.0
            w = task["weights"][b][t] if task.get("weights") else 1.0
            factor = token_weight(task["agg"], mask, b, task.get("l_max"))
            per_token[b].append(value * w)
            grads[b].append(slope * w * factor)
            loss += value * w * factor
            clipped += bounded > plain
            live += 1
    return {"loss": loss, "per_token": per_token, "grad_logp": grads, "clipfrac": clipped / live if live else 0.0}


def aggregate(mat: Matrix, mask: Matrix, mode: str, l_max: float | None) -> float:
    return math.fsum(
        x * token_weight(mode, mask, b, l_max)
        for b, row in enumerate(mat)
        for x, live in zip(row, mask[b], strict=True)
        if live
    )


def kl(logp: float, ref: float) -> tuple[float, float, float, float]:
    d = logp - ref
    back = clamp(-d, -20, 20)
    return d, d * d / 2, clamp(math.exp(back) - back - 1, -10, 10), abs(d)


def tis(task: dict[str, Any]) -> list[list[float]]:
    answer = []
    for b, row in enumerate(task["logp_train"]):
        live = task["mask"][b]
        reused = task["reused"][b] if task.get("reused") else [0] * len(row)
        gaps = [
            0.0 if again else logp - sampled
            for logp, sampled, again in zip(row, task["logp_rollout"][b], reused, strict=True)
        ]
        whole = clamp(sum(g for g, alive in zip(gaps, live, strict=True) if alive), -20, 20)
        weights = []
        for gap, alive in zip(gaps, live, strict=True):
            w = math.exp(whole if task["level"] == "sequence" else gap)
            if task["level"] == "icepop":
                w = w if task["floor"] <= w <= task["cap"] else 0.0
            weights.append(min(w, task["cap"]) if alive else 0.0)
        answer.append(weights)
    return answer


def whiten(mat: Matrix, mask: Matrix) -> list[list[float]]:
    live = [x for row, alive in zip(mat, mask, strict=True) for x, a in zip(row, alive, strict=True) if a]
    if not live:
        return [[0.0] * len(row) for row in mat]
    centre = mean(live)
    scale = math.sqrt((variance(live) if len(live) > 1 else 0.0) + 1e-8)
    return [
        [(x - centre) / scale if a else 0.0 for x, a in zip(r, m, strict=True)] for r, m in zip(mat, mask, strict=True)
    ]


def gae(task: dict[str, Any]) -> dict[str, Any]:
    raw: list[list[float]] = []
    returns: list[list[float]] = []
    for rewards, values, mask in zip(task["rewards"], task["values"], task["mask"], strict=True):
        advantage, following, row, back = 0.0, 0.0, [0.0] * len(mask), [0.0] * len(mask)
        for t in reversed(range(len(mask))):
            if mask[t]:
                advantage = rewards[t] + task["gamma"] * following - values[t] + task["gamma"] * task["lam"] * advantage
                following = values[t]
                row[t], back[t] = advantage, advantage + values[t]
        raw.append(row)
        returns.append(back)
    return {"advantage_raw": raw, "returns": returns, "advantage_whitened": whiten(raw, task["mask"])}


def reinforce_pp(rewards: Sequence[float], mask: Matrix, gamma: float) -> dict[str, Any]:
    returns = [
        [r * gamma ** sum(row[t + 1 :]) if row[t] else 0.0 for t in range(len(row))]
        for r, row in zip(rewards, mask, strict=True)
    ]
    return {"returns": returns, "advantage": whiten(returns, mask)}


def value_loss(task: dict[str, Any]) -> float:
    c = task["clip"]
    errors = [
        max((v - r) ** 2, (clamp(v, o - c, o + c) - r) ** 2)
        for key in range(len(task["values"]))
        for v, o, r, alive in zip(
            *(task[name][key] for name in ("values", "old_values", "returns", "mask")), strict=True
        )
        if alive
    ]
    return mean(errors) / 2 if errors else 0.0


def apo_loss(task: dict[str, Any]) -> dict[str, Any]:
    ratios = [
        math.fsum(a - b for a, b, alive in zip(logp, ref, mask, strict=True) if alive)
        for logp, ref, mask in zip(task["logp"], task["ref_logp"], task["mask"], strict=True)
    ]
    targets = [r - v for r, v in zip(task["rewards"], task["v"], strict=True)]
    residuals = [task["beta2"] * d - target for d, target in zip(ratios, targets, strict=True)]
    live = [any(mask) for mask in task["mask"]]
    rows = sum(live)
    return {
        "seq_log_ratio": ratios,
        "target_advantage": targets,
        "residual": residuals,
        "loss": sum(x * x for x, alive in zip(residuals, live, strict=True) if alive) / rows if rows else 0.0,
        "grad_seq_logp": [
            2 * task["beta2"] * x / rows if alive else 0.0 for x, alive in zip(residuals, live, strict=True)
        ],
    }


def spec_verify(task: dict[str, Any]) -> dict[str, Any]:
    limit, log_l = task["max_response"], task["log_lenience"]
    names = ("accept", "cut", "draft_len", "all_accepted", "needs_generation", "max_new_tokens")
    answer: dict[str, Any] = {name: [] for name in names}
    for b, (old, new, us) in enumerate(zip(task["old_logp"], task["new_logp"], task["u"], strict=True)):
        accept = []
        for o, n, u in list(zip(old, new, us, strict=True))[:limit]:
            if log_l == math.inf:
                accept.append(True)
            elif n == -math.inf:
                accept.append(False)
            else:
                accept.append(n - o + log_l >= 0 or math.log(max(u, 1e-12)) <= n - o + log_l)
        cut = accept.index(False) if False in accept else len(accept)
        finished = task["finished"][b] if task.get("finished") else True
        whole = cut == len(accept)
        generate = not (whole and (finished or len(accept) == limit))
        row = (accept, cut, len(accept), whole, generate, limit - cut if generate else 0)
        for name, value in zip(names, row, strict=True):
            answer[name].append(value)
    tokens = sum(answer["draft_len"])
    answer["reused_fraction"] = sum(answer["cut"]) / tokens if tokens else 0.0
    answer["full_reuse_fraction"] = sum(answer["all_accepted"]) / len(answer["cut"])
    return answer


def output_law(new: Sequence[float], old: Sequence[float], lenience: float) -> tuple[float, list[float]]:
    kept = [q if lenience == math.inf else min(q, lenience * p) for p, q in zip(new, old, strict=True)]
    return sum(kept), [m + (1 - sum(kept)) * p for m, p in zip(kept, new, strict=True)]


def sequence_law(task: dict[str, Any]) -> dict[str, Any]:
    """Every path of two draft tokens and what follows it."""
    size = len(task["p_first"])
    p1, p2, q1, q2, lenience = (task[key] for key in ("p_first", "p_second", "q_first", "q_second", "lenience"))
    joint, expected = [[0.0] * size for _ in range(size)], 0.0
    for x in range(size):
        accept_x = min(1.0, lenience * p1[x] / q1[x])
        for fresh in range(size):
            for y in range(size):
                joint[fresh][y] += q1[x] * (1 - accept_x) * p1[fresh] * p2[fresh][y]
        for y in range(size):
            accept_y = min(1.0, lenience * p2[x][y] / q2[x][y])
            reach = q1[x] * accept_x * q2[x][y]
            joint[x][y] += reach * accept_y
            for fresh in range(size):
                joint[x][fresh] += reach * (1 - accept_y) * p2[x][fresh]
            expected += reach * accept_y
        expected += q1[x] * accept_x
    target = [[p1[x] * p2[x][y] for y in range(size)] for x in range(size)]
    distance = sum(abs(joint[x][y] - target[x][y]) for x in range(size) for y in range(size)) / 2
    return {"joint": joint, "target": target, "total_variation": distance, "expected_cut": expected}
