import pytest

from tests.fakes.run_folder import write_run
from tools import draw_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "toy", steps=4)


def test_the_same_run_is_the_same_picture(run, tmp_path):
    for name in ("one.svg", "other.svg"):
        assert draw_run.main([str(run), str(tmp_path / name)]) == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
    assert "<svg" in (tmp_path / "one.svg").read_text()


def test_evaluations_are_points_with_their_intervals():
    told = {"kind": "evaluation", "step": 5, "evaluation/toy/pass@1": 0.5}
    told |= {"evaluation/toy/pass@1/low": 0.4, "evaluation/toy/pass@1/high": 0.7}
    assert draw_run.evaluations([{"kind": "step", "step": 5}, told]) == [(5, 0.5, 0.4, 0.7)]


def test_a_folder_without_metrics_is_told(tmp_path, capsys):
    assert draw_run.main([str(tmp_path), str(tmp_path / "one.svg")]) == 1
    assert "cannot read the metrics" in capsys.readouterr().err
