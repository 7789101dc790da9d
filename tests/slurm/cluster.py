"""A real two-node Slurm, with accounting, on this one machine.

`python -m tests.slurm.cluster` brings it up, says how to use it, and takes it down at Ctrl-C. The
tests use `running_cluster`. It takes root, and Debian's packages:

    apt-get install slurm-wlm slurmdbd munge mariadb-server

All that it writes is in one folder, its daemons listen on free ports of their own, and it stops
what it started by process id; so it disturbs no Slurm that the machine may have. Only /etc/hosts
gets a line meanwhile, which torch needs to find the nodes by their names.

The second node sees an empty folder where the first sees `private`: a disk that is not shared.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import environment_variables

PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
NODES = ("n1", "n2")
GPUS = 8  # a node, that are none: Slurm counts them

_COMMANDS = (
    "sbatch",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "munged",
    "mariadbd",
    "mariadb-install-db",
)
_HOSTS = Path("/etc/hosts")
_SECONDS = 60.0


@dataclass(frozen=True)
class Cluster:
    """Attributes:
    folder: of all its files.
    private: what the first node, and this machine, see there, the second does not.
    """

    folder: Path

    @property
    def configuration(self) -> Path:
        """For SLURM_CONF, by which Slurm's commands find this cluster."""
        return self.folder / "slurm.conf"

    @property
    def private(self) -> Path:
        return self.folder / "private"


def missing() -> str:
    """Why no cluster can be brought up here, and what to do; empty if one can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in _COMMANDS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install -y {PACKAGES}"
    if os.geteuid() != 0:
        return "Slurm's daemons need root: run this as root, for example in a container"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "the second node needs a mount namespace (unshare --mount), which is refused here"
    return ""


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Brings a cluster up in `folder`, with SLURM_CONF set to it, and takes it down.

    Raises:
        OSError: a daemon did not come up; its log is in the message.
    """
    cluster = Cluster(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_path_with_sbin())
        stack.enter_context(_names_of_nodes())
        _write_files(cluster)
        stack.enter_context(environment_variables(SLURM_CONF=str(cluster.configuration)))
        _start(stack, cluster)
        _wait("two idle nodes", lambda: "2 idle" in _run("sinfo", "-h", "-o", "%D %T"))
        try:
            yield cluster
        finally:  # jobs first, so that none outlives its node's daemon
            jobs = _run("squeue", "-h", "-o", "%A").split()
            _run("scancel", "--full", "--quiet", *jobs, check=False)
            _wait("an empty queue", lambda: not _run("squeue", "-h").strip())


def _start(stack: contextlib.ExitStack, cluster: Cluster) -> None:
    folder = cluster.folder

    def daemon(*command: str, ready: Callable[[], bool]) -> None:
        log = folder / f"{Path(command[0]).name}{len(list(folder.glob('*.out')))}.out"
        with log.open("wb") as output:
            process = subprocess.Popen(
                # So that none outlives this process, however it ends.
                ("setpriv", "--pdeathsig", "TERM", *command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        stack.callback(_end, process)

        def is_ready() -> bool:
            if process.poll() is not None:
                raise OSError(f"{' '.join(command)} ended:\n{log.read_text(errors='replace')}")
            return ready()

        _wait(command[0], is_ready)

    munge = folder / "munge"
    daemon(
        "munged", "--foreground", "--force", f"--socket={munge / 'socket'}",
        f"--key-file={munge / 'key'}", f"--pid-file={munge / 'pid'}",
        f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}",
        ready=(munge / "socket").exists,
    )  # fmt: skip
    data, database = folder / "mariadb", folder / "mariadb.socket"
    _run(
        "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    )  # fmt: skip
    daemon(
        "mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", f"--socket={database}",
        f"--pid-file={folder / 'mariadb.pid'}", "--bind-address=127.0.0.1",
        f"--port={_ports(cluster)['mariadb']}", "--innodb-buffer-pool-size=64M",
        ready=database.exists,
    )  # fmt: skip
    password = (folder / "password").read_text()
    _run(
        "mariadb", "--no-defaults", f"--socket={database}", "--user=root",
        text=f"create user slurm@'127.0.0.1' identified by '{password}';"
        "grant all on slurm_acct_db.* to slurm@'127.0.0.1';",
    )  # fmt: skip
    daemon("slurmdbd", "-D", ready=lambda: _listens(_ports(cluster)["slurmdbd"]))
    _run("sacctmgr", "-i", "add", "cluster", "test")
    _run("sacctmgr", "-i", "add", "account", "vision")
    _run("sacctmgr", "-i", "add", "qos", "high")
    daemon("slurmctld", "-D", ready=lambda: _listens(_ports(cluster)["slurmctld"]))
    daemon("slurmd", "-D", "-N", NODES[0], ready=lambda: _listens(_ports(cluster)[NODES[0]]))
    hide = f"mount -t tmpfs none {cluster.private} && exec slurmd -D -N {NODES[1]}"
    daemon(
        "unshare", "--mount", "sh", "-c", hide, ready=lambda: _listens(_ports(cluster)[NODES[1]])
    )


def _write_files(cluster: Cluster) -> None:
    folder = cluster.folder
    for name in ("munge", "mariadb", "state", "spool-n1", "spool-n2", "private"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    names = ("mariadb", "slurmdbd", "slurmctld", *NODES)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    (folder / "ports").write_text("".join(f"{name} {port}\n" for name, port in ports.items()))
    password = secrets.token_hex(16)
    _write_secret(folder / "password", password)
    host = socket.gethostname()
    munge = f"socket={folder / 'munge' / 'socket'}"
    _write_secret(
        folder / "slurmdbd.conf",
        textwrap.dedent(f"""\
        AuthType=auth/munge
        AuthInfo={munge}
        DbdHost={host}
        DbdAddr=127.0.0.1
        DbdPort={ports["slurmdbd"]}
        SlurmUser=root
        PidFile={folder}/slurmdbd.pid
        LogFile={folder}/slurmdbd.log
        StorageType=accounting_storage/mysql
        StorageHost=127.0.0.1
        StoragePort={ports["mariadb"]}
        StorageUser=slurm
        StoragePass={password}
        StorageLoc=slurm_acct_db
        """),
    )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[name]} CPUs=128 "
        f"RealMemory=1100000 Feature=h100 Gres=gpu:{GPUS}"
        for name in NODES
    )
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    gpus = f"{folder}/gpu[0-{GPUS - 1}]"
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={gpus}\n")
    cluster.configuration.write_text(
        textwrap.dedent(f"""\
        ClusterName=test
        SlurmctldHost={host}(127.0.0.1)
        SlurmctldPort={ports["slurmctld"]}
        SlurmUser=root
        AuthType=auth/munge
        AuthInfo={munge}
        CredType=cred/munge
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/slurmd-%n.pid
        SlurmctldLogFile={folder}/slurmctld.log
        SlurmdLogFile={folder}/slurmd-%n.log
        StateSaveLocation={folder}/state
        FirstJobId={secrets.randbelow(10**6) + 1000}
        SlurmdSpoolDir={folder}/spool-%n
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core
        SlurmdParameters=config_overrides
        GresTypes=gpu
        ReturnToService=2
        SchedulerParameters=batch_sched_delay=0
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
        JobAcctGatherType=jobacct_gather/linux
        AccountingStorageType=accounting_storage/slurmdbd
        AccountingStorageHost=127.0.0.1
        AccountingStoragePort={ports["slurmdbd"]}
        AccountingStoragePass={folder}/munge/socket
        MailProg=/bin/true
        """)
        + nodes
        + "\nPartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1\n"
        + "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2\n"
    )


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _ports(cluster: Cluster) -> dict[str, int]:
    lines = (cluster.folder / "ports").read_text().splitlines()
    return {name: int(port) for name, port in (line.split() for line in lines)}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(what: str, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise OSError(f"{what}: not there within {_SECONDS:g} s")
        time.sleep(0.1)


def _run(*command: str, text: str | None = None, check: bool = True) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _path_with_sbin() -> Iterator[None]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{before}:/usr/sbin:/sbin"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def _names_of_nodes() -> Iterator[None]:
    line = f"127.0.0.1 {' '.join(NODES)}  # hnpretrain's test cluster {os.getpid()}\n"
    _edit_hosts(lambda lines: [*lines, line])
    try:
        yield
    finally:
        _edit_hosts(lambda lines: [each for each in lines if each != line])


def _edit_hosts(edit: Callable[[list[str]], list[str]]) -> None:
    """In place, since in containers the file is a mount; another cluster may do so, too."""
    with _HOSTS.open("r+") as hosts:
        fcntl.flock(hosts, fcntl.LOCK_EX)
        lines = edit(hosts.readlines())
        hosts.seek(0)
        hosts.truncate()
        hosts.writelines(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help starts nothing
    why = missing()
    if why:
        sys.exit(f"error: {why}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        running_cluster(Path(folder)) as it,
    ):
        print(f"export SLURM_CONF={it.configuration}", flush=True)
        print("two nodes, n1 and n2; Ctrl-C takes them down", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.pause()


if __name__ == "__main__":
    main()
