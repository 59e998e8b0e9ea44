"""A Slurm cluster of this machine alone: munged, slurmctld and two slurmd with ports of their own, in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("left", "right")
_PATH = f"{os.environ['PATH']}:/usr/sbin"

_CONFIG = """\
ClusterName=laptop
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    return [name for name in NEEDED if shutil.which(name, path=_PATH) is None]


@dataclass(kw_only=True)
class Slurm:
    """A running cluster; `close` ends it."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def start(self) -> None:
        (self.folder / "state").mkdir(parents=True)
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        (self.folder / "slurm.conf").write_text(
            _CONFIG.format(folder=self.folder, controller=ports[0], nodes="\n".join(nodes), names=",".join(NODES))
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # Folders for tests may be open to others; --force says that this is known.
        munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munge += [f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log"]
        munge += [f"--seed-file={self.folder}/munge.seed"]
        self._start(munge)
        wait_until((self.folder / "munge.socket").exists, "munged")
        self._start(["slurmctld", "-D", "-i"])
        for name in NODES:
            (self.folder / f"spool_{name}").mkdir()
            self._start(["slurmd", "-D", "-N", name])
        wait_until(lambda: self.ask("sinfo", "--noheader", "--format=%T %D") == "idle 2", "both nodes to be idle")

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints; where it fails, what it complains of."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return (done.stdout if done.returncode == 0 else done.stderr).strip()

    def state(self, job: str) -> str:
        """'RUNNING', 'COMPLETED', ..."""
        return self.facts(job)["JobState"]

    def facts(self, job: str) -> dict[str, str]:
        told = self.ask("scontrol", "show", "job", job)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def start_again(self, job: str) -> None:
        """Starts a requeued job without the two minutes that Slurm would have it wait."""

        def is_started() -> bool:
            self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            return self.facts(job)["Restarts"] != "0" and self.state(job) == "RUNNING"

        wait_until(is_started, f"job {job} to start again")

    def close(self) -> None:
        self.ask("scancel", "--user=root", "--full", "--signal=KILL")
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, command: list[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
