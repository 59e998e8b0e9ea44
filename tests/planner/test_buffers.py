"""Weights, gradients and optimizer state: what is predicted is what Megatron-Core allocates, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.lora import LoraSettings
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import OptimizerSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.buffers import BUCKET_MULTIPLE, buffers, extents, static, weights
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from tests import ranks
from tests.fakes.tiny_models import tiny_folder
from tests.planner.allocations import batch_of_pairs, static_bytes

LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("qwen2", {"tp": 2, "dp": 2}),
    ("qwen2", {"pp": 2, "dp": 2, "tied": True}),
    ("qwen3", {"dp": 2, "compute": "bf16"}),
    ("qwen3", {"dp": 2, "compute": "bf16", "distributed": False}),
    ("llama", {"tp": 2, "pp": 2, "compute": "bf16"}),
    ("llama", {"pp": 2, "vpp": 2, "dp": 2}),
    ("qwen2", {"tp": 2, "dp": 2, "lora": LoraSettings(rank=3, alpha=1.0)}),
    ("qwen3", {"pp": 2, "dp": 2, "tied": True, "compute": "bf16", "lora": LoraSettings(rank=4, alpha=1.0)}),
    ("qwen3_moe", {"tp": 2, "dp": 2, "ep": 2}),
    ("qwen3_moe", {"dp": 4, "ep": 2}),
    ("qwen3_moe", {"tp": 2, "dp": 2, "compute": "bf16"}),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[tuple[str, bool], Path] = {}

    def folder(family: str, tied: bool) -> Path:
        if (family, tied) not in made:
            path = tmp_path_factory.mktemp(family)
            made[family, tied] = tiny_folder(path, family, num_hidden_layers=4, tie_word_embeddings=tied)
        return made[family, tied]

    return folder


@pytest.mark.parametrize(("family", "layout"), LAYOUTS, ids=str)
def test_weights_gradients_and_optimizer_state_are_exact_on_every_rank(folders, family, layout):
    chosen = dict(layout)
    folder = folders(family, chosen.pop("tied", False))
    optimizer = {"distributed": chosen.pop("distributed", True)}
    chosen["precision"] = Precision(compute=chosen.pop("compute", "fp32"))
    actor = ActorSettings(**chosen, optimizer=OptimizerSettings(**optimizer))
    shape = describe(json.loads((folder / "config.json").read_text())).shape
    batch, tokens = batch_of_pairs(4)
    found = ranks.run(
        static_bytes, world=actor.world, folder=folder, batch=batch, tokens=tokens + 1, optimizer=optimizer, **chosen
    )
    for rank, measured in enumerate(found):
        at = actor.coordinates(rank)
        predicted = static(shape, actor, at.pp, rank % (actor.tp * actor.dp))
        assert measured == predicted, (rank, measured, predicted)
        assert sum(predicted) <= sum(static(shape, actor, at.pp))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "cut", [{"tp": 4}, {"pp": 4, "vpp": 2}, {"tp": 2, "pp": 2}, {"tp": 2, "dp": 4, "ep": 8}], ids=str
)
def test_every_weight_of_the_layout_is_counted_once(cut, tied):
    shape = ModelShape(
        family="qwen3_moe" if "ep" in cut else "qwen3",
        layers=8,
        hidden=64,
        heads=8,
        kv_heads=4,
        head_dim=16,
        ffn=160,
        vocabulary=333,
        tied=tied,
        experts=8 if "ep" in cut else 0,
        expert_ffn=32,
        dense_layers=(0, 5),
    )
    actor = ActorSettings(**cut)
    layout = megatron_layout(shape, actor)
    for stage in range(actor.pp):
        rank = stage * actor.tp * actor.dp
        held = [each for tensor in layout.tensors(rank) for each in [_size(tensor.shape)]]
        own = [one.elements for chunk in range(actor.vpp) for one in weights(shape, actor, chunk * actor.pp + stage)]
        assert sorted(held) == sorted(own)
        for chunk in range(actor.vpp):
            position = chunk * actor.pp + stage
            laid = [(buffer.size, buffer.elements) for buffer in buffers(shape, actor, position)]
            assert laid == [(extent.size, extent.elements) for extent in extents(shape, actor, position)]


def test_a_buffer_is_shared_out_evenly_and_owned_once():
    shape = ModelShape(
        family="llama", layers=3, hidden=40, heads=5, kv_heads=1, head_dim=8, ffn=72, vocabulary=77, tied=True
    )
    actor = ActorSettings(dp=6)
    (buffer,) = buffers(shape, actor, 0)
    assert buffer.size % (6 * BUCKET_MULTIPLE // 2) == 0
    assert sum(buffer.owned(rank) for rank in range(6)) == buffer.elements
    (extent,) = extents(shape, actor, 0)
    assert (extent.size, extent.elements) == (buffer.size, buffer.elements)
    assert max(buffer.owned(rank) for rank in range(6)) <= extent.most


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
