"""What vLLM can draw from, when it can sleep, and when weights come while it writes, known before it is imported."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_rl.spec.schema import SpecError

COLDEST = 0.01
"""vLLM raises any lower temperature above zero to this one."""
HOTTEST = 2.0
"""vLLM refuses any higher temperature."""


def unservable(temperature: float) -> str:
    """Why vLLM cannot draw at this temperature, empty where it can."""
    if temperature == 0 or COLDEST <= temperature <= HOTTEST:
        return ""
    return f"vLLM draws at temperature 0 or from {COLDEST} to {HOTTEST}, not at {temperature}"


def refuse_unservable(temperatures: Mapping[str, float]) -> None:
    """SpecError at the first temperature that vLLM cannot draw at, by the section that sets it."""
    for section, temperature in temperatures.items():
        if why := unservable(temperature):
            raise SpecError(f"{section}.temperature: {why}; choose another or `rollout: embedded`.")


def sleepless(*, ahead: bool, split: bool) -> list[str]:
    """Why groups cannot sleep while the actor learns, one sentence each; empty where they can."""
    problems = []
    if ahead:
        problems.append(
            "rollout.vllm.sleep gives memory back while the actor learns, and with schedule.ahead the groups write "
            "then; leave one of them out."
        )
    if split:
        problems.append(
            "rollout.vllm.sleep makes room for the actor, which cluster.placement 'split' keeps on other GPUs; leave "
            "one of them out."
        )
    return problems


def unflyable(*, ahead: bool, sleeps: bool) -> list[str]:
    """Why weights cannot come while groups write, one sentence each; empty where they can."""
    problems = []
    if not ahead:
        problems.append(
            "rollout.vllm.in_flight brings weights to groups that write while the actor learns, and with "
            "schedule.ahead at 0 none does; set it to 1."
        )
    if sleeps:
        problems.append(
            "rollout.vllm.in_flight brings weights to groups that write while the actor learns, and with "
            "rollout.vllm.sleep they sleep then; leave one of them out."
        )
    return problems
