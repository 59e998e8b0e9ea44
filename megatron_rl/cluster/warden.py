"""Ends what is left of a Ray of one's own once its driver is gone, however the driver went, and removes its folder.

`python -m megatron_rl.cluster.warden FD FOLDER`: the process reads FD, whose other end the driver holds, to its end.
Ray's processes end by themselves when their driver does, but two of them take a minute to notice that it was killed,
and nobody removes their folder. Whatever still has a file of the folder open is one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from megatron_rl.interpreter import command, search_path

LONGEST: Final = 40
"""Characters of a folder for Ray's sockets, whose paths may have 107."""
GRACE_S: Final = 3.0
"""How long they may take to end by themselves."""
MOST_S: Final = 20.0
"""How long they are looked for; a process that the system does not let go is left to it."""
LOOK_S: Final = 0.2


class Warden:
    """The driver's end. Its `folder` is a new one for Ray alone."""

    def __init__(self) -> None:
        root = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="mrl-", dir=root if len(root) <= LONGEST else "/tmp"))
        theirs, self._ours = os.pipe()
        self._process = subprocess.Popen(
            command(__name__, str(theirs), str(self.folder)),
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # whoever reads the driver's output need not wait for this process
            start_new_session=True,  # it outlives Ctrl-C, and a kill of the driver's process group
            env=os.environ | search_path(),
        )
        os.close(theirs)

    def remove_also(self, prefix: Path) -> None:
        """Files whose paths begin so go with the folder."""
        self._say(f"remove {prefix}")

    def keep_folder(self) -> None:
        """Its logs are wanted."""
        self._say("keep")

    def close(self) -> None:
        """Returns when all is gone."""
        os.close(self._ours)
        self._process.wait()

    def _say(self, line: str) -> None:
        with suppress(BrokenPipeError):  # a warden that was killed removes nothing
            os.write(self._ours, line.encode() + b"\n")


def main(descriptor: int, folder: Path) -> None:
    driver = os.getppid()
    with os.fdopen(descriptor) as line:
        said = line.read().splitlines()
    end(folder, spared=driver)
    for prefix in (Path(words.removeprefix("remove ")) for words in said if words.startswith("remove ")):
        for path in prefix.parent.glob(f"{prefix.name}*"):
            path.unlink(missing_ok=True)
    if "keep" not in said:
        shutil.rmtree(folder, ignore_errors=True)


def end(folder: Path, spared: int, grace_s: float = GRACE_S) -> None:
    """Returns when no other process uses the folder; those that do not end by themselves are killed."""
    began = time.monotonic()
    while (found := users(folder, spared)) and time.monotonic() - began < MOST_S:
        if time.monotonic() - began > grace_s:
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
        psutil.wait_procs(found, timeout=LOOK_S)


def users(folder: Path, spared: int) -> list[psutil.Process]:
    """Processes of this user that were started with this folder, or have a file in it open; the driver is spared."""
    others = (one for one in psutil.process_iter() if one.pid not in (os.getpid(), spared))
    return [one for one in others if _uses(one, os.getuid(), str(folder))]


def _uses(process: psutil.Process, user: int, folder: str) -> bool:
    with suppress(psutil.Error, OSError):
        return process.uids().real == user and (_leads(process.cmdline(), folder) or _leads(_open(process), folder))
    return False


def _open(process: psutil.Process) -> Iterable[str]:
    return (file.path for file in process.open_files())


def _leads(paths: Iterable[str], folder: str) -> bool:
    return any(folder in path for path in paths)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
