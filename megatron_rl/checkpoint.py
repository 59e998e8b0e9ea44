"""Checkpoints: a folder that is whole or absent, verified before any of it is used.

    checkpoints/step_000010/{actor/, memory/, manifest.json}    checkpoints/latest

Everything is written aside, flushed to disk, listed with its SHA-256 in the manifest, renamed into place, and only then
does `latest` name it. A process killed at any moment leaves the previous checkpoint loadable.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.batch.memory import Memory, read_memory, write_memory
from megatron_rl.ports import Actor

_PARTIAL = ".partial_"
_CHUNK_BYTES = 1 << 22


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint says about itself."""

    folder: Path
    step: int
    facts: Mapping[str, object]


def save(root: Path, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> Saved:
    """Writes `root/step_…` atomically and switches `latest` to it."""
    final, partial = _free_name(root, step), root / f"{_PARTIAL}step_{step:06d}"
    root.mkdir(parents=True, exist_ok=True)
    _remove_partial(root)
    partial.mkdir()
    try:
        actor.save(partial / "actor")
        write_memory(memory, partial / "memory")
        manifest: dict[str, object] = {"step": step, "facts": dict(facts), "files": _digests(partial)}
        manifest["seal"] = _seal(manifest)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        _flush_tree(partial)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(root)
    _switch(root / "latest", final.name)
    for superseded in set(root.glob(f"step_{step:06d}*")) - {final}:
        shutil.rmtree(superseded)
    return Saved(folder=final, step=step, facts=facts)


def latest(root: Path) -> Path | None:
    """The folder `latest` names, or None where nothing has been saved yet."""
    pointer = root / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text().strip()
    if not name or "/" in name or not (root / name).is_dir():
        there = sorted(path.name for path in root.glob("step_*"))
        raise CheckpointError(f"{pointer} names '{name}', which is not a checkpoint here; found {there}")
    return root / name


def load(folder: Path, actor: Actor) -> tuple[Saved, Memory]:
    """Verifies every file, then loads the actor; returns what was saved with it."""
    saved = verify(folder)
    memory = read_memory(folder / "memory")
    actor.load(folder / "actor")
    return saved, memory


def verify(folder: Path) -> Saved:
    """Reads every byte and compares with the manifest. Raises naming the first file that differs."""
    manifest = _manifest(folder)
    listed: dict[str, dict[str, object]] = manifest["files"]
    present = {str(path.relative_to(folder)) for path in _files(folder)} - {"manifest.json"}
    for name in sorted(listed.keys() - present):
        raise CheckpointError(
            f"checkpoint {folder} lacks the file '{name}' that its manifest lists; it cannot be resumed from"
        )
    for name in sorted(present - listed.keys()):
        raise CheckpointError(
            f"checkpoint {folder} holds the file '{name}' that its manifest does not list; it cannot be trusted"
        )
    found = _digests(folder, sorted(listed))
    for name in sorted(listed):
        if found[name] != listed[name]:
            raise CheckpointError(
                f"checkpoint {folder}: file '{name}' is damaged, expected {listed[name]}, found {found[name]}"
            )
    return Saved(folder=folder, step=manifest["step"], facts=manifest["facts"])


def prune(root: Path, keep: int) -> list[Path]:
    """Removes all but the newest `keep` checkpoints; never the one `latest` names. Returns what was removed."""
    current = latest(root)
    folders = sorted(path for path in root.glob("step_*") if path.is_dir())
    removed = [path for path in folders[: max(0, len(folders) - keep)] if path != current]
    for path in removed:
        shutil.rmtree(path)
    return removed


def _free_name(root: Path, step: int) -> Path:
    """A name nothing has yet: a step saved again must not remove its first checkpoint while `latest` still names it."""
    name = root / f"step_{step:06d}"
    return (
        name
        if not name.exists()
        else next(again for n in range(2, 1000) if not (again := root / f"{name.name}_{n}").exists())
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if not (
            isinstance(manifest["step"], int)
            and isinstance(manifest["facts"], dict)
            and isinstance(manifest["files"], dict)
        ):
            raise TypeError("'step', 'facts' or 'files' has the wrong type")
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {folder} lacks 'manifest.json'; it was never finished or has been damaged"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder}: 'manifest.json' is damaged ({error})") from None
    seal = manifest.pop("seal", None)
    if seal != _seal(manifest):
        raise CheckpointError(f"checkpoint {folder}: 'manifest.json' is damaged (its seal does not match its content)")
    return dict(manifest)


def _seal(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def _digests(folder: Path, names: list[str] | None = None) -> dict[str, dict[str, object]]:
    names = [str(path.relative_to(folder)) for path in _files(folder)] if names is None else names
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> dict[str, object]:
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": sha.hexdigest()}


def _remove_partial(root: Path) -> None:
    for path in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _switch(pointer: Path, name: str) -> None:
    aside = pointer.with_name(f"{_PARTIAL}latest")
    aside.write_text(name)
    _flush(aside)
    aside.rename(pointer)
    _flush(pointer.parent)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
