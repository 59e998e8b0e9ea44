"""A reward whose verdicts arrive in another order than they were asked for, and depend on nothing else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

from tests.fakes import lucky


def score(data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, object]) -> float:
    digest = hashlib.sha256(f"{solution_str}{time.time_ns()}".encode()).digest()
    time.sleep(digest[0] / 255 * 0.02)
    return lucky.score(data_source, solution_str, ground_truth, extra_info)
