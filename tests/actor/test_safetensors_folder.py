import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_rl.actor.safetensors_folder import INDEX, SINGLE, Contents, Reader, Shard, write_index
from megatron_rl.spec.schema import SpecError


def test_a_box_is_read_and_a_wrong_or_missing_tensor_is_named(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4)
    save_file({"a": tensor}, tmp_path / SINGLE)
    reader = Reader(tmp_path)
    assert torch.equal(reader.read("a", (3, 4), ((1, 3), (0, 2))), tensor[1:3, :2])
    with pytest.raises(SpecError, match=r"has 'a' as \(3, 4\), but its config.json asks for \(4, 4\)"):
        reader.read("a", (4, 4), ((0, 1), (0, 1)))
    with pytest.raises(SpecError, match="has no tensor 'b'"):
        reader.read("b", (1,), ((0, 1),))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"holds no \*.safetensors"):
        Reader(tmp_path)


def test_shards_keep_order_and_size_and_one_needs_no_index(tmp_path):
    contents = Contents(shapes={"a": (2,), "b": (3,), "c": (1,), "d": (9,)}, dtype=torch.float32)
    assert contents.shards(1000) == (Shard(SINGLE, ("a", "b", "c", "d")),)
    shards = contents.shards(20)
    assert [shard.names for shard in shards] == [("a", "b"), ("c",), ("d",)]
    assert shards[0].file == "model-00001-of-00003.safetensors"
    write_index(tmp_path, contents, shards)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 60
    assert index["weight_map"]["c"] == "model-00002-of-00003.safetensors"
