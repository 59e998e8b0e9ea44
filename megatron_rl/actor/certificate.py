"""What a conversion says of itself, in a file beside the weights: enough to check them at any later time."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from megatron_rl.actor.safetensors_folder import bytes_of, read_json
from megatron_rl.actor.side_by_side import side_by_side
from megatron_rl.spec.schema import SpecError

FILE = "conversion.json"
BLOCK = 1 << 18
"""Bytes that a processor still has at hand when they are hashed after they were compared."""
_PACKAGES = ("megatron-core", "torch", "safetensors")

Compared = Iterable[tuple[str, Tensor, Tensor]]
"""Tensors by name, each as it was found and as it should be."""


class Digest(NamedTuple):
    """Digest(shape=(128, 64), dtype="bfloat16", sha256="9f86d0…") of a Hugging Face tensor's bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @staticmethod
    def of(tensor: Tensor) -> "Digest":
        """That of a tensor."""
        return Digest._with(tensor, hashlib.sha256(bytes_of(tensor)).hexdigest())

    @staticmethod
    def of_equals(tensor: Tensor, other: Tensor) -> "Digest | None":
        """That of two tensors with the same bytes; none where a byte, the shape or the type differs."""
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            return None
        ours, theirs, sha256 = bytes_of(tensor), bytes_of(other), hashlib.sha256()
        for start in range(0, len(ours), BLOCK):
            block, other_block = ours[start : start + BLOCK], theirs[start : start + BLOCK]
            width = np.uint64 if len(block) % 8 == 0 else np.uint8
            if not np.array_equal(block.view(width), other_block.view(width)):
                return None
            sha256.update(block)
        return Digest._with(tensor, sha256.hexdigest())

    @staticmethod
    def _with(tensor: Tensor, sha256: str) -> "Digest":
        return Digest(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), sha256)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Every element of the source is in the target once: `written` equals `elements`, and the digests are of both.

    Digests name Hugging Face tensors whatever the formats are, so either side can be held against them.
    """

    source: str
    """Layout of what was read: "hugging face replicas1"."""
    target: str
    """Layout of what was written: "megatron tp2 dp1 pp2"."""
    elements: int
    """Of the model."""
    written: int
    """Elements that the plan's copies wrote; padding is counted apart."""
    padding: int
    plan_bytes: int
    """Bytes that the plan's copies moved."""
    tensors: Mapping[str, Digest]
    versions: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Puts it into the folder; ValueError unless every element was written once."""
        if self.written != self.elements:
            raise ValueError(f"{folder}: {self.written} elements were written, but the model has {self.elements}.")
        path = folder / FILE
        content = {**asdict(self), "tensors": {name: digest._asdict() for name, digest in self.tensors.items()}}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> "Certificate":
        """That of a folder; SpecError where there is none."""
        path = folder / FILE
        if not path.is_file():
            raise SpecError(f"{path} does not exist; only what was converted has a certificate.")
        content = read_json(path)
        try:
            tensors = {
                name: Digest(tuple(entry["shape"]), entry["dtype"], entry["sha256"])
                for name, entry in content.pop("tensors").items()
            }
            return Certificate(**content, tensors=tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"{path} is no certificate ({error}); convert the checkpoint again.") from None

    def check(self, folder: Path, *streams: Iterable[tuple[str, Tensor]]) -> None:
        """ValueError, naming the first that differs, unless the streams, read side by side, are exactly its tensors."""
        if self.written != self.elements:
            raise ValueError(f"{folder}: {self.written} elements were written, but the model has {self.elements}.")
        self.compare(folder, digested(streams))

    def compare(self, folder: Path, found: Mapping[str, Digest]) -> None:
        """ValueError, naming the first that differs, unless these are the digests of its tensors."""
        for name in found:
            if name not in self.tensors:
                raise ValueError(f"{folder} holds {name!r}, which its certificate does not know; convert it again.")
        for name, digest in self.tensors.items():
            if name not in found:
                raise ValueError(f"{folder} lacks {name!r}, which its certificate lists; convert it again.")
            if found[name] != digest:
                raise ValueError(f"{folder} holds {name!r} with other bytes than were converted; convert it again.")


def digested(streams: Sequence[Iterable[tuple[str, Tensor]]]) -> dict[str, Digest]:
    """Digests by name of the tensors of streams, each read by a thread of its own that holds one at a time."""
    parts = side_by_side(lambda stream: {name: Digest.of(tensor) for name, tensor in stream}, streams)
    return {name: digest for part in parts for name, digest in part.items()}


def compared(folder: Path, streams: Sequence[Compared]) -> dict[str, Digest]:
    """Digests by name of a folder's tensors, each of which comes with what it should be; ValueError where it is not."""

    def of_stream(stream: Compared) -> dict[str, Digest]:
        digests = {}
        for name, found, wanted in stream:
            if (digest := Digest.of_equals(found, wanted)) is None:
                raise ValueError(f"{folder} holds {name!r} with other bytes than were converted; convert it again.")
            digests[name] = digest
        return digests

    return {name: digest for part in side_by_side(of_stream, streams) for name, digest in part.items()}


def versions() -> dict[str, str]:
    """Of the packages that decide what is written."""
    return {package: version(package) for package in _PACKAGES}
