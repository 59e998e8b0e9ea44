"""What the manifest of a checkpoint says of its folder: every file with its size and SHA-256, sealed by its own."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_rl.beside import all_beside

NAME = "manifest.json"
_CHUNK_BYTES = 1 << 22
_THREADS = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why, in one sentence."""


def write(folder: Path, step: int, facts: Mapping[str, object]) -> str:
    """Lists what is in the folder, beside it; returns the seal."""
    files = digests(folder, names(folder))
    listed: dict[str, object] = {"step": step, "facts": json.loads(json.dumps(dict(facts))), "files": files}
    seal = _seal(listed)
    (folder / NAME).write_text(_rendered(listed | {"seal": seal}))
    return seal


def text_of(path: Path, complaint: str) -> str:
    """A file of ours. Anything but a plain file is refused unopened: a pipe would be waited for, a link leads away."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointError(f"{complaint} (it is a link, a folder or a device where a file is expected)")
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{complaint} ({error})") from None


def read(folder: Path) -> dict[str, Any]:
    """What it says; CheckpointError where there is none, or one that its seal does not fit."""
    complaint = f"checkpoint {folder}: 'manifest.json' is damaged"
    try:
        text = text_of(folder / NAME, complaint)
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {folder} lacks 'manifest.json'; it was never finished or has been damaged"
        ) from None
    try:
        manifest = dict(json.loads(text))
        is_typed = type(manifest["step"]) is int and all(type(manifest[name]) is dict for name in ("facts", "files"))
        if not is_typed or manifest["step"] < 0:
            raise TypeError("'step', 'facts' or 'files' has the wrong type or is negative")
        unsealed = {name: value for name, value in manifest.items() if name != "seal"}
        if manifest.get("seal") != _seal(unsealed) or text != _rendered(manifest):
            raise ValueError("its seal does not match its content")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{complaint} ({error})") from None
    return manifest


def _rendered(manifest: Mapping[str, object]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True)


def _seal(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def names(folder: Path) -> list[str]:
    """The files of a checkpoint. Links are refused: what they lead to can change while every digest still matches."""
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, str(path.relative_to(folder))
        if stat.S_ISREG(mode):
            found.append(name)
        elif not stat.S_ISDIR(mode):
            raise CheckpointError(
                f"checkpoint {folder} holds '{name}', which is a link or a device; only files are trusted"
            )
    return found


def digests(folder: Path, names: list[str]) -> dict[str, dict[str, object]]:
    return dict(zip(names, all_beside(lambda name: _digest(folder / name), names, _THREADS), strict=True))


def _digest(path: Path) -> dict[str, object]:
    sha, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return {"bytes": size, "sha256": sha.hexdigest()}
