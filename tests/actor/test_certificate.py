import dataclasses
import hashlib
import json

import pytest
import torch

from megatron_rl.actor.certificate import FILE, Certificate, Digest, versions
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


def test_an_element_written_twice_or_not_at_all_is_said(tmp_path):
    with pytest.raises(ValueError, match="9 elements were written, but the model has 8"):
        dataclasses.replace(CERTIFICATE, written=9).check(tmp_path, TENSORS.items())


@pytest.mark.parametrize("content", ["{}", '{"tensors": []}', '{"tensors": {"a": {"shape": [1]}}}'])
def test_what_is_no_certificate_is_refused_with_its_name(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(SpecError, match=rf"{FILE} is no certificate .*; convert the checkpoint again"):
        Certificate.read(tmp_path)
