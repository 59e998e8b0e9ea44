import subprocess
import sys

import pytest

from megatron_rl.actor.parallel import Coordinates, Parallel
from megatron_rl.reshard.layout import LayoutError


def test_ranks_count_tensor_first_and_pipeline_last():
    parallel = Parallel(tp=2, pp=2, dp=2)
    assert parallel.world == 8
    assert parallel.coordinates(1) == Coordinates(tp=1, cp=0, dp=0, pp=0)
    assert parallel.coordinates(2) == Coordinates(tp=0, cp=0, dp=1, pp=0)
    assert parallel.coordinates(5) == Coordinates(tp=1, cp=0, dp=0, pp=1)


def test_layers_divide_evenly_over_chunks_unless_listed():
    assert Parallel(pp=2, vpp=2).chunk_layers(8) == (2, 2, 2, 2)
    assert Parallel(pp=3, stage_layers=(1, 4, 2)).chunk_layers(7) == (1, 4, 2)


def test_sequence_parallelism_needs_tensor_ranks_and_asks_for_even_token_counts():
    assert not Parallel().splits_sequence
    assert Parallel(tp=4).token_multiple == 4
    assert Parallel(tp=4, sequence_parallel=False).token_multiple == 1
    assert Parallel(tp=4, cp=2).token_multiple == 8


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        ({"tp": 0}, "actor.tp is 0, but must be at least 1"),
        ({"vpp": 2}, "interleaving needs pp above 1"),
        ({"ep": 3, "dp": 4}, "actor.ep is 3, which does not divide tp\\*cp\\*dp = 4"),
        ({"pp": 2, "stage_layers": (1, 2, 3)}, "lists 3 chunks, but pp\\*vpp = 2"),
        ({"pp": 2, "stage_layers": (-1, 5)}, r"stage_layers is \[-1, 5\], but no chunk has fewer than 0 layers"),
    ],
)
def test_an_impossible_cut_is_refused_in_a_sentence(cut, sentence):
    with pytest.raises(LayoutError, match=sentence):
        Parallel(**cut)


def test_layers_that_do_not_add_up_are_refused():
    with pytest.raises(LayoutError, match="3 layers do not divide over pp\\*vpp = 2"):
        Parallel(pp=2).chunk_layers(3)
    with pytest.raises(LayoutError, match="add up to 5, but the model has 6"):
        Parallel(pp=2, stage_layers=(2, 3)).chunk_layers(6)


def test_a_users_choices_are_read_and_checked_without_anything_heavy():
    modules = ", ".join(f"megatron_rl.actor.{name}" for name in ("parallel", "precision", "recompute", "fit"))
    script = f"import sys, {modules}; sys.exit(len({{'torch', 'megatron', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
