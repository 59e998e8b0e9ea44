import pickle

import numpy as np
import pytest
import torch

from megatron_rl.reshard import digest as module
from megatron_rl.reshard.digest import HEADER_BYTES, Header, TransferError, check, digest, fingerprint

HEADER = Header(plan=11, version=3, sender=0, receiver=1, number=2, buckets=4, size=800, digest=-5)


def payload(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8))


def test_a_full_digest_notices_every_flipped_bit():
    data = payload(1024)
    before = digest(data, "full", 1, 2)
    for byte in range(len(data)):
        for bit in range(8):
            data[byte] ^= 1 << bit
            assert digest(data, "full", 1, 2) != before
            data[byte] ^= 1 << bit
    assert digest(data, "full", 1, 2) == before


def test_a_full_digest_notices_words_that_changed_places():
    words = payload(8 * 4096).view(torch.int64)
    before = digest(words.view(torch.uint8), "full", 1)
    for other in (1, 77, 4095):
        swapped = words.clone()
        swapped[[0, other]] = words[[other, 0]]
        assert digest(swapped.view(torch.uint8), "full", 1) != before


def test_a_full_digest_multiplies_each_word_by_an_odd_number_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1 << 10)
    words = torch.zeros(2 * 1024 + 300, dtype=torch.int64)
    nothing, numbers = digest(words.view(torch.uint8), "full", 1), set()
    for place in range(len(words)):
        words[place] = 1
        numbers.add((digest(words.view(torch.uint8), "full", 1) - nothing) % (1 << 64))
        words[place] = 0
    assert len(numbers) == len(words)
    assert all(number % 2 for number in numbers)


def test_a_sample_notices_another_payload_and_looks_elsewhere_at_another_version():
    data, other = payload(1 << 20, 1), payload(1 << 20, 2)
    assert digest(data, "sample", 1) != digest(other, "sample", 1)
    changed = data.clone()
    changed[8:16] += 1
    assert [digest(changed, "sample", version) != digest(data, "sample", version) for version in range(8)].count(
        True
    ) == 1


def test_digests_differ_by_key_and_off_is_nothing():
    data = payload(64)
    assert len({digest(data, "full", version, bucket) for version in range(9) for bucket in range(9)}) == 81
    assert digest(data, "off", 1) == digest(payload(64, 5), "off", 1) == 0


def test_a_header_survives_being_written_and_read():
    message = torch.zeros(HEADER_BYTES + 16, dtype=torch.uint8)
    HEADER.write(message)
    assert Header.read(message) == HEADER


@pytest.mark.parametrize("field", Header._fields)
def test_a_header_that_differs_anywhere_is_refused_by_name(field):
    with pytest.raises(TransferError, match=f"version 3: {field} is 99 where") as refused:
        check(HEADER._replace(**{field: 99}), HEADER)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_equal_facts_have_one_fingerprint():
    assert fingerprint("a", (1, 2)) == fingerprint("a", (1, 2)) != fingerprint("a", (2, 1))
