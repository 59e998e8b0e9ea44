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
        """One row a run: what it spent up to the target, or altogether, and how many times less than the baseline."""
        found = []
        for result in self.results:
            base = self._prices(next(each for each in self.of(self.baseline) if each.seed == result.seed))
            own = self._prices(result)
            ratios = {self._ratio(name): over(base[name], own[name]) for name in self.prices}
            facts = {"reached": self.is_there(result), "last accuracy": result.evaluations[-1]["accuracy"]}
            found.append({"arm": result.arm, "seed": result.seed} | facts | own | ratios)
        return found

    def of(self, arm: str) -> list[Result]:
        return [result for result in self.results if result.arm == arm]

    def is_there(self, result: Result) -> bool:
        return self._arrival(result) is not None

    def ratio(self, arm: str, price: str, form: str = ".2f") -> str:
        """Over the seeds at which the arm reached the target; a bound where the baseline was still on its way."""
        found = [run[self._ratio(price)] for run in self.runs() if run["arm"] == arm and run["reached"]]
        is_bound = not all(self.is_there(result) for result in self.of(self.baseline))
        return f"{'at least ' if is_bound and found else ''}{spread(found, form)}"

    def table(self) -> list[dict[str, object]]:
        runs = self.runs()
        return [self._line(arm.name, [run for run in runs if run["arm"] == arm.name]) for arm in self.arms]

    def said(self, arm: str, price: str, asked: float) -> str:
        """One sentence on a headline."""
        runs = [run for run in self.runs() if run["arm"] == arm]
        reached = [run[self._ratio(price)] for run in runs if run["reached"]]
        if len(reached) < len(runs):
            return f"{arm}: target reached at {len(reached)} of {len(runs)} seeds, so not met."
        met = "met by every seed" if min(reached) >= asked else "not met by every seed"
        told = f"{self.ratio(arm, price)} times fewer {price} than {self.baseline}"
        return f"{arm}: {told}, where {asked:.2g} was asked: {met}."

    def figure(self, price: str, unit: float = 1.0) -> Figure:
        """Accuracy over what was spent, one line a run."""
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
        reached = [run for run in runs if run["reached"]]
        line: dict[str, object] = {"arm": arm, "reached": f"{len(reached)} of {len(runs)}"}
        for name in self.prices:
            line[name] = spread((run[name] for run in reached), ".0f")
            line[self._ratio(name)] = self.ratio(arm, name) if arm != self.baseline else ""
        return line | {"last accuracy": spread(run["last accuracy"] for run in runs)}

    def _ratio(self, price: str) -> str:
        return f"{price}, {self.baseline} / arm"

    def _prices(self, result: Result) -> dict[str, float]:
        arrival = self._arrival(result) or result.evaluations[-1]
        return {name: self._sum(arrival, name) for name in self.prices}

    def _arrival(self, result: Result) -> Mapping[str, float] | None:
        """The first evaluation whose accuracy, averaged with the one before, is the target's."""
        for before, now in zip(result.evaluations, result.evaluations[1:], strict=False):
            if (before["accuracy"] + now["accuracy"]) / 2 >= self.target:
                return now
        return None

    def _sum(self, evaluation: Mapping[str, float], price: str) -> float:
        return sum(evaluation.get(name, 0.0) for name in self.prices[price])
