"""A claim's page: what was asked, one table, one figure, how noisy it is, and the command that made it all."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from megatron_rl.assemble import environment

Row = Mapping[str, object]
VERSIONS = ("python", "torch", "megatron-core", "numpy")


@dataclass(frozen=True, kw_only=True)
class Page:
    """`write` makes README.md, the table as table.csv, every measurement as runs.csv, and figure.svg."""

    title: str
    asked: str
    """The claim, and how it was put to the test."""
    found: Sequence[str]
    """What came out, one sentence a line; also what did not."""
    table: Sequence[Row]
    runs: Sequence[Row]
    figure: Figure
    command: str

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(folder / "table.csv", self.table)
        _write_csv(folder / "runs.csv", self.runs)
        with rc_context({"svg.hashsalt": self.title}):  # the same figure is the same file
            self.figure.savefig(folder / "figure.svg", metadata={"Date": None})
        made = environment()
        lines = [
            f"# {self.title}",
            self.asked,
            "![figure](figure.svg)",
            "\n".join(markdown(self.table)),
            "\n".join(f"- {sentence}" for sentence in self.found),
            f"Made by `{self.command}` on {datetime.date.today().isoformat()}, {_machine()}, one thread; "
            + ", ".join(f"{name} {made[name]}" for name in VERSIONS)
            + ". `runs.csv` holds every run, `table.csv` the table.",
        ]
        (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def markdown(rows: Sequence[Row]) -> list[str]:
    """The rows as a table; the first row's keys are the heading."""
    names = list(rows[0])
    body = [[str(row.get(name, "")) for name in names] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *body)]


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """The mean with the least and the greatest: '0.61 (0.58–0.66)'."""
    found = list(values)
    if not found:
        return "–"
    return f"{sum(found) / len(found):{form}} ({min(found):{form}}–{max(found):{form}})"


def over(part: float, whole: float) -> float:
    """Their ratio, no number where there is nothing to divide by."""
    return part / whole if whole else float("nan")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _machine() -> str:
    facts = Path("/proc/cpuinfo")
    models = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.split(":")[1].strip() for line in models if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} processors, shared with other work"
