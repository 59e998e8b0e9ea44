"""Value runs: the rewards that the reference policy's rollouts got on each prompt, in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    """The rewards; ValueError where they were made by another reference, template, budget, law or reward."""
    table = pq.read_table(path)
    made = json.loads((table.schema.metadata or {}).get(_FINGERPRINT, b"{}"))
    differing = sorted(
        key for key in {*made, *fingerprint} if made.get(key) != json.loads(json.dumps(fingerprint.get(key)))
    )
    if differing:
        raise ValueError(
            f"{path} was made with another {', '.join(differing)}; optimal values belong to one reference policy, "
            "template, budget, sampling law and reward: run `megatron-rl values` again"
        )
    columns = table.to_pydict()
    return dict(zip(columns["prompt_id"], columns["rewards"], strict=True))
