"""One Ray of this machine for the session, and groups of two light ranks on it."""

from __future__ import annotations

import pytest

from megatron_rl.cluster.launcher import start_ranks
from megatron_rl.cluster.machines import open_machines
from megatron_rl.cluster.placement import Demand, place
from megatron_rl.cluster.settings import ClusterSettings
from tests.cluster.residents import Echo
from tests.cluster.two_nodes import address

SETTINGS = ClusterSettings(heartbeat_s=10.0, start_s=120.0, step_s=60.0, publish_s=60.0)


@pytest.fixture(scope="session")
def two_nodes():
    return address()


@pytest.fixture
def machines(two_nodes):
    machines = open_machines(two_nodes)
    yield machines
    machines.close()


@pytest.fixture
def start(machines, tmp_path):
    """Starts groups of two ranks that answer as `Echo` does."""
    groups = []

    def start_(settings: ClusterSettings = SETTINGS):
        placement = place(Demand(ranks=2, group=1, gpus=0, cpus=1), machines.nodes)
        groups.append(start_ranks(machines, placement, Echo, settings, tmp_path / "logs"))
        return groups[-1]

    yield start_
    for group in groups:
        group.close()
