"""One real vLLM engine for the whole session: starting one costs seconds, new weights cost milliseconds."""

from __future__ import annotations

import pytest

from tests.fakes.tiny_models import tiny_folder


@pytest.fixture(scope="session")
def vllm_folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("vllm") / "model", "qwen3", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def vllm_session(tmp_path_factory, vllm_folder):
    """A tied model, served from one process; tests that leave other weights behind need not put them back."""
    from tests.rollout.serving import Serving  # only where vLLM is

    serving = Serving(vllm_folder, tmp_path_factory.mktemp("vllm_logs"))
    yield serving
    serving.engine.close()


@pytest.fixture
def vllm_serving(vllm_session, vllm_folder):
    """The session's engine with the weights of `vllm_folder`, whatever the test before it left."""
    vllm_session.publish(vllm_folder)
    return vllm_session
