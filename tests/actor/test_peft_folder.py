"""PEFT's folders, written by PEFT and by us."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_rl.actor import peft_folder
from megatron_rl.actor.peft_folder import About, Change
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_folder

TOKENS = torch.arange(9)[None]
SHARD_BYTES = 60_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", "qwen2")


def adapter(base: Path, folder: Path, **chosen) -> torch.Tensor:
    """An adapter with random factors, saved by PEFT; returns the logits that PEFT computes with it."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **chosen})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    model.save_pretrained(folder)
    return logits(model)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def opened(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("chosen", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_a_merged_folder_has_the_logits_of_peft(base, tmp_path, chosen):
    expected = adapter(base, tmp_path / "adapter", **chosen)
    assert peft_folder.merge(base, tmp_path / "adapter", tmp_path / "merged", SHARD_BYTES) == 2 * 7
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()
    torch.testing.assert_close(logits(opened(tmp_path / "merged")), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(logits(opened(base)), expected, atol=0.1)


def test_what_is_written_is_read_back_and_opens_in_peft(base, tmp_path):
    expected = adapter(base, tmp_path / "theirs", target_modules=["q_proj", "down_proj"])
    changes = peft_folder.read(tmp_path / "theirs", About(rank=4, alpha=6.0))
    peft_folder.write(tmp_path / "ours", About(rank=4, alpha=6.0), changes, base)
    theirs, ours = (load_file(tmp_path / name / peft_folder.TENSORS) for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(opened(base), tmp_path / "ours").eval()), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, "only 'LORA' can be read"),
        ({"use_dora": True}, "sets 'use_dora'"),
        ({"rank_pattern": {"q_proj": 8}}, "sets 'rank_pattern'"),
        ({"modules_to_save": ["lm_head"]}, "merge it with PEFT itself"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the matrices themselves"),
        ({"r": 8}, "needs A and B of rank 8"),
        ({"r": "4"}, "needs r as a whole number above 0, but has '4'"),
        ({"r": None}, "needs r as"),
        ({"lora_alpha": float("nan")}, "needs lora_alpha as a number, but has nan"),
    ],
)
def test_an_adapter_that_means_more_than_is_read_is_refused(base, tmp_path, changed, said):
    adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / peft_folder.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(SpecError, match=said):
        peft_folder.merge(base, tmp_path / "adapter", tmp_path / "merged", SHARD_BYTES)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (lambda _: {}, "changes no matrix"),
        (lambda tensors: {name: tensor.sum() for name, tensor in tensors.items()}, "needs A and B of rank 4"),
        (lambda tensors: {name: tensor for name, tensor in tensors.items() if "lora_A" in name}, "needs A and B"),
    ],
    ids=["empty", "scalars", "halves"],
)
def test_factors_that_are_no_pair_of_matrices_are_refused(base, tmp_path, damaged, said):
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / peft_folder.TENSORS
    save_file(damaged(load_file(path)), path)
    with pytest.raises(SpecError, match=said):
        peft_folder.merge(base, tmp_path / "adapter", tmp_path / "merged", SHARD_BYTES)


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    adapter(base, tmp_path / "adapter")
    for name, changes, said in (
        ("deep", {"num_hidden_layers": 1}, r"'model\.layers\.1\..*another model's adapter"),
        ("wide", {"hidden_size": 128}, r"but the matrix is \("),
    ):
        other = tiny_folder(tmp_path / name, "qwen2", **changes)
        with pytest.raises(SpecError, match=said):
            peft_folder.merge(other, tmp_path / "adapter", tmp_path / "merged", SHARD_BYTES)


def test_an_adapter_to_start_from_is_the_one_that_the_settings_describe(base, tmp_path):
    adapter(base, tmp_path / "adapter")
    with pytest.raises(SpecError, match=r"rank 4 and scale 1\.5, but actor\.lora asks for rank 8 and scale"):
        peft_folder.read(tmp_path / "adapter", About(rank=8, alpha=8.0))
    one = {"model.layers.0.mlp.up_proj": Change(torch.zeros(4, 64), torch.zeros(96, 4))}
    peft_folder.check(tmp_path, one, {"model.layers.0.mlp.up_proj": (96, 64)})
    with pytest.raises(SpecError, match="lacks a change of"):
        peft_folder.check(tmp_path, {}, {"model.layers.0.mlp.up_proj": (96, 64)})
    with pytest.raises(SpecError, match=r"unlike actor\.lora\.targets"):
        peft_folder.check(tmp_path, one, {})


def test_nothing_is_written_over(base, tmp_path):
    adapter(base, tmp_path / "adapter")
    with pytest.raises(SpecError, match="exists; name a folder that does not"):
        peft_folder.merge(base, tmp_path / "adapter", base, SHARD_BYTES)
    with pytest.raises(SpecError, match="point at a folder that PEFT saved"):
        peft_folder.merge(base, base, tmp_path / "merged", SHARD_BYTES)
