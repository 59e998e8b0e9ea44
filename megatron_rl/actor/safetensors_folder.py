"""A Hugging Face folder of safetensors: read box by box, written shard by shard, never whole in memory."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_rl.actor.durable import PIECE
from megatron_rl.actor.room import touch
from megatron_rl.reshard.layout import Box
from megatron_rl.spec.schema import SpecError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""How the names of files of weights end, of this format and of others."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

TOUCHED_BYTES = 1 << 25
"""Of mapped files that a reader may keep: opening them again for each small tensor would take longer than that."""


class Entry(NamedTuple):
    """What a file's header says of a tensor: Entry(shape=(4096, 1024), dtype="BF16")."""

    shape: tuple[int, ...]
    dtype: str


class Reader:
    """The tensors of a folder by name; files are opened when first read and mapped, not loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._file_of = _files_by_tensor(folder)
        self._touched = 0

    def inventory(self) -> dict[str, Entry]:
        """Every tensor, from the headers alone."""
        found: dict[str, Entry] = {}
        for file in dict.fromkeys(self._file_of.values()):
            held = self._open(file).keys()
            if extra := sorted(name for name in held if self._file_of.get(name) != file):
                raise SpecError(
                    f"{file} has {extra[0]!r}, of which {self.folder / INDEX} does not know; fetch it again."
                )
        for name, file in self._file_of.items():
            opened = self._open(file)
            if name not in opened.keys():  # noqa: SIM118  # safetensors' file is no mapping
                raise SpecError(f"{file} lacks {name!r}, which {self.folder / INDEX} says it has; complete the folder.")
            stored = opened.get_slice(name)
            found[name] = Entry(tuple(stored.get_shape()), stored.get_dtype())
        return found

    def whole(self, name: str) -> Tensor:
        """A tensor that lies in the mapped file until it is touched."""
        tensor: Tensor = self._open(self._file_of[name]).get_tensor(name)
        self._touched += tensor.nbytes
        return tensor

    def release(self) -> None:
        """Forgets the mapped files where much was read, and with them its memory; they are opened again when needed."""
        if self._touched > TOUCHED_BYTES:
            self._files.clear()
            self._touched = 0

    def read(self, name: str, shape: tuple[int, ...], box: Box) -> Tensor:
        """This box of a tensor; SpecError where the folder lacks the tensor or has it in another shape."""
        if name not in self._file_of:
            raise SpecError(f"{self.folder} has no tensor {name!r}, which its config.json asks for.")
        file = self._file_of[name]
        stored = self._open(file).get_slice(name)
        if tuple(stored.get_shape()) != shape:
            raise SpecError(
                f"{file} has {name!r} as {tuple(stored.get_shape())}, but its config.json asks for {shape}."
            )
        tensor: Tensor = stored[tuple(slice(start, stop) for start, stop in box)]
        return tensor

    def _open(self, file: Path) -> Any:  # noqa: ANN401  # safetensors has no types
        if file not in self._files:
            if not file.is_file():
                raise SpecError(f"{file} does not exist, but {self.folder / INDEX} names it; complete the folder.")
            self._files[file] = _opened(file)
        return self._files[file]


class Shard(NamedTuple):
    """One file to write: Shard(file="model-00001-of-00003.safetensors", names=("model.embed_tokens.weight", ...))."""

    file: str
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder will hold: the shape of every tensor in order, and their type."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    def bytes(self, name: str) -> int:
        """Size of one tensor."""
        return torch.Size(self.shapes[name]).numel() * self.dtype.itemsize

    def shards(self, shard_bytes: int) -> tuple[Shard, ...]:
        """The files, each at most `shard_bytes` unless one tensor alone is larger."""
        groups: list[list[str]] = [[]]
        for name in self.shapes:
            if groups[-1] and sum(map(self.bytes, (*groups[-1], name))) > shard_bytes:
                groups.append([])
            groups[-1].append(name)
        if len(groups) == 1:
            return (Shard(SINGLE, tuple(groups[0])),)
        total = len(groups)
        return tuple(
            Shard(f"model-{number:05}-of-{total:05}.safetensors", tuple(names))
            for number, names in enumerate(groups, start=1)
        )

    def index(self, shards: Sequence[Shard]) -> dict[str, object]:
        """The map from tensor to file that accompanies more than one shard."""
        size = sum(map(self.bytes, self.shapes))
        return {
            "metadata": {"total_size": size},
            "weight_map": {name: shard.file for shard in shards for name in shard.names},
        }


def write_shard(folder: Path, shard: Shard, contents: Contents, tensors: Iterator[Tensor]) -> None:
    """One file of the next tensors, in order of `shard.names`; one is held at a time."""
    with writing(folder, shard, contents) as put:
        for name in shard.names:
            put(name, next(tensors))


@contextmanager
def writing(folder: Path, shard: Shard, contents: Contents) -> Iterator[Callable[[str, Tensor], Tensor]]:
    """Puts tensors of one file where they belong, in any order, from any thread; ValueError where one is left out.

    Each put gives what the file then holds there, mapped. The head comes last: until then nobody can open the file,
    whatever kills this process.
    """
    header, offsets = _header(shard, contents)
    path, missing = folder / shard.file, set(shard.names)

    def put(name: str, tensor: Tensor) -> Tensor:
        if (tuple(tensor.shape), tensor.dtype) != (contents.shapes[name], contents.dtype):
            raise ValueError(
                f"{name!r} came as {tuple(tensor.shape)} of {tensor.dtype}, but {path} holds "
                f"{contents.shapes[name]} of {contents.dtype}."
            )
        content, at = bytes_of(tensor), len(header) + offsets[name]
        touch(content)
        _write_at(file.fileno(), memoryview(content), at)
        missing.remove(name)
        return torch.from_numpy(np.memmap(file, np.uint8, "c", at, content.shape)).view(tensor.dtype).view(tensor.shape)

    with path.open("w+b", buffering=0) as file:
        yield put
        if missing:
            raise ValueError(f"{path} was not given {min(missing)!r}.")
        _write_at(file.fileno(), memoryview(header), 0)
        if os.pread(file.fileno(), len(header), 0) != header:
            raise ValueError(f"{path} begins with other bytes than were written; write it again.")


def _write_at(descriptor: int, left: memoryview, at: int) -> None:
    while left:
        written = os.pwrite(descriptor, left[:PIECE], at)
        left, at = left[written:], at + written


def bytes_of(tensor: Tensor) -> Any:  # noqa: ANN401  # numpy's array of bytes
    """The tensor's bytes, not copied where they lie together."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def _header(shard: Shard, contents: Contents) -> tuple[bytes, dict[str, int]]:
    """The head of a file as safetensors lays it out, tensors by name, and where behind it each of them starts."""
    code = next(code for code, dtype in DTYPES.items() if dtype == contents.dtype)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, at = {}, 0
    for name in sorted(shard.names):
        offsets[name], end = at, at + contents.bytes(name)
        entries[name] = {"dtype": code, "shape": contents.shapes[name], "data_offsets": (at, end)}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def write_index(folder: Path, contents: Contents, shards: Sequence[Shard]) -> None:
    """The index, where there is more than one shard."""
    if len(shards) > 1:
        path = folder / INDEX
        path.write_text(json.dumps(contents.index(shards), indent=2) + "\n")


def copy_companions(source: Path, target: Path) -> None:
    """config.json, tokenizer and whatever else of the source folder is not weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in WEIGHTS and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    index = folder / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise SpecError(f"{index} should say under weight_map which file has each tensor; fetch it again.")
        if elsewhere := sorted(file for file in weight_map.values() if Path(file).name != file):
            raise SpecError(f"{index} names {elsewhere[0]!r}, which is no file of its own folder; fetch it again.")
        return {name: folder / file for name, file in weight_map.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SpecError(f"{folder} holds no *.safetensors; point the model at a Hugging Face folder with weights.")
    names: dict[str, Path] = {}
    for file in files:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118  # safetensors' file is no mapping
                if name in names:
                    raise SpecError(f"{folder} has {name!r} in {names[name].name} and in {file.name}; remove one.")
                names[name] = file
    return names


def _opened(file: Path) -> Any:  # noqa: ANN401  # safetensors has no types
    if not file.is_file():
        raise SpecError(f"{file} is no plain file, where one with weights is expected.")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise SpecError(f"{file} is damaged or incomplete ({error}); fetch it again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a folder says; SpecError where it is none."""
    if path.exists() and not path.is_file():
        raise SpecError(f"{path} is no plain file, where JSON is expected.")
    try:
        said = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON ({error}); fetch or write it again.") from None
    if not isinstance(said, dict):
        raise SpecError(f"{path} should hold names and values, but holds {type(said).__name__}.")
    return said
