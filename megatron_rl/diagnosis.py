"""What went wrong first in the newest attempt at a run, or how it ended, from what it left behind, in a sentence."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megatron_rl.deaths import meaning, signal_of
from megatron_rl.driver_log import FILE, FINISHED, Attempt, attempts
from megatron_rl.logs import GAP, begun, moment
from megatron_rl.occupancy import FILE as OCCUPIED
from megatron_rl.progress import progress
from megatron_rl.spec.schema import SpecError

END: Final = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Finite|Exit|Failure|Lost)\b.*)$")
"""The last line of a traceback."""
_BLAMED: Final = re.compile(r"rank (\d+) \(process \d+ on (\S+)\)(?: (died|failed first),? in '([^']+)')?")
"""How the driver names a rank that it failed over."""
_CUT: Final = re.compile(re.escape(GAP.decode().strip()) + r" on (\S+) at (\S+):")
_BEAT_S: Final = 60.0
"""Whoever trains in a folder shows it more often."""


PARTS = ("spec.yaml", "metrics.jsonl", "logs", "checkpoints")
"""What a run makes, in the order in which it does; one of them is always there."""


@dataclass(frozen=True, kw_only=True, order=True)
class Trouble:
    """The first traceback or deadly signal of one process, as its log tells it."""

    written: float
    """When the log was last."""
    path: Path
    said: str = ""
    signal: str = ""
    began: float
    """When the process did, or at least not before; 0 where that was not in the newest attempt."""
    machine: str = ""
    is_newest: bool
    """Whether nobody has written into this log after it."""


@dataclass(kw_only=True)
class _Section:
    """What one process said in its log, as far as it matters."""

    began: float = 0.0
    machine: str = ""
    is_cut: bool = False
    """Whether its beginning is left out; it lived when it `began`."""
    said: str = ""
    signal: str = ""
    is_tracing: bool = False

    def hear(self, line: str) -> None:
        """Takes the first traceback's end, and the first deadly signal."""
        self.signal = self.signal or signal_of(line)
        self.is_tracing = self.is_tracing or "Traceback (most recent call last)" in line
        if self.is_tracing and not self.said and not self.signal and (found := END.match(line.strip())):
            self.said = found[1]


def check_run(folder: Path) -> None:
    """SpecError unless a run has been in this folder."""
    if not any((folder / part).exists() for part in PARTS):
        raise SpecError(f"{folder} is no folder of a run: it holds none of {', '.join(PARTS)}.")


def first_failure(folder: Path) -> str:
    """What the newest attempt failed over first; without a failure how far it came, and how it ended."""
    told = attempts(folder)
    newest = told[-1] if told else None
    troubles = sorted(trouble for trouble in _troubles(folder) if _counts(trouble, newest))
    made = progress(folder / "metrics.jsonl")
    happened = _failure(folder, told, troubles) or _ended(folder, told, made.steps)
    return " ".join(part for part in (happened, made.damage) if part)


def _failure(folder: Path, told: list[Attempt], troubles: list[Trouble]) -> str:
    if told and told[-1].has_failed and (blamed := _blamed(folder, told[-1], troubles)):
        return blamed
    if troubles:
        return _first(troubles[0], len(troubles) - 1)
    if told and told[-1].has_failed:
        said = _last_error(told[-1].said) or "it left no traceback"
        return f"driver failed first: {said} (in {folder / FILE})."
    return ""


def _counts(trouble: Trouble, newest: Attempt | None) -> bool:
    """Whether it befell the newest attempt, or one behind it whose driver could not even begin."""
    if newest is None:
        return trouble.is_newest
    return trouble.began > newest.ended if newest.has_ended_well else trouble.began >= newest.begun.when


def _blamed(folder: Path, attempt: Attempt, troubles: list[Trouble]) -> str:
    """What the driver failed over, where that was a rank; how the rank died stands in its own log."""
    found = _BLAMED.search("\n".join(attempt.said))
    if found is None:
        return ""
    name, machine, how, what = f"rank_{int(found[1]):04d}", found[2], found[3], found[4]
    path = folder / "logs" / f"{name}.log"
    own = next((trouble for trouble in troubles if trouble.path == path), None)
    others = sum(trouble.path != path for trouble in troubles)
    if how == "died":
        if own is not None and own.signal:
            return _died(name, own.signal, machine, f"in '{what}'", path)
        return (
            f"{name} died in '{what}' without a word, as a process does that is ended by SIGKILL: "
            f"{meaning('SIGKILL', machine)} (its log is {path})."
        )
    if how == "failed first":
        return f"{name} failed first: {_last_error(attempt.said)} (in {path}{_more(others)})."
    return _first(own, others) if own is not None else ""


def _first(trouble: Trouble, others: int) -> str:
    if not trouble.said:
        return _died(trouble.path.stem, trouble.signal, trouble.machine, "first", trouble.path)
    return f"{trouble.path.stem} failed first: {trouble.said} (in {trouble.path}{_more(others)})."


def _died(name: str, signal: str, machine: str, where: str, path: Path) -> str:
    return f"{name} died {where}, of {signal}: {meaning(signal, machine)} (its log is {path})."


def _more(others: int) -> str:
    return f"; {others} more followed" if others > 0 else ""


def _ended(folder: Path, told: list[Attempt], steps: int) -> str:
    """How far the run came, and how its newest attempt ended."""
    pointer = folder / "checkpoints" / "latest"
    saved = pointer.read_text(errors="replace").partition(" ")[0] if pointer.is_file() else "none"
    ends = f"the latest checkpoint is {saved}{_before(told)}.{_skipped(folder)}"
    state = f"{steps} steps are done, {ends}"
    if not told:
        return f"no failure is recorded in {folder}: {state}"
    newest = told[-1]
    if newest.how:
        how = FINISHED if newest.how == FINISHED else f"was {newest.how},"
        return f"the run in {folder} {how} after {steps} steps; {ends}"
    if _is_held(folder):
        return f"the run in {folder} goes on, and no failure is recorded: {state}"
    who = f"process {newest.begun.pid} on {newest.begun.machine}"
    return (
        f"the driver of the run in {folder} ({who}) ended without a word, as a process does that is ended by SIGKILL: "
        f"{meaning('SIGKILL', newest.begun.machine)}; {state}"
    )


def _skipped(folder: Path) -> str:
    offending = sorted((folder / "offending").glob("step_*.parquet"))
    if not offending:
        return ""
    return f" {offending[0].stem} was skipped over numbers that are not finite; its rollouts are in {offending[0]}."


def _before(told: list[Attempt]) -> str:
    """The newest failure of the attempts before."""
    for number, attempt in reversed(list(enumerate(told[:-1], start=1))):
        if attempt.has_failed:
            return f"; attempt {number} of {len(told)} failed before, with {_reason(attempt)}"
    return ""


def _reason(attempt: Attempt) -> str:
    found = _BLAMED.search("\n".join(attempt.said))
    if found is not None and found[3] == "died":
        return f"rank_{int(found[1]):04d}, which died in '{found[4]}'"
    return _last_error(attempt.said) or "no traceback"


def _is_held(folder: Path) -> bool:
    try:
        return time.time() - (folder / OCCUPIED).stat().st_mtime < _BEAT_S
    except OSError:
        return False


def _last_error(said: list[str]) -> str:
    return next((found[1] for line in reversed(said) if (found := END.match(line.strip()))), "").rstrip(".")


def _troubles(folder: Path) -> Iterator[Trouble]:
    """Those of all processes but drivers, whose log is told by attempts; one of an earlier version is a log as any."""
    for path in sorted((folder / "logs").rglob("*.log")):
        if not path.is_file():
            continue
        written, sections = path.stat().st_mtime, list(_sections(path))
        if path == folder / FILE and len(sections) > 1:
            continue
        for number, section in enumerate(sections, start=1):
            is_newest = number == len(sections)
            if section.said or section.signal:
                yield Trouble(
                    written=written,
                    path=path,
                    said=section.said,
                    signal=section.signal,
                    began=_begin_of(section, is_newest, written if len(sections) == 1 else 0.0),
                    machine=section.machine,
                    is_newest=is_newest,
                )


def _begin_of(section: _Section, is_newest: bool, otherwise: float) -> float:
    """What is cut off from its heading, and stands before another's, may be of any attempt before."""
    return 0.0 if section.is_cut and not is_newest else section.began or otherwise


def _sections(path: Path) -> Iterator[_Section]:
    """What each process said that wrote into this log, in turn, headings apart; the log may have gigabytes."""
    section = _Section()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (its := begun(line, path)) is not None:
                yield section
                section = _Section(began=its.when, machine=its.machine)
            elif (cut := _CUT.match(line)) is not None:
                yield section
                section = _Section(began=moment(f"{cut[1]} {cut[2]}"), is_cut=True)
            else:
                section.hear(line)
    yield section
