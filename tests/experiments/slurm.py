"""A Slurm of one node on this machine: controller, node daemon and munge, as root."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
LIMIT = 60  # seconds; for what should take a few

# A requeued job starts when the credentials of its last start have run out.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be set up here; None: one can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons want to be started by root"
    return None


class Slurm:
    """The daemons, in a folder; a context manager."""

    def __init__(self, folder: Path, /):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        # A job of another Slurm may be what runs the tests.
        outer = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.environment = outer | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        }

    def __enter__(self) -> "Slurm":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _begin(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().partition(".")[0],
            controller=_free_port(),
            node=_free_port(),
        )
        (self.folder / "slurm.conf").write_text(text)
        files = {
            f"--{name}-file={self.folder}/munge.{name}"
            for name in ("key", "pid", "log", "seed")
        }
        socket_path = f"--socket={self.folder}/munge.socket"
        self._start("munged", "--foreground", "--force", socket_path, *sorted(files))
        wait_until((self.folder / "munge.socket").exists, self.logs)
        self._start("slurmctld", "-D", "-i")
        self._start("slurmd", "-D", "-N", "localhost")
        wait_until(
            lambda: "idle" in self.ask("sinfo", "--noheader", "-o", "%t"), self.logs
        )

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("w") as output:
            self._daemons.append(
                subprocess.Popen(
                    words,
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def ask(self, *words: str, **more: str) -> str:
        """The output of a command of Slurm's, whatever it says."""
        return subprocess.run(
            words,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        ).stdout

    def job(self, number: str, /) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.ask("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(
            f"== {file.name}\n{file.read_text(errors='replace')[-1500:]}"
            for file in files
        )


def wait_until(happened, words, *, seconds: float = LIMIT) -> None:
    """Returns once something has happened; else fails with some words."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, words()
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
