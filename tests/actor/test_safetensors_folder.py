import json
import os

import pytest
import torch
from safetensors.torch import save_file

from megatron_rl.actor.safetensors_folder import (
    INDEX,
    SINGLE,
    Contents,
    Reader,
    Shard,
    copy_companions,
    read_json,
    write_index,
    writing,
)
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


def test_a_file_cannot_be_opened_before_all_of_it_is_there(tmp_path):
    contents = Contents(shapes={"a": (2,), "b": (2,)}, dtype=torch.float32)
    (shard,) = contents.shards(1000)
    with writing(tmp_path, shard, contents) as put:
        put("b", torch.ones(2))
        with pytest.raises(SpecError, match="damaged or incomplete"):
            Reader(tmp_path)
        put("a", torch.zeros(2))
    assert Reader(tmp_path).whole("b").tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="was not given 'a'"), writing(tmp_path, shard, contents) as put:
        put("b", torch.ones(2))


def test_a_name_in_two_files_or_outside_of_the_index_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / SINGLE)
    save_file({"a": torch.zeros(1)}, tmp_path / "zz.safetensors")
    with pytest.raises(SpecError, match=r"has 'a' in model.safetensors and in zz.safetensors; remove one"):
        Reader(tmp_path)
    save_file({"b": torch.zeros(1)}, tmp_path / "zz.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE}}))
    assert list(Reader(tmp_path).inventory()) == ["a"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE, "c": "zz.safetensors"}}))
    with pytest.raises(SpecError, match=r"zz.safetensors has 'b', of which .* does not know"):
        Reader(tmp_path).inventory()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": []}))
    with pytest.raises(SpecError, match="should say under weight_map which file has each tensor"):
        Reader(tmp_path)


def test_code_and_cards_come_along_and_weights_of_other_formats_do_not(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in (
        "config.json",
        "modeling_own.py",
        "model_card.md",
        "consolidated.00.pth",
        "pytorch_model.bin.index.json",
    ):
        (source / name).write_text("{}")
    copy_companions(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model_card.md", "modeling_own.py"]


@pytest.mark.parametrize("elsewhere", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path, elsewhere):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": elsewhere}}))
    with pytest.raises(SpecError, match="which is no file of its own folder"):
        Reader(tmp_path)


def test_pipes_in_place_of_weights_or_words_are_not_waited_for(tmp_path):
    for name in (SINGLE, "config.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(SpecError, match="is no plain file, where one with weights is expected"):
        Reader(tmp_path)
    with pytest.raises(SpecError, match="is no plain file, where JSON is expected"):
        read_json(tmp_path / "config.json")
