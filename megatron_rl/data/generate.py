"""Prompt files made offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.knights import Knights
from megatron_rl.data.prompt_file import Prompt, write_prompts


class Generator(Protocol):
    """Makes different prompts, the same ones for the same seed."""

    def prompts(self, count: int, seed: int) -> Iterator[Prompt]: ...


GENERATED: Final[Mapping[str, type[Generator]]] = {"arithmetic": Arithmetic, "knights": Knights}
"""By the name that `megatron-rl data` takes; the fields of the class are its options."""


def generate(generator: Generator, target: Path, count: int, seed: int) -> int:
    """Writes the prompt file `target` and returns how many prompts it has."""
    return write_prompts(target, generator.prompts(count, seed))
