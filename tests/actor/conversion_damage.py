"""Hugging Face folders that are not what they were, and disks that are full."""

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_rl.actor.safetensors_folder import INDEX, SINGLE


def changed(source: Path, folder: Path, tensors: dict[str, torch.Tensor | None]) -> Path:
    """A copy with these tensors put in, or left out."""
    shutil.copytree(source, folder)
    content = {**load_file(folder / SINGLE), **tensors}
    kept = {name: tensor for name, tensor in content.items() if tensor is not None}
    save_file(kept, folder / SINGLE, metadata={"format": "pt"})
    return folder


def in_two_shards(source: Path, folder: Path) -> Path:
    """A copy whose tensors lie in two files."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    file_of = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(file_of.values()):
        part = {name: tensor for name, tensor in tensors.items() if file_of[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))
    return folder


def cut_short(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As on a disk that is full: what would make a file larger fails."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
