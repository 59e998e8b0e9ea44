"""LoRA in the actor, against PEFT where PEFT says what is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_rl.actor.conversion import to_huggingface
from megatron_rl.actor.lora import PROJECTIONS
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import Recompute
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.actor.adapting import learnt, pass_on, peft_adapter, peft_logits, plain_logits, sent, started, stop_and_go
from tests.actor.saving_programs import compare
from tests.actor.training import contents, distance
from tests.fakes.tiny_models import tiny_folder

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3", num_hidden_layers=4, tie_word_embeddings=True)


def world(cut: dict[str, Any]) -> int:
    return Parallel(**{name: size for name, size in cut.items() if name in ("tp", "pp", "vpp", "dp", "cp")}).world


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj", "up_proj")], ids=["all", "some"])
@pytest.mark.parametrize(
    "cut", [{}, {"tp": 2}, {"tp": 2, "sequence_parallel": False}, {"tp": 2, "pp": 2}, {"pp": 2, "vpp": 2}], ids=str
)
def test_an_adapter_of_peft_means_here_what_it_means_there(folder, tmp_path, cut, targets):
    expected_TV = peft_adapter(folder, tmp_path / "adapter", targets)
    places = {"adapter": tmp_path / "adapter", "exported": tmp_path / "merged", "targets": targets}
    answers = [one for one in ranks.run(started, world=world(cut), folder=folder, **places, **cut) if one is not None]
    assert np.abs(plain_logits(folder) - expected_TV).max() > 0.1
    for computed_TV in answers:
        assert np.abs(computed_TV - expected_TV).max() <= TOLERANCE
    assert np.abs(plain_logits(tmp_path / "merged") - expected_TV).max() <= TOLERANCE
    saved = tmp_path / "merged-saved" / "adapter"
    before, after = contents(tmp_path / "adapter"), contents(saved)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.array_equal(peft_logits(folder, saved), expected_TV)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_it_means_the_same_in_a_family_with_biases_and_in_one_without_norms_of_heads(tmp_path, family):
    folder, cut = tiny_folder(tmp_path / "model", family), {"tp": 2}
    expected_TV = peft_adapter(folder, tmp_path / "adapter", PROJECTIONS)
    places = {"adapter": tmp_path / "adapter", "exported": tmp_path / "merged", "targets": PROJECTIONS}
    for computed_TV in ranks.run(started, world=world(cut), folder=folder, **places, **cut):
        assert np.abs(computed_TV - expected_TV).max() <= TOLERANCE
    assert np.abs(plain_logits(tmp_path / "merged") - expected_TV).max() <= TOLERANCE


def test_a_conversion_would_lose_what_was_learnt_and_says_how_not_to(folder, tmp_path):
    peft_adapter(folder, tmp_path / "adapter", ("q_proj",))
    places = {"adapter": tmp_path / "adapter", "exported": tmp_path / "merged", "targets": ("q_proj",)}
    ranks.run(started, world=1, folder=folder, **places)
    with pytest.raises(SpecError, match=r"learnt with LoRA.*tools/merge_lora\.py BASE .*merged-saved/adapter TARGET"):
        to_huggingface(tmp_path / "merged-saved", tmp_path / "converted", like=folder)


def test_an_engine_gets_the_merged_weights_and_new_ones_after_each_update(folder, tmp_path):
    peft_adapter(folder, tmp_path / "adapter", PROJECTIONS)
    (differing,) = ranks.run(sent, world=1, folder=folder, adapter=tmp_path / "adapter", exported=tmp_path / "merged")
    assert differing == [[], []]


def test_attention_beside_experts_can_be_changed(tmp_path):
    folder, targets = tiny_folder(tmp_path / "model", "qwen3_moe"), ("q_proj", "o_proj")
    expected_TV = peft_adapter(folder, tmp_path / "adapter", targets)
    for name, cut in (("whole", {}), ("dealt", {"tp": 2, "ep": 2})):
        places = {"adapter": tmp_path / "adapter", "exported": tmp_path / name, "targets": targets}
        for computed_TV in ranks.run(started, world=world(cut), folder=folder, **places, **cut):
            assert np.abs(computed_TV - expected_TV).max() <= 2 * TOLERANCE
        assert np.abs(plain_logits(tmp_path / name) - expected_TV).max() <= TOLERANCE


def test_an_adapter_of_other_targets_is_refused_with_the_setting_to_change(folder, tmp_path):
    peft_adapter(folder, tmp_path / "adapter", ("q_proj",))
    places = {"adapter": tmp_path / "adapter", "exported": tmp_path / "merged", "targets": ("q_proj", "k_proj")}
    with pytest.raises(ranks.RankFailure, match=r"lacks a change of .*k_proj.*set targets to the adapter's"):
        ranks.run(started, world=1, folder=folder, **places)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    exported = tmp_path_factory.mktemp("alone") / "export"
    return exported, ranks.run(learnt, world=1, folder=folder, exported=exported, tokens=10_000)[0]


@pytest.mark.parametrize(
    "choices",
    [
        {"tokens": 40},
        {"tp": 2},
        {"tp": 2, "sequence_parallel": False},
        {"dp": 2},
        {"dp": 2, "optimizer": {"distributed": False}},
        {"tp": 2, "pp": 2},
        {"pp": 2, "vpp": 2},
        {"cp": 2, "tp": 2},
    ],
    ids=str,
)
def test_any_cut_learns_the_same_changes_and_leaves_every_weight_alone(folder, alone, tmp_path, choices):
    expected, one = alone
    for answer in ranks.run(learnt, world=world(choices), folder=folder, exported=tmp_path / "export", **choices):
        assert answer["is_untouched"]
        assert answer["frozen"]
        assert answer["state"] <= answer["adapters"]
        np.testing.assert_allclose(answer["scores"], one["scores"], atol=1e-4)
    assert distance(contents(expected), contents(tmp_path / "export")) <= TOLERANCE


def test_only_changes_have_optimizer_state_and_the_reference_is_the_model_without_them(folder, alone):
    exported, answer = alone
    assert answer["is_untouched"]
    assert answer["frozen"]
    assert answer["state"] == answer["adapters"]
    np.testing.assert_array_equal(answer["reference"], answer["began"])
    np.testing.assert_array_equal(answer["again"], answer["scores"])
    assert np.abs(answer["scores"] - answer["began"]).max() > 1e-3
    before, after = contents(folder), contents(exported)
    assert {name.split(".")[-2] for name in before if not np.array_equal(before[name], after[name])} == set(PROJECTIONS)


def test_what_is_computed_again_learns_the_same_bits(folder, alone, tmp_path):
    for granularity in ("selective", "full"):
        choices = {"tokens": 10_000, "recompute": Recompute(granularity=granularity)}
        (answer,) = ranks.run(learnt, world=1, folder=folder, exported=tmp_path / granularity, **choices)
        assert answer["metrics"] == alone[1]["metrics"]


def test_bf16_weights_stay_as_they_were_too(folder, tmp_path):
    choices = {"precision": Precision(compute="bf16"), "dp": 2}
    for answer in ranks.run(learnt, world=2, folder=folder, exported=tmp_path / "export", **choices):
        assert answer["is_untouched"]
        np.testing.assert_array_equal(answer["reference"], answer["began"])


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}, {"dp": 2}], ids=str)
def test_stopping_and_going_on_is_never_having_stopped(folder, tmp_path, cut):
    for answer in ranks.run(stop_and_go, world=world(cut), folder=folder, saved=tmp_path / "saved", **cut):
        assert answer == [True] * 5


def test_changes_are_the_same_bits_at_another_cut(folder, tmp_path):
    ranks.run(stop_and_go, world=1, folder=folder, saved=tmp_path / "home")
    away = {"tp": 2, "pp": 2}
    ranks.run(pass_on, world=4, folder=folder, saved=tmp_path / "home", to=tmp_path / "away", **away)
    ranks.run(pass_on, world=2, folder=folder, saved=tmp_path / "away", to=tmp_path / "back", dp=2)
    home, there, back = (contents(tmp_path / name / "adapter") for name in ("home", "away", "back"))
    assert home.keys() == there.keys() == back.keys()
    assert all(np.array_equal(home[name], there[name]) and np.array_equal(home[name], back[name]) for name in home)
    ((names, differing),) = ranks.run(compare, world=1, one=tmp_path / "home", other=tmp_path / "back")
    assert differing == []
    assert any("linear_qkv_adapter" in name and "exp_avg_sq" in name for name in names)
