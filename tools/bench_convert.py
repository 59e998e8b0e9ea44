"""What a conversion costs beside a plain copy of the same bytes, and how much memory it takes.

    python tools/bench_convert.py                    2 GB, three rounds, each way at each layout
    python tools/bench_convert.py --gigabytes 0.1 --rounds 1 --room /mnt/scratch

A round copies the checkpoint with `cp` and puts it on disk with `sync`, as a conversion does, before each conversion in
the same process. A virtual machine hands freed memory back to its host within seconds, and whoever writes while some is
still at hand is several times faster, `cp` most: so all is measured twice, one after the other at once, and each after
a pause. Rates are the checkpoint's bytes over the median round; starting Python is not counted. Peak memory is the
whole process's; `imports` is what it had before it began. Every conversion reads back all that it wrote and compares it
with what it read, byte by byte.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from megatron_rl.actor import conversion
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.safetensors_folder import Contents, write_index, write_shard
from megatron_rl.actor.weights import SHARD_BYTES
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import ModelShape

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 6144,
    "vocab_size": 32003,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
STATES = {"at once": 0.0, "settled": 8.0}
"""Pauses before each copy and each conversion, in seconds."""
LAYOUTS = (Parallel(), Parallel(tp=4, pp=2))


class Round(NamedTuple):
    """Seconds of a copy and of the conversion after it."""

    copy_s: float
    conversion_s: float


class Rounds(NamedTuple):
    """Those of both ways, and the process's memory in MiB: the most it had, and what it had before it began."""

    ways: dict[str, list[Round]]
    peak: float
    imports: float


def synthetic(folder: Path, gigabytes: float) -> int:
    """Writes a checkpoint of about this size, and gives its bytes."""
    shape = ModelShape.of({**CONFIG, "num_hidden_layers": 2})
    per_layer = (shape.heads * 2 + shape.kv_heads * 2) * shape.head_dim * shape.hidden + 3 * shape.hidden * shape.ffn
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * shape.vocabulary * shape.hidden) / per_layer / 2) * 2)
    config = {**CONFIG, "num_hidden_layers": layers}
    target = huggingface_layout(ModelShape.of(config))
    contents = Contents(shapes={one.name: one.shape for one in target.tensors(0)}, dtype=torch.bfloat16)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards = contents.shards(SHARD_BYTES)
    random = torch.Generator().manual_seed(0)
    tensors = (torch.randn(size, generator=random, dtype=torch.bfloat16) for size in contents.shapes.values())
    for shard in shards:
        write_shard(folder, shard, contents, tensors)
    write_index(folder, contents, shards)
    return sum(path.stat().st_size for path in folder.iterdir())


def measured(room: Path, cut: Parallel, pause_s: float, count: int) -> Rounds:
    """Copies and conversions in turn, in the process that calls this."""
    imports, source, there, back = peak(), room / "source", room / "there", room / "back"
    ways: dict[str, list[Round]] = {"to megatron": [], "back": []}
    for _ in range(count):
        copy_s = timed(lambda: copied(source, room / "copy"), pause_s)
        shutil.rmtree(room / "copy")
        there_s = timed(lambda: conversion.to_megatron(source, there, cut), pause_s)
        ways["to megatron"].append(Round(copy_s, there_s))
        copy_s = timed(lambda: copied(source, room / "copy"), pause_s)
        shutil.rmtree(room / "copy")
        back_s = timed(lambda: conversion.to_huggingface(there, back), pause_s)
        ways["back"].append(Round(copy_s, back_s))
        shutil.rmtree(there)
        shutil.rmtree(back)
    return Rounds(ways, peak(), imports)


def timed(work: Callable[[], object], pause_s: float) -> float:
    """Seconds that it takes after the pause."""
    time.sleep(pause_s)
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def copied(source: Path, target: Path) -> None:
    """`cp` and `sync`."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, target.iterdir())], check=True)


def peak() -> float:
    """MiB that this process had at most; what the system says of its children counts its parent's as well."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per layout and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--room", type=Path, help="folder to work in; the system's temporary one by default")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=chosen.room) as name:
        room = Path(name)
        size = synthetic(room / "source", chosen.gigabytes)
        print(f"{size / 1e9:.2f} GB, median of {chosen.rounds} rounds")
        for state, pause_s in STATES.items():
            for cut in LAYOUTS:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    rounds = process.submit(measured, room, cut, pause_s, chosen.rounds).result()
                for way, times in rounds.ways.items():
                    print(f"{state}, tp{cut.tp} pp{cut.pp} {way}: {line(size, times)}", flush=True)
                print(f"    peak memory {rounds.peak:.0f} MiB, of it imports {rounds.imports:.0f} MiB", flush=True)
    return 0


def line(size: int, rounds: Sequence[Round]) -> str:
    """What is printed of a way."""
    copy_s, seconds = (median(times) for times in zip(*rounds, strict=True))
    return f"{size / seconds / 1e9:.2f} GB/s beside cp's {size / copy_s / 1e9:.2f}, {copy_s / seconds:.2f} of it"


if __name__ == "__main__":
    sys.exit(main())
