"""What every test with a GPU starts from: this process as the only rank, and numbers kept with the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from megatron_rl.actor import groups
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.parallel import Parallel
from tests.gpu.wide import Subject, subject


@pytest.fixture
def alone() -> Iterator[None]:
    """This process is the only rank of an actor, and leaves afterwards."""
    groups.join_alone()
    groups.cut(Parallel())
    yield
    groups.leave()
    if has_transformer_engine():
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        # Delayed scaling keeps the maxima of every module that ever ran.
        FP8GlobalStateManager.reset()


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A Qwen3 model wide enough for FP8, rollouts for it, and what transformers makes of them in float32."""
    return subject(tmp_path_factory.mktemp("qwen3"), "qwen3")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Keeps numbers with the test's result: `measured(logits=0.012, band=0.03)`."""

    def keep(**numbers: float) -> None:
        for name, value in numbers.items():
            record_property(name, float(f"{float(value):.4g}"))

    return keep


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Float32 means float32 where a test compares with it."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(kept)
