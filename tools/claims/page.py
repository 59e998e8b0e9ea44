"""A claim's page: what was asked, one table, one figure, how noisy it is, and the command that made it all."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from matplotlib import rc_context
from matplotlib.figure import Figure

from megatron_rl.assemble import environment

Row = Mapping[str, object]
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5% quantile of Student's t, for so many values."""
VERSIONS = ("python", "torch", "megatron-core", "numpy")


@dataclass(frozen=True, kw_only=True)
class Page:
    """`write` makes README.md, the table as table.csv, every measurement as runs.csv, and figure.svg."""

    title: str
    asked: str
    """The claim, and how it was put to the test."""
    found: Sequence[str] | Mapping[str, Sequence[str]]
    """What came out, one sentence a line; also what did not. Many sentences stand under headings."""
    table: Sequence[Row]
    runs: Sequence[Row]
    figure: Figure
    command: str
    apart: str = ""
    """Rows of the table that share the value of this column are a table of their own, which it is the heading of."""

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
            *self._tables(),
            *self._sentences(),
            f"Made by `{self.command}` on {datetime.date.today().isoformat()}, {_machine()}, one thread; "
            + ", ".join(f"{name} {made[name]}" for name in VERSIONS)
            + ". `runs.csv` holds every run, `table.csv` the table.",
        ]
        (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    def _tables(self) -> list[str]:
        if not self.apart:
            return ["\n".join(markdown(self.table))]
        parts: dict[str, list[Row]] = {}
        for row in self.table:
            rest = {name: value for name, value in row.items() if name != self.apart}
            parts.setdefault(str(row[self.apart]), []).append(rest)
        return [text for name, rows in parts.items() for text in (f"## {name}", "\n".join(markdown(rows)))]

    def _sentences(self) -> list[str]:
        parts = self.found if isinstance(self.found, Mapping) else {"": self.found}
        listed = {name: "\n".join(f"- {sentence}" for sentence in said) for name, said in parts.items()}
        return [text for name, said in listed.items() for text in ((f"## {name}", said) if name else (said,))]


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


def interval(values: Iterable[float], form: str = "+.3f") -> str:
    """Where the mean lies with 95% by Student's t, as in '-0.067, 95% -0.120 to -0.014'; one value has no interval."""
    found = list(values)
    mean = sum(found) / len(found)
    if len(found) == 1:
        return f"{mean:{form}} (one seed)"
    half = reach(found)
    return f"{mean:{form}}, 95% {mean - half:{form}} to {mean + half:{form}}"


def reach(values: Sequence[float]) -> float:
    """Half of that interval."""
    return STUDENT[len(values)] * stdev(values) / len(values) ** 0.5


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
