"""Merges a LoRA adapter, as PEFT saves it, into the Hugging Face folder it belongs to.

    python tools/merge_lora.py models/qwen2.5-7b runs/pspo/checkpoints/step_000100/actor/adapter merged

Each changed matrix W is written as W + scale * B A, summed in float32 and stored in the type of the base; everything
else of the folder is copied. One matrix is held at a time. The merged folder appears whole or not at all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_rl.actor.peft_folder import merge
from megatron_rl.spec.schema import SpecError

SHARD_BYTES = 4 * 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Merges, and returns the exit code: 2 where there is nothing that could be merged."""
    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="Hugging Face folder that the adapter was trained on")
    parser.add_argument("adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("target", type=Path, help="folder to write, which does not exist yet")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="size of a file (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        changed = merge(given.base, given.adapter, given.target, given.shard_bytes)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.target}: {changed} matrices merged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
