"""One Slurm cluster for all tests that need one, skipped where Slurm is not installed; a folder to submit from."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm, missing

CLONE = Path(__file__).parents[2]


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


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder to submit from, with the scripts of this clone and the environment of these tests."""
    shutil.copytree(CLONE / "slurm", tmp_path / "slurm")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, module in (("megatron-rl", "megatron_rl.cli"), ("ray", "ray.scripts.scripts")):
        command = tmp_path / ".venv/bin" / name
        command.write_text(f'#!/bin/sh\nPYTHONPATH={CLONE} exec {sys.executable} -m {module} "$@"\n')
        command.chmod(0o755)
    return tmp_path
