"""Converts a Hugging Face folder into a Megatron checkpoint, or a Megatron checkpoint into a Hugging Face folder.

    python tools/convert_checkpoint.py models/qwen3-8b checkpoints/qwen3-8b --tp 2 --pp 4
    python tools/convert_checkpoint.py checkpoints/run/step_100/actor exported --like models/qwen3-8b
    python tools/convert_checkpoint.py --verify exported

The direction follows from the source: a folder with a metadata.json is a Megatron checkpoint. An actor of any cut
loads what was converted for any other; --tp, --pp, --vpp and --stage-layers say whose files are written, so that an
actor of that cut reads whole chunks. One process does it, with the memory of the largest tensors; what was written is
read back and compared before it gets its name, and `conversion.json` in it says what it holds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_rl.commands.convert import add_arguments, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
