"""Batches with every column of the dictionary filled in, for contract suites."""

from __future__ import annotations

import numpy as np

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DICTIONARY, GROUP, PROMPT_ID, Column

ROLLOUTS_OF = {0: 3, 1: 1, 2: 4, 3: 2}
TEXTS = {"phase": "train", "finish": "stop", "status": "ok", "error": "", "extra": "{}", "verdict": "right"}


def full_batch(seed: int = 0) -> Batch:
    """Four prompts with 3, 1, 4 and 2 rollouts, rows shuffled, every declared column written."""
    draw = np.random.default_rng(seed)
    group_B = np.repeat(list(ROLLOUTS_OF), list(ROLLOUTS_OF.values()))
    draw.shuffle(group_B)
    length_B = draw.integers(1, 6, len(group_B))
    columns = {column: _fill(column, draw, length_B) for column in DICTIONARY.values()}
    slot_B = [int((group_B[:row] == group).sum()) for row, group in enumerate(group_B)]
    identity = {GROUP: group_B, PROMPT_ID: [f"prompt{g}" for g in group_B], DICTIONARY["slot"]: slot_B}
    return Batch.of(columns | identity)


def _fill(column: Column, draw: np.random.Generator, length_B: np.ndarray) -> list:
    count = len(length_B)
    if column.is_ragged:
        flags = "uint8" in str(column.type)
        return [
            (
                [1] * n
                if flags
                else (draw.random(n) if "float" in str(column.type) else draw.integers(0, 30, n)).tolist()
            )
            for n in length_B
        ]
    if str(column.type) == "string":
        return [TEXTS.get(column.name, f"{column.name}{row}") for row in range(count)]
    if column.name in ("correct", "reward"):
        return draw.integers(0, 2, count).tolist()
    return [1] * count if str(column.type) == "uint8" else draw.integers(1, 50, count).tolist()
