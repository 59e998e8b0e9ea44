"""Megatron-Core's gradient buffers and optimizers: how they are set up, and one guarded step of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rl.actor import adam
from megatron_rl.actor.cpu import device
from megatron_rl.actor.recipe import OptimizerSettings


@dataclass(kw_only=True)
class Progress:
    """What moves besides tensors: optimizer steps taken, and steps skipped in a row."""

    steps: int = 0
    skipped: int = 0


def wrapped(
    chunks: Sequence[GPTModel], config: TransformerConfig, settings: OptimizerSettings
) -> tuple[DistributedDataParallel, ...]:
    """The chunks with their gradients in FP32 buffers that are summed over data ranks, never averaged.

    Megatron averages over micro-batches and data ranks unless a loss says that it counts its own tokens; ours has
    divided by counts of the whole step already.
    """
    config.calculate_per_token_loss = True
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=settings.distributed,
        overlap_grad_reduce=settings.overlap,
        check_for_nan_in_grad=False,
    )
    return tuple(
        # Later chunks of an interleaved pipeline reduce in one piece: their turn comes when others still compute.
        DistributedDataParallel(config, buffers, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    )


@dataclass(kw_only=True)
class Optimizer:
    """Optimizer(megatron=..., settings=..., progress=Progress(steps=12)); `step` moves all three or none."""

    megatron: MegatronOptimizer
    settings: OptimizerSettings
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def of(cls, chunks: Sequence[DistributedDataParallel], settings: OptimizerSettings) -> "Optimizer":
        adam.install()
        config = chunks[0].config
        megatron = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=settings.learning_rate.peak,
                min_lr=0.0,
                weight_decay=settings.weight_decay,
                adam_beta1=settings.betas[0],
                adam_beta2=settings.betas[1],
                adam_eps=settings.eps,
                bf16=config.bf16,
                params_dtype=config.params_dtype,
                clip_grad=settings.clip,
                use_distributed_optimizer=settings.distributed,
            ),
            list(chunks),
        )
        for group in megatron.param_groups:
            group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        return cls(megatron=megatron, settings=settings)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.settings.learning_rate.at(self.progress.steps)

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Length of the summed gradients, the same on every rank; they are then ready for `step`."""
        self.megatron.prepare_grads()
        return float(self.megatron.get_grad_norm())

    @torch.no_grad()
    def step(self, norm: float) -> None:
        """Clips the gradients, whose length is given, and moves the weights."""
        assert math.isfinite(norm), "a step with gradients that are not finite must be skipped"
        for group in self.megatron.param_groups:
            group["lr"] = self.learning_rate * group["lr_mult"]
        if 0 < self.settings.clip < norm:
            parameters = [parameter for group in self.megatron.param_groups for parameter in group["params"]]
            total = torch.tensor(norm, dtype=torch.float32, device=device())
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, total)
        self.megatron.step_with_ready_grads()
        self.progress.steps += 1
