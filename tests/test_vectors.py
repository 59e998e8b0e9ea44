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


def without(field):
    return {name: value for name, value in one_case().items() if name != field}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "an object 'algorithms'"),
        ('{"algorithms": []}', "an object 'algorithms'"),
        ('{"algorithms": {"x": [', "line 1 column"),
        ("[" * 100_000, "maximum recursion depth"),
        ({}, "it holds no case"),
        ({"x": []}, "it holds no case"),
        ({"x": 5}, "algorithms.x should be a list of cases, got 5"),
        ({"x": [one_case(), 3]}, "algorithms.x[1] should be an object with op, inputs and expected, got 3"),
        ({"x": [without("op")]}, "algorithms.x[0] has no 'op'"),
        ({"x": [without("inputs")]}, "algorithms.x[0] has no 'inputs'"),
        ({"x": [without("expected")]}, "algorithms.x[0] has no 'expected'"),
        ({"x": [one_case(expected={})]}, "algorithms.x[0] has no 'expected'"),
        ({"x": [one_case(atol=None)]}, "algorithms.x[0].atol should be a finite number from 0 on, got None"),
        ({"x": [one_case(rtol=-1)]}, "algorithms.x[0].rtol should be"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, capsys, text, said):
    path = tmp_path / "other.json"
    path.write_text(text if isinstance(text, str) else json.dumps({"algorithms": text}))
    assert vectors.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith(f"cannot run {path}: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("at", range(0, 95, 7))
def test_one_number_changed_fails_its_own_operation(tmp_path, capsys, at):
    content = json.loads(GOLDEN.read_text())
    case = [case for listed in content["algorithms"].values() for case in listed][at]
    assert change_a_number(case["expected"])
    path = tmp_path / "tampered.json"
    path.write_text(json.dumps(content))
    assert vectors.main([str(path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == [case["op"]]


def change_a_number(tree):
    """Whether there was one; the first is changed in place."""
    for place, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(value, int | float) and not isinstance(value, bool):
            tree[place] = value + 0.01
            return True
        if isinstance(value, dict | list) and change_a_number(value):
            return True
    return False
