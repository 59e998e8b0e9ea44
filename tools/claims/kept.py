"""Measurements that took long are kept, one JSON line each, and found again by what they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(file: Path, identity: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  # whatever JSON can say
    """What the file holds under this identity; made and added to it where it holds nothing."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        entry = json.loads(line)
        if entry["identity"] == identity:
            return entry["result"]
    result = make()
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"identity": identity, "result": result}) + "\n")
    return result
