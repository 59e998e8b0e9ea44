"""A process of the driver's on another machine: a Ray actor there starts it, and ends it, with a line to the driver.

The line is a TCP connection that the other machine opens to the driver and proves to be the one expected. It says who
has died: whichever end is gone, or its whole machine, the other reads the end of the line.
"""

from __future__ import annotations

import hmac
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from megatron_rl.cluster.machines import Machines

Launch = Callable[[socket.socket], "subprocess.Popen[bytes]"]
"""Starts a process that speaks over this socket."""
End = Callable[["subprocess.Popen[bytes]"], None]
"""Ends it with everything it made, and waits for it."""

TOKEN_BYTES: Final = 32
START_S: Final = 120.0
"""How long a machine may take to start a process and to connect it."""
ANSWER_S: Final = 30.0
"""How long it may take to say how the process is."""
REACH_S: Final = 3.0
"""How long a machine on which a process ends may take to say anything: one that is lost is waited for no longer."""
PROOF_S: Final = 5.0
"""How long whoever connects may take to prove who it is."""
GONE: Final = -int(signal.SIGKILL)
"""The exit status of a process whose machine is gone."""


class MachineLost(RuntimeError):
    """A machine no longer starts processes."""


class Porter:
    """On the other machine. Ray ends it with its driver; the process ends with its line."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, launch: Launch, door: tuple[str, int], token: bytes) -> int:
        """Connects to the driver and starts the process on that line; returns its number."""
        with socket.create_connection(door, START_S) as line:
            line.settimeout(None)
            probe_often(line)
            line.sendall(token)
            self.process = launch(line)
        return self.process.pid

    def poll(self) -> int | None:
        return self._here.poll()

    def wait(self, timeout_s: float) -> int | None:
        """The exit status; None where it has none by then."""
        try:
            return self._here.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self, end: End) -> int:
        end(self._here)
        return self._here.wait()

    @property
    def _here(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "a process is asked for before it was started"
        return self.process


class Distant(NamedTuple):
    """A process on another machine, as `subprocess.Popen` would show it; it is gone where its machine is."""

    porter: ActorHandle
    pid: int

    def poll(self) -> int | None:
        return _asked(self.porter.poll.remote())

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; subprocess.TimeoutExpired where it has none by then."""
        asked = ANSWER_S if timeout is None else timeout
        sign, status_ref = self.porter.poll.remote(), self.porter.wait.remote(asked)
        status = _asked(status_ref, asked + ANSWER_S) if _comes(sign) else GONE
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", asked)
        return status


class Away(NamedTuple):
    """A machine of the cluster that one process of the driver's stands on, one after the other where it dies."""

    machine: str
    porter: ActorHandle

    @classmethod
    def on(cls, machines: Machines, node: int) -> Away:
        there = NodeAffinitySchedulingStrategy(machines.ids[node], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "scheduling_strategy": there}
        return cls(machines.nodes[node].name, ray.remote(Porter).options(**options).remote())

    def start(self, name: str, launch: Launch) -> tuple[Distant, socket.socket]:
        """The process, and the driver's end of its line; MachineLost where the machine starts none."""
        token = secrets.token_bytes(TOKEN_BYTES)
        with socket.create_server((ray.util.get_node_ip_address(), 0)) as door:
            host, port = door.getsockname()[:2]
            started = self.porter.start.remote(launch, (host, port), token)
            line = admitted(door, token, lambda: bool(ray.wait([started], timeout=0)[0]))
        try:
            pid = ray.get(started, timeout=START_S if line else ANSWER_S)
        except RayError as error:
            said = str(error).strip().split("\n")[-1]
            raise MachineLost(f"{name} could not be started; its machine is gone or refuses it: {said}") from None
        if line is None:
            raise MachineLost(f"{name} was started, but its machine does not reach the driver at {host}.")
        probe_often(line)
        return Distant(self.porter, pid), line

    def end(self, process: object, end: End) -> None:
        """Returns when nothing is left of it; a machine that is gone has ended it, or does when it misses its line."""
        assert isinstance(process, Distant), "it was started there"
        sign, ended = self.porter.poll.remote(), self.porter.end.remote(end)
        if _comes(sign):
            _asked(ended)


def admitted(door: socket.socket, token: bytes, is_over: Callable[[], bool]) -> socket.socket | None:
    """The first that comes with the token; None where nobody comes in time, or before it `is_over`."""
    end = time.monotonic() + START_S
    door.settimeout(0.2)
    while time.monotonic() < end:
        over = is_over()
        try:
            line, _ = door.accept()
        except TimeoutError:
            if over:
                break
            continue
        if _proves(line, token):
            line.settimeout(None)
            return line
        line.close()
    return None


def probe_often(line: socket.socket) -> None:
    """A machine that went dark is noticed in half a minute instead of hours."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, option):  # Linux has them all
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _proves(line: socket.socket, token: bytes) -> bool:
    line.settimeout(PROOF_S)
    came = b""
    try:
        while len(came) < len(token) and (data := line.recv(len(token) - len(came))):
            came += data
    except OSError:
        return False
    return hmac.compare_digest(came, token)


def _comes(sign: ray.ObjectRef) -> bool:
    return bool(ray.wait([sign], timeout=REACH_S)[0])


def _asked(ref: ray.ObjectRef, timeout_s: float = ANSWER_S) -> int | None:
    try:
        status: int | None = ray.get(ref, timeout=timeout_s)
    except RayError:
        return GONE
    return status
