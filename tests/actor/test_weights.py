"""Hugging Face folder to actor and back, byte for byte."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_rl.actor import groups
from megatron_rl.actor.build import build
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.weights import export, layout, load, parameters, read_config
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.fakes.tiny_models import FAMILIES, MIXTURES, tiny_folder

SHARD_BYTES = 60_000
"""Small enough that a tiny model is written as several files with an index."""


def round_trip(cases: list[tuple[Path, Path]], cut: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> None:
    parallel = Parallel(**cut)
    groups.cut(parallel)
    for folder, exported in cases:
        model = build(read_config(folder), parallel, Precision(compute="fp32"))
        load(model, folder)
        export(model, exported, like=folder, shard_bytes=shard_bytes)


def contents(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("folders")
    return [
        tiny_folder(
            root / f"{family}_{tied}",
            family,
            dtype=torch.bfloat16 if tied else torch.float32,
            tie_word_embeddings=tied,
            num_hidden_layers=4,
        )
        for family, tied in product((*FAMILIES, *MIXTURES), (False, True))
    ]


@pytest.mark.parametrize(
    "cut",
    [{}, {"tp": 2}, {"pp": 2, "vpp": 2}, {"tp": 2, "pp": 2, "stage_layers": (1, 3)}, {"tp": 4}, {"dp": 2, "tp": 2}],
    ids=str,
)
def test_a_round_trip_gives_back_every_byte_under_every_name(folders, tmp_path, cut):
    cases = [(folder, tmp_path / folder.name) for folder in folders]
    ranks.run(round_trip, world=Parallel(**cut).world, cases=cases, cut=cut)
    for folder, exported in cases:
        before, after = contents(folder), contents(exported)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), (folder.name, name)


def test_experts_dealt_over_ranks_come_back_too(folders, tmp_path):
    cases = [(folder, tmp_path / folder.name) for folder in folders if folder.name.startswith("qwen3_moe")]
    ranks.run(round_trip, world=4, cases=cases, cut={"tp": 2, "dp": 2, "ep": 4})
    for folder, exported in cases:
        before, after = contents(folder), contents(exported)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}], ids=str)
def test_a_file_that_is_large_enough_for_all_of_it_is_the_same_file(folders, tmp_path, cut):
    cases = [(folder, tmp_path / folder.name) for folder in folders]
    ranks.run(round_trip, world=Parallel(**cut).world, cases=cases, cut=cut, shard_bytes=1 << 30)
    for folder, exported in cases:
        for file in folder.iterdir():
            assert file.read_bytes() == (exported / file.name).read_bytes(), (folder.name, file.name)


def test_an_exported_folder_opens_in_transformers(folders, tmp_path):
    cases = [(folder, tmp_path / folder.name) for folder in folders]
    ranks.run(round_trip, world=1, cases=cases, cut={})
    tokens = torch.arange(9)[None]
    for folder, exported in cases:
        assert (exported / "model.safetensors.index.json").exists()
        ours, theirs = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (exported, folder))
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=0, atol=0)


def layout_against_parameters(folder: Path, cut: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    parallel = Parallel(**cut)
    rank = groups.cut(parallel)
    model = build(read_config(folder), parallel, Precision(compute="fp32"))
    number = torch.distributed.get_rank()
    assert rank == parallel.coordinates(number)
    planned = {str(tensor.key): tensor.shape for tensor in layout(model).tensors(number)}
    return planned, {str(key): tuple(tensor.shape) for key, tensor in parameters(model).items()}


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}, {"pp": 2, "vpp": 2}, {"tp": 4}], ids=str)
def test_the_layout_names_and_sizes_exactly_the_parameters_there_are(folders, cut):
    for folder in folders:
        answers = ranks.run(layout_against_parameters, world=Parallel(**cut).world, folder=folder, cut=cut)
        for planned, actual in answers:
            assert planned == actual


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"config.json does not exist; point the model at a Hugging Face folder"):
        read_config(tmp_path)
