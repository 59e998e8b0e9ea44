"""A Ray of two nodes, both this machine, that lives as long as the test session."""

from __future__ import annotations

import atexit
import functools
import os

from ray.cluster_utils import Cluster

from megatron_rl.cluster.machines import QUIET


@functools.cache
def address() -> str:
    """Where it is joined."""
    os.environ.update(QUIET)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    atexit.register(cluster.shutdown)
    return str(cluster.address)
