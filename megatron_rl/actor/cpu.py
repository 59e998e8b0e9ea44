"""What Megatron-Core asks of CUDA, answered on a machine that has none.

Megatron-Core computes with ordinary torch operators, so it runs on a CPU over gloo as it is; only its bookkeeping
assumes a GPU: it asks for the current device, for streams, for the device's random state, and it sometimes writes
`device="cuda"`. Each answer below replaces something that would raise without a CUDA device, so nothing that works
today behaves differently, and no torch operator or factory is wrapped: the step pays nothing for it.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

LITERAL_CUDA = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.async_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.rerun_state_machine",
    "megatron.core.tensor_parallel.data",
    "megatron.core.transformer.moe.moe_utils",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
)
"""Modules on the actor's path that write `device="cuda"`; each gets a `torch` whose factories read it as the CPU."""

FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "tensor", "zeros", "zeros_like")
"""The factories those modules call with a device."""


@functools.cache
def install() -> bool:
    """Whether Megatron-Core is answered by the CPU; the first call puts the answers in place where there is no GPU."""
    if torch.cuda.is_available():
        return False
    _answer_for_torch()
    _answer_for_megatron()
    return True


def device() -> torch.device:
    """Where this rank's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _answer_for_torch() -> None:
    cuda: Any = torch.cuda
    # Buffers, gathered activations and received tensors are allocated on the current device.
    cuda.current_device = lambda: "cpu"
    # Work on a CPU is finished when the call returns, and its memory is not cached: nothing to wait for or to free.
    cuda.synchronize = cuda.empty_cache = cuda.reset_peak_memory_stats = _nothing
    # Overlap is asked for through streams; on a CPU there is one order of execution, so a stream is only a name for it.
    cuda.Stream = _Stream
    cuda.current_stream = cuda.default_stream = lambda *_: _Stream()
    cuda.stream = _in_stream
    # CUDA graphs are never being recorded here.
    cuda.is_current_stream_capturing = lambda: False
    # The random state that Megatron forks per tensor rank and replays under recomputation is the CPU generator's.
    cuda.get_rng_state = _random_state
    cuda.set_rng_state = _set_random_state
    cuda.manual_seed = torch.default_generator.manual_seed
    # "Move to the GPU" finds tensors and modules already where they compute.
    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    tensor.cuda = module.cuda = _itself
    # The optimizers sort parameters by the name of their CUDA type and accept no other.
    tensor.type = _named_as_on_cuda(torch.Tensor.type)


def _answer_for_megatron() -> None:
    # Megatron reaches under torch for the GPU generator's state; the same two functions for the CPU generator.
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = _random_state
    random._set_cuda_rng_state = _set_random_state
    # The numbers of tokens that experts are sent become plain numbers on their way off the GPU.
    dispatcher: Any = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    dispatcher.maybe_move_tensor_to_cpu = _off_the_gpu
    literal_as_cpu = _torch_reading_cuda_as_cpu()
    for name in LITERAL_CUDA:
        module: Any = importlib.import_module(name)
        module.torch = literal_as_cpu


def _torch_reading_cuda_as_cpu() -> ModuleType:
    """A module equal to torch but for factories, so that torch itself keeps its own for everybody else."""
    module: Any = ModuleType("torch")
    module.__dict__.update(torch.__dict__)
    # What torch imports only later is asked of torch itself.
    module.__getattr__ = lambda name: getattr(torch, name)
    for name in FACTORIES:
        module.__dict__[name] = _on_cpu(getattr(torch, name))
    return module


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def build(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        kwargs.pop("pin_memory", None)
        return factory(*args, device="cpu" if str(device).startswith("cuda") else device, **kwargs)

    return build


def _named_as_on_cuda(type_of: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(type_of)
    def named(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if dtype is None:
            return type_of(self).replace("torch.", "torch.cuda.", 1)
        return type_of(self, dtype, *args, **kwargs)

    return named


class _Stream:
    """A stream where there is only one: waiting for it, or for an event recorded on it, is already over."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.wait_stream = self.wait_event = self.wait = self.synchronize = _nothing

    def record_event(self, event: object = None) -> "_Stream":
        return self


def _random_state(*_args: object, **_kwargs: object) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_random_state(state: torch.Tensor, *_args: object, **_kwargs: object) -> None:
    torch.default_generator.set_state(state)


@contextlib.contextmanager
def _in_stream(_stream: object) -> Iterator[None]:
    yield


def _off_the_gpu(value: Any, as_numpy: bool = False, **_kwargs: object) -> Any:  # noqa: ANN401
    return value.numpy() if as_numpy and torch.is_tensor(value) else value


def _nothing(*_args: object, **_kwargs: object) -> None:
    pass


def _itself(self: Any, *_args: object, **_kwargs: object) -> Any:  # noqa: ANN401
    return self
