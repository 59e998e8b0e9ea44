import pytest
import torch
from safetensors.torch import save_file

from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.safetensors_folder import SINGLE, Reader
from megatron_rl.actor.translation import Fusion, check_source
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.spec.schema import SpecError

SHAPE = ModelShape(
    family="llama", layers=1, hidden=2, heads=2, kv_heads=1, head_dim=1, ffn=2, vocabulary=3, tied=True, item_bytes=4
)


@pytest.fixture
def reader(tmp_path):
    tensors, at = {}, 0
    for tensor in huggingface_layout(SHAPE).tensors(0):
        size = torch.Size(tensor.shape)
        tensors[tensor.name] = torch.arange(at, at + size.numel(), dtype=torch.float32).reshape(size)
        at += 100
    save_file(tensors, tmp_path / SINGLE)
    return Reader(tmp_path)


def test_query_key_and_value_are_fused_by_heads_and_the_vocabulary_is_padded(reader):
    assert check_source(reader, SHAPE) == torch.float32
    fusion = Fusion(reader, SHAPE, Parallel(), torch.float32)
    made = {chunk.tensor.name: fusion(at, chunk).clone() for at, file in enumerate(fusion.files) for chunk in file}
    query, key, value = (reader.whole(f"model.layers.0.self_attn.{name}_proj.weight") for name in "qkv")
    assert torch.equal(made["decoder.layers.0.self_attention.linear_qkv.weight"], torch.cat([query, key, value]))
    embedding = made["embedding.word_embeddings.weight"]
    assert torch.equal(embedding[:3], reader.whole("model.embed_tokens.weight"))
    assert embedding.shape == (16, 2)
    assert not embedding[3:].any()
    elements = sum(torch.Size(entry.shape).numel() for entry in reader.inventory().values())
    assert (fusion.written, fusion.padding) == (elements, 26)


def test_gate_and_up_are_chunks_of_their_own(reader):
    fusion = Fusion(reader, SHAPE, Parallel(tp=2), torch.float32)
    gate, up = (reader.whole(f"model.layers.0.mlp.{name}_proj.weight") for name in ("gate", "up"))
    # The second half is made in the memory of the first.
    made = [
        fusion(at, chunk).clone()
        for at, file in enumerate(fusion.files)
        for chunk in file
        if "linear_fc1.weight" in chunk.tensor.name
    ]
    assert torch.equal(torch.cat(made), torch.stack([gate[0], up[0], gate[1], up[1]]))


def test_a_folder_of_another_shape_is_refused(reader):
    with pytest.raises(SpecError, match=r"has no tensor 'lm_head.weight', which its config.json asks for"):
        check_source(reader, ModelShape(**{**vars(SHAPE), "tied": False}))
