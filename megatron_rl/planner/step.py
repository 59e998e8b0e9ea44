"""One step of a run as phases on machines, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_rl.planner import learning
from megatron_rl.planner.decoding import Wave, wave
from megatron_rl.planner.job import Choice, Setup
from megatron_rl.planner.memory import Footprint, footprint
from megatron_rl.planner.syncing import Sync
from megatron_rl.planner.timeline import Phase, Timeline, simulate

ACTOR, ENGINES, JUDGES = "actor", "engines", "judges"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a choice needs and takes: Forecast(choice=..., memory=..., wave=..., sync=..., timeline=...)."""

    choice: Choice
    memory: Footprint
    wave: Wave
    sync: Sync
    timeline: Timeline

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.timeline.step


def forecast(setup: Setup, choice: Choice, written: Wave, moved: Sync) -> Forecast:
    """The step of this choice, whose rollouts and sync are known."""
    return Forecast(
        choice=choice,
        memory=footprint(setup, choice),
        wave=written,
        sync=moved,
        timeline=simulate(tuple(phases(setup, choice, written.seconds, moved.seconds))),
    )


def write(setup: Setup, choice: Choice) -> Wave:
    """The wave of rollouts of this choice."""
    return wave(setup, choice.engines, footprint(setup, choice).cached_tokens)


def phases(setup: Setup, choice: Choice, writing: float, moving: float) -> Iterator[Phase]:
    """In the order of the loop; engines on the actor's GPUs are the same machine as the actor.

    With rollouts `ahead` steps old the next wave starts from the weights of that many steps earlier, so it is written
    while the actor learns.
    """
    job, is_apart = setup.job, choice.placement == "split"
    engines = ENGINES if is_apart else ACTOR
    scoring = learning.score(setup, choice.actor)
    collected = (("sync", 1 + job.ahead),)
    if job.drafted:
        yield Phase("drafts", scoring, (ACTOR,), collected)
        collected = (("drafts", 0),)
    yield Phase("rollout", writing, (engines,), collected)
    judged = job.written * job.judging.seconds / job.judging.processes
    yield Phase("judge", judged, (JUDGES,), (("rollout", 0),))
    yield Phase("score", job.scores * scoring, (ACTOR,), (("judge", 0),))
    yield Phase("update", learning.update(setup, choice.actor).total, (ACTOR,), (("score", 0),))
    yield Phase("sync", moving, (ACTOR, ENGINES) if is_apart else (ACTOR,), (("update", 0),))


def rough_seconds(setup: Setup, choice: Choice, writing: float, moving: float) -> float:
    """What a step takes about, for a search: machines of their own work at the same time where rollouts may lag."""
    every = tuple(phases(setup, choice, writing, moving))
    if choice.placement == "colocated" or not setup.job.ahead:
        return sum(phase.seconds for phase in every)
    return max(sum(phase.seconds for phase in every if machine in phase.needs) for machine in (ACTOR, ENGINES))
