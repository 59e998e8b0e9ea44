"""The actor's logits against `transformers`, in float32, at every cut."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor import groups
from megatron_rl.actor.attention import packing
from megatron_rl.actor.build import build
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.weights import load, read_config
from tests import ranks
from tests.actor.forwarding import logits
from tests.fakes.tiny_models import FAMILIES, tiny_folder

LENGTHS = (7, 7, 1, 13, 4)
TOLERANCE = 1e-4


class Checkpoint(NamedTuple):
    """A folder, tokens for it, and what `transformers` computes sequence by sequence."""

    folder: Path
    tokens_T: list[int]
    expected_TV: np.ndarray


@torch.no_grad()
def checkpoint(folder: Path, family: str, **changes: Any) -> Checkpoint:
    tiny_folder(folder, family, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens_T = torch.randint(0, 101, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    alone = [model(sequence[None]).logits[0] for sequence in tokens_T.split(LENGTHS)]
    return Checkpoint(folder, tokens_T.tolist(), torch.cat(alone).numpy())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Checkpoint]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        family: [
            checkpoint(
                folder / f"{family}_{tied}_{kv_heads}", family, tie_word_embeddings=tied, num_key_value_heads=kv_heads
            )
            for tied, kv_heads in product((False, True), (1, 2, 4))
        ]
        for family in FAMILIES
    }


@torch.no_grad()
def all_logits(
    cases: list[tuple[Path, list[int], tuple[int, ...]]], cut: dict[str, Any], recompute: dict[str, Any] | None = None
) -> list[np.ndarray | None]:
    parallel = Parallel(**cut)
    groups.cut(parallel)
    computed = []
    for folder, tokens_T, lengths in cases:
        model = build(read_config(folder), parallel, Precision(compute="fp32"), Recompute(**(recompute or {})))
        load(model, folder)
        computed.append(logits(model, tokens_T, lengths))
    return computed


def compare(cases: list[Checkpoint], cut: dict[str, Any], lengths: tuple[int, ...] = LENGTHS) -> None:
    world = Parallel(**cut).world
    answers = ranks.run(
        all_logits, world=world, cases=[(case.folder, case.tokens_T, lengths) for case in cases], cut=cut
    )
    last_stage = [answer for answer in answers if answer[0] is not None]
    assert len(last_stage) == world // cut.get("pp", 1)
    for answer in last_stage:
        for case, computed_TV in zip(cases, answer, strict=True):
            assert np.abs(computed_TV - case.expected_TV).max() <= TOLERANCE, case.folder.name


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_are_those_of_transformers_one_by_one(checkpoints, family, tp, pp):
    compare(checkpoints[family], {"tp": tp, "pp": pp})


@pytest.mark.parametrize("cut", [{"cp": 2}, {"cp": 2, "tp": 2}, {"cp": 2, "pp": 2}, {"cp": 4}], ids=str)
def test_context_ranks_give_the_logits_of_transformers_together(checkpoints, cut):
    compare(checkpoints["qwen3"], cut)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("mixtures")
    return [checkpoint(folder / str(weighed), "qwen3_moe", norm_topk_prob=weighed) for weighed in (False, True)]


@pytest.mark.parametrize("cut", [{"tp": tp, "ep": ep, "dp": ep // tp or 1} for tp in (1, 2) for ep in (1, 2)], ids=str)
def test_experts_give_the_logits_of_transformers_however_they_are_dealt_and_cut(mixtures, cut):
    compare(mixtures, cut)


def test_experts_dealt_over_context_ranks_give_the_logits_of_transformers(mixtures):
    compare(mixtures, {"cp": 2, "ep": 2})


def test_experts_hold_over_pipeline_stages(mixtures):
    compare(mixtures, {"pp": 2, "dp": 2, "ep": 2})


def test_logits_hold_without_sequence_parallelism(checkpoints):
    compare(checkpoints["qwen3"], {"tp": 2, "sequence_parallel": False})


def test_logits_hold_with_one_key_value_head_on_four_ranks(checkpoints):
    compare(checkpoints["qwen2"], {"tp": 4})


def test_logits_hold_with_interleaved_and_with_uneven_stages(tmp_path):
    cases = [
        checkpoint(tmp_path / str(tied), "qwen3", num_hidden_layers=4, tie_word_embeddings=tied)
        for tied in (False, True)
    ]
    compare(cases, {"pp": 2, "vpp": 2})
    compare(cases, {"pp": 2, "stage_layers": (1, 3)})
    compare(cases, {"tp": 2, "pp": 2, "vpp": 2, "stage_layers": (1, 1, 2, 0)})


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_logits_hold_with_scaled_rope_and_heads_wider_than_the_hidden_size(tmp_path, scaling):
    case = checkpoint(tmp_path, "llama", head_dim=32, rope_parameters={"rope_theta": 5e4, **scaling}, rms_norm_eps=1e-3)
    compare([case], {})


@torch.no_grad()
def bf16_logits(folder: Path, tokens_T: list[int]) -> tuple[str, np.ndarray | None]:
    groups.cut(Parallel())
    model = build(read_config(folder), Parallel(), Precision(compute="bf16"))
    load(model, folder)
    (chunk,) = model.chunks
    packed = packing(LENGTHS, torch.device("cpu"))
    computed = chunk(torch.tensor([tokens_T]), None, None, packed_seq_params=packed)
    return str(computed.dtype), computed[0, :, :101].float().numpy()


def test_bf16_computes_in_bf16_and_stays_near(checkpoints):
    for family in FAMILIES:
        case = checkpoints[family][1]
        ((dtype, computed_TV),) = ranks.run(bf16_logits, world=1, folder=case.folder, tokens_T=case.tokens_T)
        assert dtype == "torch.bfloat16"
        assert np.abs(computed_TV - case.expected_TV).mean() < 0.02 * case.expected_TV.std()
