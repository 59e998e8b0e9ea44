"""How a tensor that torch saved lies in its archive, told by the opcodes of its pickle, which is not loaded."""

import pickletools
from typing import Final, NamedTuple

import torch

_NOTES: Final = ("PROTO", "PUT", "BINPUT", "LONG_BINPUT")
"""Opcodes whose arguments are not part of what is said."""
_DTYPES: Final = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Byte": torch.uint8,
        "Char": torch.int8,
        "Short": torch.int16,
        "Int": torch.int32,
        "Long": torch.int64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Float": torch.float32,
        "Double": torch.float64,
        "Bool": torch.bool,
    }.items()
}


class Lying(NamedTuple):
    """Lying(dtype=torch.bfloat16, start=0, strides=(400, 1)): which element of its storage is the first, and steps."""

    dtype: torch.dtype
    start: int
    strides: tuple[int, ...]


def lying(pickle: bytes, shape: tuple[int, ...]) -> Lying:
    """That of the archive's one tensor; ValueError where the pickle says anything else than a tensor of this shape."""
    said = [argument for opcode, argument, _ in pickletools.genops(pickle) if opcode.name not in _NOTES]
    match [argument for argument in said if argument is not None]:
        case ["torch._utils _rebuild_tensor_v2", "storage", str(kind), "0", "cpu", int(), int(start), *rest]:
            sizes, strides, after = rest[: len(shape)], rest[len(shape) : 2 * len(shape)], rest[2 * len(shape) :]
            if kind in _DTYPES and tuple(sizes) == shape and after == ["collections OrderedDict"]:
                return Lying(_DTYPES[kind], start, tuple(strides))
    raise ValueError(f"where a tensor of shape {shape} should be, it says {said}")
