"""Writes one dated report of a GPU check: versions, what each test found, the benchmark, as JSON and as Markdown.

    python tools/gpu_report.py FOLDER --tests junit.xml [--bench bench.json]

The files are FOLDER/<date>_<device>.json and .md; the numbers are those that the tests and the benchmark wrote.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "triton", "megatron-core", "transformer-engine", "apex", "vllm", "flash-attn", "transformers", "numpy",
    "pyarrow", "nvidia-nccl-cu13", "nvidia-cudnn-cu13",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Device, driver and packages; a package that is not installed is 'absent'."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {"device": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver()}
    else:
        found["device"] = "cpu"
    return found | {package: _version(package) for package in PACKAGES}


def driver() -> str:
    """As nvidia-smi says it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def commit() -> str:
    """Of the tree that was tested; empty outside a repository."""
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def tests_of(path: Path) -> list[dict[str, Any]]:
    """From pytest's XML: the name, outcome, seconds, reason and numbers of each test."""
    return [_test(case) for case in ElementTree.parse(path).iter("testcase")]


def _test(case: ElementTree.Element) -> dict[str, Any]:
    outcome, reason = "passed", ""
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            outcome, reason = ("skipped" if kind == "skipped" else "failed"), str(found.get("message", ""))
    return {
        "name": f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}",
        "outcome": outcome,
        "seconds": float(case.get("time", 0)),
        "reason": reason,
        "numbers": {one.get("name"): one.get("value") for one in case.iter("property")},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for a reader."""
    outcomes = [test["outcome"] for test in report["tests"]]
    counted = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
    lines = [f"# {report['versions']['device']}, {report['date']}", "", f"Commit {report['commit']}. {counted}.", ""]
    lines += ["| package | version |", "| --- | --- |"]
    lines += [f"| {name} | {version} |" for name, version in report["versions"].items()]
    lines += ["", "| test | outcome | seconds | found |", "| --- | --- | --- | --- |"]
    for test in report["tests"]:
        found = ", ".join(f"{name} {value}" for name, value in test["numbers"].items()) or _cell(test["reason"])
        lines.append(f"| {_cell(test['name'])} | {test['outcome']} | {test['seconds']:.1f} | {found} |")
    if report["bench"]:
        lines += ["", "| benchmark | found |", "| --- | --- |"]
    for line in report["bench"]:
        found = ", ".join(f"{name} {_number(value)}" for name, value in line.items() if name != "what")
        lines.append(f"| {line['what']} | {_cell(found)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.split("\n")[0].replace("|", "\\|")[:200]


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the report goes; left out, only versions are shown")
    parser.add_argument("--tests", type=Path, help="pytest's --junitxml")
    parser.add_argument("--bench", type=Path, help="bench_gpu.py's --json")
    chosen = parser.parse_args(arguments)
    if chosen.folder is not None and not chosen.folder.absolute().parent.is_dir():
        parser.error(f"{chosen.folder.parent} is no folder to make {chosen.folder.name} in")
    if chosen.folder is not None and chosen.folder.exists() and not chosen.folder.is_dir():
        parser.error(f"{chosen.folder} is no folder")
    known = versions()
    if chosen.folder is None:
        print("\n".join(f"{name:18} {version}" for name, version in known.items()))
        return 0
    now = datetime.datetime.now(datetime.UTC)
    report = {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "versions": known,
        "tests": tests_of(chosen.tests) if chosen.tests and chosen.tests.exists() else [],
        "bench": json.loads(chosen.bench.read_text()) if chosen.bench and chosen.bench.exists() else [],
    }
    chosen.folder.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", known["device"].lower()).strip("-")
    path = chosen.folder / f"{now:%Y-%m-%d_%H%M}_{device}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    print(f"wrote {path}.md and {path.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
