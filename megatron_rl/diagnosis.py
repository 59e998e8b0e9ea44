"""What went wrong first in a run, from what it left behind, in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from megatron_rl.spec.schema import SpecError

END = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Finite|Exit|Failure)\b.*)$")
"""The last line of a traceback."""


PARTS = ("spec.yaml", "metrics.jsonl", "logs", "checkpoints")
"""What a run makes, in the order in which it does; one of them is always there."""


class Trace(NamedTuple):
    """The end of a traceback, when its file was last written, and where it stands."""

    when: float
    said: str
    path: Path


def check_run(folder: Path) -> None:
    """SpecError unless a run has been in this folder."""
    if not any((folder / part).exists() for part in PARTS):
        raise SpecError(f"{folder} is no folder of a run: it holds none of {', '.join(PARTS)}.")


def first_failure(folder: Path) -> str:
    """The earliest traceback in the run's logs; without one, how far the run came and how it goes on."""
    traces = sorted(
        trace for path in (folder / "logs").rglob("*.log") if path.is_file() and (trace := _trace(path)) is not None
    )
    if traces:
        first = traces[0]
        others = f"; {len(traces) - 1} more followed" if len(traces) > 1 else ""
        return f"{first.path.stem} failed first: {first.said} (in {first.path}{others})."
    offending = sorted((folder / "offending").glob("step_*.parquet"))
    if offending:
        return f"{offending[0].stem} was skipped over numbers that are not finite; its rollouts are in {offending[0]}."
    return _progress(folder)


def _trace(path: Path) -> Trace | None:
    begun = False
    with path.open(encoding="utf-8", errors="replace") as lines:  # of gigabytes, perhaps
        for line in lines:
            begun = begun or "Traceback (most recent call last)" in line
            if begun and (found := END.match(line.strip())):
                return Trace(path.stat().st_mtime, found.group(1), path)
    return None


def _progress(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    steps = [int(json.loads(line)["step"]) for line in lines if '"kind": "step"' in line and line.endswith("}")]
    pointer = folder / "checkpoints" / "latest"
    saved = pointer.read_text(errors="replace").partition(" ")[0] if pointer.is_file() else "none"
    return (
        f"no failure is recorded in {folder}: {max(steps, default=0)} steps are done, the latest checkpoint is {saved}."
    )
