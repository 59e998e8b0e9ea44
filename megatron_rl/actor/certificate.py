"""What a conversion says of itself, in a file beside the weights: enough to check them at any later time."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from megatron_rl.actor.safetensors_folder import bytes_of, read_json
from megatron_rl.spec.schema import SpecError

FILE = "conversion.json"
_PACKAGES = ("megatron-core", "torch", "safetensors")


class Digest(NamedTuple):
    """Digest(shape=(128, 64), dtype="bfloat16", sha256="9f86d0…") of a Hugging Face tensor's bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @staticmethod
    def of(tensor: Tensor) -> "Digest":
        """That of a tensor."""
        sha256 = hashlib.sha256(bytes_of(tensor)).hexdigest()
        return Digest(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), sha256)


class Digests:
    """Digests of tensors as they come: one is hashed while the next is made, and no more than those two are held."""

    def __init__(self, other: ThreadPoolExecutor) -> None:
        self._other = other
        self._hashed: dict[str, Future[Digest]] = {}
        self._last: Future[Digest] | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """Returns when the tensor before is hashed."""
        if self._last is not None:
            self._last.result()
        self._hashed[name] = self._last = self._other.submit(Digest.of, tensor)

    def all(self) -> dict[str, Digest]:
        """Those of every tensor so far, by name."""
        return {name: hashed.result() for name, hashed in self._hashed.items()}


@contextmanager
def hashing() -> Iterator[Digests]:
    """Digests that another thread works out."""
    with ThreadPoolExecutor(1) as other:
        yield Digests(other)


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
        """Puts it into the folder."""
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
        tensors = {
            name: Digest(tuple(entry["shape"]), entry["dtype"], entry["sha256"])
            for name, entry in content.pop("tensors").items()
        }
        return Certificate(**content, tensors=tensors)

    def check(self, folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """ValueError, naming the first that differs, unless the folder holds exactly these tensors."""
        if self.written != self.elements:
            raise ValueError(f"{folder}: {self.written} elements were written, but the model has {self.elements}.")
        with hashing() as digests:
            for name, tensor in tensors:
                if name not in self.tensors:
                    raise ValueError(f"{folder} holds {name!r}, which its certificate does not know; convert it again.")
                digests.add(name, tensor)
            found = digests.all()
        for name, digest in self.tensors.items():
            if name not in found:
                raise ValueError(f"{folder} lacks {name!r}, which its certificate lists; convert it again.")
            if found[name] != digest:
                raise ValueError(f"{folder} holds {name!r} with other bytes than were converted; convert it again.")


def versions() -> dict[str, str]:
    """Of the packages that decide what is written."""
    return {package: version(package) for package in _PACKAGES}
