"""Step times that others have published, with the settings that they give, and what this planner says of the same.

NeMo RL v0.4 and v0.5, GRPO on OpenMathInstruct-2 on DGX-H100 with Megatron-Core and vLLM in BF16: the tables of
`docs/about/performance-summary.md` and the recipes under `examples/configs/recipes/llm/performance`. The lengths of
prompts and the spread of lengths are not published: 128 tokens and the planner's default are assumed.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_rl.actor.architecture import HfConfig, describe
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.decoding import wave
from megatron_rl.planner.hardware import GIB, Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.memory import cache_bytes, engine_weights
from megatron_rl.planner.step import Forecast, forecast
from megatron_rl.planner.syncing import sync
from tests.planner.configs import LLAMA_8B, QWEN3_30B_A3B, QWEN3_32B

PROMPT = 128


class Published(NamedTuple):
    """Total lengths count prompt and response; `apart` are machines that engines have for themselves."""

    name: str
    seconds: float
    total_tokens: int
    config: HfConfig
    cut: dict[str, int]
    engine_tp: int
    nodes: int
    apart: int = 0

    @property
    def recompute(self) -> Recompute:
        """As the recipes have it."""
        return Recompute(granularity="full") if "Llama" in self.name else Recompute()


TABLE = (
    Published("v0.4, Llama-3.1-8B, on-policy", 97.7, 1060, LLAMA_8B, {"pp": 2}, 1, 2),
    Published("v0.4, Llama-3.1-8B, one step off", 74.6, 1129, LLAMA_8B, {"pp": 2}, 1, 2, 1),
    Published("v0.4, Qwen3-32B, on-policy", 393.0, 3206, QWEN3_32B, {"tp": 4, "pp": 4}, 4, 4),
    Published("v0.4, Qwen3-32B, one step off", 215.0, 3207, QWEN3_32B, {"tp": 4, "pp": 4}, 4, 8, 4),
    Published("v0.4, Qwen3-30B-A3B, on-policy", 225.0, 3154, QWEN3_30B_A3B, {"tp": 2, "ep": 8}, 4, 4),
    Published("v0.4, Qwen3-30B-A3B, one step off", 244.0, 3158, QWEN3_30B_A3B, {"tp": 2, "ep": 8}, 4, 4, 2),
    Published("v0.5, Llama-3.1-8B, on-policy", 92.8, 1019, LLAMA_8B, {"pp": 2}, 1, 2),
    Published("v0.5, Llama-3.1-8B, one step off", 64.8, 1123, LLAMA_8B, {}, 1, 2, 1),
    Published("v0.5, Qwen3-32B, on-policy", 376.0, 3251, QWEN3_32B, {"tp": 4, "pp": 4}, 4, 4),
    Published("v0.5, Qwen3-32B, one step off", 200.0, 3252, QWEN3_32B, {"tp": 4, "pp": 4}, 4, 8, 4),
    Published("v0.5, Qwen3-30B-A3B, on-policy", 198.0, 3196, QWEN3_30B_A3B, {"ep": 8}, 2, 4),
    Published("v0.5, Qwen3-30B-A3B, one step off", 154.0, 3201, QWEN3_30B_A3B, {"pp": 2, "ep": 8}, 2, 4, 2),
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
    setup = Setup(architecture=describe(row.config), cluster=Cluster(nodes=row.nodes), job=job, actor=actor)
    engines = Engines(row.engine_tp, 8 * (row.apart or row.nodes) // row.engine_tp)
    choice = Choice(actor=actor, engines=engines, placement="split" if row.apart else "colocated")
    # There the actor leaves the GPU while engines write, which take the share of it that their recipes name.
    share = 0.8 if row.apart else 0.6
    cache = share * setup.cluster.gpu.memory_gib * GIB - engine_weights(setup.architecture.shape, engines)
    written = wave(setup, engines, int(cache) // cache_bytes(setup.architecture.shape, engines))
    return forecast(setup, choice, written, sync(setup, choice))
