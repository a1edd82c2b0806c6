"""A real SLURM of two nodes for the tests: slurm/local, with the commands that they use wrapped."""

import importlib.util
import os
import subprocess
import time
from pathlib import Path
from signal import SIGKILL

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "local" / "cluster.py"
_spec = importlib.util.spec_from_file_location("slurm_local", SCRIPT)
local = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local)

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"}


class Cluster:
    """A running cluster. Jobs are named as SLURM prints them: "7", of an array "7_2"."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.conf = local.start(folder)

    def run(self, *command, cwd=None, text=None, timeout=120):
        """What one of SLURM's commands prints; RuntimeError with its complaint when it fails."""
        done = subprocess.run(
            [*map(str, command)], cwd=cwd or self.folder, input=text, env=local.environment(self.folder),
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def sbatch(self, script, *options, wait=None, cwd=None):
        """Submit a script, by its path or as text that starts with #!; returns the job's id.

        The job's working folder, where its slurm-ID.out appears, is `cwd` or the cluster's folder. With `wait`
        (seconds) it has ended, well or not, when this returns.
        """
        text = str(script) if str(script).startswith("#!") else None
        job = self.run("sbatch", "--parsable", *options, *([] if text else [script]), cwd=cwd, text=text)
        if wait:
            self.wait(job, ENDED, wait)
        return job

    def scontrol(self, *words):
        """What scontrol prints."""
        return self.run("scontrol", *words)

    def job(self, job):
        """What SLURM knows of a job: Restarts, ExitCode, StdOut and the rest, as text by name."""
        words = self.scontrol("-o", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job):
        """PENDING, RUNNING, COMPLETING, COMPLETED, ..."""
        return self.job(job)["JobState"]

    def output(self, job):
        """What the job has printed so far; after a requeue only its last run, without --open-mode=append."""
        file = Path(self.job(job)["StdOut"])
        return file.read_text() if file.exists() else ""

    def wait(self, job, states, timeout=60):
        """Wait until the job is in one of the states, which it returns; TimeoutError with what SLURM says of it."""
        states = {states} if isinstance(states, str) else set(states)
        self.until(lambda: self.state(job) in states, timeout, lambda: f"{sorted(states)}: {self.job(job)}")
        return self.state(job)

    def until(self, condition, timeout=60, what=lambda: "that"):
        """Wait until the condition holds; TimeoutError otherwise."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s in vain for {what()}")
            time.sleep(0.2)

    def kill_node(self, name):
        """Kill a node's daemon. To SLURM the node is lost; its processes go on, as behind a broken network."""
        os.kill(local.daemons(self.folder)[name], SIGKILL)

    def start_node(self, name):
        """Start a killed node's daemon again: SLURM then ends what had gone on there."""
        local.start_node(self.folder, name)

    def wait_idle(self, timeout=60):
        """Wait until both nodes are up and no job runs."""
        local.wait_idle(self.folder, timeout)

    def stop(self):
        """End the cluster and its jobs."""
        local.stop(self.folder)


@pytest.fixture(scope="session", name="cluster")
def start_cluster(tmp_path_factory):
    """One cluster for all tests; skipped where SLURM is not installed or the tests do not run as root."""
    if reason := local.unfit():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
