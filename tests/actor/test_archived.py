import io
from itertools import product

import pytest
import torch

from megatron_rl.actor.archived import Lying, lying

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)


def pickle_of(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    stream.seek(0)
    return torch._C.PyTorchFileReader(stream).get_record("data.pkl")


@pytest.mark.parametrize(("dtype", "shape"), product(DTYPES, [(), (1,), (3, 400), (1, 2, 70000), (2, 2, 2, 2, 2)]))
def test_shape_type_and_steps_are_those_of_the_tensor(dtype, shape):
    tensor = torch.zeros(shape, dtype=dtype)
    assert lying(pickle_of(tensor), shape) == Lying(dtype, 0, tensor.stride())


def test_a_tensor_may_begin_late_and_step_as_it_likes():
    tensor = torch.zeros(4, 6)[1:, 2:].T
    assert lying(pickle_of(tensor), (4, 3)) == Lying(torch.float32, 8, (1, 6))


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), torch.zeros(2, 3, 1), [torch.zeros(2, 3), 1], torch.nn.Parameter(torch.zeros(2, 3)), None, "text"],
)
def test_whatever_is_no_tensor_of_the_shape_is_refused(content):
    with pytest.raises(ValueError, match=r"where a tensor of shape \(2, 3\) should be, it says"):
        lying(pickle_of(content), (2, 3))


@pytest.mark.parametrize("length", [0, 1, 50, 150])
def test_a_pickle_cut_short_is_refused(length):
    with pytest.raises(ValueError, match=r"pickle|not enough|expected|should be"):
        lying(pickle_of(torch.zeros(2, 3))[:length], (2, 3))
