"""Processes of this interpreter's that import what this one does."""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Runs a module; a file of the folder one happens to be in is not taken for a library."""
    return [sys.executable, "-P", "-m", module, *arguments]


def search_path() -> dict[str, str]:
    """What the process finds its modules by, for its environment."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
