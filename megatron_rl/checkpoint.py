"""Checkpoints: a folder that is whole or absent, verified before any of it is used.

    checkpoints/step_000010/{actor/, memory/, manifest.json}    checkpoints/latest

Everything is written aside, flushed to disk, listed with its SHA-256 in the manifest, renamed into place, and only then
does `latest` name it, with the seal of its manifest. A process killed at any moment leaves a checkpoint loadable.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_rl.batch.memory import Memory, read_memory, write_memory
from megatron_rl.ports import Actor

_PARTIAL = ".partial_"
_CHUNK_BYTES = 1 << 22
_NAME = re.compile(r"step_(\d{6,})(?:_(\d+))?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint says about itself."""

    folder: Path
    step: int
    facts: Mapping[str, object]


def save(root: Path, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> Saved:
    """Writes `root/step_…` atomically and switches `latest` to it. A disk that takes no more leaves what was there."""
    try:
        return _save(root, step, actor, memory, facts)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root} ({error.strerror or error}), and the one "
            "before it stands as it was; give the disk room and leave to write, and run the same command again"
        ) from error


def _save(root: Path, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> Saved:
    final, partial = _free_name(root, step), root / f"{_PARTIAL}step_{step:06d}"
    root.mkdir(parents=True, exist_ok=True)
    _remove_partial(root)
    partial.mkdir()
    try:
        actor.save(partial / "actor")
        write_memory(memory, partial / "memory")
        files = _digests(partial, _names(partial))
        manifest: dict[str, object] = {"step": step, "facts": json.loads(json.dumps(dict(facts))), "files": files}
        seal = _seal(manifest)
        (partial / "manifest.json").write_text(_rendered(manifest | {"seal": seal}))
        _flush_tree(partial)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(root)
    _switch(root / "latest", final.name, seal)
    for other in _own(root):
        if _order(other)[0] == step and other != final:
            shutil.rmtree(other)
    return Saved(folder=final, step=step, facts=facts)


def latest(root: Path) -> Path | None:
    """The folder `latest` names, or None where nothing has been saved yet.

    A first save killed before `latest` was written, or a lost `latest`, leaves whole folders that nothing names: then
    the newest is meant, since a run that began again would end in their being pruned.
    """
    pointer, there = root / "latest", folders(root)
    if not pointer.exists():
        whole = [folder for folder in there if (folder / "manifest.json").exists()]
        if there and not whole:
            names = [folder.name for folder in there]
            raise CheckpointError(f"{pointer} is missing, and none of {names} beside it is whole; there is no resuming")
        return whole[-1] if whole else None
    named = _text(pointer, f"{pointer} is damaged")
    for folder in there:
        if named.startswith(f"{folder.name} ") and named == _pointer(folder.name, str(_manifest(folder)["seal"])):
            return folder
    raise CheckpointError(
        f"{pointer} is damaged or names a checkpoint that is not here: it says {named!r}, and there are "
        f"{[folder.name for folder in there]}; remove it to go on from the newest"
    )


def load(folder: Path, actor: Actor) -> tuple[Saved, Memory]:
    """Verifies every file, then loads the actor; returns what was saved with it."""
    try:
        saved = verify(folder)
    except CheckpointError as error:
        there = folders(folder.parent)
        if folder in there[1:]:
            before = there[there.index(folder) - 1].name
            error.add_note(f"To go on from {before}, remove {folder} and the file 'latest' beside it.")
        raise
    memory = read_memory(folder / "memory")
    actor.load(folder / "actor")
    return saved, memory


def verify(folder: Path) -> Saved:
    """Reads every byte and compares with the manifest. Raises naming the first file that differs."""
    present = set(_names(folder)) - {"manifest.json"}
    manifest = _manifest(folder)
    listed: dict[str, dict[str, object]] = manifest["files"]
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
    """Removes all but the newest `keep` checkpoints; never the one `latest` names. Returns what was removed.

    What a disk does not let go, as a file that another machine of a shared one still reads, is told and tried again.
    """
    current = latest(root)
    there = _own(root)
    removed = []
    for path in there[: max(0, len(there) - keep)]:
        if path == current:
            continue
        try:
            shutil.rmtree(path)
            removed.append(path)
        except OSError as error:
            print(f"{path} could not be removed ({error}); the next save tries again.", file=sys.stderr, flush=True)
    return removed


def _free_name(root: Path, step: int) -> Path:
    """A name nothing has yet: a step saved again must not remove its first checkpoint while `latest` still names it."""
    name = root / f"step_{step:06d}"
    return (
        name
        if not name.exists()
        else next(again for n in range(2, 1000) if not (again := root / f"{name.name}_{n}").exists())
    )


def folders(root: Path) -> list[Path]:
    """What has been saved, oldest first."""
    return sorted((path for path in root.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()), key=_order)


def _own(root: Path) -> list[Path]:
    """Without links: what somebody moved to another disk is theirs to remove."""
    return [folder for folder in folders(root) if not folder.is_symlink()]


def _order(folder: Path) -> tuple[int, int]:
    """The step, and which of its saves: names alone would put the millionth step before the second."""
    found = _NAME.fullmatch(folder.name)
    assert found is not None, "only folders named by `save` are put in order"
    return int(found[1]), int(found[2] or 1)


def _text(path: Path, complaint: str) -> str:
    """A file of ours. Anything but a plain file is refused unopened: a pipe would be waited for, a link leads away."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointError(f"{complaint} (it is a link, a folder or a device where a file is expected)")
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{complaint} ({error})") from None


def _manifest(folder: Path) -> dict[str, Any]:
    complaint = f"checkpoint {folder}: 'manifest.json' is damaged"
    try:
        text = _text(folder / "manifest.json", complaint)
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


def _names(folder: Path) -> list[str]:
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


def _digests(folder: Path, names: list[str]) -> dict[str, dict[str, object]]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> dict[str, object]:
    sha, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise CheckpointError(f"the checkpoint's file '{path}' cannot be read ({error})") from None
    return {"bytes": size, "sha256": sha.hexdigest()}


def _remove_partial(root: Path) -> None:
    for path in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _pointer(name: str, seal: str) -> str:
    """What `latest` says. With the seal no damage to it can name another checkpoint unseen."""
    return f"{name} {seal}\n"


def _switch(pointer: Path, name: str, seal: str) -> None:
    aside = pointer.with_name(f"{_PARTIAL}latest")
    aside.write_text(_pointer(name, seal))
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
