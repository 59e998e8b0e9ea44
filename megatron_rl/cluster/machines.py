"""Ray, started on this machine for this run alone or joined where it runs already, and left without a trace."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from megatron_rl.cluster.member import opens
from megatron_rl.cluster.placement import Node
from megatron_rl.cluster.warden import Warden
from megatron_rl.reshard.layout import LayoutError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers about every run
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # it would put ranks behind whatever else wants a processor
    "RAY_task_events_report_interval_ms": "0",  # it would remember every call of a rank, and grow with each step
}
"""How Ray is started where a run starts it."""


CONTROL = "gcs_server"
"""What Ray calls the process without which it ends."""
LET_GO_S = 10.0
"""How long a cluster may still be held by a job that has ended."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines of a run, the driver's first; `ids` are Ray's names for them, `doors` where Ray listens there."""

    nodes: tuple[Node, ...]
    ids: tuple[str, ...]
    doors: tuple[tuple[str, int], ...]
    warden: Warden | None = None
    """Of a Ray that this process started."""
    control: int | None = None
    """Ray's control process, where it is this process's own child. Ray ends a driver a minute after it, unasked."""

    def close(self) -> None:
        """Leaves Ray; a Ray that this process started ends with everything it started, and leaves no file."""
        ray.shutdown()
        if self.warden is not None:
            self.warden.close()

    def loss(self) -> str:
        """That Ray's control process died, and of what; nothing while it lives, or where it is not the run's own."""
        if self.control is None or not (end := end_of(self.control)):
            return ""
        return f"Ray's control process ({CONTROL}, process {self.control}) {end}; its logs are in {self.keep_logs()}"

    def remove_also(self, prefix: Path) -> None:
        """Files of this machine that go with the run, also where the driver is killed, if Ray is the run's own."""
        if self.warden is not None:
            self.warden.remove_also(prefix)

    def keep_logs(self) -> str:
        """What Ray itself wrote stays; says where."""
        if self.warden is None:
            return "the folder of the cluster that was joined"
        self.warden.keep_folder()
        return str(self.warden.folder)


def open_machines(address: str, expected: int = 0, timeout_s: float = 120.0) -> Machines:
    """Joins the Ray cluster at the address, or starts one on this machine; LayoutError where it is in use.

    The nodes of an allocation join one after the other: `expected` machines are waited for.
    """
    os.environ.update(QUIET)
    _await_head(address, timeout_s)
    warden = None if address else Warden()
    with _own_signals():
        if warden is None:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        else:
            own = {"include_dashboard": False, "_temp_dir": str(warden.folder)}
            ray.init(address="local", log_to_driver=False, logging_level="error", **own)
    machines, end = _found(warden), time.monotonic() + (timeout_s if address else 0.0)
    while len(machines.nodes) < expected and time.monotonic() < end:
        time.sleep(0.2)
        machines = _found(warden)
    try:
        _check_there(machines, expected, timeout_s)
        _check_free(address, LET_GO_S)
    except LayoutError:
        machines.close()
        raise
    return machines


def _await_head(address: str, timeout_s: float) -> None:
    """Returns when somebody listens at the address; Ray itself would ask there for ever."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return  # none, or one that Ray looks up
    end = time.monotonic() + timeout_s
    while not opens((host.strip("[]"), int(port))):
        if time.monotonic() > end:
            raise LayoutError(
                f"nobody listens at cluster.address '{address}', which was tried for {timeout_s:g} s; start Ray "
                "there by `ray start --head`, or see whether this machine reaches it."
            )
        time.sleep(0.2)


def end_of(child: int) -> str:
    """How this child of this process ended; nothing while it has not."""
    try:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "died"
    if ended is None:
        return ""
    is_signal = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
    return f"died of {signal.Signals(ended.si_status).name}" if is_signal else f"ended with {ended.si_status}"


def _control() -> int | None:
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if child.name() == CONTROL:
                return child.pid
    return None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Signals stay the driver's: what is started inherits a mask against Ctrl-C, and Ray's handlers do not outlast."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, on_term)


def _found(warden: Warden | None) -> Machines:
    """The driver's own machine first, then by name, so that the same allocation gives the same placement."""
    own = ray.get_runtime_context().get_node_id()
    alive = [entry for entry in ray.nodes() if entry["Alive"]]
    alive.sort(key=lambda entry: (entry["NodeID"] != own, entry["NodeManagerHostname"], entry["NodeManagerAddress"]))
    nodes = tuple(
        Node(
            name=entry["NodeManagerHostname"],
            gpus=int(entry["Resources"].get("GPU", 0)),
            cpus=int(entry["Resources"].get("CPU", 0)),
        )
        for entry in alive
    )
    doors = tuple((entry["NodeManagerAddress"], int(entry["NodeManagerPort"])) for entry in alive)
    ids, control = tuple(entry["NodeID"] for entry in alive), _control() if warden else None
    return Machines(nodes=nodes, ids=ids, doors=doors, warden=warden, control=control)


def _check_there(machines: Machines, expected: int, timeout_s: float) -> None:
    if (found := len(machines.nodes)) < expected:
        names = ", ".join(node.name for node in machines.nodes)
        raise LayoutError(
            f"cluster.machines is {expected}, but after {timeout_s:g} s {found} had joined ({names}); see the logs of "
            "the others, and whether the nodes can reach one another."
        )


def _check_free(address: str, patience_s: float) -> None:
    """What a job that has just ended held takes Ray a moment to let go."""
    end = time.monotonic() + patience_s
    while any((held := _held()).values()) and time.monotonic() < end:
        time.sleep(0.2)
    for what, count in held.items():
        if count:
            raise LayoutError(
                f"another job holds {count:g} of the {ray.cluster_resources()[what]:g} {what}s of the Ray cluster at "
                f"'{address}'; a run needs its machines for itself, so wait for the job or give cluster.address "
                "another cluster."
            )


def _held() -> dict[str, float]:
    total, free = ray.cluster_resources(), ray.available_resources()
    return {what: max(0.0, total.get(what, 0) - free.get(what, 0)) for what in ("GPU", "CPU")}
