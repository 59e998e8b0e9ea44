"""Programs for the ranks of an actor: a few updates on random rollouts, and what is left of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.numpy import load_file

from megatron_rl.actor import groups, weights
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import Objective

EVERYTHING = Clipped(kl=0.1, kl_estimator="k3+", entropy=0.01, truncate=2.0)
"""An objective that reads as much as one can."""


def actor_of(folder: Path, **choices: Any) -> MegatronActor:
    """A float32 actor on the ranks that have joined; `choices` are its settings, with some shorter names."""
    tokens, packed = choices.pop("tokens", 40), choices.pop("packed", True)
    sampling, origin = choices.pop("sampling", Sampling()), choices.pop("origin", {})
    # With a smaller eps, Adam's first steps blow up the rounding of gradients that are zero but for it.
    optimizer = {"learning_rate": LearningRate(peak=1e-3), "eps": 1e-6, **choices.pop("optimizer", {})}
    update = {"microbatch_tokens": tokens, **choices.pop("update", {})}
    settings = ActorSettings(
        **{"precision": Precision(compute="fp32"), **choices},
        optimizer=OptimizerSettings(**optimizer),
        update=UpdateSettings(**update),
    )
    if not parallel_state.model_parallel_is_initialized():
        groups.cut(settings)
    actor = MegatronActor(settings, Origin(folder=folder, sampling=sampling, **origin))
    actor.limits = replace(actor.limits, packed=packed)
    return actor


def train(
    folder: Path, export: Path, batches: list[Batch], objective: Objective = EVERYTHING, **choices: Any
) -> dict[str, Any]:
    """Metrics of each update and log-probabilities after them; the weights are in the folder `export`."""
    actor = actor_of(folder, **choices)
    updates = [actor.update(batch, objective) for batch in batches]
    scored = actor.score(batches[0])
    weights.export(actor.model, export, like=folder)
    return {
        "metrics": [dict(update.metrics) for update in updates],
        "scores": scored.values.numpy(),
        "rank": dist.get_rank(),
    }


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative difference of any tensor, in the Euclidean norm."""
    assert one.keys() == other.keys()
    return max(float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(one[name])) for name in one)
