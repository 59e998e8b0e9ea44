"""What a bug report needs of a run, in one archive that says nothing it should not.

    what_happened.txt  environment.txt  checkpoints.txt  last_step.json  spec.yaml  plan.txt  metrics.jsonl  logs/…

Weights are never in it, prompts and rollouts only where they were asked for; of long files the end is.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megatron_rl.checkpoint import folders
from megatron_rl.diagnosis import first_failure
from megatron_rl.progress import step_of
from megatron_rl.redaction import Redaction
from megatron_rl.secret_names import is_secret
from megatron_rl.secret_shapes import GONE

HEAD_LINES: Final = 50
TAIL_LINES: Final = 400
LINE_CHARACTERS: Final = 20_000
"""Of one line; a step's line of metrics has some thousand."""
READ_BYTES: Final = 1 << 22
"""Read at either end of a file."""
LEFT_OUT: Final = "\n… what stood here is left out …\n".encode()
TOLD_OF_ENVIRONMENT: Final = (
    *("SLURM_", "RAY_", "NCCL_", "CUDA_", "OMP_", "TORCH_", "PYTORCH_", "NVTE_", "VLLM_", "MEGATRON_", "GLOO_", "UCX_"),
    *("PYTHON", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONTAINER", "MOUNTS", "MAX_RESTARTS", "MARGIN_S"),
)
"""Variables whose values explain runs; of the others not even the names are told."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What goes into the bundle of a run; more than its folder holds is given by whoever asks."""

    run: Path
    environment: Mapping[str, str]
    plan: str
    """What the run would need and take."""
    logs: tuple[Path, ...] = ()
    """Further logs, of a Slurm job for one."""
    rollouts: bool = False
    """Whether the last step's prompts and responses go with it."""


def gather(asked: Asked, redact: Redaction) -> dict[str, bytes]:
    """What the archive holds, by name; what the run lacks is left out."""
    run, metrics = asked.run, _lines(asked.run / "metrics.jsonl")
    texts = {
        "what_happened.txt": f"{first_failure(run)}\n",
        "plan.txt": asked.plan,
        "environment.txt": "".join(f"{line}\n" for line in _told(asked.environment)),
        "checkpoints.txt": "".join(f"{line}\n" for line in _checkpoints(run / "checkpoints")),
        "last_step.json": _last_step(metrics),
        "metrics.jsonl": "\n".join(metrics[-TAIL_LINES:]),
    }
    texts |= {name: "\n".join(_lines(run / name)) for name in ("spec.yaml", "environment.json")}
    logs = sorted((run / "logs").rglob("*.log"))
    texts |= {str(path.relative_to(run)): _ends(_lines(path)) for path in logs}
    # Named by whoever asks, who may name a link.
    given = {f"logs/given/{number}_{path.name}": path.resolve() for number, path in enumerate(asked.logs)}
    texts |= {name: _ends(_lines(path)) for name, path in given.items()}
    members = {name: _cut(redact(text)).encode() for name, text in texts.items() if text}
    if asked.rollouts:
        kept = sorted(path for path in (run / "rollouts").glob("step_*.parquet") if _is_plain(path))[-1:]
        members |= {str(path.relative_to(run)): path.read_bytes() for path in kept}
    return members


def write(members: Mapping[str, bytes], target: Path) -> None:
    """A compressed archive whose entries belong to nobody."""
    with tarfile.open(target, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"bundle/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _told(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in sorted(environment.items()):
        if name.startswith(TOLD_OF_ENVIRONMENT):
            yield f"{name}={GONE if is_secret(name) else value}"


def _checkpoints(root: Path) -> Iterator[str]:
    """Every file by name and size, and what `latest` says, without the digests."""
    if _is_plain(root / "latest"):
        yield f"latest: {(root / 'latest').read_text(errors='replace').partition(' ')[0]}"
    for folder in folders(root):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield f"{path.relative_to(root)} {path.stat().st_size} bytes"
        if not (folder / "manifest.json").is_file():
            yield f"{folder.name} has no manifest.json"


def _last_step(metrics: list[str]) -> str:
    """The newest that can be read."""
    for line in reversed(metrics):
        with suppress(ValueError):
            if step_of(line):
                return json.dumps(json.loads(line), indent=1)
    return ""


def _is_plain(path: Path) -> bool:
    """A file that is itself there: where a run's folder holds a link, what it leads to is not the run's."""
    return path.is_file() and not path.is_symlink()


def _lines(path: Path) -> list[str]:
    """The lines of a file; of one of gigabytes those at either end that are whole."""
    if not _is_plain(path):
        return []
    with path.open("rb") as stream:
        content = stream.read(READ_BYTES)
        if (size := path.stat().st_size) > 2 * READ_BYTES:
            stream.seek(size - READ_BYTES)
            content = content.rpartition(b"\n")[0] + LEFT_OUT + stream.read(READ_BYTES).partition(b"\n")[2]
        else:
            content += stream.read(READ_BYTES)
    return content.decode("utf-8", errors="replace").splitlines()


def _cut(text: str) -> str:
    """Its lines as long as anyone reads; after redaction, which must see names and their secrets whole."""
    return "\n".join(f"{line[:LINE_CHARACTERS]}…" if len(line) > LINE_CHARACTERS else line for line in text.split("\n"))


def _ends(lines: list[str]) -> str:
    if len(lines) <= HEAD_LINES + TAIL_LINES:
        return "\n".join(lines)
    left_out = len(lines) - HEAD_LINES - TAIL_LINES
    return "\n".join([*lines[:HEAD_LINES], f"… {left_out} lines left out …", *lines[-TAIL_LINES:]])
