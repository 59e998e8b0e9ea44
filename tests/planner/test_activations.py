"""Activations: what is predicted against what autograd saved in an update of the real actor."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.activations import activations
from tests import ranks
from tests.fakes.tiny_models import tiny_folder
from tests.planner.allocations import batch_of_pairs, saved_bytes
from tests.planner.configs import QWEN3_8B

FULL = Recompute(granularity="full")
LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("qwen2", {}),
    ("qwen2", {"recompute": FULL}),
    ("qwen3", {"tp": 2}),
    ("qwen3", {"recompute": Recompute(granularity="selective")}),
    ("llama", {"tp": 2, "sequence_parallel": False, "recompute": Recompute(granularity="selective", modules=("mlp",))}),
    ("llama", {"pp": 2}),
    ("llama", {"pp": 2, "vpp": 2}),
    ("llama", {"pp": 2, "recompute": Recompute(granularity="full", method="block")}),
    ("qwen3", {"cp": 2}),
    ("qwen3", {"cp": 2, "recompute": Recompute(granularity="selective")}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"tp": 2, "recompute": FULL}),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    sizes = {"num_hidden_layers": 4, "intermediate_size": 160}
    return {
        family: tiny_folder(tmp_path_factory.mktemp(family), family, **sizes)
        for family in ("qwen2", "qwen3", "llama", "qwen3_moe")
    }


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=str)
def test_what_autograd_keeps_is_predicted_within_a_tenth(folders, family, layout):
    batch, tokens = batch_of_pairs(4, multiple=2 * layout["cp"] if "cp" in layout else 1)
    tokens += tokens % layout.get("tp", 1)
    actor = ActorSettings(
        **layout, precision=Precision(compute="fp32"), update=UpdateSettings(microbatch_tokens=tokens)
    )
    architecture = describe(json.loads((folders[family] / "config.json").read_text()))
    measured = ranks.run(saved_bytes, world=actor.world, folder=folders[family], batch=batch, tokens=tokens, **layout)
    for rank, found in enumerate(measured):
        stage = actor.coordinates(rank).pp
        predicted = activations(architecture, actor, stage, 4, "reference")
        kept = predicted.layers + predicted.logits
        assert abs(kept / found - 1) < 0.1, (family, rank, found, kept)


def test_sequence_parallelism_cuts_what_tensor_parallelism_leaves_whole():
    architecture = describe(QWEN3_8B)
    actor = ActorSettings(tp=4, update=UpdateSettings(microbatch_tokens=4096))
    cut = activations(architecture, actor, 0, 1, "transformer_engine").layers
    whole = activations(architecture, replace(actor, sequence_parallel=False), 0, 1, "transformer_engine").layers
    alone = activations(architecture, replace(actor, tp=1), 0, 1, "transformer_engine").layers
    assert cut < whole < alone
    assert cut == pytest.approx(alone / 4, rel=0.02)


def test_the_first_stage_holds_the_most_micro_batches():
    actor = ActorSettings(pp=4, update=UpdateSettings(microbatch_tokens=4096))
    kept = [activations(describe(QWEN3_8B), actor, stage, 8, "torch").layers for stage in range(4)]
    assert kept[0] == 4 * kept[3]
    assert kept == sorted(kept, reverse=True)


def test_forgetting_more_keeps_less():
    actor = ActorSettings(update=UpdateSettings(microbatch_tokens=8192))
    choices = [Recompute(), Recompute(granularity="selective"), FULL]
    kept = [
        activations(describe(QWEN3_8B), replace(actor, recompute=choice), 0, 1, "transformer_engine").total
        for choice in choices
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0] / 4
