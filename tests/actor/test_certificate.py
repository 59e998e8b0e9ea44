import dataclasses
import hashlib
import json

import pytest
import torch

from megatron_rl.actor.certificate import BLOCK, FILE, Certificate, Digest, compared, versions
from megatron_rl.spec.schema import SpecError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
CERTIFICATE = Certificate(
    source="here",
    target="there",
    elements=8,
    written=8,
    padding=0,
    plan_bytes=28,
    tensors={name: Digest.of(tensor) for name, tensor in TENSORS.items()},
    versions=versions(),
)


def test_a_digest_is_that_of_the_bytes_alone():
    assert Digest.of(TENSORS["b"]) == Digest((2,), "bfloat16", hashlib.sha256(b"\x80\x3f\x80\x3f").hexdigest())
    assert Digest.of(TENSORS["a"].T).sha256 == Digest.of(TENSORS["a"].T.contiguous()).sha256


def test_what_was_written_is_read_back(tmp_path):
    CERTIFICATE.write(tmp_path)
    assert Certificate.read(tmp_path) == CERTIFICATE
    assert json.loads((tmp_path / FILE).read_text())["tensors"]["a"]["shape"] == [2, 3]
    CERTIFICATE.check(tmp_path, TENSORS.items())
    with pytest.raises(SpecError, match=r"does not exist; only what was converted has a certificate"):
        Certificate.read(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({**TENSORS, "b": torch.ones(2)}, "holds 'b' with other bytes"),
        ({**TENSORS, "a": TENSORS["a"].reshape(3, 2)}, "holds 'a' with other bytes"),
        ({**TENSORS, "c": torch.ones(2)}, "holds 'c', which its certificate does not know"),
        ({"b": TENSORS["b"]}, "lacks 'a', which its certificate lists"),
    ],
)
def test_a_difference_is_named(tmp_path, tensors, reason):
    with pytest.raises(ValueError, match=reason):
        CERTIFICATE.check(tmp_path, tensors.items())


def test_tensors_of_the_same_bytes_are_hashed_as_they_are_compared():
    odd, not_a_number = torch.arange(BLOCK + 3, dtype=torch.uint8), torch.full((3,), torch.nan)
    for tensor in (*TENSORS.values(), odd, odd[1:], not_a_number):
        assert Digest.of_equals(tensor, tensor.clone()) == Digest.of(tensor)


def test_what_differs_in_a_byte_its_shape_or_its_type_has_no_digest():
    tensor = torch.zeros(2 * BLOCK + 3, dtype=torch.uint8)
    for place in (0, BLOCK, -1):
        other = tensor.clone()
        other[place] = 1
        assert Digest.of_equals(tensor, other) is None
    assert Digest.of_equals(tensor[:4], tensor[:4].view(2, 2)) is None
    assert Digest.of_equals(tensor[:4], tensor[:4].view(torch.int8)) is None
    assert Digest.of_equals(torch.zeros(1), torch.tensor([-0.0])) is None


def test_all_streams_are_compared_and_the_folder_is_named(tmp_path):
    streams = [[(name, tensor, tensor)] for name, tensor in TENSORS.items()]
    assert compared(tmp_path, streams) == CERTIFICATE.tensors
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds 'a' with other bytes than were converted"):
        compared(tmp_path, [*streams[1:], [("a", TENSORS["a"], TENSORS["a"] + 1)]])


def test_an_element_written_twice_or_not_at_all_is_said(tmp_path):
    with pytest.raises(ValueError, match="9 elements were written, but the model has 8"):
        dataclasses.replace(CERTIFICATE, written=9).check(tmp_path, TENSORS.items())
    with pytest.raises(ValueError, match="9 elements were written, but the model has 8"):
        dataclasses.replace(CERTIFICATE, written=9).write(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"tensors": []}', '{"tensors": {"a": {"shape": [1]}}}'])
def test_what_is_no_certificate_is_refused_with_its_name(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(SpecError, match=rf"{FILE} is no certificate .*; convert the checkpoint again"):
        Certificate.read(tmp_path)
