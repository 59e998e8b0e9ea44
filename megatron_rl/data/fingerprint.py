"""What a model folder holds, in digests: the same wherever it lies and however it is cut into files.

Of every tensor its name, type and shape are hashed, and its bytes: all of a small one's, and of a larger one's some
blocks from its first to its last. So 140 GB are told from others by some ten megabytes; two models that were trained
differently differ in nearly every tensor, and one that was changed by hand between the blocks, were it in whole rows of
an embedding, may go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from megatron_rl.spec.files import read_object
from megatron_rl.spec.schema import SpecError

LENGTH_BYTES: Final = 8
"""A safetensors file begins with the length of its header, a JSON object of tensors by name."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WHOLE_BYTES: Final = 1 << 16
"""Tensors up to this size are hashed whole."""
BLOCK_BYTES, BLOCKS = 4096, 4
"""What is hashed of a larger one: so many blocks at even distances, the first and the last bytes among them."""
TEXT_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
"""The files that make tokens of text and a text of messages, as far as a folder has them."""
INCIDENTAL: Final = ("transformers_version", "torch_dtype", "dtype", "architectures")
"""Keys of config.json that do not say what the model computes."""


class _Tensor(NamedTuple):
    """Where a tensor lies in its file."""

    name: str
    kind: str
    """Type and shape, as the header writes them."""
    begin: int
    end: int


def model_fingerprint(folder: Path, weights: Path) -> dict[str, str]:
    """Of a model whose text and architecture `folder` tells, with the weights of the folder `weights`."""
    return {
        "weights": _digest_of_weights(weights),
        "architecture": _digest_of_architecture(folder),
        "tokenizer": _digest_of_files(folder, TEXT_FILES),
    }


def _digest_of_weights(folder: Path) -> str:
    told = (line for file in _files(folder) for line in _tensor_lines(file))
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()


def _digest_of_architecture(folder: Path) -> str:
    """config.json without what transformers notes for itself, and the tokens that end a response."""
    said = {name: _object(folder / name) for name in ("config.json", "generation_config.json")}
    config = {
        key: value for key, value in said["config.json"].items() if key not in INCIDENTAL and not key.startswith("_")
    }
    facts = [config, said["generation_config.json"].get("eos_token_id")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digest_of_files(folder: Path, names: tuple[str, ...]) -> str:
    lines = (
        f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}"
        for name in names
        if (folder / name).is_file()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _object(path: Path) -> dict[str, object]:
    return read_object(path, str(path)) if path.is_file() else {}


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE]
    placed = _object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise SpecError(f"{index} should map each tensor to its file under 'weight_map', but holds {placed!r:.60}.")
    return [folder / name for name in sorted({str(name) for name in placed.values()})]


def _tensor_lines(path: Path) -> Iterator[str]:
    """A line for each tensor of a file: its name, type, shape and digest."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > path.stat().st_size:
                raise ValueError("its header would be longer than the file")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError(f"its header should be an object, but is {header!r:.60}")
            for tensor in _tensors(header, LENGTH_BYTES + length):
                sha = hashlib.sha256()
                for start, stop in _blocks(tensor.begin, tensor.end):
                    file.seek(start)
                    sha.update(file.read(stop - start))
                yield f"{tensor.name} {tensor.kind} {sha.hexdigest()}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read as safetensors, to tell whose weights it holds: {error}.") from None


def _tensors(header: Mapping[str, Mapping[str, list[int]]], first: int) -> list[_Tensor]:
    """In the order of the file, whose data begin at byte `first`."""
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors.append(_Tensor(name, f"{entry['dtype']} {entry['shape']}", first + begin, first + end))
    return sorted(tensors, key=lambda tensor: tensor.begin)


def _blocks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that stand for those bytes."""
    if end - begin <= WHOLE_BYTES:
        yield begin, end
        return
    for number in range(BLOCKS):
        start = begin + (end - begin - BLOCK_BYTES) * number // (BLOCKS - 1)
        yield start, start + BLOCK_BYTES
