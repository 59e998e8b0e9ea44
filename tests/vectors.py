#!/usr/bin/env python3
"""Runs a file of golden vectors through the ops: pass or fail per operation, a total, exit code 1 on any failure.

The format is that of tests/data/golden_vectors.json: `algorithms` holds named lists of cases
`{name, op, inputs, expected, atol, rtol}`. Every expected field must agree; further fields of an answer are ignored.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

from tests.ops import vectors_of_groups, vectors_of_screening, vectors_of_tokens
from tests.ops.json_inputs import number

OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    operation.__name__: operation
    for operation in vectors_of_groups.OPERATIONS + vectors_of_tokens.OPERATIONS + vectors_of_screening.OPERATIONS
}
DEFAULT_TOLERANCE = 1e-9


class Tolerance(NamedTuple):
    atol: float
    rtol: float


class Result(NamedTuple):
    op: str
    case: str
    complaint: str | None
    """What disagreed, or None."""


def difference(got: Any, expected: Any, tolerance: Tolerance, where: str) -> str | None:
    """The first place where an answer leaves what was expected."""
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return f"{where}: expected fields {sorted(expected)}, got {got!r}"
        pairs = [(got.get(key, _MISSING), value, f"{where}.{key}".lstrip(".")) for key, value in expected.items()]
    elif isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"{where}: expected {len(expected)} entries {expected!r}, got {got!r}"
        pairs = [(item, value, f"{where}[{at}]") for at, (item, value) in enumerate(zip(got, expected, strict=True))]
    else:
        return None if _agree(got, number(expected), tolerance) else f"{where}: expected {expected!r}, got {got!r}"
    complaints = (difference(item, value, tolerance, place) for item, value, place in pairs)
    return next((complaint for complaint in complaints if complaint is not None), None)


_MISSING = "nothing"


def _agree(got: Any, expected: Any, tolerance: Tolerance) -> bool:
    """Equality, for flags, texts and integers; closeness as soon as one side is a fraction."""
    if isinstance(expected, bool) or isinstance(got, bool) or not isinstance(expected, int | float):
        return type(got) is type(expected) and got == expected
    if not isinstance(got, int | float):
        return False
    if isinstance(got, int) and isinstance(expected, int):
        return got == expected
    if math.isnan(expected) or math.isinf(expected) or math.isinf(got):
        return got == expected or (math.isnan(expected) and math.isnan(got))
    return abs(got - expected) <= tolerance.atol + tolerance.rtol * abs(expected)


def run_case(case: Mapping[str, Any]) -> Result:
    op, name = str(case["op"]), str(case.get("name", "unnamed"))
    if op not in OPERATIONS:
        return Result(op, name, f"no such operation; the known ones are {', '.join(sorted(OPERATIONS))}")
    tolerance = Tolerance(float(case.get("atol", DEFAULT_TOLERANCE)), float(case.get("rtol", DEFAULT_TOLERANCE)))
    try:
        answer = OPERATIONS[op](case["inputs"])
    except Exception as error:  # noqa: BLE001  whatever an op raises is this case's failure, and the others still run
        return Result(op, name, f"raised {type(error).__name__}: {error}")
    return Result(op, name, difference(answer, case["expected"], tolerance, ""))


def run_file(path: Path) -> Iterator[Result]:
    return map(run_case, cases_of(path))


def cases_of(path: Path) -> list[Mapping[str, Any]]:
    """Every case of a file; ValueError, naming the first place that is none, before anything runs."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("algorithms"), dict):
        raise ValueError("it is no file of golden vectors, which needs an object 'algorithms' of lists of cases")
    cases = []
    for name, listed in content["algorithms"].items():
        if not isinstance(listed, list):
            raise ValueError(f"algorithms.{name} should be a list of cases, got {listed!r:.60}")
        for at, case in enumerate(listed):
            _check_case(case, f"algorithms.{name}[{at}]")
        cases += listed
    if not cases:
        raise ValueError("it holds no case, and nothing run is nothing shown")
    return cases


def _check_case(case: Any, where: str) -> None:
    if not isinstance(case, dict):
        raise ValueError(f"{where} should be an object with op, inputs and expected, got {case!r:.60}")
    for field in ("op", "inputs", "expected"):
        # A case that expects nothing would pass whatever came.
        if field not in case or (field == "expected" and not case[field]):
            raise ValueError(f"{where} has no {field!r}")
    for field in ("atol", "rtol"):
        value = case.get(field, DEFAULT_TOLERANCE)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{where}.{field} should be a finite number from 0 on, got {value!r}")


def report(results: list[Result]) -> str:
    lines = []
    for op in sorted({result.op for result in results}):
        of_op = [result for result in results if result.op == op]
        failed = [result for result in of_op if result.complaint is not None]
        lines.append(f"{'FAIL' if failed else 'pass'}  {op:24} {len(of_op) - len(failed)}/{len(of_op)}")
        lines += [f"      {result.case}: {result.complaint}" for result in failed]
    passed = sum(result.complaint is None for result in results)
    return "\n".join([*lines, f"total {passed}/{len(results)} passed"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vectors.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a JSON file of the golden format")
    path = parser.parse_args(arguments).file
    try:
        results = list(run_file(path))
    except (OSError, ValueError, RecursionError) as error:
        print(f"cannot run {path}: {error}", file=sys.stderr)
        return 2
    print(report(results))
    return 1 if any(result.complaint is not None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
