"""A forecast in words and numbers, and what starts the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from megatron_rl.planner import learning
from megatron_rl.planner.hardware import GIB
from megatron_rl.planner.job import Choice, Setup
from megatron_rl.planner.memory import elements, longest_response, microbatches
from megatron_rl.planner.step import Forecast
from megatron_rl.planner.work import forward

MOST_SHARE: Final = 0.9
CUT: Final = ("tp", "cp", "pp", "vpp", "dp", "ep")


def report(setup: Setup, ranked: Sequence[Forecast]) -> Iterator[str]:
    """The table of ranked choices, then the first of them at length."""
    yield from _given(setup)
    yield ""
    yield f"{'':3}{'actor':<30}{'engines':<14}{'placed':<11}{'step':>8}{'learning':>12}{'cache':>12}"
    for place, one in enumerate(ranked, start=1):
        engines = one.choice.engines
        yield (
            f"{place:<3}{' '.join(cut(one.choice)):<30}{f'{engines.replicas} x tp={engines.tp}':<14}"
            f"{one.choice.placement:<11}{one.seconds:>6.1f} s{one.memory.learning.total / GIB:>8.1f} GiB"
            f"{one.memory.cache / GIB:>8.1f} GiB"
        )
    yield ""
    yield from details(setup, ranked[0])


def details(setup: Setup, one: Forecast) -> Iterator[str]:
    """Memory by part, seconds by phase, bytes of a sync, the longest response."""
    kept, memory = one.memory.learning, one.memory
    parts = {
        "weights": kept.static.parameters,
        "gradients": kept.static.gradients,
        "optimizer": kept.static.optimizer,
        "reference": kept.reference,
        "critic": kept.critic,
        "activations": kept.activations.layers,
        "logits": kept.activations.logits,
        "working": kept.activations.working,
    }
    whole = f"{kept.total / GIB:.1f} of {memory.usable / GIB:.1f} GiB"
    yield f"memory, learning (stage {kept.stage}): {_sizes(parts)}; {whole}"
    beside = f", beside {memory.shared / GIB:.1f} of the actor" if memory.is_shared else ""
    yield (
        f"memory, rollouts: weights {memory.weights / GIB:.1f}, cache {memory.cache / GIB:.1f} GiB{beside}; "
        f"{memory.cached_tokens} tokens an engine, {memory.token} bytes each; memory_share at most "
        f"{memory_share(setup, one)}"
    )
    yield f"longest response that fits: {longest_response(setup, one.choice)} tokens"
    moved = one.sync
    kept_there = f"{moved.local_bytes / GIB:.2f} in place"
    yield f"sync: {moved.wire_bytes / GIB:.2f} GiB between GPUs, {kept_there}, {moved.seconds:.2f} s"
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one.timeline.phases.items())
    busy = ", ".join(f"{machine} {share:.0%}" for machine, share in one.timeline.busy.items())
    yield f"step: {one.seconds:.1f} s ({spent}); busy: {busy}"
    split = learning.update(setup, one.choice.actor)
    yield (
        f"update: compute {split.compute:.1f} s, pipeline {split.bubble:.1f}, between tensor and expert ranks "
        f"{split.tensor:.1f}, between data ranks {split.data:.1f}; "
        f"{microbatches(setup, one.choice.actor)} micro-batches an optimizer step"
    )
    yield f"throughput: {setup.job.tokens / one.seconds / setup.cluster.gpus:.0f} tokens/s a GPU"


def cut(choice: Choice) -> list[str]:
    """The keys of the cut that are not one."""
    named = {name: getattr(choice.actor, name) for name in CUT}
    told = [f"{name}={size}" for name, size in named.items() if size > 1] or ["one GPU"]
    granularity = choice.actor.recompute.granularity
    return [*told, *([granularity] if granularity != "none" else [])]


def overrides(setup: Setup, one: Forecast) -> list[str]:
    """The choice as settings of a run."""
    actor, engines = one.choice.actor, one.choice.engines
    keys = [f"actor.{name}={getattr(actor, name)}" for name in CUT]
    if actor.stage_layers != setup.actor.stage_layers:
        keys.append(f"actor.stage_layers=[{','.join(map(str, actor.stage_layers))}]")
    keys.append(f"actor.update.microbatch_tokens={actor.update.microbatch_tokens}")
    keys.append(f"actor.recompute.granularity={actor.recompute.granularity}")
    if actor.recompute.layers != setup.actor.recompute.layers:
        keys.append(f"actor.recompute.layers={actor.recompute.layers}")
    if actor.recompute.modules != setup.actor.recompute.modules:
        keys.append(f"actor.recompute.modules=[{','.join(actor.recompute.modules)}]")
    keys += [f"rollout.vllm.tp={engines.tp}", f"rollout.vllm.replicas={engines.replicas}"]
    keys.append(f"rollout.vllm.memory_share={memory_share(setup, one)}")
    if setup.sleeps:
        keys.append(f"rollout.vllm.sleep={'true' if one.choice.placement == 'colocated' else 'false'}")
    return [*keys, f"cluster.placement={one.choice.placement}"]


def memory_share(setup: Setup, one: Forecast) -> float:
    """The most of a GPU's memory that an engine may be given, rounded down to a hundredth."""
    left = (one.memory.usable - one.memory.shared) / (setup.cluster.gpu.memory_gib * GIB)
    return min(MOST_SHARE, int(left * 100) / 100)


def sbatch(setup: Setup, config: str, settings: Sequence[str]) -> str:
    """The line that starts a run; of two settings of one key the later counts."""
    kept = {setting.partition("=")[0]: setting for setting in settings}
    keys = " ".join(shlex.quote(setting) for setting in (config, *kept.values()))
    cluster = setup.cluster
    return f"sbatch --nodes {cluster.nodes} --gpus-per-node {cluster.gpus_per_node} slurm/train.sbatch {keys}"


def _given(setup: Setup) -> Iterator[str]:
    shape, cluster, job = setup.architecture.shape, setup.cluster, setup.job
    yield (
        f"{shape.family} of {elements(shape) / 1e9:.2f} billion parameters on {cluster.nodes} x "
        f"{cluster.gpus_per_node} {cluster.gpu.name}, {setup.actor.precision.compute}"
    )
    screened = f", {job.written} rollouts written" if job.screen else ""
    yield (
        f"{job.prompts} prompts x {job.rows // job.prompts} rollouts = {job.rows} rows{screened}; prompts of "
        f"{job.prompt_tokens} tokens, responses of {job.lengths.mean:.0f} on average and {job.lengths.most} at most "
        f"({job.lengths.cut:.1%} cut off)"
    )
    work = forward(setup.architecture, job.tokens, job.squares)
    petas = f"{work / 1e15:.1f} PFLOP forward, {3 * work / 1e15:.1f} to learn"
    yield f"{job.tokens / 1e6:.2f} million tokens a step, {petas}"


def _sizes(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
