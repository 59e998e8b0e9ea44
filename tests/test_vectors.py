"""The runner of golden vectors: its file, files it has not seen, and the failures it must report."""

import json
from pathlib import Path

import pytest

from tests import vectors
from tests.ops.random_cases import cases

GOLDEN = Path(__file__).parent / "data" / "golden_vectors.json"


def one_case(**fields):
    return {"name": "one", "op": "rloo", "inputs": {"groups": [[1, 0]]}, "expected": {"advantage": [[1, -1]]}, **fields}


def test_every_golden_case_passes(capsys):
    assert vectors.main([str(GOLDEN)]) == 0
    printed = capsys.readouterr().out
    assert "total 95/95 passed" in printed
    assert "FAIL" not in printed


def test_the_golden_file_names_every_operation():
    named = {case["op"] for group in json.loads(GOLDEN.read_text())["algorithms"].values() for case in group}
    assert named == set(vectors.OPERATIONS)


@pytest.mark.parametrize("seed", range(60))
def test_random_cases_agree_with_the_slow_reference(seed):
    complaints = [result for result in map(vectors.run_case, cases(seed)) if result.complaint is not None]
    assert not complaints


def test_random_cases_survive_the_trip_through_a_file(tmp_path):
    path = tmp_path / "random.json"
    path.write_text(json.dumps({"algorithms": {"random": list(cases(1000))}}))
    assert all(result.complaint is None for result in vectors.run_file(path))


def test_a_wrong_number_fails_with_its_place():
    result = vectors.run_case(one_case(expected={"advantage": [[1.0, -0.9]]}))
    assert result.complaint == "advantage[0][1]: expected -0.9, got -1.0"


def test_a_missing_field_fails():
    assert "reward" in vectors.run_case(one_case(expected={"reward": [1]})).complaint


def test_an_extra_field_of_the_answer_is_ignored():
    assert vectors.run_case(one_case()).complaint is None


def test_an_unknown_operation_fails_by_name():
    result = vectors.run_case(one_case(op="rlooo"))
    assert "no such operation" in result.complaint
    assert result.op == "rlooo"


def test_an_operation_that_raises_fails_and_the_others_still_run(tmp_path, capsys):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"algorithms": {"mixed": [one_case(inputs={}), one_case()]}}))
    assert vectors.main([str(path)]) == 1
    printed = capsys.readouterr().out
    assert "KeyError" in printed
    assert "total 1/2 passed" in printed


@pytest.mark.parametrize(
    ("got", "expected"),
    [(True, 1), (1, True), (3, 4), ("a", "b"), (1.0, "inf"), (None, 0.0), ([1.0], [1.0, 2.0]), (float("nan"), 1.0)],
)
def test_unlike_values_differ(got, expected):
    assert vectors.difference(got, expected, vectors.Tolerance(1e-9, 1e-9), "x") is not None


@pytest.mark.parametrize(
    ("got", "expected"), [(1.0, 1), (float("-inf"), "-inf"), (None, None), (False, False), (-0.0, 0), (1 + 1e-12, 1.0)]
)
def test_like_values_agree(got, expected):
    assert vectors.difference(got, expected, vectors.Tolerance(1e-9, 1e-9), "x") is None


def test_tolerance_is_the_cases_own():
    loose = one_case(expected={"advantage": [[1.1, -1.0]]}, atol=0.2)
    assert vectors.run_case(loose).complaint is None


def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text("[]")
    assert vectors.main([str(path)]) == 2
    assert "algorithms" in capsys.readouterr().err
