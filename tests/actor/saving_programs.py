"""What ranks do in the tests of saving: build, learn from made-up gradients, save and load."""

import gc
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_rl import checkpoint
from megatron_rl.actor import groups, saving, weights
from megatron_rl.actor.build import build
from megatron_rl.actor.optimizer import Optimizer, OptimizerSettings, wrapped
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.beside import beside, finished
from tests.small_disks import fill, read_only


def learner(folder: Path, parallel: dict, distributed: bool = True):
    groups.cut(Parallel(**parallel))
    model = build(weights.read_config(folder), Parallel(**parallel), Precision())
    weights.load(model, folder)
    chunks = wrapped(model.chunks, model.config, OptimizerSettings(distributed=distributed))
    return model, chunks, Optimizer.of(chunks, OptimizerSettings(distributed=distributed))


def save(to: Path, modules: list, optimizer, progress: dict) -> None:
    """Every rank waits until the folder is complete."""
    saving.set_aside(to, modules, optimizer, progress, saving.Writers())()


def learn(chunks, optimizer, steps: int) -> None:
    """Steps on gradients that depend on the weights alone, so equal weights stay equal at every cut."""
    for _ in range(steps):
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.main_grad.copy_(torch.sin(parameter.data * 100))
        optimizer.step(optimizer.gradient_norm())


def save_fresh(folder: Path, to: Path, parallel: dict, steps: int = 3, distributed: bool = True) -> None:
    _, chunks, optimizer = learner(folder, parallel, distributed)
    learn(chunks, optimizer, steps)
    save(to, [chunk.module for chunk in chunks], optimizer.megatron, {"steps": steps})


def save_while_learning(folder: Path, to: Path, parallel: dict) -> bool:
    """Sets aside what three steps learnt, and writes it while all ranks learn on; whether that was before its end."""
    _, chunks, optimizer = learner(folder, parallel)
    learn(chunks, optimizer, 3)
    modules = [chunk.module for chunk in chunks]
    write = saving.set_aside(to, modules, optimizer.megatron, {"steps": 3}, saving.Writers())
    has_learnt = threading.Event()
    learn(chunks, optimizer, 1)
    written = beside(lambda: (has_learnt.wait(60), write()), "save")
    is_beside = not written.done()
    learn(chunks, optimizer, 1)
    has_learnt.set()
    learn(chunks, optimizer, 20)
    written.result(60)
    return is_beside


def hang_in_the_second_rank(folder: Path, to: Path, parallel: dict) -> tuple[str, bool, str]:
    """While the second one's disk takes nothing: what this rank says it writes, whether it is done; then the end."""
    _, chunks, optimizer = learner(folder, parallel)
    writers, rank, ends = saving.Writers(), dist.get_rank(), time.monotonic() + 60
    write = saving.set_aside(to, [chunk.module for chunk in chunks], optimizer.megatron, {}, writers)
    own = to / f"__{rank}_0.distcp"
    if rank == 1:
        os.mkfifo(own)  # a program that opens it to write waits until another reads
    written = beside(write, "save")
    while bool(writers.at) != (rank == 1) or not own.exists():
        assert time.monotonic() < ends, f"rank {rank} is at {writers.at!r}"
        time.sleep(0.01)
    dist.barrier()
    seen = writers.at, written.done()
    dist.barrier()
    if rank == 1:
        own.read_bytes()
    return *seen, str(written.exception(60))


def collects_garbage_while_it_writes(folder: Path, to: Path, parallel: dict) -> list[bool]:
    seen, asked = [], filesystem_async._process_memory
    filesystem_async._process_memory = lambda: seen.append(gc.isenabled()) or asked()
    save_fresh(folder, to, parallel, steps=0)
    filesystem_async._process_memory = asked
    return seen


def left_running(folder: Path, to: Path, parallel: dict) -> list[str]:
    """Commands of the processes that a save started and left."""
    save_fresh(folder, to, parallel, steps=0)
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [command for command in commands if "resource_tracker" not in command]


def save_checkpoint(folder: Path, to: Path, parallel: dict) -> None:
    """A whole checkpoint, manifest and memory too, as a run makes it: one rank leads, and the others save with it."""
    _, chunks, optimizer = learner(folder, parallel)
    learn(chunks, optimizer, 1)
    modules, leads = [chunk.module for chunk in chunks], dist.get_rank() == 0

    class Everyone:
        def save(self, folder: Path) -> Future[None]:
            dist.broadcast_object_list([folder])
            return finished(save(folder, modules, optimizer.megatron, {"steps": 1}))

    if leads:
        checkpoint.save(to, 1, Everyone(), {"sampler": {"drawn": 7}}, {"of": "tests"})
    else:
        where: list[Path] = [to]
        dist.broadcast_object_list(where)
        save(where[0], modules, optimizer.megatron, {"steps": 1})


def save_on_a_full_disk(folder: Path, disk: Path, leaves: list[float]) -> list[tuple[str, int]]:
    """What each save says that finds room for this part of itself, and the step that is loaded after it."""
    _, chunks, optimizer = learner(folder, {})
    modules = [chunk.module for chunk in chunks]

    class Alone:
        def save(self, folder: Path) -> Future[None]:
            return finished(save(folder, modules, optimizer.megatron, {"steps": 1}))

        def load(self, folder: Path) -> None:
            saving.load(folder, modules, optimizer.megatron)

    root, actor = disk / "checkpoints", Alone()
    first = checkpoint.save(root, 1, actor, {}, {}).folder
    size = sum(path.stat().st_size for path in first.rglob("*"))
    told = []
    for leave in leaves:
        filler = fill(disk, int(leave * size))
        told.append(_refused(root, actor))
        filler.unlink()
    with read_only(disk):
        told.append(_refused(root, actor))
    assert checkpoint.save(root, 2, actor, {}, {}).step == checkpoint.load(checkpoint.latest(root), actor)[0].step
    return told


def _refused(root: Path, actor) -> tuple[str, int]:
    said = ""
    try:
        checkpoint.save(root, 2, actor, {}, {})
    except checkpoint.CheckpointError as error:
        said = str(error)
    return said, checkpoint.load(checkpoint.latest(root), actor)[0].step


def pass_on(
    folder: Path, at: Path, to: Path, parallel: dict, steps: int = 0, distributed: bool = True
) -> dict[str, object]:
    """Loads a checkpoint into a model that has been somewhere else, learns on, saves again."""
    _, chunks, optimizer = learner(folder, parallel, distributed)
    learn(chunks, optimizer, 1)
    progress = saving.load(at, [chunk.module for chunk in chunks], optimizer.megatron)
    learn(chunks, optimizer, steps)
    save(to, [chunk.module for chunk in chunks], optimizer.megatron, progress)
    return progress if dist.get_rank() == 0 else {}


def compare(one: Path, other: Path) -> tuple[list[str], list[str]]:
    """The names of a checkpoint's tensors, and of those that are not the same bits in the other."""
    ours, theirs = (_flat(dist_checkpointing.load_plain_tensors(str(folder))) for folder in (one, other))
    differing = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    return sorted(ours), differing + sorted(theirs.keys() - ours.keys())


def _flat(tree: object, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {name: tensor for key, value in items for name, tensor in _flat(value, f"{prefix}/{key}").items()}


def strangers(folder: Path, parallel: dict) -> list[str]:
    """Parameters whose place in the optimizer holds a main parameter of other values."""
    _, chunks, optimizer = learner(folder, parallel)
    names = {parameter: name for chunk in chunks for name, parameter in chunk.module.named_parameters()}
    (inner,) = optimizer.megatron.chained_optimizers
    mistaken = []
    for parameter, (group, order) in inner.model_param_group_index_map.items():
        main = inner.optimizer.param_groups[group]["params"][order]
        if not torch.equal(main.to(parameter.dtype), parameter.flatten()):
            mistaken.append(names[parameter])
    return mistaken
