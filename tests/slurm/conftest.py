"""One Slurm cluster for all tests that need one; skipped where Slurm is not installed."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Slurm, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    if lacking := missing():
        pytest.skip(f"this machine lacks {', '.join(lacking)}; `apt-get install slurm-wlm munge` brings them")
    cluster = Slurm(folder=tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
