"""The command line: finds the command and turns what goes wrong into a sentence and an exit code.

Exit codes: 0 done; 1 the run failed; 2 the command line or the configuration is wrong; 75 the run was stopped by a
signal or for lack of time and is saved: the same command goes on with it; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, Protocol

from megatron_rl import __version__, commands
from megatron_rl.commands.exits import DONE, FAILED, INTERRUPTED, WRONG
from megatron_rl.interpreter import staying
from megatron_rl.spec.schema import SpecError, nearest

COMMANDS: Final[Mapping[str, str]] = {
    "train": "Trains the run that a configuration describes.",
    "values": "Stores the reference policy's rewards per prompt, for A*-PO.",
    "evaluate": "Measures a run's checkpoint, or a configuration's model, on held-out prompts.",
    "replay": "Runs a chain of stages on the rollouts that a run has kept, and shows what changes.",
    "verify-resume": "Proves of a run that stopping and resuming equals never having stopped.",
    "report": "Draws one or several runs as one HTML file that opens offline.",
    "plan": "Says what a run would need and take on a cluster, and which layout is fastest, without a GPU.",
    "doctor": "Says what this machine offers, or what went wrong first in a run.",
    "bundle": "Packs what a bug report needs of a run: no weights, no prompts, no secrets.",
    "data": "Converts a published data set to prompts, or makes prompts offline.",
    "convert": "Converts Hugging Face folders to checkpoints and back.",
}
"""Each is a file of `commands/`, where a dash is an underscore."""

DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""A disk that is full, read-only, broken or gone; other errors of files are a command's own to explain, or bugs."""

COMPLAINTS: Final = (
    "(Transformer Engine and )?Apex (is|are) not installed",
    "full scope is deprecated",
    "The .grad attribute of a Tensor that is not a leaf",
    r"`torch\.distributed\.\w+` is deprecated",
    "`(load|save)_state_dict` is deprecated",
    "Please use DTensor instead",
)
"""What Megatron-Core and torch would say again in every process; `doctor` says what is in use."""


class Command(Protocol):
    """A file of `commands/`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Does it, and gives the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and gives its exit code."""
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = DONE
    try:
        code = _run(*words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        _say_no_more()
    except OSError as error:
        if error.errno not in DISK:
            raise
        _say_no_more()
        print(f"megatron-rl {words[0]} could not read, write or print what it should ({error}).", file=sys.stderr)
        code = code or FAILED
    if code == INTERRUPTED and arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C, while Python leaves, changes nothing
    return code


def _run(name: str, *rest: str) -> int:
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else _overview())
        return DONE
    if name not in COMMANDS:
        print(f"there is no command '{name}'{nearest(name, COMMANDS)}.", file=sys.stderr)
        return WRONG
    for complaint in COMPLAINTS:
        warnings.filterwarnings("ignore", message=complaint, append=True)  # whoever asks Python for warnings gets them
    parser = argparse.ArgumentParser(prog=f"megatron-rl {name}", description=COMMANDS[name], allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    try:
        command: Command = import_module(f"{commands.__name__}.{name.replace('-', '_')}")
        command.add_arguments(parser)
        parsed = _parsed(parser, rest)
        with staying():
            return command.run(parsed)
    except SpecError as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print(f"\ninterrupted; begin again with: {shlex.join(['megatron-rl', name, *rest])}", file=sys.stderr)
        return INTERRUPTED


def _say_no_more() -> None:
    """Python writes what is left once more at its end, and would then tell of it and not of what went wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments in any order. What no option claims is taken for a setting, whose own errors are kinder."""
    parsed, unclaimed = parser.parse_known_intermixed_args(arguments)
    options = [word for word in unclaimed if word.startswith("-") and not {*"=."} & {*word}]
    if unknown := options if "settings" in parsed else unclaimed:
        parser.error(f"there is no option {unknown[0]}")
    if unclaimed:
        parsed.settings = [*parsed.settings, *unclaimed]
    return parsed


def _overview() -> str:
    lines = [f"  megatron-rl {name:<14} {meaning}" for name, meaning in COMMANDS.items()]
    codes = str(__doc__).split("\n\n")[1]
    return "\n".join(["Usage: megatron-rl COMMAND …; COMMAND --help says more.", "", *lines, "", codes.strip()])


if __name__ == "__main__":
    sys.exit(main())
