import os
import pickle
import random

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_rl.actor import table
from megatron_rl.actor.conversion import alone
from megatron_rl.actor.distributed_folder import Contents, write
from megatron_rl.actor.pickled import look_through
from megatron_rl.reshard.layout import Key
from megatron_rl.reshard.stored import Chunk
from megatron_rl.spec.schema import SpecError

FLIPS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    chunk = Chunk("weight", (3, 4), ((0, 3), (0, 4)), Key(0, "x"), ((0, 3), (0, 4)))
    contents = Contents(((chunk,),), ("object/shard_0_1",), torch.float32)
    with alone():
        write(path, contents, lambda _file, _chunk: torch.zeros(3, 4), {})
    return path


def test_it_tells_where_tensors_and_objects_lie(folder):
    told = table.read(folder)
    assert set(told.tensors) == {"weight"}
    weight = told.tensors["weight"]
    assert (weight.shape, weight.dtype, list(weight.pieces)) == ((3, 4), torch.float32, [((0, 3), (0, 4))])
    (first,), (thing,) = weight.pieces.values(), told.objects
    assert first.file == thing.file == folder / "__0_0.distcp"
    assert 0 == first.offset < first.offset + first.length <= thing.offset
    assert thing.offset + thing.length == thing.file.stat().st_size


def test_a_flipped_bit_is_told_in_a_sentence_or_changes_nothing_but_names(folder):
    file, chance, refused = folder / table.NAME, random.Random(0), 0
    good, told = file.read_bytes(), table.read(folder)
    for _ in range(FLIPS):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            now = table.read(folder)
        except SpecError:
            refused += 1
        else:
            assert [piece.file for piece in now.objects] == [piece.file for piece in told.objects]
    file.write_bytes(good)
    assert refused > FLIPS // 2


def test_what_would_lie_beyond_the_end_of_a_file_is_told_before_it_is_asked_for(folder, tmp_path):
    for name in (table.NAME, "__0_0.distcp"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[: -100 if name != table.NAME else None])
    with pytest.raises(SpecError, match=r"of __0_0\.distcp, \d+ bytes long, but that has \d+ bytes"):
        table.read(tmp_path)


def test_a_pipe_in_place_of_the_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / table.NAME)
    with pytest.raises(SpecError, match="is a pipe or a device"):
        table.read(tmp_path)


@pytest.mark.parametrize("member", [*_MEM_FORMAT_ENCODING, *WriteItemType])
def test_members_are_written_by_value_in_every_python(member):
    content = pickle.dumps(member)
    look_through(content, table.CONTENTS, "a member")
    assert pickle.loads(content) is member
