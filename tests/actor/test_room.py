import resource

import numpy as np
import torch

from megatron_rl.actor.room import Room, alone, touch


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def test_each_tensor_has_the_memory_of_the_one_before_and_a_storage_of_its_own_size():
    room = Room()
    first = room((4, 6), torch.float32).fill_(1.0)
    second = room((2, 3), torch.bfloat16)
    assert (second.shape, second.dtype) == ((2, 3), torch.bfloat16)
    assert second.data_ptr() == first.data_ptr()
    assert second.untyped_storage().nbytes() == 12
    assert room((5, 6), torch.float32).fill_(2.0).sum() == 60


def test_a_part_of_a_storage_stands_alone_without_being_copied():
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
    rows, columns = alone(whole[1:3]), alone(whole[:, 1:3])
    assert torch.equal(rows, whole[1:3])
    assert torch.equal(columns, whole[:, 1:3])
    assert rows.data_ptr() == whole[1:3].data_ptr()
    assert (rows.untyped_storage().nbytes(), columns.untyped_storage().nbytes()) == (24, 16)


def test_what_is_mapped_is_in_memory_once_it_was_touched(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    mapped = np.memmap(tmp_path / "file", np.uint8, "c")
    before = faults()
    touch(mapped)
    touched = faults()
    assert touched > before
    assert mapped.sum(dtype=np.int64) == 4096 * sum(range(256))
    touch(mapped[:0])
