"""Two machines on this one: names, networks, processes and Ray of their own, joined by a cable that can be cut."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_rl.cluster.machines import QUIET

NET, PORT, CABLE = "10.77.41", 6399, "cable"
TOKEN = secrets.token_hex(32)
"""Lets in whoever has it, here and on no other Ray."""
LIFE = 'hostname "$0" && mount -t tmpfs ray "$1" && echo on && read -r'
"""Of a machine's first process, with which all others on it end, as it does with whoever switched it on."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Files are shared, but for Ray's folder."""

    name: str
    host: str
    """Its address."""
    first: psutil.Process

    @property
    def enter(self) -> Sequence[str]:
        """What a command begins with to run there."""
        spaces = ["nsenter", "--target", str(self.first.pid), "--net", "--uts", "--pid", "--mount"]
        return [*spaces, "env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={TOKEN}"]

    @property
    def cut(self) -> Sequence[str]:
        """The command that pulls the cable out at this end, from wherever it is given."""
        return ["ip", "-n", self.name, "link", "set", CABLE, "down"]

    def processes(self, word: str) -> list[str]:
        """Those that run there whose command says this."""
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has just ended
                if _world(one) == _world(self.first) and word in (command := " ".join(one.cmdline())):
                    found.append(command)
        return found


def _world(process: psutil.Process) -> str:
    """The world of processes that it is in."""
    return os.readlink(f"/proc/{process.pid}/ns/pid")


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Both with a node of Ray, the first with its head; the test is skipped where they may not be made."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        pytest.skip("machines of one's own need root, iproute2 and util-linux")
    folder = Path(tempfile.mkdtemp(prefix="two-", dir="/tmp"))  # short, as Ray's sockets want it
    names, lives = [f"{end}-{os.getpid()}" for end in ("near", "far")], list[subprocess.Popen[str]]()
    try:
        _join_networks(names)
        lives += [_switched_on(name, folder) for name in names]
        near, far = (
            Machine(name=name, host=f"{NET}.{place}", first=psutil.Process(life.pid).children()[0])
            for place, (name, life) in enumerate(zip(names, lives, strict=True), 1)
        )
        with _rays(near, far, folder):
            yield near, far
    finally:
        for life in lives:
            life.communicate()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        folder.rmdir()


def _join_networks(names: Sequence[str]) -> None:
    for name in names:
        made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"this machine makes no network namespace: {made.stderr.strip()}")
    near, far = names
    _ip("link", "add", CABLE, "netns", near, "type", "veth", "peer", "name", CABLE, "netns", far)
    for place, name in enumerate(names, 1):
        _ip("-n", name, "address", "add", f"{NET}.{place}/24", "dev", CABLE)
        for device in ("lo", CABLE):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "route", "add", "default", "dev", CABLE)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _switched_on(name: str, folder: Path) -> subprocess.Popen[str]:
    apart = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    command = ["ip", "netns", "exec", name, *apart, "bash", "-c", LIFE, name, str(folder)]
    pipe = subprocess.PIPE
    life = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert life.stdout is not None
    if (said := life.stdout.readline()) != "on\n":
        life.communicate()
        pytest.skip(f"this machine makes no namespaces of names, processes and mounts: {said.strip()}")
    return life


@contextmanager
def _rays(near: Machine, far: Machine, folder: Path) -> Iterator[None]:
    """Gives way once both have joined."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
    start += ["--disable-usage-stats", "--include-log-monitor=false", "--object-store-memory=100000000"]
    environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(sys.path)}
    roles = {near: ["--head", f"--port={PORT}", "--include-dashboard=false"], far: [f"--address={near.host}:{PORT}"]}
    running = list[subprocess.Popen[str]]()
    for machine, role in roles.items():
        command = [*machine.enter, *start, *role, f"--node-ip-address={machine.host}"]
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        running.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=both, text=True))
        _await(machine, running[-1])
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()  # what it started ends with its machine


def _await(machine: Machine, ray: subprocess.Popen[str]) -> None:
    """Until it has joined, not only begun: the other would not find it."""
    assert ray.stdout is not None
    said = []
    for line in ray.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            return
    raise AssertionError(f"Ray did not start on {machine.name}: {''.join(said)}")
