"""This interpreter: processes of it that import what this one does, and code in it that may not end it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def command(module: str, *arguments: str) -> list[str]:
    """Runs a module; a file of the folder one happens to be in is not taken for a library."""
    return [sys.executable, "-P", "-m", module, *arguments]


def search_path() -> dict[str, str]:
    """What the process finds its modules by, for its environment."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


@contextmanager
def staying() -> Iterator[None]:
    """Within, code of anybody's that calls `sys.exit` has failed, whichever code it gives: nobody else would know."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"code within the run ended the program by sys.exit({error.code!r})") from error
