"""Step times that others have published, with the settings that they give, and what this planner says of the same.

NeMo RL v0.4, GRPO on OpenMathInstruct-2 on DGX-H100 with Megatron-Core and vLLM in BF16: the table of
`docs/about/performance-summary.md` and the recipes under `examples/configs/recipes/llm/performance`. The lengths of
prompts and the spread of lengths are not published: 128 tokens and the planner's default are assumed.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_rl.actor.architecture import HfConfig, describe
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.step import Forecast, forecast, write
from megatron_rl.planner.syncing import sync
from tests.planner.configs import LLAMA_8B, QWEN3_30B_A3B, QWEN3_32B

PROMPT = 128


class Published(NamedTuple):
    """Total lengths count prompt and response; `apart` are machines that engines have for themselves."""

    name: str
    seconds: float
    config: HfConfig
    nodes: int
    total_tokens: int
    cut: dict[str, int]
    engine_tp: int
    apart: int = 0
    recompute: Recompute = Recompute()


TABLE = (
    Published("Llama-3.1-8B, on-policy", 97.7, LLAMA_8B, 2, 1060, {"pp": 2}, 1, 0, Recompute(granularity="full")),
    Published("Llama-3.1-8B, one step off", 74.6, LLAMA_8B, 2, 1129, {"pp": 2}, 1, 1, Recompute(granularity="full")),
    Published("Qwen3-32B, on-policy", 393.0, QWEN3_32B, 4, 3206, {"tp": 4, "pp": 4}, 4),
    Published("Qwen3-32B, one step off", 215.0, QWEN3_32B, 8, 3207, {"tp": 4, "pp": 4}, 4, 4),
    Published("Qwen3-30B-A3B, on-policy", 225.0, QWEN3_30B_A3B, 4, 3154, {"tp": 2, "ep": 8}, 4),
    Published("Qwen3-30B-A3B, one step off", 244.0, QWEN3_30B_A3B, 4, 3158, {"pp": 2, "ep": 8}, 2, 2),
)


def predicted(row: Published) -> Forecast:
    """64 prompts x 32 rollouts, four optimizer steps, log-probabilities of policy and reference."""
    gpus = 8 * (row.nodes - row.apart)
    actor = ActorSettings(
        **row.cut,
        dp=gpus // (row.cut.get("tp", 1) * row.cut.get("pp", 1)),
        update=UpdateSettings(microbatch_tokens=4096),
        recompute=row.recompute,
    )
    job = Job(
        prompts=64,
        samples=32,
        lengths=Lengths(mean=row.total_tokens - PROMPT, most=4096 - PROMPT),
        prompt_tokens=PROMPT,
        optimizer_steps=4,
        scores=2,
        ahead=int(row.apart > 0),
    )
    setup = Setup(
        architecture=describe(row.config), cluster=Cluster(nodes=row.nodes), job=job, actor=actor, sleeps=True
    )
    engines = Engines(row.engine_tp, 8 * (row.apart or row.nodes) // row.engine_tp)
    choice = Choice(actor=actor, engines=engines, placement="split" if row.apart else "colocated")
    return forecast(setup, choice, write(setup, choice), sync(setup, choice))
