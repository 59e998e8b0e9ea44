"""Trains the run that a configuration describes."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import TextIO

from megatron_rl.budget import Budget
from megatron_rl.commands.configuration import add_configuration, checked, folder_of
from megatron_rl.commands.exits import DONE, FAILED, INTERRUPTED, STOPPED
from megatron_rl.occupancy import Attempt
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.describe import describe
from megatron_rl.spec.load import load
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and what it would take")
    parser.add_argument("--until", type=float, metavar="TIME", help="when the job is killed, in seconds since 1970")
    parser.add_argument("--margin", type=float, default=10.0, metavar="S", help="seconds to keep free before that")
    parser.add_argument(
        "--attempt",
        type=_attempt,
        metavar="JOB.N",
        help="which try of a job this is: a dead one before it is no obstacle",
    )
    parser.add_argument("--where", type=Path, metavar="FILE", help="a file to leave the path of the run's folder in")
    parser.epilog = describe().replace("%", "%%")


def run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _shown(arguments.config, arguments.settings)
    with redirect_stderr(_Unheard(sys.stderr)):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    spec = checked(arguments.config, arguments.settings)
    folder = folder_of(spec)
    again = shlex.join(["megatron-rl", "train", str(arguments.config), *arguments.settings])
    budget = None if arguments.until is None else Budget(ends_at=arguments.until, margin_s=arguments.margin)
    if arguments.where is not None:
        arguments.where.write_text(f"{folder.absolute()}\n")
    try:
        return _trained(spec, budget, arguments.attempt, again)
    except KeyboardInterrupt:
        how = "goes on from its last checkpoint" if _has_saved(folder) else "has no checkpoint yet and begins again"
        print(f"\ninterrupted; {folder} {how} with: {again}", file=sys.stderr)
        return INTERRUPTED


def _attempt(text: str) -> Attempt:
    job, _, number = text.rpartition(".")
    if not job or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"should be a job and a number, as 4711.0, got {text!r}")
    return Attempt(job, int(number))


def _trained(spec: RunSpec, budget: Budget | None, attempt: Attempt | None, again: str) -> int:
    from megatron_rl import launch

    folder = folder_of(spec)
    try:
        if stopped := launch.train(spec, budget, attempt):
            how = "is saved and goes on" if _has_saved(folder) else "has nothing to save yet and begins again"
            print(f"{stopped}; {folder} {how} with: {again}", file=sys.stderr)
            return STOPPED
    except SpecError:
        raise
    except launch.FAILURES as error:
        # What was known first; the failure itself, with the first failing rank's traceback, stands last.
        told = f"the run in {folder} failed: {_sentence(error)}"
        print(*getattr(error, "__notes__", []), told, sep="\n", file=sys.stderr)
        return FAILED
    return DONE


def _has_saved(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step_*"))


class _Unheard(io.TextIOBase):
    """A stream that nobody may be able to take any more: a run does not end over that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} could not be read or written ({error.strerror})"
    return str(error)


def _shown(config: Path, settings: Sequence[str]) -> int:
    """Prints the run instead of training, once the ideas have been proved to fit together.

    Where model or data are not here, what does not depend on them is printed before the refusal.
    """
    from megatron_rl.ideas import read_ideas
    from megatron_rl.preview import outline, preview

    spec = load(config, settings)
    read_ideas(spec)
    try:
        checked(config, settings)
    except SpecError:
        print(outline(spec), end="")
        raise
    try:
        print(preview(spec), end="")
    except LayoutError as error:
        raise SpecError(f"{config}: {error}") from None
    return DONE
