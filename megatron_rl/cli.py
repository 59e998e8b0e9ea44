"""The command line.

Exit codes: 0 done; 1 the run failed; 2 the command line or the configuration is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from megatron_rl import __version__
from megatron_rl.actor import architecture, fit, precision
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.describe import as_yaml, describe
from megatron_rl.spec.files import read_model_config
from megatron_rl.spec.load import load
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError, nearest

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """A subcommand: what it does in a line, its arguments, and the function that does it and gives the exit code."""

    meaning: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and gives its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else _overview())
        return DONE
    if name not in COMMANDS:
        print(f"there is no command '{name}'{nearest(name, COMMANDS)}.", file=sys.stderr)
        return WRONG
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"megatron-rl {name}", description=command.meaning, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    try:
        command.add_arguments(parser)
        return command.run(_parsed(parser, rest))
    except SpecError as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Arguments in any order. What no option claims is taken for a setting, whose own errors are kinder."""
    parsed, unclaimed = parser.parse_known_intermixed_args(arguments)
    if unclaimed and "settings" not in parsed:
        parser.error(f"there is no option {unclaimed[0]}")
    if unclaimed:
        parsed.settings = [*parsed.settings, *unclaimed]
    return parsed


def _overview() -> str:
    lines = [f"  megatron-rl {name:<10} {command.meaning}" for name, command in COMMANDS.items()]
    return "\n".join(["Usage: megatron-rl COMMAND …; COMMAND --help says more.", "", *lines])


def checked(config: Path, settings: Sequence[str]) -> RunSpec:
    """The run that was asked for, as far as it can be checked before anything heavy is imported."""
    spec = load(config, settings)
    actor = build(spec.settings["actor"])
    if not isinstance(actor, ActorSettings):
        raise TypeError(f"the actor section builds ActorSettings, got {actor!r}")
    model = read_model_config(spec)
    try:
        precision.check(actor.precision)
        fit.check(architecture.describe(model), actor)
    except (LayoutError, SpecError) as error:
        raise SpecError(f"{config}: {error}") from None
    return spec


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings laid over the file, as in actor.tp=2"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    parser.epilog = describe().replace("%", "%%")


def _train(arguments: argparse.Namespace) -> int:
    spec = checked(arguments.config, arguments.settings)
    if arguments.dry_run:
        print(as_yaml(spec), end="")
        return DONE
    from megatron_rl import launch

    folder = f"{spec.settings['run'].values['folder']}/{spec.settings['run'].values['name']}"
    try:
        launch.train(spec)
    except KeyboardInterrupt:
        again = " ".join(["megatron-rl train", str(arguments.config), *arguments.settings])
        print(f"\ninterrupted; {folder} goes on from its last checkpoint with: {again}", file=sys.stderr)
        return INTERRUPTED
    except SpecError:
        raise
    except launch.FAILURES as error:
        print(f"the run in {folder} failed: {error}", file=sys.stderr)
        return FAILED
    return DONE


COMMANDS: Final[Mapping[str, Command]] = {
    "train": Command("Trains the run that a configuration describes.", _add_train_arguments, _train),
}

if __name__ == "__main__":
    sys.exit(main())
