"""How far a run came by its metrics.jsonl, however damaged that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

_KINDS: Final = ("step", "evaluation")
_NAMED: Final = 5
"""So many damaged lines are named; the others are counted."""


class Progress(NamedTuple):
    """Progress(steps=12, damage="") of a whole file."""

    steps: int
    damage: str
    """A sentence that names what could not be read."""


def progress(path: Path) -> Progress:
    """The newest step that can be read; 0 where there is no file yet."""
    steps, damaged = 0, list[int]()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    steps = max(steps, step_of(line))
                except ValueError:
                    if line.endswith(b"\n"):  # a crash may leave the last line unfinished
                        damaged.append(number)
    except FileNotFoundError:
        return Progress(0, "")
    except OSError as error:
        return Progress(steps, f"{path} cannot be read ({error.strerror}).")
    return Progress(steps, _told(path, damaged))


def step_of(line: bytes | str) -> int:
    """The step that a line of metrics tells of, 0 for a line of an evaluation; ValueError where it is damaged."""
    text = line if isinstance(line, str) else line.decode("utf-8")
    try:
        told = json.loads(text) if text.strip() else {"kind": "evaluation"}
        if not isinstance(told, Mapping) or told.get("kind") not in _KINDS:
            raise ValueError("a line of metrics has a 'kind'")
        return int(told["step"]) if told["kind"] == "step" else 0
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("no line of metrics") from error


def _told(path: Path, damaged: list[int]) -> str:
    if not damaged:
        return ""
    named = ", ".join(map(str, damaged[:_NAMED]))
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    which = f"line {named} is" if len(damaged) == 1 else f"lines {named}{more} are"
    return f"{path} is damaged: {which} left out here; remove what is damaged before the run goes on."
