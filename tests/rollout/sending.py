"""A program for `tests.ranks`: an actor that sends its weights to an engine, learns, and sends them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_rl.actor import weights
from megatron_rl.reshard.delivery import Delivery
from tests.actor.training import EVERYTHING, actor_of
from tests.fakes.rollouts import rollouts


def send_learn_send(folder: Path, export: Path, plain: dict[str, Any], steps: int, **choices: Any) -> dict[str, float]:
    """Version 0 is the folder's weights, version 1 those after `steps` optimizer steps, which `export` then holds."""
    actor, delivery, rank = actor_of(folder, **choices), Delivery.of_plain(plain), dist.get_rank()
    exchange = delivery.sending({rank: weights.published(actor.model)})
    exchange.run(0)
    for step in range(steps):
        actor.update(rollouts(seed=step), EVERYTHING)
    # Nobody receives yet: what the ring holds waits there for the engine to ask for it.
    exchange.run(1)
    weights.export(actor.model, export, like=folder)
    return {"steps": float(steps), "chunks": float(len(actor.model.chunks))}
