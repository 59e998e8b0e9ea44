"""What vLLM can draw from, known before it is imported."""

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
