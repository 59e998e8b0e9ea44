from pathlib import Path

import pytest

from tests import ranks
from tests.actor.saving_programs import compare, pass_on, save_fresh, strangers
from tests.fakes.tiny_models import tiny_folder

HOME = {"tp": 2, "pp": 2}


def run(program, parallel, **arguments):
    sizes = {"tp": 1, "pp": 1, "dp": 1} | parallel
    return ranks.run(program, world=sizes["tp"] * sizes["pp"] * sizes["dp"], parallel=parallel, **arguments)


def assert_same(one: Path, other: Path) -> None:
    ((names, differing),) = ranks.run(compare, world=1, one=one, other=other)
    assert any("exp_avg_sq" in name for name in names)
    assert differing == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saving")
    folder = tiny_folder(root / "model", "qwen3", tie_word_embeddings=True)
    run(save_fresh, HOME, folder=folder, to=root / "home")
    return root, folder


@pytest.mark.parametrize(
    "away", [{"dp": 2}, {"tp": 2}, {"pp": 2}, {"tp": 1}, {"tp": 2, "dp": 2}, {"pp": 2, "dp": 2}], ids=str
)
def test_parameters_and_moments_are_the_same_bits_at_another_cut_and_back(saved, away, tmp_path):
    root, folder = saved
    progress, *_ = run(pass_on, away, folder=folder, at=root / "home", to=tmp_path / "away")
    run(pass_on, HOME, folder=folder, at=tmp_path / "away", to=tmp_path / "back")
    assert progress == {"steps": 3}
    assert_same(root / "home", tmp_path / "away")
    assert_same(root / "home", tmp_path / "back")


def test_untied_interleaved_models_travel_too(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen2", num_hidden_layers=4)
    run(save_fresh, {"pp": 2, "vpp": 2}, folder=folder, to=tmp_path / "home")
    run(pass_on, {"tp": 2}, folder=folder, at=tmp_path / "home", to=tmp_path / "away")
    assert_same(tmp_path / "home", tmp_path / "away")


def test_experts_travel_too_where_they_are_dealt_before_and_after(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen3_moe")
    run(save_fresh, {"dp": 2, "ep": 2}, folder=folder, to=tmp_path / "home")
    for away in ({"tp": 2, "ep": 2}, {"pp": 2, "dp": 2, "ep": 2}, {"dp": 4, "ep": 4}):
        to = tmp_path / str(away)
        run(pass_on, away, folder=folder, at=tmp_path / "home", to=to)
        assert_same(tmp_path / "home", to)
    with pytest.raises(
        ranks.RankFailure, match=r"saved with experts dealt over ranks.*choose actor\.ep above 1 in both"
    ):
        run(pass_on, {"tp": 2}, folder=folder, at=tmp_path / "home", to=tmp_path / "refused")


def test_steps_after_a_load_are_those_that_would_have_come(saved, tmp_path):
    root, folder = saved
    run(save_fresh, HOME, folder=folder, to=tmp_path / "straight", steps=8)
    run(pass_on, HOME, folder=folder, at=root / "home", to=tmp_path / "resumed", steps=5)
    assert_same(tmp_path / "straight", tmp_path / "resumed")


def test_every_parameter_finds_its_own_moments(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen2", num_hidden_layers=4)
    for mistaken in run(strangers, {"pp": 2, "vpp": 2}, folder=folder):
        assert mistaken == []
