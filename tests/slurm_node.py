"""A real single-node Slurm for the tests, which leaves nothing behind after its end.

It needs root and Debian's ``slurm-wlm`` and ``munge``, which are installed if apt-get is available. The
node has sixteen pretended CPUs and two pretended GPUs, enforces limits of memory and time, and has no
accounting. The configuration has to lie in /etc/slurm, because Snakemake's plugin hides SLURM_* variables
from its jobs; the configuration of another Slurm is left alone.

``python tests/slurm_node.py`` runs a node until Ctrl-C, to try the profile by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from debian import install

CONFIG, GRES = Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf")
MARK = "# augbench's tests made this file and remove it when they end"
PACKAGES = ("slurm-wlm", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM_CONF = """{mark}
ClusterName=augbench
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# a requeued job waits until its credential has expired, which takes two minutes by default
AuthInfo=cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
# memory is counted once a second, and a job that takes more than it asked for is killed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
KillWait=2
# a node that says nothing for ten seconds has failed, and takes jobs again when it is back
SlurmdTimeout=10
ReturnToService=2
MinJobAge=3600
# jobs of one partition push others back into the queue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# more of all than the machine has: here jobs that use GPUs wait for those
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={name} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000000 Gres=gpu:toy:2 State=UNKNOWN
PartitionName=everyone Nodes=ALL Default=YES MaxTime=1440 State=UP
PartitionName=gpus Nodes=ALL MaxTime=1440 State=UP
PartitionName=urgent Nodes=ALL MaxTime=1440 State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Install Slurm if possible; return None, or the reason why no node can be started here."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if CONFIG.exists() and MARK not in CONFIG.read_text():
        return f"{CONFIG} is that of another Slurm"
    if all(map(shutil.which, DAEMONS)):
        return None
    return install(*PACKAGES)


def wait_until(reached: Callable[[], bool], what: str, seconds: float) -> None:
    """Poll until ``reached`` is true.

    Raises
    ------
    TimeoutError
        It was not true after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Return TCP ports that no process listens on."""
    opened = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in opened]
    for server in opened:
        server.close()
    return ports


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm sees it.

    Attributes
    ----------
    number : str
        Slurm's id.
    state : str
        For example RUNNING, COMPLETED, TIMEOUT.
    what : str
        Rule and wildcards, as the plugin writes them.
    partition, memory, limit, cpus, gpus : str
        Resources that it requested, in Slurm's notation; ``gpus`` is empty without a request.
    restarts : int
        Number of times it was requeued.
    """

    number: str
    state: str
    what: str
    partition: str
    memory: str
    limit: str
    cpus: str
    gpus: str
    restarts: int

    @classmethod
    def read(cls, line: str) -> SlurmJob:
        """Parse a line of ``scontrol --oneliner show jobs``."""
        said = dict(re.findall(r"(\S+?)=(\S+)", line))
        return cls(
            said["JobId"],
            said["JobState"],
            said["Comment"],
            said["Partition"],
            said["MinMemoryNode"],
            said["TimeLimit"],
            said["CPUs/Task"],
            said.get("TresPerJob", ""),
            int(said["Restarts"]),
        )


class SlurmNode:
    """Munge, controller and node daemon; ``with SlurmNode() as node`` starts them and always stops them."""

    def __init__(self) -> None:
        self.name = socket.gethostname().partition(".")[0]
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-node-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmNode:
        try:
            self._write_config()
            if not self._munge_answers():
                self._prepare_munge()
                self._begin("munged", "--foreground", user="munge")
                wait_until(self._munge_answers, "munge answers", 30)
            self._begin("slurmctld", "-D")
            self.start_node()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_node(self) -> None:
        """Start the node's daemon; return when jobs can run."""
        self._begin("slurmd", "-D")
        wait_until(
            lambda: (
                self._ask("sinfo", "-h", "-p", "everyone", "-o", "%T").strip()
                in ("idle", "mixed", "allocated")
            ),
            "the node is up",
            60,
        )

    def fail_node(self) -> None:
        """Simulate a power cut: kill the daemon and all its processes at once, unknown to the controller."""
        daemon = self._daemons.pop("slurmd")
        daemon.kill()
        daemon.wait()
        for process in Path("/proc").glob("[0-9]*"):
            if "slurmstepd" in _command(process):  # parent of a step's processes
                _kill_family(int(process.name))

    def hold_queue(self, held: bool = True) -> None:
        """Start no jobs while ``held``."""
        self._ask("scontrol", "update", "PartitionName=everyone", f"State={'DOWN' if held else 'UP'}")

    def jobs(self) -> list[SlurmJob]:
        """List all jobs since the start, in the order of submission."""
        lines = [
            line
            for line in self._ask("scontrol", "--oneliner", "show", "jobs").splitlines()
            if line.startswith("JobId=")
        ]
        return sorted(map(SlurmJob.read, lines), key=lambda job: int(job.number))

    def submit_urgent(self) -> None:
        """Submit a job of one second for the whole node with top priority: it pre-empts all others."""
        self._ask(
            "sbatch",
            "--partition=urgent",
            "--comment=urgent",
            "--cpus-per-task=16",
            "--mem=200",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )

    def cancel(self, number: str) -> None:
        """Cancel a job (``scancel``)."""
        self._ask("scancel", number)

    def shorten(self, number: str) -> None:
        """Set a job's time limit to one minute; a job that has run longer ends at once."""
        self._ask("scontrol", "update", f"JobId={number}", "TimeLimit=1")

    def stop(self) -> None:
        """End all jobs and daemons, and remove the configuration."""
        if "slurmctld" in self._daemons:
            for job in self.jobs():
                if job.state in ("RUNNING", "PENDING"):
                    subprocess.run(["scancel", "--full", "--signal=KILL", job.number], capture_output=True)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        CONFIG.unlink(missing_ok=True)
        GRES.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- how ---

    def _write_config(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        controller_port, node_port = free_ports(2)
        GRES.write_text(f"{MARK}\nName=gpu Type=toy File=/dev/null,/dev/zero\n")
        CONFIG.write_text(
            SLURM_CONF.format(
                mark=MARK,
                name=self.name,
                folder=self.folder,
                controller_port=controller_port,
                node_port=node_port,
            )
        )

    def _begin(self, name: str, *arguments: str, user: str | None = None) -> None:
        with (self.folder / f"{name}.out").open("w") as out:
            self._daemons[name] = subprocess.Popen(
                [f"/usr/sbin/{name}", *arguments],
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @staticmethod
    def _munge_answers() -> bool:
        return subprocess.run("munge --no-input | unmunge", shell=True, capture_output=True).returncode == 0

    @staticmethod
    def _prepare_munge() -> None:
        folder = Path("/run/munge")
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        shutil.chown(folder, "munge", "munge")

    @staticmethod
    def _ask(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def _kill_family(pid: int) -> None:
    """Kill (-9) a process and its descendants, parents first, so that none sees another end."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return
    for child in children:
        _kill_family(int(child))


def main() -> None:
    """Run a node until Ctrl-C."""
    if reason := missing():
        raise SystemExit(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with SlurmNode() as node:
        print(f"{node.name} is up; Ctrl-C ends it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    main()
