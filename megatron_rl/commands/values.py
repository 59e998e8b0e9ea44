"""Stores the reference policy's rewards per prompt, for A*-PO."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_rl.commands.configuration import add_configuration, checked
from megatron_rl.commands.exits import DONE
from megatron_rl.spec.schema import SpecError

EXAMPLE = "example: megatron-rl values configs/a_star_po.yaml --samples 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_configuration(parser, "YAML file; its data.values is what is written")
    parser.add_argument("--samples", type=int, default=8, help="rollouts of each prompt")


def run(arguments: argparse.Namespace) -> int:
    if arguments.samples < 1:
        raise SpecError(f"--samples is {arguments.samples}, but must be at least 1.")
    spec = checked(arguments.config, arguments.settings, has_values=False)
    target = spec.settings["data"].values["values"]
    if not target:
        raise SpecError(f"{arguments.config}: data.values is not set; it is the file that a value run writes.")
    from megatron_rl import launch

    print(f"{launch.values(spec, arguments.samples, Path(str(target)))} prompts valued in {target}")
    return DONE
