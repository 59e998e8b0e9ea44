"""Value runs: the rewards that the reference policy's rollouts got on each prompt, in a file of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_rl.spec.earlier import completed_section

FOLDERS: Final = "model"
"""The key under which a fingerprint names folders, for the eye: the same model may lie elsewhere on another machine."""
DIGESTS: Final = frozenset({"weights", "architecture", "tokenizer"})
"""The keys that say which model it was."""
_FINGERPRINT = b"fingerprint"


def write_values(path: Path, rewards: Mapping[str, Sequence[float]], fingerprint: Mapping[str, object]) -> None:
    """Raw rewards by prompt, so that beta may change, and what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "prompt_id": pa.array(list(rewards), pa.string()),
            "rewards": pa.array([list(row) for row in rewards.values()], pa.list_(pa.float64())),
        }
    )
    marked = table.replace_schema_metadata({_FINGERPRINT: json.dumps(dict(fingerprint), sort_keys=True).encode()})
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(marked, aside)
    aside.replace(path)


def read_values(path: Path, fingerprint: Mapping[str, object]) -> dict[str, list[float]]:
    """The rewards; ValueError where they were made by another reference, template, budget, law or reward.

    A key that a section has learnt since the file was written had its default then. A file from before weights had
    digests knows its model by its folder alone: it is read where that is the same, and told that more cannot be known.
    """
    table = pq.read_table(path)
    made = json.loads((table.schema.metadata or {}).get(_FINGERPRINT, b"{}"))
    is_dated = DIGESTS.isdisjoint(made)
    differing = sorted(
        key
        for key in {*made, *fingerprint} - (DIGESTS if is_dated else {FOLDERS})
        if completed_section(key, made.get(key)) != completed_section(key, json.loads(json.dumps(fingerprint.get(key))))
    )
    if differing:
        raise ValueError(
            f"{path} was made with other {', '.join(differing)}; optimal values belong to one reference policy, "
            "template, budget, sampling law and reward: run `megatron-rl values` again"
        )
    if is_dated:
        print(
            f"{path} names its model by its folder, not by its weights: that these are still the same is not known; "
            "running `megatron-rl values` again would write it down",
            file=sys.stderr,
        )
    columns = table.to_pydict()
    return dict(zip(columns["prompt_id"], columns["rewards"], strict=True))
