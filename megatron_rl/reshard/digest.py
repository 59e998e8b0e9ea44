"""What travels before a bucket's bytes, so that a receiver knows that they are the right ones and arrived whole."""

import hashlib
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Verify = Literal["off", "sample", "full"]
"""Headers are always checked. `full` also sums every byte: no flipped bit passes. `sample` sums some words, others at
each version: it finds a bucket that holds something else, and a flipped bit only by luck. `off` trusts the bytes."""

HEADER_BYTES = 64
SAMPLED_WORDS = 1 << 11
_LINE = 8
_WIDTH = 1 << 7
_BLOCK = 1 << 23
_WRAP = 1 << 64
_STEPS = (-7046029254386353131, -4417276706812531889, 1609587929392839161)
"""Odd numbers without a pattern in their bits, so that columns', rows' and blocks' multiples hardly ever meet."""


class TransferError(RuntimeError):
    """What arrived is not what was sent for this version: the target's weights are unusable until a sync succeeds."""


class ReceiverLost(TransferError):
    """A process that received was lost in the sync. Another takes its place: the version can be sent once more."""


class Header(NamedTuple):
    """Says which bucket this is. Eight numbers of eight bytes."""

    plan: int
    """Fingerprint of the plan and of how it is carried out."""
    version: int
    sender: int
    receiver: int
    number: int
    buckets: int
    """From this sender to this receiver; bucket number `buckets` is the empty one that ends the sync."""
    size: int
    """Bytes that follow."""
    digest: int

    def write(self, message: Tensor) -> None:
        """Puts it at the head of a message of bytes."""
        message[:HEADER_BYTES].copy_(torch.tensor(self, dtype=torch.int64).view(torch.uint8))

    @staticmethod
    def read(message: Tensor) -> "Header":
        """What stands at the head of a message of bytes."""
        return Header(*message[:HEADER_BYTES].cpu().clone().view(torch.int64).tolist())


def check(found: Header, expected: Header) -> None:
    """TransferError, naming what differs, unless the bucket is the expected one and its bytes are what was sent."""
    if found == expected:
        return
    name = next(name for name in Header._fields if getattr(found, name) != getattr(expected, name))
    raise TransferError(
        f"bucket {expected.number} of {expected.buckets} from rank {expected.sender} to rank {expected.receiver} at "
        f"version {expected.version}: {name} is {getattr(found, name)} where {getattr(expected, name)} was due; "
        "publish again before serving."
    )


def fingerprint(*facts: object) -> int:
    """63 bits that only equal facts share."""
    digest = hashlib.sha256("\n".join(repr(fact) for fact in facts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def digest(payload: Tensor, verify: Verify, *key: int) -> int:
    """A sum of the payload's words, each times an odd number of its own, under a key. Whole words only.

    Odd numbers have inverses modulo 2^64, so a change within one word always changes the sum. It is computed where
    the payload is. It guards against faults, not against forgery.
    """
    if verify == "off" or not len(payload):
        return 0
    words = payload.view(torch.int64)
    if verify == "sample" and len(words) > SAMPLED_WORDS:
        words = _sample(words, sum(key))
    total = fingerprint(*key)
    for number, first in enumerate(range(0, len(words), _BLOCK)):
        total += int(_sum(words[first : first + _BLOCK])) * (number * _STEPS[2] << 1 | 1)
    signed = total % _WRAP
    return signed - _WRAP if signed >= _WRAP // 2 else signed


def _sample(words: Tensor, start: int) -> Tensor:
    """Some lines of words: to fetch one word from memory costs as much as to fetch the line it lies in."""
    lines = words[: len(words) // _LINE * _LINE].view(-1, _LINE)
    step = -(-len(lines) * _LINE // SAMPLED_WORDS)
    return lines[start % step :: step].flatten()


def _sum(words: Tensor) -> Tensor:
    """The sum over a block laid out in rows: a word's number is its column's, which is odd, plus its row's, even.

    So only sums of columns and of rows are multiplied and the words are but added: twice as fast as one by one.
    """
    column, row = _numbers(words.device)
    height = len(words) // _WIDTH
    grid, rest = words[: height * _WIDTH].view(height, _WIDTH), words[height * _WIDTH :]
    total = (grid.sum(0) * column).sum() + (grid.sum(1) * row[:height]).sum()
    if len(rest):
        total += (rest * (column[: len(rest)] + row[height])).sum()
    return total


@cache
def _numbers(device: torch.device) -> tuple[Tensor, Tensor]:
    # Products wrap around 2^64, as they should.
    column = torch.arange(_WIDTH, dtype=torch.int64, device=device) * _STEPS[0] | 1
    row = torch.arange(_BLOCK // _WIDTH, dtype=torch.int64, device=device) * _STEPS[1] << 1
    return column, row
