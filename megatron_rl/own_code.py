"""Code of the user's own that a run was made with: which file each import path led to, and what stood in it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_rl.spec.files import OWN_FUNCTION
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.shape import find_module


def own_code(spec: RunSpec) -> dict[str, str]:
    """{"my_package.my_module:MyStage": "/lab/my_package/my_module.py sha256 5f0c…"} for each import path of the run."""
    reward = spec.choices["reward"]
    parts = (*spec.choices.values(), *(part for chain in spec.chains.values() for part in chain))
    paths = {part.target for part in parts if ":" in part.name}
    if reward.name == OWN_FUNCTION:
        paths.add(str(reward.values["path"]))
    found = {path: find_module(path.partition(":")[0]) for path in sorted(paths)}
    return {path: f"{file} sha256 {_digest(file)}" if file else "no source file" for path, file in found.items()}


def told(code: Mapping[str, str], before: Path) -> None:
    """Says on stderr what the run's own code is, and where that is other than what the file `before` recorded."""
    recorded = _recorded(before)
    for path, now in code.items():
        changed = (
            f"; it was {recorded[path]} when this folder was last trained in" if recorded.get(path, now) != now else ""
        )
        print(f"code of your own: {path} is {now}{changed}", file=sys.stderr)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _recorded(path: Path) -> Mapping[str, str]:
    """What the folder's environment.json says; a damaged one says nothing, and is written anew."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
