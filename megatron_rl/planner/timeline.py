"""The phases of a run's steps on the machines they need, event by event, until the steps follow each other evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

STEPS: Final = 12


class Phase(NamedTuple):
    """Phase("update", 4.0, needs=("actor",), after=(("score", 0),)): starts when its machines are free."""

    name: str
    seconds: float
    needs: tuple[str, ...]
    after: tuple[tuple[str, int], ...] = ()
    """Phases that must have ended, and how many steps earlier theirs may be."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds a step takes once the run has found its rhythm, and those that each machine works of them."""

    step: float
    phases: Mapping[str, float]
    busy: Mapping[str, float]
    """By machine, the share of a step in which it works."""


def simulate(phases: Sequence[Phase]) -> Timeline:
    """Phases are taken in their order within a step; a machine does one at a time, first come first served."""
    # Steps that may begin before any has ended have no rhythm yet.
    steps = STEPS + 3 * max((earlier for phase in phases for _, earlier in phase.after), default=0)
    free: dict[str, float] = {}
    ended: dict[tuple[str, int], float] = {}
    # A phase follows itself, so the next events are among the next step of each.
    following = dict.fromkeys(phases, 0)
    for _ in range(steps * len(phases)):
        begin, step, place = min(
            (_start(phase, step, free, ended), step, place)
            for place, (phase, step) in enumerate(following.items())
            if step < steps and all(at < 0 or (name, at) in ended for name, at in _before(phase, step))
        )
        phase = phases[place]
        following[phase] = step + 1
        end = begin + phase.seconds
        ended[phase.name, step] = end
        for machine in phase.needs:
            free[machine] = end
    last = phases[-1].name
    # Neither the first steps, which find everything free, nor the last, which nothing follows.
    begun, done = steps // 3, 2 * steps // 3
    period = (ended[last, done] - ended[last, begun]) / (done - begun)
    machines = {machine for phase in phases for machine in phase.needs}
    busy = {
        machine: sum(phase.seconds for phase in phases if machine in phase.needs) / period if period else 0.0
        for machine in sorted(machines)
    }
    return Timeline(step=period, phases={phase.name: phase.seconds for phase in phases}, busy=busy)


def _before(phase: Phase, step: int) -> list[tuple[str, int]]:
    """What must have ended: its predecessors, and the same phase of the step before."""
    return [*((name, step - earlier) for name, earlier in phase.after), (phase.name, step - 1)]


def _start(phase: Phase, step: int, free: Mapping[str, float], ended: Mapping[tuple[str, int], float]) -> float:
    known = [ended[name, at] for name, at in _before(phase, step) if at >= 0]
    return max([0.0, *known, *(free.get(machine, 0.0) for machine in phase.needs)])
