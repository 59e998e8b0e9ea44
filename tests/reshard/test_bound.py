import numpy as np

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.bound import covered, gather_bytes, missing_by_gpu, wire_bound
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import Placement, split
from tests.reshard import by_hand
from tests.reshard.random_layouts import random_case

SHAPE = ModelShape(
    family="llama", layers=2, hidden=4, heads=2, kv_heads=2, head_dim=2, ffn=6, vocabulary=10, item_bytes=2
)
ELEMENTS = 2 * 10 * 4 + 4 + 2 * (4 * 4 * 4 + 3 * 4 * 6 + 2 * 4)
NORMS = 4 + 2 * 2 * 4


def held_ids(layout, rank, ids):
    return {
        element
        for tensor in layout.tensors(rank)
        for piece in tensor.pieces
        for element in ids[piece.name][slices(piece.box)].flatten()
    }


def test_the_bound_is_what_sets_of_elements_say():
    for seed in range(40):
        case = random_case(seed)
        ids = by_hand.checkpoint(case.source.shape)
        sources = [held_ids(case.source, rank, ids) for rank in range(len(case.source.ranks))]
        expected = {}
        for gpu in dict.fromkeys(case.placement.target):
            here = [own for own, place in zip(sources, case.placement.source, strict=True) if place == gpu]
            ranks = [rank for rank, place in enumerate(case.placement.target) if place == gpu]
            needed = set().union(*(held_ids(case.target, rank, ids) for rank in ranks))
            expected[gpu] = len(needed - set().union(*here))
        assert missing_by_gpu(case.source, case.target, case.placement) == expected


def test_a_gpu_with_nothing_needs_the_model_and_a_gpu_with_the_model_needs_nothing():
    source, target = huggingface_layout(SHAPE), vllm_layout(SHAPE, tp=1)
    assert wire_bound(source, target, Placement(source=(0,), target=(1,))) == 2 * ELEMENTS
    assert wire_bound(source, target, Placement(source=(0,), target=(0,))) == 0


def test_two_ranks_of_one_gpu_need_an_element_once():
    source, target = huggingface_layout(SHAPE), vllm_layout(SHAPE, tp=2)
    assert wire_bound(source, target, Placement(source=(0,), target=(1, 2))) == 2 * (ELEMENTS + NORMS)
    assert wire_bound(source, target, Placement(source=(0,), target=(1, 1))) == 2 * ELEMENTS


def test_gathering_brings_each_gpu_the_whole_model():
    source, target = megatron_layout(SHAPE, Parallel(tp=2)), vllm_layout(SHAPE, tp=2)
    assert gather_bytes(source, target, split(source, target)) == 2 * 2 * ELEMENTS
    in_place = gather_bytes(source, target, Placement(source=(0, 1), target=(0, 1)))
    assert in_place == 2 * (ELEMENTS - NORMS)


def test_boxes_that_overlap_are_counted_once():
    assert covered([((0, 4), (0, 4)), ((2, 6), (2, 6))]) == 28
    assert covered([((0, 4), (0, 4))], [((2, 6), (2, 6)), ((0, 1), (0, 4))]) == 8
    grid = np.zeros((9, 9), bool)
    boxes = [((0, 3), (1, 9)), ((2, 7), (0, 2)), ((2, 5), (5, 6))]
    for box in boxes:
        grid[slices(box)] = True
    assert covered(boxes) == grid.sum()
