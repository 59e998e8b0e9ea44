"""Converts Hugging Face folders to checkpoints and back."""

import argparse
import resource
import sys
import time
from pathlib import Path

from megatron_rl.actor import conversion
from megatron_rl.actor.certificate import FILE, Certificate
from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError

CONFIGURATION = "metadata.json"
"""What tells a Megatron checkpoint from a Hugging Face folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("source", type=Path, help="Hugging Face folder, or Megatron checkpoint")
    parser.add_argument("target", type=Path, nargs="?", help="folder to write; it must not exist")
    parser.add_argument("--like", type=Path, help="Hugging Face folder whose config and tokenizer an export gets")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks of the checkpoint to write")
    parser.add_argument("--pp", type=int, default=1, help="pipeline stages of the checkpoint to write")
    parser.add_argument("--vpp", type=int, default=1, help="chunks of layers per pipeline stage")
    parser.add_argument("--stage-layers", type=_layers, default=(), help="layers of each chunk, as in 7+8+8+7")
    parser.add_argument("--verify", action="store_true", help="only hold the source against its certificate")


def run(arguments: argparse.Namespace) -> int:
    """Does what the arguments say: 0 done, 1 the weights are not what they should be, 2 it cannot be done."""
    begun = time.perf_counter()
    try:
        made = _made(arguments)
    except (SpecError, LayoutError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    folder = arguments.source if arguments.verify else arguments.target
    print(
        f"{made.source} -> {made.target}: {len(made.tensors)} tensors, {made.written} elements each once, "
        f"{made.plan_bytes} bytes, {time.perf_counter() - begun:.1f} s, peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB; verified, see {folder / FILE}"
    )
    return 0


def _made(arguments: argparse.Namespace) -> Certificate:
    if arguments.verify:
        return conversion.verify(arguments.source)
    if arguments.target is None:
        raise SpecError("a conversion needs a target; name a folder that does not exist.")
    cut = Parallel(tp=arguments.tp, pp=arguments.pp, vpp=arguments.vpp, stage_layers=arguments.stage_layers)
    if (arguments.source / CONFIGURATION).is_file():
        if cut != Parallel():
            raise SpecError(f"{arguments.source} is a Megatron checkpoint; an export has no cut, so leave it out.")
        return conversion.to_huggingface(arguments.source, arguments.target, arguments.like)
    if arguments.like is not None:
        raise SpecError(f"{arguments.source} has a config of its own; leave --like to exports of Megatron checkpoints.")
    return conversion.to_megatron(arguments.source, arguments.target, cut)


def _layers(text: str) -> tuple[int, ...]:
    return tuple(int(count) for count in text.split("+"))
