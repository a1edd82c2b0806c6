"""A real SLURM of two nodes on this one machine, to try the cluster chapters without a cluster.

    python slurm/local/cluster.py start FOLDER      bring it up and print the line that names it
    python slurm/local/cluster.py status FOLDER     show its nodes and jobs
    python slurm/local/cluster.py stop FOLDER       end it and all its jobs

Everything lives in FOLDER: configuration, key, sockets, logs, state and four device files that stand in for
GPUs. Nothing in /etc is read or written, so clusters in several folders run side by side. Needs root.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM

INSTALL = "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # the daemons are there, off many users' PATH
NODES = ("n1", "n2")
TEMPLATE = Path(__file__).with_name("slurm.conf")


def unfit():
    """Why this machine cannot run a cluster, in one line that says what to do; "" when it can."""
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=PATH)]:
        return f"{', '.join(missing)} not found: {INSTALL}"
    return "" if os.geteuid() == 0 else "not root: SLURM's daemons start here only with sudo"


def start(folder):
    """Bring up a cluster in `folder`; returns its slurm.conf once both nodes are idle.

    Raises ValueError where it cannot run, RuntimeError with the logs' last lines where it does not come up.
    """
    folder = Path(folder).resolve()
    if reason := unfit():
        raise ValueError(reason)
    if re.search(r"[^\w./+-]", str(folder)) or len(str(folder)) > 80:  # the path of a socket ends at 107 bytes
        raise ValueError(f"{folder}: choose a folder with a path of at most 80 letters, digits and ./+-_")
    if daemons(folder):
        raise ValueError(f"a cluster is running in {folder}: stop it first")
    for name in ("run", "log", "state", "gpu", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for gpu in (folder / "gpu" / f"gpu{i}" for i in range(4)):
        if not gpu.exists():  # a second /dev/null: SLURM wants a device, and jobs may open it
            os.mknod(gpu, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    conf, key, host = folder / "slurm.conf", folder / "munge.key", socket.gethostname().split(".")[0]
    conf.write_text(TEMPLATE.read_text().format(host=host, folder=folder, ports=free_ports(3)))
    (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/gpu/gpu[0-3]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"key-file": "munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid"}
    files |= {"seed-file": "run/seed", "log-file": "log/munged.log"}
    try:
        # --force: munged else refuses a folder inside one where everybody may write, such as /tmp.
        launch(folder, "munged", "--force", *(f"--{option}={folder / file}" for option, file in files.items()))
        launch(folder, "slurmctld", "-c", "-f", conf)  # -c: forget the jobs of an earlier start
        for node in NODES:
            start_node(folder, node)
        wait_idle(folder)
    except RuntimeError as error:
        stop(folder)
        ends = [f"{log.name}: {line}" for log in folder.glob("log/*.log") for line in log.read_text().splitlines()[-8:]]
        raise RuntimeError("\n".join([str(error), *ends])) from None
    return conf


def start_node(folder, name):
    """Start the daemon of one node, "n1" or "n2"."""
    launch(folder, "slurmd", "-N", name, "-f", Path(folder).resolve() / "slurm.conf")


def stop(folder):
    """End the cluster in `folder`: its daemons, then every process of its jobs. Ending nothing is fine.

    Raises RuntimeError when a process is left after 20 seconds.
    """
    signal(SIGTERM, daemons(folder).values())
    asked = time.monotonic()
    # Jobs outlive their slurmd by design, and one killed a moment too late has started another process.
    while left := {*daemons(folder).values(), *slurm_processes(folder)}:
        waited = time.monotonic() - asked
        if waited > 20:
            raise RuntimeError(f"processes that do not end: {left}")
        if waited > 10 or not daemons(folder):
            signal(SIGKILL, left)
        time.sleep(0.05)


def wait_idle(folder, timeout=30):
    """Wait until both nodes are idle; RuntimeError after `timeout` seconds."""
    deadline, wanted, states = time.monotonic() + timeout, [f"{node}=idle" for node in NODES], []
    while states != wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"nodes not idle after {timeout} s: {' '.join(states) or 'no answer from slurmctld'}")
        time.sleep(0.1)
        command = ["sinfo", "-h", "-N", "-p", "debug", "-o", "%N=%T"]
        states = subprocess.run(command, env=environment(folder), capture_output=True, text=True).stdout.split()


def daemons(folder):
    """The pids of the running daemons by name: of a stale pid file the process is another's, or gone."""
    folder = Path(folder).resolve()
    pids = {file.stem: int(read(file) or 0) for file in folder.glob("run/*.pid")}
    return {name: pid for name, pid in pids.items() if f"{folder}/" in read(f"/proc/{pid}/cmdline")}


def slurm_processes(folder):
    """The pids of SLURM's programs, which work in the log folder, of all that their jobs started, and of clients.

    Jobs and clients are told by their environment, as a job's process may leave its process tree. A shell where a
    reader exported SLURM_CONF is none of them: it carries no node's name.
    """
    folder = Path(folder).resolve()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, words = read(process / "comm").strip(), read(process / "environ").split("\0")
            own = name.startswith("slurm") and (process / "cwd").readlink() == folder / "log"
            job = name in ("srun", "salloc", "sbatch") or any(word.startswith("SLURMD_NODENAME=") for word in words)
            if own or (job and f"SLURM_CONF={folder}/slurm.conf" in words):
                yield int(process.name)


def launch(folder, program, *options):
    """Run a program that returns once its daemon is in the background."""
    with (Path(folder) / "log" / "start.log").open("a") as out:  # a pipe would stay open as long as the daemon
        command = [shutil.which(program, path=PATH), *map(str, options)]
        code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(folder))
    if code:
        raise RuntimeError(f"{program} ended with code {code}")


def environment(folder):
    """What points SLURM's commands at this cluster; nothing of a job that this process may run in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    return kept | {"SLURM_CONF": f"{Path(folder).resolve()}/slurm.conf"}


def free_ports(count):
    """Ports where nobody listens, below those that Linux gives to outgoing connections."""
    ports = set()
    while len(ports) < count:
        port = random.randrange(17000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                ports.add(port)
    return list(ports)


def read(file):
    """The text of a file, "" when it is gone: processes end while one looks."""
    with contextlib.suppress(OSError):
        return Path(file).read_text(errors="replace")
    return ""


def signal(number, pids):
    """Send a signal to processes, of which some may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["start", "status", "stop"])
    parser.add_argument("folder", type=Path)
    verb, folder = vars(parser.parse_args()).values()
    try:
        if verb == "start":
            print(f"export SLURM_CONF={start(folder)}")
        elif verb == "stop":
            stop(folder)
        elif daemons(folder):
            for command in ("sinfo", "squeue"):
                subprocess.run([command, "-l"], env=environment(folder))
        else:
            raise ValueError(f"no cluster is running in {folder}")
    except (ValueError, RuntimeError) as error:
        parser.exit(2 if isinstance(error, ValueError) else 1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
