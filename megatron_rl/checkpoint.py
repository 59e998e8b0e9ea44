"""Checkpoints: a folder that is whole or absent, verified before any of it is used.

    checkpoints/step_000010/{actor/, memory/, manifest.json}    checkpoints/latest

Everything is written aside, flushed to disk, listed with its SHA-256 in the manifest, renamed into place, and only then
does `latest` name it, with the seal of its manifest. A process killed at any moment leaves a checkpoint loadable.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_rl import manifest
from megatron_rl.batch.memory import Memory, copied, read_memory, write_memory
from megatron_rl.beside import beside
from megatron_rl.manifest import CheckpointError as CheckpointError
from megatron_rl.ports import Actor

_PARTIAL = ".partial_"
_NAME = re.compile(r"step_(\d{6,})(?:_(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint says about itself."""

    folder: Path
    step: int
    facts: Mapping[str, object]


def begin(root: Path, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> Future[Saved]:
    """Takes aside what is to be saved, and writes `root/step_…` beside what comes next.

    It gets its name as a whole, and then `latest` is switched to it. A disk that takes no more leaves what was there.
    """
    partial_folder, aside = root / f"{_PARTIAL}step_{step:06d}", copied(memory)
    with _explaining(root, step), _or_removed(partial_folder):
        root.mkdir(parents=True, exist_ok=True)
        _remove_partial(root)
        partial_folder.mkdir()
        written = actor.save(partial_folder / "actor")

    def finish() -> Saved:
        with _explaining(root, step), _or_removed(partial_folder):
            written.result()
            write_memory(aside, partial_folder / "memory")
            return _landed(partial_folder, root, step, facts)

    return beside(finish, "checkpoint")


def save(root: Path, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> Saved:
    """The same, at once."""
    return begin(root, step, actor, memory, facts).result()


@contextmanager
def _explaining(root: Path, step: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root} ({error.strerror or error}), and the one "
            "before it stands as it was; give the disk room and leave to write, and run the same command again"
        ) from error


@contextmanager
def _or_removed(folder: Path) -> Iterator[None]:
    """Where the disk says no. After other failures a rank may still be writing, or wait for ever, as removing would."""
    try:
        yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _landed(partial: Path, root: Path, step: int, facts: Mapping[str, object]) -> Saved:
    """The folder under its name, on disk, and named by `latest`; other saves of its step are gone."""
    final, seal = _free_name(root, step), manifest.write(partial, step, facts)
    _flush_tree(partial)
    partial.rename(final)
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
        whole = [folder for folder in there if (folder / manifest.NAME).exists()]
        if there and not whole:
            names = [folder.name for folder in there]
            raise CheckpointError(f"{pointer} is missing, and none of {names} beside it is whole; there is no resuming")
        return whole[-1] if whole else None
    named = manifest.text_of(pointer, f"{pointer} is damaged")
    for folder in there:
        if named.startswith(f"{folder.name} ") and named == _pointer(folder.name, str(manifest.read(folder)["seal"])):
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
    present = set(manifest.names(folder)) - {manifest.NAME}
    told = manifest.read(folder)
    listed: dict[str, dict[str, object]] = told["files"]
    for name in sorted(listed.keys() - present):
        raise CheckpointError(
            f"checkpoint {folder} lacks the file '{name}' that its manifest lists; it cannot be resumed from"
        )
    for name in sorted(present - listed.keys()):
        raise CheckpointError(
            f"checkpoint {folder} holds the file '{name}' that its manifest does not list; it cannot be trusted"
        )
    try:
        found = manifest.digests(folder, sorted(listed))
    except OSError as error:
        raise CheckpointError(f"the checkpoint's file '{error.filename}' cannot be read ({error.strerror})") from None
    for name in sorted(listed):
        if found[name] != listed[name]:
            raise CheckpointError(
                f"checkpoint {folder}: file '{name}' is damaged, expected {listed[name]}, found {found[name]}"
            )
    return Saved(folder=folder, step=told["step"], facts=told["facts"])


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
