"""Converts a published data set to prompts, or makes prompts offline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_rl.commands.exits import DONE, FAILED
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from megatron_rl.data.generate import GENERATED
    from megatron_rl.data.published import PUBLISHED

    parser.epilog = f"published: {', '.join(PUBLISHED)}\nmade offline: {', '.join(GENERATED)}"
    parser.add_argument("name", metavar="NAME", help="a published data set, or a kind of prompts to make offline")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="SOURCE TARGET; only TARGET to make prompts"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first malformed row")
    parser.add_argument("--count", type=int, default=10_000, help="prompts to make")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same prompts")


def run(arguments: argparse.Namespace) -> int:
    from megatron_rl.data.convert import convert
    from megatron_rl.data.generate import GENERATED, generate
    from megatron_rl.data.published import PUBLISHED

    *sources, target = arguments.files
    ways = {0: "TARGET alone"} if arguments.name in GENERATED else {}
    if arguments.name in PUBLISHED or not ways:
        ways |= {1: "SOURCE and TARGET"}
    if len(sources) not in ways:
        raise SpecError(f"data {arguments.name} takes {' or '.join(ways.values())}, got {len(arguments.files)} files.")
    try:
        if not sources:
            count = generate(GENERATED[arguments.name](), target, arguments.count, arguments.seed)
            print(f"{count} prompts written to {target}")
        else:
            print(convert(arguments.name, sources[0], target, arguments.strict))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE
