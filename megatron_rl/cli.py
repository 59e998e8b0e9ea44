"""The command line.

Exit codes: 0 done; 1 the run failed; 2 the command line or the configuration is wrong; 75 the run was stopped by a
signal or for lack of time and is saved: the same command goes on with it; 130 interrupted.
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
from megatron_rl.budget import Budget
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.describe import as_yaml, describe
from megatron_rl.spec.files import check_inputs, read_model_config
from megatron_rl.spec.load import load
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError, nearest

DONE, FAILED, WRONG, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130


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


def checked(config: Path, settings: Sequence[str], *, has_values: bool = True) -> RunSpec:
    """The run that was asked for, as far as it can be checked before anything heavy is imported.

    A value run has no `data.values` yet: it writes them.
    """
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
    check_inputs(spec, has_values=has_values)
    return spec


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings laid over the file, as in actor.tp=2"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    parser.add_argument("--until", type=float, metavar="TIME", help="when the job is killed, in seconds since 1970")
    parser.add_argument("--margin", type=float, default=10.0, metavar="S", help="seconds to keep free before that")
    parser.epilog = describe().replace("%", "%%")


def _train(arguments: argparse.Namespace) -> int:
    spec = checked(arguments.config, arguments.settings)
    if arguments.dry_run:
        print(as_yaml(spec), end="")
        return DONE
    from megatron_rl import launch

    folder = f"{spec.settings['run'].values['folder']}/{spec.settings['run'].values['name']}"
    again = " ".join(["megatron-rl train", str(arguments.config), *arguments.settings])
    budget = None if arguments.until is None else Budget(ends_at=arguments.until, margin_s=arguments.margin)
    try:
        if stopped := launch.train(spec, budget):
            print(f"{stopped}; {folder} is saved and goes on with: {again}", file=sys.stderr)
            return STOPPED
    except KeyboardInterrupt:
        print(f"\ninterrupted; {folder} goes on from its last checkpoint with: {again}", file=sys.stderr)
        return INTERRUPTED
    except SpecError:
        raise
    except launch.FAILURES as error:
        print(f"the run in {folder} failed: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _add_values_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; its data.values is what is written")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings laid over the file")
    parser.add_argument("--samples", type=int, default=8, help="rollouts of each prompt")


def _values(arguments: argparse.Namespace) -> int:
    spec = checked(arguments.config, arguments.settings, has_values=False)
    target = spec.settings["data"].values["values"]
    if not target:
        raise SpecError(f"{arguments.config}: data.values is not set; it is the file that a value run writes.")
    from megatron_rl import launch

    print(f"{launch.values(spec, arguments.samples, Path(str(target)))} prompts valued in {target}")
    return DONE


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are overlaid")
    parser.add_argument("--out", type=Path, help="the page; report.html in the first folder otherwise")


def _report(arguments: argparse.Namespace) -> int:
    from megatron_rl.telemetry.report import report

    missing = [str(folder) for folder in arguments.folders if not (folder / "metrics.jsonl").is_file()]
    if missing:
        raise SpecError(f"{', '.join(missing)}: no metrics.jsonl there, so no run to report on.")
    print(report(arguments.folders, arguments.out or arguments.folders[0] / "report.html"))
    return DONE


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a published data set, or 'arithmetic' or 'knights' to make prompts offline")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="SOURCE TARGET; only TARGET to make prompts"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first malformed row")
    parser.add_argument("--count", type=int, default=10_000, help="prompts to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same prompts")


def _data(arguments: argparse.Namespace) -> int:
    from megatron_rl.data.convert import convert
    from megatron_rl.data.generate import GENERATED, generate

    *sources, target = arguments.files
    made = arguments.name in GENERATED
    if len(sources) != (0 if made else 1):
        wanted = "TARGET alone" if made else "SOURCE and TARGET"
        raise SpecError(f"data {arguments.name} takes {wanted}, got {len(arguments.files)} files.")
    try:
        if made:
            count = generate(GENERATED[arguments.name](), target, arguments.count, arguments.seed)
            print(f"{count} prompts written to {target}")
        else:
            print(convert(arguments.name, sources[0], target, arguments.strict))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    from megatron_rl.actor.conversion_command import add_arguments

    add_arguments(parser)


def _convert(arguments: argparse.Namespace) -> int:
    from megatron_rl.actor.conversion_command import run

    return run(arguments)


COMMANDS: Final[Mapping[str, Command]] = {
    "train": Command("Trains the run that a configuration describes.", _add_train_arguments, _train),
    "values": Command("Stores the reference policy's rewards per prompt, for A*-PO.", _add_values_arguments, _values),
    "report": Command("Draws one or several runs as one HTML file that opens offline.", _add_report_arguments, _report),
    "data": Command("Converts a published data set to prompts, or makes prompts offline.", _add_data_arguments, _data),
    "convert": Command("Converts Hugging Face folders to checkpoints and back.", _add_convert_arguments, _convert),
}

if __name__ == "__main__":
    sys.exit(main())
