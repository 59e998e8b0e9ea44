from dataclasses import replace

import pytest

from megatron_rl.planner.hardware import GIB, GPUS, Cluster, gpu_named
from megatron_rl.spec.schema import SpecError


def test_a_wire_is_a_link_inside_a_machine_and_the_network_beyond():
    cluster = Cluster(nodes=2)
    assert cluster.wire(8) == pytest.approx(0.7 * 450e9)
    assert cluster.wire(9) == pytest.approx(0.7 * 50e9)


def test_spare_memory_is_not_planned_with():
    cluster = Cluster(nodes=3, gpus_per_node=4, spare_gib=9.6)
    assert cluster.gpus == 12
    assert cluster.usable == 70 * GIB
    assert replace(cluster, gpu=GPUS["h200"]).usable > 130 * GIB


def test_an_unknown_gpu_is_answered_with_the_nearest():
    assert gpu_named("h200") is GPUS["h200"]
    with pytest.raises(SpecError, match="did you mean 'h100'"):
        gpu_named("h10")
