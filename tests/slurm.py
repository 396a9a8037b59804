"""A SLURM on this machine, for the tests: one node, with ports, files and a key of its own; nothing is left of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=engrams
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=2
MessageTimeout=4
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
SECONDS_TO_START = 60


def why_not() -> str:
    """Returns why there can be no SLURM here; empty if there can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found; Debian's packages slurm-wlm and munge have them"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started as root"


class Slurm:
    """A cluster that lasts as long as the block."""

    def __init__(self, folder: Path, cores: int = 2):
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        controller_port, node_port = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=folder, host=host, controller_port=controller_port, node_port=node_port, cores=cores
            )
        )
        self.environment = {"SLURM_CONF": str(self.configuration)}
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Slurm:
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / file}" for option, file in files.items()]
        try:
            self._start("munged", "--foreground", "--force", *options, f"--log-file={self.folder / 'munge.log'}")
            _wait((self.folder / "munge.socket").exists, "munged does not start")
            self.start_controller()
            self._start("slurmd", "-D")
            _wait(lambda: "idle" in self.tell("sinfo", "--noheader", "--format=%t"), "the node does not come up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self.daemons:  # what a job has started is ended by SLURM alone
            self.tell("scancel", "--user=root", check=False)
            with suppress(AssertionError):
                _wait(lambda: not self.tell("squeue", "--noheader", check=False), "jobs go on")
        for name in ("slurmd", "slurmctld", "munged"):
            if daemon := self.daemons.pop(name, None):
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [str(shutil.which(name)), *arguments],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_controller(self) -> None:
        self._start("slurmctld", "-D")
        _wait(lambda: "UP" in self.tell("scontrol", "ping", check=False), "the controller does not come up")

    def stop_controller(self) -> None:
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait()

    def tell(self, *command: str, check: bool = True) -> str:
        """Runs one of SLURM's commands and returns what it says."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        assert not (check and done.returncode), f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout


def _wait(until: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not until():
        assert time.monotonic() < deadline, problem
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
