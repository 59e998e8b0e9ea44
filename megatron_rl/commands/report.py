"""Draws one or several runs as one HTML file that opens offline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_rl.commands.exits import DONE, FAILED
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are overlaid")
    parser.add_argument("--out", type=Path, help="the page; report.html in the first folder otherwise")


def run(arguments: argparse.Namespace) -> int:
    missing = [str(folder) for folder in arguments.folders if not (folder / "metrics.jsonl").is_file()]
    if missing:
        raise SpecError(f"{', '.join(missing)}: no metrics.jsonl there, so no run to report on.")
    begun = [str(folder) for folder in arguments.folders if not (folder / "metrics.jsonl").stat().st_size]
    if begun:
        raise SpecError(f"{', '.join(begun)}: no step is finished there yet, so there is nothing to draw.")
    from megatron_rl.telemetry.report import report

    try:
        print(report(arguments.folders, arguments.out or arguments.folders[0] / "report.html"))
    except (ValueError, OSError) as error:  # what a run left behind may be damaged, or from somebody else
        print(f"no report was written: {error}", file=sys.stderr)
        return FAILED
    return DONE
