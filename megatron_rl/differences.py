"""The first thing in which two runs of the same steps differ: in a step's rollouts, in memory, or in a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from megatron_rl.actor.distributed_folder import Reader
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.memory import Memory, read_memory
from megatron_rl.checkpoint import verify

CONTENTS: Final = "metadata.json"
"""What a folder of tensors has; a critic's is a folder of its own."""
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ABSENT: Final = "nothing"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference(place="step 7, column 'reward' of stage 'judge', rollout 3", straight="1.0", resumed="0.0")."""

    place: str
    straight: str
    resumed: str

    def __str__(self) -> str:
        return f"{self.place}: {self.straight} in the one, {self.resumed} in the other"


def between_rollouts(straight: Batch, resumed: Batch, writers: Mapping[str, str]) -> Difference | None:
    """Columns in the order in which they were written; `writers` says by which stage."""
    ours, theirs = straight.table, resumed.table
    if ours.num_rows != theirs.num_rows:
        return Difference(place="number of rollouts", straight=str(ours.num_rows), resumed=str(theirs.num_rows))
    for name in dict.fromkeys((*ours.column_names, *theirs.column_names)):
        stage = f" of stage '{writers[name]}'" if name in writers else ""
        if name not in ours.column_names or name not in theirs.column_names:
            there = [name if name in table.column_names else _ABSENT for table in (ours, theirs)]
            return Difference(place=f"column '{name}'{stage}", straight=there[0], resumed=there[1])
        one, other = ours.column(name), theirs.column(name)
        if one.type == other.type and _same_bytes(one.chunks, other.chunks):
            continue
        # Where the bytes are laid out otherwise, words tell: those of 0.0 and -0.0 differ, those of two NaN do not.
        for row, (before, after) in enumerate(zip(one.to_pylist(), other.to_pylist(), strict=True)):
            if repr(before) != repr(after):
                place = f"column '{name}'{stage}, rollout {row}"
                return Difference(place=place, straight=_short(before), resumed=_short(after))
    return None


def _same_bytes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two Arrow columns are the same bytes in the same places."""
    pairs = [
        pair
        for chunks in zip(one, other, strict=False)
        for pair in zip(*(chunk.buffers() for chunk in chunks), strict=False)
    ]
    is_alike = [len(chunk) for chunk in one] == [len(chunk) for chunk in other]
    return is_alike and all(a is b or (a is not None and b is not None and a.equals(b)) for a, b in pairs)


def between_checkpoints(straight: Path, resumed: Path) -> Difference | None:
    """Memory slot by slot, then parameters and moments tensor by tensor. Every file is verified first."""
    for folder in (straight, resumed):
        verify(folder)
    ours, theirs = (read_memory(folder / "memory") for folder in (straight, resumed))
    return _between_memories(ours, theirs, "memory") or next(_between_actors(straight, resumed), None)


def _between_memories(one: Memory, other: Memory, place: str) -> Difference | None:
    if isinstance(one, Batch) and isinstance(other, Batch):
        found = between_rollouts(one, other, {})
        return found and Difference(place=f"{place}, {found.place}", straight=found.straight, resumed=found.resumed)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = [
            (one.get(key, _ABSENT), other.get(key, _ABSENT), f"{place}{':' if place == 'memory' else ','} '{key}'")
            for key in dict.fromkeys((*one, *other))
        ]
        return next((found for pair in pairs if (found := _between_memories(*pair))), None)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        numbered = enumerate(zip(one, other, strict=True))
        return next((found for at, pair in numbered if (found := _between_memories(*pair, f"{place}[{at}]"))), None)
    same = type(one) is type(other) and repr(one) == repr(other)
    return None if same else Difference(place=place, straight=_short(one), resumed=_short(other))


def _between_actors(straight: Path, resumed: Path) -> Iterator[Difference]:
    """What is no tensor, the learning rate's position for one, comes before the tensors that follow from it."""
    for path in sorted((straight / "actor").rglob("progress.json")):
        texts = [path.read_text(), (resumed / path.relative_to(straight)).read_text()]
        if texts[0] != texts[1]:
            yield Difference(place=str(path.relative_to(straight)), straight=texts[0], resumed=texts[1])
    for path in sorted((straight / "actor").rglob(CONTENTS)):
        folder = path.parent.relative_to(straight)
        yield from _between_tensors(straight / folder, resumed / folder, str(folder))


def _between_tensors(straight: Path, resumed: Path, place: str) -> Iterator[Difference]:
    one, other = Reader(straight), Reader(resumed)
    names = sorted(one.tensors.keys() | other.tensors.keys(), key=lambda name: (name.startswith("optimizer"), name))
    for name in names:
        at, held = f"{place}, tensor '{name}'", [reader.tensors.get(name) for reader in (one, other)]
        shapes = [_ABSENT if entry is None else str(tuple(entry.shape)) for entry in held]
        if held[0] is None or held[1] is None or shapes[0] != shapes[1]:
            yield Difference(place=at, straight=shapes[0], resumed=shapes[1])
            continue
        box = tuple((0, length) for length in held[0].shape)
        ours, theirs = one.read(name, box), other.read(name, box)
        differs = _bits(ours) != _bits(theirs)
        if ours.dtype != theirs.dtype or differs.any():
            first = int(differs.flatten().to(torch.uint8).argmax())
            place_of_it = f"{at}, element {first} and {int(differs.sum()) - 1} more of {differs.numel()}"
            told = [repr(tensor.flatten()[first].item()) for tensor in (ours, theirs)]
            yield Difference(place=place_of_it, straight=told[0], resumed=told[1])


def _bits(tensor: Tensor) -> Tensor:
    """Numbers as whole numbers, so that 0.0 is not -0.0 and what is no number equals itself."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
