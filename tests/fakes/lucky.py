"""A reward that a model without any skill gets half the time, so that there is something to learn from."""

from __future__ import annotations

from collections.abc import Mapping


def score(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, object]) -> float:
    return float(sum(solution_str.encode()) % 2)
