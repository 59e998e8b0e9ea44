"""Claims of the form 'what it takes to reach an accuracy': runs of several arms, their table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from tools.claims.page import over, spread
from tools.claims.trial import Arm, Result

Prices = Mapping[str, tuple[str, ...]]
"""What a column of the table adds up: {"rollout tokens": ("tokens/generated",)}."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Results of arms that ran until they reached `target`, or to their last step."""

    results: Sequence[Result]
    arms: Sequence[Arm]
    baseline: str
    target: float
    prices: Prices

    def runs(self) -> list[dict]:
        """One row a run: what it spent up to the target, and how many times the baseline's that is less."""
        found = []
        for result in self.results:
            base = self._prices(next(each for each in self.of(self.baseline) if each.seed == result.seed))
            own = self._prices(result)
            ratios = {f"{name}, {self.baseline} / arm": over(base[name], own[name]) for name in self.prices}
            last = result.evaluations[-1]["accuracy"]
            found.append({"arm": result.arm, "seed": result.seed, "last accuracy": last} | own | ratios)
        return found

    def of(self, arm: str) -> list[Result]:
        return [result for result in self.results if result.arm == arm]

    def ratios(self, arm: str, price: str) -> list[float]:
        """Of the seeds at which both reached the target."""
        found = [run[f"{price}, {self.baseline} / arm"] for run in self.runs() if run["arm"] == arm]
        return [ratio for ratio in found if ratio == ratio]

    def table(self) -> list[dict[str, object]]:
        runs = self.runs()
        return [self._line(arm.name, [run for run in runs if run["arm"] == arm.name]) for arm in self.arms]

    def said(self, arm: str, price: str, asked: float) -> str:
        """One sentence on a headline."""
        ratios, seeds = self.ratios(arm, price), len(self.of(arm))
        if len(ratios) < seeds:
            return f"{arm}: target reached by it and {self.baseline} at {len(ratios)} of {seeds} seeds: not met."
        met = "met by every seed" if min(ratios) >= asked else "not met"
        return f"{arm}: {spread(ratios)} times fewer {price} than {self.baseline}, where {asked:g} was asked: {met}."

    def figure(self, price: str, unit: float = 1.0) -> Figure:
        """Accuracy over what was spent, thick the mean over seeds at the same evaluation, thin each seed."""
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        for number, arm in enumerate(self.arms):
            for place, result in enumerate(self.of(arm.name)):
                spent = [self._sum(evaluation, price) / unit for evaluation in result.evaluations]
                right = [evaluation["accuracy"] for evaluation in result.evaluations]
                axes.plot(spent, right, color=f"C{number}", alpha=0.8, label=None if place else arm.name)
        axes.axhline(self.target, color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel=price if unit == 1 else f"{price} / {unit:g}", ylabel="held-out accuracy, sampled")
        axes.legend()
        return figure

    def _line(self, arm: str, runs: Sequence[dict]) -> dict[str, object]:
        reached = [run for run in runs if run["steps"] == run["steps"]]
        line: dict[str, object] = {"arm": arm, "reached": f"{len(reached)} of {len(runs)}"}
        for name in self.prices:
            line[name] = spread((run[name] for run in reached), ".0f")
            if arm != self.baseline:
                line[f"{name}, {self.baseline} / arm"] = spread(self.ratios(arm, name))
        return line | {"last accuracy": spread(run["last accuracy"] for run in runs)}

    def _prices(self, result: Result) -> dict[str, float]:
        """All of them, no number where the target was not reached."""
        for before, now in zip(result.evaluations, result.evaluations[1:], strict=False):
            if (before["accuracy"] + now["accuracy"]) / 2 >= self.target:
                return {name: self._sum(now, name) for name in self.prices}
        return dict.fromkeys(self.prices, float("nan"))

    def _sum(self, evaluation: Mapping[str, float], price: str) -> float:
        return sum(evaluation.get(name, 0.0) for name in self.prices[price])
