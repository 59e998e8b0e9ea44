"""What ranks and other processes do in the tests of conversion."""

import sys
from pathlib import Path

import torch

from megatron_rl.actor import conversion, saving, weights
from megatron_rl.actor.parallel import Parallel
from tests.actor.saving_programs import learn, learner, save

SHARD_BYTES = 60_000


def differing_after_load(folder: Path, other: Path, converted: Path, parallel: dict) -> list[str]:
    """Loads a converted checkpoint into an actor of other weights; names the tensors that are not the folder's bits.

    Main parameters must follow too, or the optimizer's next step would bring the old weights back: so one is taken.
    """
    model, chunks, optimizer = learner(other, parallel)
    assert saving.load(converted, [chunk.module for chunk in chunks], optimizer.megatron) == {}
    for group in optimizer.megatron.param_groups:
        group["lr"] = 0.0
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.main_grad.fill_(1.0)
    optimizer.megatron.step()
    loaded = {key: tensor.clone() for key, tensor in weights.parameters(model).items()}
    weights.load(model, folder)
    return [str(key) for key, tensor in weights.parameters(model).items() if not torch.equal(tensor, loaded[key])]


def save_and_export(folder: Path, to: Path, exported: Path, parallel: dict) -> None:
    """What an actor has after two steps, as its checkpoint and as its own export."""
    model, chunks, optimizer = learner(folder, parallel)
    learn(chunks, optimizer, 2)
    save(to, [chunk.module for chunk in chunks], optimizer.megatron, {"steps": 2})
    weights.export(model, exported, like=folder, shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    if (source / "config.json").exists():
        conversion.to_megatron(source, target, Parallel(tp=2, pp=2))
    else:
        conversion.to_huggingface(source, target)
