"""What runs inside every vLLM worker: it receives this rank's slices of the weights through vLLM's own interface.

vLLM imports this module in each worker before the model is loaded, because it names the worker's extension class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.reshard.delivery import Delivery
from megatron_rl.reshard.layout import Key, Layout, LayoutError
from megatron_rl.reshard.transport import Exchange, SyncReport
from megatron_rl.rollout.vllm_plain_weights import keep_plain_weights

BACKEND = "megatron_rl"
"""The name of this backend among vLLM's own."""

EXTENSION = f"{__name__}.WorkerExtension"
"""Where vLLM finds the extension class."""


if current_platform.is_cpu():
    keep_plain_weights()


@dataclass
class Opening(WeightTransferInitInfo):
    """vLLM makes it from a dict that has crossed processes."""

    delivery: dict[str, Any] = field(default_factory=dict)
    first: int = 0
    """Target rank of this group's first worker."""


@dataclass
class Arrival(WeightTransferUpdateInfo):
    version: int = -1


class Receiver(WeightTransferEngine[Opening, Arrival]):
    """A backend of vLLM's weight transfer: one end of an `Exchange`, written in place."""

    init_info_cls = Opening
    update_info_cls = Arrival
    supports_draft_weight_update = False

    exchange: Exchange | None = None
    report: SyncReport | None = None

    def init_transfer_engine(self, init_info: Opening) -> None:
        """Opens the wire of a delivery, closing the one before."""
        self.shutdown()
        delivery = Delivery.of_plain(init_info.delivery)
        rank = init_info.first + get_tensor_model_parallel_rank()
        parameters = {Key(0, name): tensor.data for name, tensor in self.model.named_parameters()}
        check_layout(delivery.plan.target, rank, parameters)
        self.exchange = delivery.receiving({rank: parameters})

    def start_weight_update(self) -> None:
        """Nothing to prepare: weights are written where they lie."""

    def receive_weights(self, update_info: Arrival) -> None:
        """Returns when this rank has the whole version; TransferError where what came is not what was sent."""
        if self.exchange is None:
            raise RuntimeError("weights were announced before the delivery that brings them was opened.")
        self.report = self.exchange.run(update_info.version)

    def finish_weight_update(self) -> None:
        """Nothing to finish."""

    def shutdown(self) -> None:
        """Closes the wire."""
        if self.exchange is not None and self.exchange.wire is not None:
            self.exchange.wire.close()
        self.exchange = None


def check_layout(layout: Layout, rank: int, parameters: dict[Key, Tensor]) -> None:
    """LayoutError unless the worker's parameters are exactly those that the layout says it has."""
    planned = {tensor.key.name: tuple(tensor.shape) for tensor in layout.tensors(rank)}
    found = {key.name: tuple(tensor.shape) for key, tensor in parameters.items()}
    if planned != found:
        name = min(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise LayoutError(
            f"vLLM's parameter '{name}' is {found.get(name, 'absent')} on rank {rank}, where the layout "
            f"'{layout.label}' has {planned.get(name, 'none')}; this version of vLLM cuts the model otherwise."
        )


class WorkerExtension:
    """Methods that vLLM's workers gain."""

    def sync_report(self) -> dict[str, Any]:
        """What the last update took on this rank."""
        report = self.weight_transfer_engine.report  # type: ignore[attr-defined]  # the worker has one
        return asdict(report)

    def score_by(self, law: dict[str, Any] | None) -> None:
        """Scores of prompt tokens are log-probabilities under this law from now on; None gives the model's own."""
        sampler = self.model_runner.sampler  # type: ignore[attr-defined]
        sampler.compute_logprobs = scorer(Sampling(**law)) if law else type(sampler).compute_logprobs


def scorer(law: Sampling) -> Callable[[Tensor], Tensor]:
    """Logits to log-probabilities; a token that the law never draws has -inf."""
    return lambda logits_TV: sampling_logprobs(logits_TV, law)


WeightTransferEngineFactory.register_engine(BACKEND, Receiver)
