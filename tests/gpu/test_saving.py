"""A checkpoint written from a GPU, read back onto it."""

from __future__ import annotations

import pytest
import torch

from megatron_rl.actor.precision import Precision
from megatron_rl.objectives.likelihood import Likelihood
from tests.actor.saving_programs import compare
from tests.gpu.test_fp8 import possible
from tests.gpu.wide import actor_of

pytestmark = pytest.mark.gpu

PRECISIONS = {"bf16": Precision(compute="bf16"), "tensorwise": None, "delayed": None, "blockwise": None}


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_saved_is_loaded_to_the_bit_and_can_be_learnt_on(alone, qwen3, tmp_path, name):
    precision = PRECISIONS[name] or possible(name)
    first = actor_of(qwen3.folder, precision, rate=1e-3)
    for _ in range(2):
        first.update(qwen3.batch, Likelihood())
    scores_R = first.score(qwen3.batch).values
    first.save(tmp_path / "first").result()
    second = actor_of(qwen3.folder, precision, rate=1e-3)
    second.update(qwen3.batch, Likelihood())
    second.load(tmp_path / "first")
    second.save(tmp_path / "second").result()
    names, differing = compare(tmp_path / "first", tmp_path / "second")
    assert any("exp_avg_sq" in tensor for tensor in names)
    assert differing == []
    if name != "delayed":
        # Its scales follow from maxima that scoring itself moves on.
        assert torch.equal(second.score(qwen3.batch).values, scores_R)
    assert second.optimizer.progress.steps == 2
    after = second.update(qwen3.batch, Likelihood())
    assert after.metrics["nll"] == pytest.approx(first.update(qwen3.batch, Likelihood()).metrics["nll"], rel=1e-3)


def test_what_is_learnt_while_a_save_is_written_is_not_in_it(alone, qwen3, tmp_path):
    actor = actor_of(qwen3.folder, Precision(compute="bf16"), rate=1e-3)
    actor.update(qwen3.batch, Likelihood())
    actor.save(tmp_path / "waited").result()
    beside = actor.save(tmp_path / "beside")
    for _ in range(5):
        actor.update(qwen3.batch, Likelihood())
    beside.result()
    names, differing = compare(tmp_path / "waited", tmp_path / "beside")
    assert any("exp_avg_sq" in tensor for tensor in names)
    assert differing == []
