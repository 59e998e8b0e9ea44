"""All ways to cut the actor and the engines over a cluster, those that fit ranked by the time of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from megatron_rl.actor import fit, lora
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.decoding import Wave, wave
from megatron_rl.planner.hardware import GIB
from megatron_rl.planner.job import Choice, Engines, Placement, Setup
from megatron_rl.planner.memory import Footprint, Learning, elements, engine_weights, footprint, fullest_of
from megatron_rl.planner.refusals import can_share, check, check_setup
from megatron_rl.planner.step import Forecast, forecast, rough_seconds, write
from megatron_rl.planner.syncing import rough, sync
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError

RECOMPUTES: Final = (Recompute(), Recompute(granularity="selective"), Recompute(granularity="full"))
ROOMS: Final = (1, 2, 4)
"""Sequences of the greatest length that a micro-batch may hold."""
CONTEXTS: Final = (1, 2, 4, 8)
"""Ranks that share a sequence: no more than it takes for anything to fit, as data ranks exchange less."""
MICROBATCH: Final = 16384
"""Tokens that a micro-batch is given where that fits, however short the responses."""
CACHE_STEP: Final = 1.25
"""Engines whose caches differ by less write a wave in about the same time."""
MOST_STAGES: Final = 32
ENGINE_ROOM: Final = 0.7
"""The share of a GPU that an engine's weights may take."""
ABOUT: Final = 0.05
"""Times of a step that differ by less than this share count as equal: the forecast is not finer."""


class _Refused(NamedTuple):
    needs: int
    choice: Choice
    problem: str


def predict(setup: Setup, choice: Choice) -> Forecast:
    """What this one choice needs and takes; SpecError where it cannot be."""
    check(setup, choice)
    memory = footprint(setup, choice)
    if problem := memory.refusal(setup.job.longest):
        raise SpecError(f"{_named(choice)} does not fit: {problem}.")
    return forecast(setup, choice, write(setup, choice), sync(setup, choice))


def search(setup: Setup, best: int = 5) -> tuple[Forecast, ...]:
    """The fastest choices, their syncs planned to the byte; SpecError says why where there is none."""
    check_setup(setup)
    refused: list[_Refused] = []
    for cp in CONTEXTS:
        rated, problems = _rated(setup, cp)
        refused += problems
        if rated:
            break
    else:
        raise SpecError(_reason(setup, refused))
    rated.sort(key=lambda one: _order(*one))
    fastest = [forecast(setup, one, write(setup, one), sync(setup, one)) for one in _apart(rated, best)]
    return tuple(sorted(fastest, key=lambda one: _order(one.seconds, one.choice)))


def _rated(setup: Setup, cp: int) -> tuple[list[tuple[float, Choice]], list[_Refused]]:
    """About how long each choice takes that fits, and why the others do not."""
    rated: list[tuple[float, Choice]] = []
    refused: list[_Refused] = []
    waves: dict[tuple[Engines, int], Wave] = {}
    for choice, fullest in choices(setup, cp):
        memory = footprint(setup, choice, fullest)
        if problem := memory.refusal(setup.job.longest):
            refused.append(_Refused(memory.learning.total + memory.weights, choice, problem))
        else:
            rated.append((_rough(setup, choice, memory, waves), choice))
    return rated, refused


def choices(setup: Setup, cp: int = 1) -> Iterator[tuple[Choice, Learning]]:
    """Every choice that the model's sizes and the cluster's allow, with the actor's fullest rank."""
    for placement, gpus, engine_gpus in _shares(setup):
        engines = _engines(setup, engine_gpus)
        for actor, fullest in _actors(setup, gpus, cp) if engines else ():
            for one in engines:
                yield Choice(actor=actor, engines=one, placement=placement), fullest


def _engines(setup: Setup, gpus: int) -> list[Engines]:
    """Those on one machine that are left room to write, from the smallest on; larger ones only wait for their sums."""
    cluster, shape = setup.cluster, setup.architecture.shape
    near = min(gpus, cluster.gpus_per_node)  # a group stands on one machine, so machines are shared out among groups
    possible = [
        Engines(tp, gpus // tp)
        for tp in _powers(near)
        if near % tp == 0 and shape.heads % tp == 0 and can_share(shape.kv_heads, tp)
    ]
    return [one for one in possible if engine_weights(shape, one) < cluster.usable * ENGINE_ROOM][:3]


def _shares(setup: Setup) -> Iterator[tuple[Placement, int, int]]:
    """GPUs of the actor and of the engines: the same, or machines of their own."""
    cluster = setup.cluster
    if not setup.job.ahead:
        yield "colocated", cluster.gpus, cluster.gpus
    for part in (4, 2):
        apart = max(1, cluster.nodes // part)
        for nodes in {apart, cluster.nodes - apart} if cluster.nodes > 1 else ():
            yield "split", cluster.gpus - nodes * cluster.gpus_per_node, nodes * cluster.gpus_per_node
    if cluster.nodes == 1 and cluster.gpus > 1:
        yield "split", cluster.gpus // 2, cluster.gpus // 2


def _actors(setup: Setup, gpus: int, cp: int) -> Iterator[tuple[ActorSettings, Learning]]:
    """For each cut and size of micro-batches the one that forgets least of those that fit, or else most."""
    for cut in _cuts(setup, gpus, cp):
        for tokens in _budgets(setup, cut):
            for recompute in RECOMPUTES:
                update = replace(cut.update, microbatch_tokens=tokens)
                actor = replace(cut, update=update, recompute=recompute)
                fullest = fullest_of(setup, actor)
                fits = fullest.total <= setup.cluster.usable
                if fits or recompute is RECOMPUTES[-1]:
                    yield actor, fullest
                if fits:
                    break


def _cuts(setup: Setup, gpus: int, cp: int) -> Iterator[ActorSettings]:
    shape = setup.architecture.shape
    rows = setup.job.rows // setup.job.optimizer_steps
    for tp in _powers(setup.cluster.gpus_per_node):
        for pp in [pp for pp in range(1, min(shape.layers, MOST_STAGES) + 1) if gpus % (tp * cp * pp) == 0]:
            dp, stages = gpus // (tp * cp * pp), _stages(shape.layers, pp)
            if dp > rows or (stages and pp not in _powers(MOST_STAGES)):
                continue
            for vpp in (1, 2) if pp > 1 and shape.layers % (2 * pp) == 0 else (1,):
                for ep in _experts(setup, tp * cp * dp):
                    try:
                        cut = replace(setup.actor, tp=tp, pp=pp, vpp=vpp, dp=dp, ep=ep, cp=cp, stage_layers=stages)
                        fit.check(setup.architecture, cut)
                        lora.check(cut.lora, setup.architecture, cut)
                    except LayoutError:
                        continue
                    yield cut


def _stages(layers: int, pp: int) -> tuple[int, ...]:
    """Empty where layers divide; else the stages in the middle hold one more, as the ends have the vocabulary."""
    each, more = divmod(layers, pp)
    first = (pp - more) // 2
    return tuple(each + (first <= stage < first + more) for stage in range(pp)) if more else ()


def _budgets(setup: Setup, cut: ActorSettings) -> list[int]:
    longest = setup.job.longest
    budgets = {max(longest * room, min(MICROBATCH, longest * 8)) for room in ROOMS} | {longest}
    return sorted(-(-tokens // (cut.tp * 128)) * cut.tp * 128 for tokens in budgets)


def _experts(setup: Setup, ranks: int) -> Iterator[int]:
    experts = setup.architecture.shape.experts
    yield 1
    if experts:
        yield from (ep for ep in (2, 4, 8, 16, 32) if experts % ep == 0 and ranks % ep == 0)


def _powers(most: int) -> list[int]:
    return [size for size in (1, 2, 4, 8, 16, 32) if size <= most]


def _rough(setup: Setup, choice: Choice, memory: Footprint, waves: dict[tuple[Engines, int], Wave]) -> float:
    """With a wave that engines with about this much cache have written before, and a sync over the network."""
    room, rounded = max(memory.cached_tokens, 1), setup.job.longest + 1
    while rounded * CACHE_STEP <= room:
        rounded = int(rounded * CACHE_STEP) + 1
    key = (choice.engines, rounded)
    if key not in waves:
        waves[key] = wave(setup, choice.engines, rounded)
    moved = rough(setup, choice, memory.weights * choice.engines.tp)
    return rough_seconds(setup, choice, waves[key].seconds, moved.seconds)


def _order(seconds: float, choice: Choice) -> tuple[float, ...]:
    """By time, and of those that take about as long first the one that is cut least."""
    actor, engines = choice.actor, choice.engines
    about = round(math.log(seconds) / ABOUT)
    return (about, actor.pp, actor.vpp, actor.tp, actor.ep, engines.tp, -actor.update.microbatch_tokens, seconds)


def _apart(rated: Sequence[tuple[float, Choice]], best: int) -> list[Choice]:
    """The first ones that differ in more than the micro-batch's size."""
    kept: dict[object, Choice] = {}
    for _, one in rated:
        actor = one.actor
        kept.setdefault((actor.tp, actor.pp, actor.vpp, actor.ep, one.placement, one.engines), one)
        if len(kept) == best:
            break
    return list(kept.values())


def _named(choice: Choice) -> str:
    actor, engines = choice.actor, choice.engines
    cut = " ".join(
        f"{name}={getattr(actor, name)}" for name in ("tp", "cp", "pp", "dp", "vpp", "ep") if getattr(actor, name) > 1
    )
    return f"actor {cut or 'on one GPU'} with {engines.replicas} engines of tp={engines.tp}, {choice.placement},"


def _reason(setup: Setup, refused: Sequence[_Refused]) -> str:
    cluster = setup.cluster
    told = f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    shape = setup.architecture.shape
    if not any(_engines(setup, gpus) for _, _, gpus in _shares(setup)):
        whole = 2 * elements(shape) / GIB
        return (
            f"nothing fits on {told}: a rollout group stands on one machine, and weights of {whole:.0f} GiB leave no "
            f"room for a cache in its {cluster.gpus_per_node} x {cluster.usable / GIB:.0f} GiB; take larger GPUs."
        )
    if not refused:
        return (
            f"no cut of {shape.layers} layers and {shape.heads} heads divides {told}; take a number of GPUs that is a "
            "power of two times a divisor of the layers."
        )
    _, choice, problem = min(refused, key=lambda one: one[0])
    nearest = f"the nearest was {_named(choice)} where {problem}"
    return f"nothing fits on {told}; {nearest}; take more GPUs or shorter responses."
