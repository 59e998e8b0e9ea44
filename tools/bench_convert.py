"""What a conversion costs beside a plain copy of the same bytes, and how much memory it takes.

    python tools/bench_convert.py                    2 GB, three rounds, each way at each layout
    python tools/bench_convert.py --gigabytes 0.1 --rounds 1 --room /mnt/scratch

A round copies the checkpoint with `cp` and puts it on disk with `sync`, as a conversion does, before each conversion in
a process of its own. A virtual machine hands freed memory back to its host within seconds, and whoever writes while
some is still at hand is several times faster: so each begins after a pause. Rates are the checkpoint's bytes over the
median round. Peak memory is the whole process's; `imports` is what it had before it began. Every conversion verifies
what it wrote, by reading it all back.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

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
PAUSE_S = 8.0
LAYOUTS = ({"tp": 1, "pp": 1}, {"tp": 4, "pp": 2})

_CONVERT = """
import json, resource, sys, time
from pathlib import Path
from megatron_rl.actor import conversion
from megatron_rl.actor.parallel import Parallel
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
source, target, cut = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
imports, begun = peak(), time.perf_counter()
conversion.to_megatron(source, target, Parallel(**cut)) if cut else conversion.to_huggingface(source, target)
print(json.dumps({"seconds": time.perf_counter() - begun, "peak": peak(), "imports": imports}))
"""


class Round(NamedTuple):
    """Seconds of a copy, and what the conversion after it took: seconds and MiB."""

    copy_s: float
    conversion: dict[str, float]


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


def copied(source: Path, target: Path) -> float:
    """Seconds of `cp` and `sync`."""
    time.sleep(PAUSE_S)
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, target.iterdir())], check=True)
    taken = time.perf_counter() - begun
    shutil.rmtree(target)
    return taken


def converted(source: Path, target: Path, cut: dict[str, int]) -> dict[str, float]:
    """Seconds and MiB of a conversion; an empty cut is the way back."""
    time.sleep(PAUSE_S)
    command = [sys.executable, "-W", "ignore", "-c", _CONVERT, str(source), str(target), json.dumps(cut)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


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
        for cut in LAYOUTS:
            rounds = [round_of(room, cut) for _ in range(chosen.rounds)]
            for way, times in {"to megatron": [one[0] for one in rounds], "back": [one[1] for one in rounds]}.items():
                print(f"tp{cut['tp']} pp{cut['pp']} {way}: {line(size, times)}")
    return 0


def round_of(room: Path, cut: dict[str, int]) -> tuple[Round, Round]:
    """Copy and conversion to Megatron, then copy and conversion back."""
    there = Round(copied(room / "source", room / "copy"), converted(room / "source", room / "there", cut))
    back = Round(copied(room / "source", room / "copy"), converted(room / "there", room / "back", {}))
    shutil.rmtree(room / "there")
    shutil.rmtree(room / "back")
    return there, back


def line(size: int, rounds: Sequence[Round]) -> str:
    """What is printed of a way."""
    copy_s = median(one.copy_s for one in rounds)
    seconds = median(one.conversion["seconds"] for one in rounds)
    peak, imports = (max(one.conversion[name] for one in rounds) for name in ("peak", "imports"))
    return (
        f"{size / seconds / 1e9:.2f} GB/s beside cp's {size / copy_s / 1e9:.2f}, {copy_s / seconds:.2f} of it; "
        f"peak memory {peak:.0f} MiB, of it imports {imports:.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
