"""What a person sees of a run: a terminal gets bars, a table and samples, anything else one plain line a step."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ERROR, PROMPT_TEXT, RESPONSE_TEXT, REWARD, STATUS, VERDICT
from megatron_rl.ports import Evaluation
from megatron_rl.telemetry.points import Point
from megatron_rl.telemetry.sink import RunFacts
from megatron_rl.telemetry.table import (
    StepColumn,
    duration,
    fitting,
    heading_line,
    percent,
    short,
    sober_line,
    step_line,
)

_HEADING_EVERY = 20
_SAMPLE_CHARACTERS = 600
LEFT_OUT = ("failed", "short_prompts")
"""Of an evaluation: answers that failed, and the prompts that have some."""
_VERDICT_STYLE = {"right": "bold green", "wrong": "bold red"}


class ConsoleView:
    """Prints to a rich console. `sample_every` steps it shows one rollout; 0 never does."""

    def __init__(
        self, *, sample_every: int = 10, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console if console is not None else Console(highlight=False)
        self._sample_every = sample_every
        self._clock = clock
        self._run: RunFacts | None = None
        self._columns: list[StepColumn] = []
        self._lines = 0
        self._start, self._first = clock(), 0
        self._wave_start = 0.0
        self._wave_done = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("[cyan]{task.fields[note]}"),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._run_bar = TaskID(0)
        self._wave_bar = TaskID(0)

    def start(self, run: RunFacts) -> None:
        self._run, self._start, self._first = run, self._clock(), run.step
        resumed = f", resumed after step {run.step}" if run.step else ""
        self._print(f"{run.name}: {run.steps} steps in {run.folder}{resumed}")
        if self._is_live:
            self._run_bar = self._progress.add_task(
                "run", total=run.steps, completed=run.step, count=f"{run.step}/{run.steps}", note=""
            )
            self._wave_bar = self._progress.add_task("wave", total=1, completed=0, count="", note="", visible=False)
            self._progress.start()

    def wave(self, done: int, total: int, tokens: int) -> None:
        if not self._is_live:
            return
        if done < self._wave_done or not self._wave_start:
            self._wave_start = self._clock()
        self._wave_done = done
        seconds = self._clock() - self._wave_start
        speed = f"{short(tokens / seconds)} tokens/s" if seconds > 0.2 else ""
        self._progress.update(
            self._wave_bar,
            total=total,
            completed=done,
            count=f"{done}/{total}",
            note=speed,
            visible=True,
            refresh=done == total,
        )

    def step(self, point: Point, batch: Batch) -> None:
        run = self._known
        self._wave_start, self._wave_done = 0.0, 0
        if reasons := _failures(batch):
            self.warn(
                f"after step {point.step}: {len(reasons)} rollouts failed and were left out; one says: {reasons[0]}"
            )
        if not self._is_live:
            self._print(f"{sober_line(point, run.steps)}  eta {self._eta(point)}")
            return
        self._progress.update(
            self._run_bar, completed=point.step, count=f"{point.step}/{run.steps}", note=f"eta {self._eta(point)}"
        )
        self._progress.update(self._wave_bar, visible=False)
        self._table_line(point, len(str(run.steps)))
        if self._sample_every and point.step % self._sample_every == 0:
            self._sample(point.step, batch)

    def evaluation(self, evaluation: Evaluation) -> None:
        """One line a source, every measure with its interval, and one more where answers failed."""
        measures: dict[str, list[str]] = {}
        for name, value in evaluation.metrics.items():
            source, _, measure = name.rpartition("/")
            if measure in ("low", "high", *LEFT_OUT):
                continue
            low, high = evaluation.metrics.get(f"{name}/low"), evaluation.metrics.get(f"{name}/high")
            interval = f" [{percent(low)}, {percent(high)}]" if low is not None and high is not None else ""
            shown = percent(value) if 0 <= value <= 1 else short(value)
            measures.setdefault(source, []).append(f"{measure} {shown}{interval}")
        for source, facts in measures.items():
            said = f"evaluation after step {evaluation.step}: {source}  "
            self._print(said + "  ".join(facts), style="bold magenta")
            failed, short_prompts = (int(evaluation.metrics.get(f"{source}/{name}", 0)) for name in LEFT_OUT)
            if failed:
                self.warn(f"{said}{failed} answers failed and were left out, of {short_prompts} prompts")

    def close(self, reason: str) -> None:
        if self._is_live:
            self._progress.stop()
        if self._run is not None:
            self._print(f"{self._run.name}: {reason} after {duration(self._clock() - self._start)}", style="bold")

    def warn(self, line: str) -> None:
        self._print(line, style="bold yellow")

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal

    @property
    def _known(self) -> RunFacts:
        if self._run is None:
            raise RuntimeError("the console was shown a step before the run started; call start() first")
        return self._run

    def _eta(self, point: Point) -> str:
        made = point.step - self._first
        return duration((self._clock() - self._start) / made * (self._known.steps - point.step)) if made > 0 else "?"

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)

    def _table_line(self, point: Point, label_width: int) -> None:
        label_width = max(4, label_width)
        columns = fitting(point, self._console.width, label_width)
        if columns != self._columns or self._lines % _HEADING_EVERY == 0:
            self._columns, self._lines = columns, 0
            self._print(heading_line(columns, label_width), style="bold dim")
        self._lines += 1
        self._print(step_line(point, columns, label_width))

    def _sample(self, step: int, batch: Batch) -> None:
        """One finished rollout, another place in the batch each time."""
        rows = (
            [row for row, status in enumerate(batch.strings(STATUS)) if status == "ok"]
            if STATUS in batch
            else range(len(batch))
        )
        if RESPONSE_TEXT not in batch or not len(rows):
            return
        row = batch.take(torch.tensor([rows[(step * 7919) % len(rows)]]))
        self._console.print(sample_panel(row, step))


def _failures(batch: Batch) -> list[str]:
    """Why rollouts failed, in a line each."""
    if STATUS not in batch or ERROR not in batch:
        return []
    told = zip(batch.strings(STATUS), batch.strings(ERROR), strict=True)
    return [_clip(printable(error.partition("\n")[0])) for status, error in told if status == "failed"]


def sample_panel(row: Batch, step: int) -> Panel:
    """The first rollout of a batch as a panel: prompt dim, response plain."""
    body = Text()
    if PROMPT_TEXT in row:
        body.append(_clip(printable(row.strings(PROMPT_TEXT)[0])) + "\n", style="dim")
    body.append(_clip(printable(row.strings(RESPONSE_TEXT)[0])))
    verdict = row.strings(VERDICT)[0] if VERDICT in row else ""
    facts = [verdict] if verdict else []
    if REWARD in row:
        facts.append(f"reward {float(row.numbers(REWARD)[0]):.3g}")
    return Panel(
        body,
        title=Text(f"a rollout of step {step}"),
        subtitle=Text(", ".join(facts), style=_VERDICT_STYLE.get(verdict, "yellow")),
        title_align="left",
    )


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control and direction characters become visible escapes."""
    return "".join(
        c if c in "\n\t" or not unicodedata.category(c).startswith("C") else f"\\x{ord(c):02x}" for c in text
    )


def _clip(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else f"{text[:_SAMPLE_CHARACTERS]} … ({len(text)} characters)"
