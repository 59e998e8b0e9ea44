import collections
import copyreg
import io
import os
import pickle
import random
import zipfile
from contextlib import suppress

import pytest
import torch

from megatron_rl.actor.pickled import LOADS_BYTES, TENSORS, look_through, look_through_archive
from megatron_rl.spec.schema import SpecError

PLAIN = {"a": [1, 2.0, "x", None, True], "b": {"nested": (1, 2)}}
OLD = {"_use_new_zipfile_serialization": False}


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: object) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def saved(value: object, **how: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_pickle_would_call_is_named_at_every_protocol(tmp_path, protocol):
    content = pickle.dumps([PLAIN, Canary(tmp_path / "called")], protocol)
    with pytest.raises(SpecError, match=r"FILE would call 'posix mkdir' when it is loaded"):
        look_through(content, TENSORS, "FILE")
    assert not (tmp_path / "called").exists()
    pickle.loads(content)
    assert (tmp_path / "called").exists(), "this is what was prevented"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_values_and_what_is_known_pass(protocol):
    look_through(pickle.dumps(PLAIN, protocol), frozenset(), "FILE")
    ordered = collections.OrderedDict(a=torch.Size((1, 2)))
    look_through(pickle.dumps([ordered, ordered, torch.float32], protocol), TENSORS, "FILE")


@pytest.mark.parametrize(
    ("opcodes", "named"),
    [
        (b"cposix\nsystem\n.", "posix system"),
        (b"(iposix\nsystem\n.", "posix system"),
        (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.", r"torch os\.system"),
        # The names come from the memo, where one was put under the number of another, or from a value of unknown kind.
        (
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x8c\x05torch\x94\x8c\x04Size\x94h\x00h\x01\x93.",
            "posix system",
        ),
        (b"\x80\x04\x8c\x05torchq\x00\x8c\x05posixq\x000\x8c\x04Size0h\x00\x8c\x06system\x93.", "posix system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x05torch\x8c\x04Size00\x93.", "something hidden"),
        (b"\x80\x04\x8c\x05torch\x8c\x04Size\x85\x8c\x01x\x93.", "something hidden"),
        (b"\x80\x04N\x94h\x00h\x00\x93.", "something hidden"),
        (b"\x80\x04\x93.", "something hidden"),
        (b"\x80\x02\x82\x01.", "something registered"),
    ],
)
def test_no_opcode_hides_a_name(opcodes, named):
    with pytest.raises(SpecError, match=f"would call '{named}'"):
        look_through(opcodes, TENSORS, "FILE")


def test_a_registered_number_stands_for_a_name_and_is_refused(tmp_path):
    copyreg.add_extension("posix", "mkdir", 240)
    try:
        content = pickle.dumps(Canary(tmp_path / "called"), 2)
    finally:
        copyreg.remove_extension("posix", "mkdir", 240)
    with pytest.raises(SpecError, match="something registered"):
        look_through(content, TENSORS, "FILE")


def test_what_is_no_pickle_is_refused_and_nothing_else_is_raised():
    for content in (b"", b"hello", b"\x80\x04", b"\x80\x04\x8c\xff", pickle.dumps(PLAIN)[:-1]):
        with pytest.raises(SpecError, match="FILE holds no readable pickle"):
            look_through(content, TENSORS, "FILE")
    draw = random.Random(0)
    good = pickle.dumps([PLAIN, torch.Size((1,)), torch.float32])
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with suppress(SpecError):
            look_through(bytes(content), TENSORS, "FILE")


@pytest.mark.parametrize("how", [{}, OLD], ids=["zip", "old"])
def test_archives_of_tensors_pass_and_canaries_do_not(tmp_path, how):
    tensors = [torch.ones(3), torch.empty(0, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.bfloat16), PLAIN]
    look_through_archive(saved(tensors, **how), TENSORS, "FILE")
    content = saved([*tensors, Canary(tmp_path / "called")], **how)
    with pytest.raises(SpecError, match="mkdir"):
        look_through_archive(content, TENSORS, "FILE")
    assert not (tmp_path / "called").exists()


def test_a_program_or_a_broken_archive_is_refused():
    stream = io.BytesIO(saved([1]))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(SpecError, match="FILE is a program and no data"):
        look_through_archive(stream.getvalue(), TENSORS, "FILE")
    with pytest.raises(SpecError, match="FILE is no readable archive"):
        look_through_archive(saved([1])[:-30], TENSORS, "FILE")


def test_bytes_that_would_be_loaded_in_turn_are_looked_through(tmp_path):
    known = TENSORS | {LOADS_BYTES}
    look_through(pickle.dumps({"scale": torch.ones(2), "history": torch.zeros(4, 2)}), known, "FILE")
    for how in ({}, OLD):

        class Inner:
            content = saved(Canary(tmp_path / "called"), **how)

            def __reduce__(self) -> tuple[object, tuple[bytes]]:
                return torch.storage._load_from_bytes, (self.content,)

        with pytest.raises(SpecError, match="mkdir"):
            look_through(pickle.dumps({"scale": torch.ones(2), "history": Inner()}), known, "FILE")
    assert not (tmp_path / "called").exists()
