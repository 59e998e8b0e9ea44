import re
from pathlib import Path
from types import BuiltinFunctionType

import megatron.core
import pytest
import torch

from megatron_rl.actor import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="answers for CUDA exist only where there is none")

NEVER_REACHED = {
    "datasets": "data comes packed from the batch",
    "distributed.fsdp": "the actor shards by Megatron's own DDP",
    "distributed.param_and_grad_buffer": "only with NCCL user buffers",
    "distributed.torch_fully_sharded_data_parallel": "the actor shards by Megatron's own DDP",
    "energy_monitor": "measures GPUs",
    "export": "the actor exports safetensors itself",
    "fp4_utils": "needs Transformer Engine",
    "fp8_utils": "needs Transformer Engine",
    "full_cuda_graph": "records CUDA graphs",
    "fusions": "fused kernels are off without a GPU",
    "inference": "rollouts have their own engines",
    "models": "only multimodal models",
    "nccl_allocator": "allocates for NCCL",
    "pipeline_parallel.fine_grained_activation_offload": "offloads from a GPU",
    "pipeline_parallel.hybrid_cp_schedule": "needs context parallelism",
    "pipeline_parallel.utils": "overlaps streams",
    "resharding": "the project reshards by its own plan",
    "ssm": "no state-space layers",
    "transformer.cuda_graphs": "records CUDA graphs",
    "transformer.custom_layers": "Triton kernels",
    "transformer.fsdp_dtensor_checkpoint": "the actor shards by Megatron's own DDP",
}


def test_every_reachable_module_that_writes_cuda_is_answered():
    root = Path(megatron.core.__file__).parent
    writes_cuda = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        if re.search(r"device\s*=\s*[\"']cuda[\"']", path.read_text())
    }
    answered = {name.removeprefix("megatron.core.") for name in cpu.LITERAL_CUDA}
    unexplained = {
        name
        for name in writes_cuda - answered
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in NEVER_REACHED)
    }
    assert unexplained == set()


def test_answers_are_put_in_place_once():
    assert cpu.install()
    current = torch.cuda.current_device
    assert cpu.install()
    assert torch.cuda.current_device is current
    assert torch.cuda.current_device() == "cpu"


def test_torch_keeps_its_own_factories():
    cpu.install()
    assert all(isinstance(getattr(torch, name), BuiltinFunctionType) for name in cpu.FACTORIES)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


def test_megatron_modules_that_say_cuda_get_cpu_tensors():
    cpu.install()
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros([], dtype=torch.int, device="cuda").device == torch.device("cpu")
    assert schedules.torch.nn is torch.nn


def test_optimizers_see_the_type_name_they_sort_by():
    cpu.install()
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.int64).dtype == torch.int64


def test_the_forked_random_state_is_the_cpu_generator():
    cpu.install()
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    drawn = torch.rand(3)
    torch.cuda.set_rng_state(state)
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
