"""Run folders as telemetry leaves them, of a run that never happened but learns all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    ANSWER,
    CORRECT,
    EPOCH,
    ERROR,
    EXTRACTED,
    FINISH,
    GROUP,
    OLD_LOGPROBS,
    PHASE,
    PROMPT_ID,
    PROMPT_TEXT,
    RESPONSE_TEXT,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
    SLOT,
    SOURCE,
    STATUS,
    TOKENS,
    VERDICT,
    VERSION,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Evaluation, StepRecord
from megatron_rl.telemetry.fanout import Fanout
from megatron_rl.telemetry.jsonl import JsonlFile
from megatron_rl.telemetry.rollouts import RolloutFiles

WORDS = (
    "<eos>",
    *"0123456789",
    " a",
    " b",
    " c",
    " +",
    " −",
    " ×",
    ";",
    "\n",
    " so",
    " then",
    " carry",
    " the",
    " answer",
    " is",
    " maybe",
)
WICKED = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
"""A response that tries to leave its page."""


def piece(token: int) -> str:
    return WICKED if token == len(WORDS) else WORDS[token]


def skill(step: int, speed: float) -> float:
    """The share of right answers after `step` steps."""
    return 0.08 + 0.86 / (1 + np.exp(-(step * speed - 3)))


def rollout_batch(
    step: int, *, groups: int = 6, samples: int = 4, speed: float = 0.15, seed: int = 0, wicked: bool = False
) -> Batch:
    """A judged batch with every column a report can show."""
    rng = np.random.default_rng((seed, step))
    B = groups * samples
    right_B = rng.random(B) < skill(step, speed)
    length_B = rng.integers(8, 16 + int(40 * skill(step, speed)), B)
    rows = [[*(int(t) for t in rng.integers(1, len(WORDS), n - 1)), 0] for n in length_B]
    if wicked:
        rows[0][2] = len(WORDS)
    verdicts = np.where(right_B, "right", rng.choice(["wrong", "wrong", "wrong", "unparsable", "timeout"], B))
    sampler_T = -rng.gamma(0.35, 1.2 - 0.8 * skill(step, speed), int(length_B.sum()))
    old_T = sampler_T + rng.normal(0, 0.004, len(sampler_T))
    group_B = np.arange(B) // samples
    reward_B = right_B.astype(float) - 0.1 * (verdicts == "timeout")
    baseline_B = reward_B.reshape(groups, samples).mean(1).repeat(samples)
    lengths = torch.from_numpy(length_B)

    def ragged(values_T: np.ndarray) -> Ragged:
        return Ragged.from_lengths(torch.from_numpy(values_T.astype(np.float32)), lengths)

    return Batch.of(
        {
            PROMPT_ID: [f"arith-{seed}-{step}-{g}" for g in group_B],
            GROUP: group_B + step * groups,
            SLOT: np.arange(B) % samples,
            SOURCE: ["arithmetic"] * B,
            ANSWER: [str(int(g) % 90 + 10) for g in group_B],
            PROMPT_TEXT: [f"<q> a {g % 9} 7 ; c × 3 ; b + 5 ; c ? <think>" for g in group_B],
            EPOCH: np.full(B, step // 20),
            PHASE: ["train"] * B,
            TOKENS: Ragged.of(rows, torch.int32),
            RESPONSE_TEXT: ["".join(piece(t) for t in row[:-1]) for row in rows],
            SAMPLER_LOGPROBS: ragged(sampler_T),
            OLD_LOGPROBS: ragged(old_T),
            ADVANTAGE: ragged(np.repeat(reward_B - baseline_B, length_B)),
            REUSED: np.where(np.arange(B) % 7 == 3, 5, 0),
            FINISH: list(rng.choice(["stop", "stop", "stop", "length"], B)),
            STATUS: ["ok"] * B,
            ERROR: [""] * B,
            VERSION: np.full(B, step - 1),
            REWARD: reward_B,
            CORRECT: right_B.astype(np.uint8),
            VERDICT: verdicts.tolist(),
            EXTRACTED: [
                str(n) if v != "unparsable" else "" for n, v in zip(rng.integers(10, 99, B), verdicts, strict=True)
            ],
        }
    ).with_metrics({"shrinkage/weight_mean": 0.9 - 0.5 * skill(step, speed)})


def step_record(step: int, *, speed: float = 0.15, seed: int = 0, rollouts: int = 24) -> StepRecord:
    rng = np.random.default_rng((seed, step, 1))
    seconds = {"collect": 2.2 + 0.4 * rng.random(), "learn": 0.12, "update": 1.5 + 0.3 * rng.random(), "publish": 0.2}
    metrics = {
        "entropy": 0.25 + 0.9 * (1 - skill(step, speed)) + 0.05 * rng.random(),
        "loss": float(rng.normal(0, 0.02)),
        "grad_norm": 0.2 + 0.5 * rng.random(),
        "kl": 0.002 * step * rng.random(),
        "clip/high": 0.01 * rng.random(),
    }
    return StepRecord(step=step, seconds=seconds, metrics=metrics, rollouts=rollouts)


def evaluation(step: int, *, speed: float = 0.15, count: int = 200) -> Evaluation:
    metrics: dict[str, float] = {}
    for source, head_start in (("arithmetic", 0.0), ("knights", -4.0)):
        for measure, bonus in (("pass@1", 0.0), ("maj@8", 2.0), ("pass@8", 6.0)):
            share = skill(step + int((head_start + bonus) / speed / 4), speed)
            half = 1.96 * (share * (1 - share) / count) ** 0.5
            name = f"{source}/{measure}"
            metrics |= {name: share, f"{name}/low": max(0, share - half), f"{name}/high": min(1, share + half)}
    return Evaluation(step=step, metrics=metrics)


def write_run(folder: Path, *, steps: int = 12, speed: float = 0.15, seed: int = 0, wicked: bool = False) -> Path:
    """A finished run's folder."""
    run = Fanout(folder=folder, required=[JsonlFile(), RolloutFiles()], piece=piece)
    run.start(0, steps)
    run.evaluation(evaluation(0, speed=speed))
    for step in range(1, steps + 1):
        run.step(step_record(step, speed=speed, seed=seed), rollout_batch(step, speed=speed, seed=seed, wicked=wicked))
        if step % max(1, steps // 6) == 0:
            run.evaluation(evaluation(step, speed=speed))
    run.close("finished")
    return folder
