"""A plan carried out where every tensor is at hand: loading, conversion, export, and engines in the actor's process.

Works on whatever is sliced like an array: numpy arrays, torch tensors (under `no_grad`), slices of a safetensors file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import Box, Key, Layout, LocalTensor
from megatron_rl.reshard.plan import ReshardPlan, SliceCopy, plan_rank

Slices = tuple[slice, ...]


class Readable(Protocol):
    """What a box is read from."""

    def __getitem__(self, slices: Slices, /) -> "Array": ...


class Array(Protocol):
    """What a box is read from and written to."""

    def __getitem__(self, slices: Slices, /) -> Self: ...
    def __setitem__(self, slices: Slices, value: Any, /) -> None: ...  # noqa: ANN401  # each kind takes its own
    def reshape(self, shape: tuple[int, ...], /) -> Self: ...


Tensors = Mapping[Key, Array]
"""The tensors of one rank."""


class Filled(NamedTuple):
    """A target tensor and the copies that fill it."""

    tensor: LocalTensor
    copies: tuple[SliceCopy, ...]


def slices(box: Box) -> Slices:
    """A box as an array takes it."""
    return tuple(slice(start, stop) for start, stop in box)


def copy(source: Readable, origin: Box, target: Array, box: Box) -> None:
    """Writes `origin` of the source into `box` of the target; one may have leading axes of length one more."""
    target[slices(box)] = source[slices(origin)].reshape(tuple(stop - start for start, stop in box))


def execute_local(plan: ReshardPlan, sources: Mapping[int, Tensors], targets: Mapping[int, Tensors]) -> None:
    """Fills the given target ranks from the source ranks, padding included."""
    for receiver, tensors in targets.items():
        fill_padding(plan.target, receiver, tensors)
        copy_slices(plan.copies(plan.incoming(receiver)), sources, targets)


def copy_slices(
    copies: Iterable[SliceCopy], sources: Mapping[int, Mapping[Key, Readable]], targets: Mapping[int, Tensors]
) -> None:
    """Writes these copies, by sender and receiver."""
    for sender, receiver, source, target, _ in copies:
        copy(sources[sender][source.key], source.box, targets[receiver][target.key], target.box)


def fill_padding(layout: Layout, rank: int, tensors: Tensors) -> None:
    """Writes zeros where a rank's tensors hold no element of the model."""
    for tensor in layout.tensors(rank):
        for box in tensor.zeros:
            tensors[tensor.key][slices(box)] = 0


def load_rank(target: Layout, rank: int, read: Callable[[str], Readable], tensors: Tensors) -> None:
    """Fills one rank's tensors from a Hugging Face checkpoint, reading one checkpoint tensor at a time.

    `read(name)` gives what can be sliced: a tensor, or safetensors' `get_slice(name)`, which reads only the boxes.
    """
    fill_padding(target, rank, tensors)
    by_name: dict[str, list[SliceCopy]] = {}
    for one in plan_rank(huggingface_layout(target.shape), target, rank).copies():
        by_name.setdefault(one.source.key.name, []).append(one)
    for name, copies in by_name.items():
        whole = read(name)
        for one in copies:
            copy(whole, one.source.box, tensors[one.target.key], one.target.box)


def by_target(plan: ReshardPlan, receiver: int) -> Iterator[Filled]:
    """A target rank's tensors, one after the other, with the copies that fill each: export holds one at a time."""
    copies: dict[Key, list[SliceCopy]] = {}
    for one in plan.copies(plan.incoming(receiver)):
        copies.setdefault(one.target.key, []).append(one)
    for tensor in plan.target.tensors(receiver):
        yield Filled(tensor, tuple(copies.get(tensor.key, ())))
