"""Which functions a pickle would call and how much it would unfold to, told from its opcodes without loading it.

Megatron's checkpoints hold pickles, torch's archives do, and a pickle calls whatever it names. All that can be called
enters through an opcode that names a global, so a pickle that names only what is known calls only what is known.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import BinaryIO

import torch

from megatron_rl.actor.unfolding import Unfolding
from megatron_rl.spec.schema import SpecError

LOADS_BYTES = "torch.storage _load_from_bytes"
"""Loads an archive it is given as bytes, and those are looked through too; nothing else that is known makes bytes."""

_STORAGES = ("Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double", "Bool")
_TYPES = (
    *("uint8", "int8", "int16", "int32", "int64", "bool", "float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
)
TENSORS = frozenset(
    {"collections OrderedDict", "torch Size", "torch device", "torch._utils _rebuild_tensor_v2"}
    | {"torch.storage UntypedStorage", "torch.storage TypedStorage"}
    | {f"torch {name}Storage" for name in _STORAGES}
    | {f"torch {name}" for name in _TYPES}
)
"""All that a pickle of tensors and plain values names."""

_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_ZIP = b"PK\x03\x04"
_PICKLES_OF_THE_OLD_FORMAT = 5


def look_through(content: bytes | BinaryIO, known: frozenset[str], where: str) -> None:
    """Returns if the pickle names only what is known, as "module name"; SpecError, naming the first other, if not.

    One that unfolds to far more than it has bytes, or that is nested too deep to be worked with, is refused as well.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        for name, nested in _names(stream):
            if name is not None and name not in known:
                raise SpecError(
                    f"{where} would call '{name}' when it is loaded, which no checkpoint of ours does; "
                    "nothing of it was loaded: use a checkpoint you trust."
                )
            if nested is not None and LOADS_BYTES in known:
                look_through_archive(nested, TENSORS, where)
    except (ValueError, OverflowError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{where} holds no readable pickle ({error}); nothing of it was loaded.") from None


def look_through_archive(content: bytes | BinaryIO, known: frozenset[str], where: str) -> None:
    """The same for what torch saved: pickles one after another, or a zip file with one."""
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    is_zip = stream.read(len(_ZIP)) == _ZIP
    stream.seek(0)
    if not is_zip:
        for _ in range(_PICKLES_OF_THE_OLD_FORMAT):
            look_through(stream, known, where)
        return
    # Torch's own reader: another one could be shown another file in the same bytes.
    try:
        archive = torch._C.PyTorchFileReader(stream)
        records, pickle = archive.get_all_records(), archive.get_record("data.pkl")
    except RuntimeError as error:
        raise SpecError(f"{where} is no readable archive ({str(error).splitlines()[0]}).") from None
    if "constants.pkl" in records:
        raise SpecError(f"{where} is a program and no data; nothing of it was loaded: use a checkpoint you trust.")
    look_through(pickle, known, where)


def _names(stream: BinaryIO) -> Iterator[tuple[str | None, bytes | None]]:
    """Every global a pickle names, and every string of bytes it holds, up to its end."""
    memo: dict[object, str | None] = {}
    # Strings that are certainly on top of the stack, the last one topmost; None for a value that may be anything.
    top: list[str | None] = []
    unfolding = Unfolding()
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _PUTS or name == "MEMOIZE":
            memo[argument if name in _PUTS else len(memo)] = top[-1] if top else None
        elif name in _GETS:
            top.append(memo.get(argument))
        elif name in _STRINGS:
            top.append(str(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = top[-2:] if len(top) > 1 else (None, None)
            yield f"{module} {attribute}" if module is not None and attribute is not None else "something hidden", None
            top = []
        elif name not in ("PROTO", "FRAME"):
            top = []
        if name in ("GLOBAL", "INST"):
            yield str(argument), None
        elif name.startswith("EXT"):
            yield "something registered", None
        elif name in _BYTES:
            yield None, bytes(argument or b"")
        unfolding.take(name, argument)
    unfolding.end()
