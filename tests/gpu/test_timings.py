"""Timings of the actor on this GPU: kept, compared with one another, never held against a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_rl.actor.cpu import device
from megatron_rl.actor.fused import in_use
from megatron_rl.actor.precision import Precision
from megatron_rl.objectives.likelihood import Likelihood
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder
from tests.gpu.wide import WIDE, actor_of

pytestmark = pytest.mark.gpu

LENGTHS = [*([40] * 40), *([150] * 16), *([600] * 6), 1800, 2000]
"""Sixty-four responses, long-tailed."""
LAYERS = 8


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of some runs, after two that compile and warm up."""
    taken = []
    for _ in range(2 + repeats):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken[2:])


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = WIDE | {"num_hidden_layers": LAYERS, "max_position_embeddings": 4096}
    return tiny_folder(tmp_path_factory.mktemp("deep"), "qwen3", dtype=torch.bfloat16, **changes)


def test_packed_updates_beside_one_sequence_at_a_time(alone, deep, measured):
    batch = rollouts(groups=16, samples=4, vocabulary=WIDE["vocab_size"], lengths=LENGTHS)
    packed, single = (
        actor_of(deep, Precision(compute="bf16"), tokens=8192, packed=is_packed) for is_packed in (True, False)
    )
    fast, slow = (seconds(lambda actor=actor: actor.update(batch, Likelihood()), 3) for actor in (packed, single))
    measured(packed_tokens_per_s=sum(LENGTHS) / fast, single_tokens_per_s=sum(LENGTHS) / slow, speedup=slow / fast)
    assert slow > fast


def test_an_update_costs_more_than_a_score(alone, deep, measured):
    batch = rollouts(groups=16, samples=4, vocabulary=WIDE["vocab_size"], lengths=LENGTHS)
    actor = actor_of(deep, Precision(compute="bf16"), tokens=8192)
    scoring, updating = seconds(lambda: actor.score(batch)), seconds(lambda: actor.update(batch, Likelihood()))
    measured(score_s=scoring, update_s=updating, ratio=updating / scoring)
    assert updating > scoring


def test_the_result_says_what_it_ran_on(record_property):
    """Whoever reads the numbers must know whose kernels they are of."""
    used = in_use()
    for part in ("norms", "linears", "attention", "optimizer"):
        record_property(part, getattr(used, part))
    assert device().type == "cuda"
