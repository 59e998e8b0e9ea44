"""A Slurm cluster of this machine alone: munged, slurmctld and two slurmd with ports of their own, in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("left", "right")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
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
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=3
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
        self._start(["slurmctld", "-D", "-c"])
        for name in NODES:
            (self.folder / f"spool_{name}").mkdir()
            self._start(["slurmd", "-D", "-N", name])
        wait_until(lambda: self.ask("sinfo", "--noheader", "--format=%T %D") == "idle 2", "both nodes to be idle")

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints; where it fails, what it complains of."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return (done.stdout if done.returncode == 0 else done.stderr).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job; a controller that is too busy to answer is asked again."""
        for _ in range(5):
            told = self.ask("scontrol", "show", "job", job)
            if "JobState=" in told:
                return dict(word.split("=", 1) for word in told.split() if "=" in word)
            time.sleep(1.0)
        raise AssertionError(f"Slurm says nothing of job {job}, but {told!r}")

    def start_again(self, job: str, times: int = 1) -> None:
        """Starts a job that was requeued so often, without the two minutes that Slurm would have it wait.

        Those are there for a reason: what is launched in the second in which the job was ended is taken for the job
        that was ended, "Job credential revoked", and is killed. Two seconds are enough.
        """
        wait_until(lambda: self._is(job, "PENDING", times), f"job {job} to be requeued")
        time.sleep(2.0)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
        wait_until(lambda: self._is(job, "RUNNING", times), f"job {job} to start again")

    def _is(self, job: str, state: str, restarts: int) -> bool:
        """Whether it is; fails at once where it no longer can be, with what is known of the job."""
        facts = self.facts(job)
        is_held = facts["JobState"] == "PENDING" and facts["Priority"] == "0"
        is_over = facts["JobState"] in OVER and (state not in OVER or facts["JobState"] != state)
        assert not is_held, f"job {job} is held; {self.told(job)}"
        assert not is_over, f"job {job} should be {state}; {self.told(job)}"
        return facts["JobState"] == state and int(facts["Restarts"]) >= restarts

    def end(self, job: str) -> None:
        """Returns when the job is completed."""
        wait_until(lambda: self._is(job, "COMPLETED", 0), f"job {job}", 240.0)

    def told(self, job: str) -> str:
        """Everything that explains where a job stands."""
        folder = Path(self.facts(job)["WorkDir"])
        logs = [*sorted(folder.glob("*.log")), *sorted((folder / "runs/jobs").rglob("*.log"))]
        logs += [self.folder / "slurmctld.log", *sorted(self.folder.glob("slurmd_*.log"))]
        ends = (f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)
        return "\n".join([self.ask("scontrol", "show", "job", job), *ends])

    def hosts(self, job: str, title: str) -> set[str]:
        """The nodes on which processes of this title stand; what starts them knows its node."""
        own = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_JOB_ID": job}
        titled = {process.info["ppid"] for process in _listed() if title in " ".join(process.info["cmdline"] or ())}
        return {process.environ()["SLURMD_NODENAME"] for process in _living(own) if process.pid in titled}

    def kill(self, job: str, title: str) -> None:
        """SIGKILL to the process of a job whose command is so titled, as a system that is out of memory sends it."""
        own = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_JOB_ID": job}
        wanted = [one for one in _living(own) if title in " ".join(one.info["cmdline"] or ())]
        assert wanted, self.left_of(job)
        min(wanted, key=lambda one: one.create_time()).kill()

    def left_of(self, job: str) -> list[str]:
        """The commands of the processes that a job started and that still are."""
        own = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURM_JOB_ID": job}
        return [" ".join(process.info["cmdline"] or ()) for process in _living(own)]

    def close(self) -> None:
        self.ask("scancel", "--user=root")
        with suppress(AssertionError):
            wait_until(lambda: self.ask("squeue", "--noheader") == "", "the queue to empty", 30.0)
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stray in _living({"SLURM_CONF": self.environment["SLURM_CONF"]}):
            with suppress(psutil.Error):
                stray.kill()

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


def _living(variables: Mapping[str, str]) -> list[psutil.Process]:
    """The processes that were started with these variables, those that have ended aside."""
    found = []
    for process in _listed():
        with suppress(psutil.Error):
            is_own = process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE
            if is_own and variables.items() <= process.environ().items():
                found.append(process)
    return found


def _listed() -> Iterator[psutil.Process]:
    """Every process with facts that outlast it."""
    return psutil.process_iter(["cmdline", "ppid", "status"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
