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
    batch, tokens = batch_of_pairs(4)
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
        print(f"{family} {layout} rank {rank}: measured {found}, predicted {kept}, {kept / found - 1:+.1%}")
        assert abs(kept / found - 1) < 0.1


def test_sequence_parallelism_cuts_what_tensor_parallelism_leaves_whole():
    architecture = describe(CONFIG)
    actor = ActorSettings(tp=4, update=UpdateSettings(microbatch_tokens=4096))
    cut = activations(architecture, actor, 0, 1, "transformer_engine").layers
    whole = activations(architecture, replace(actor, sequence_parallel=False), 0, 1, "transformer_engine").layers
    alone = activations(architecture, replace(actor, tp=1), 0, 1, "transformer_engine").layers
    assert cut < whole < alone
    assert cut == pytest.approx(alone / 4, rel=0.02)


def test_the_first_stage_holds_the_most_micro_batches():
    actor = ActorSettings(pp=4, update=UpdateSettings(microbatch_tokens=4096))
    kept = [activations(describe(CONFIG), actor, stage, 8, "torch").layers for stage in range(4)]
    assert kept[0] == 4 * kept[3]
    assert kept == sorted(kept, reverse=True)


def test_forgetting_more_keeps_less():
    actor = ActorSettings(update=UpdateSettings(microbatch_tokens=8192))
    choices = [Recompute(), Recompute(granularity="selective"), FULL]
    kept = [
        activations(describe(CONFIG), replace(actor, recompute=choice), 0, 1, "transformer_engine").total
        for choice in choices
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < kept[0] / 4


CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
}
