import numpy as np
import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Key, Layout
from megatron_rl.reshard.local import by_target, copy_slices, execute_local, load_rank
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan
from tests.reshard import by_hand
from tests.reshard.random_layouts import FAMILIES, random_case, random_parallel, random_shape


def blank(layout: Layout, rank: int) -> by_hand.Arrays:
    return {tensor.key: np.full(tensor.shape, -1, np.int64) for tensor in layout.tensors(rank)}


def random_shape_of(family: str, rng: np.random.Generator):
    while (shape := random_shape(rng)).family != family:
        pass
    return shape


def assert_equal(arrays: by_hand.Arrays, expected: by_hand.Arrays) -> None:
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array, err_msg=str(key))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("modules", ["local", "transformer_engine"])
def test_every_megatron_rank_loads_what_slicing_the_checkpoint_by_hand_gives(family, modules):
    rng = np.random.default_rng(11)
    for _ in range(8):
        shape = random_shape_of(family, rng)
        cut = random_parallel(rng, shape)
        layout, hf = megatron_layout(shape, cut, modules=modules), by_hand.checkpoint(shape)
        for rank in range(cut.world):
            arrays = blank(layout, rank)
            load_rank(layout, rank, hf.__getitem__, arrays)
            assert_equal(arrays, by_hand.megatron(hf, shape, cut, rank, fused_norms=modules == "transformer_engine"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_vllm_worker_receives_from_megatron_what_slicing_the_checkpoint_by_hand_gives(family, tp):
    rng = np.random.default_rng(tp)
    for _ in range(4):
        shape = random_shape_of(family, rng)
        cut = random_parallel(rng, shape)
        source, target, hf = megatron_layout(shape, cut), vllm_layout(shape, tp), by_hand.checkpoint(shape)
        sources = {rank: by_hand.megatron(hf, shape, cut, rank) for rank in range(cut.world)}
        targets = {rank: blank(target, rank) for rank in range(tp)}
        execute_local(plan(source, target, together(source, target)), sources, targets)
        for rank in range(tp):
            assert_equal(targets[rank], by_hand.vllm(hf, shape, tp, rank))


def test_random_plans_rebuild_every_target_tensor():
    for seed in range(150):
        case = random_case(seed)
        hf = by_hand.checkpoint(case.source.shape)
        loaded = {}
        for side, layout in (("source", case.source), ("target", case.target)):
            loaded[side] = {rank: blank(layout, rank) for rank in range(len(layout.ranks))}
            for rank, arrays in loaded[side].items():
                load_rank(layout, rank, hf.__getitem__, arrays)
        targets = {rank: blank(case.target, rank) for rank in loaded["target"]}
        execute_local(plan(case.source, case.target, case.placement), loaded["source"], targets)
        for rank, arrays in targets.items():
            assert_equal(arrays, loaded["target"][rank])


@pytest.mark.parametrize("family", FAMILIES)
def test_export_gives_back_the_checkpoint_one_tensor_at_a_time(family):
    rng = np.random.default_rng(3)
    for _ in range(5):
        shape = random_shape_of(family, rng)
        cut = random_parallel(rng, shape)
        source, target, hf = megatron_layout(shape, cut), huggingface_layout(shape), by_hand.checkpoint(shape)
        sources = {rank: by_hand.megatron(hf, shape, cut, rank) for rank in range(cut.world)}
        seen = set()
        for tensor, copies in by_target(plan(source, target, together(source, target)), receiver=0):
            array = np.full(tensor.shape, -1, np.int64)
            copy_slices(copies, sources, {0: {tensor.key: array}})
            np.testing.assert_array_equal(array, hf[tensor.name])
            seen.add(tensor.name)
        assert seen == hf.keys()


def test_loading_reads_each_tensor_once_and_only_what_the_rank_holds():
    shape = random_shape_of("llama", np.random.default_rng(5))
    layout, hf, read = megatron_layout(shape, Parallel(tp=2)), by_hand.checkpoint(shape), []

    def reader(name: str) -> np.ndarray:
        read.append(name)
        return hf[name]

    load_rank(layout, 1, reader, blank(layout, 1))
    assert sorted(read) == sorted(hf)


def test_padding_overwrites_whatever_was_there():
    shape = random_shape_of("qwen2", np.random.default_rng(6))
    layout, hf = vllm_layout(shape, 1), by_hand.checkpoint(shape)
    arrays = {tensor.key: np.full(tensor.shape, np.nan) for tensor in layout.tensors(0)}
    load_rank(layout, 0, hf.__getitem__, arrays)
    padding = arrays[Key(0, "model.embed_tokens.weight")][shape.vocabulary :]
    assert padding.size
    assert (padding == 0).all()
